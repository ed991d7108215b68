import { oneLine, type Screen, type Style, styled } from "./style.ts";

/** A column of a table. */
export interface Column<Row> {
  readonly title: string;
  readonly value: (row: Row) => string;
  readonly style?: (row: Row) => Style | undefined;
  /** Gives way first when the table is too wide: cut down to this many characters. Default: never cut. */
  readonly shrinkTo?: number;
  /** As many characters as it needs to be of use, whatever it may shrink to. Default: all. */
  readonly wish?: number;
  /**
   * Left out, the lowest number first, while a screen is too narrow for what the columns wish. Default: never, unless it is
   * empty in all rows: such go before all others.
   */
  readonly drop?: number;
  readonly align?: "left" | "right";
}

const gap = 2;

/**
 * Renders rows below a line of titles. Fits the screen: columns that may shrink are cut with an ellipsis, the widest
 * first, and no line ever wraps. Those that may be left out are before that.
 */
export function table<Row>(screen: Screen, all: readonly Column<Row>[], rows: readonly Row[]): string {
  const columns = dropped(screen, all, rows);
  const cells = rows.map((row) => columns.map((column) => oneLine(column.value(row))));
  const widths = columns.map((column, index) =>
    Math.max(column.title.length, ...cells.map((line) => width(line[index] ?? ""))),
  );
  shrink(widths, columns, screen.columns);
  const line = (texts: readonly string[], style: (index: number) => Style | undefined) => {
    const padded = texts.map((text, index) => {
      const cut = ellipsis(text, widths[index] ?? 0);
      const space = " ".repeat(Math.max(0, (widths[index] ?? 0) - width(cut)));
      const painted = styled(screen, style(index), cut);
      if (columns[index]?.align === "right") return space + painted;
      return index === texts.length - 1 ? painted : painted + space;
    });
    return padded.join(" ".repeat(gap)).trimEnd();
  };
  const titles = line(
    columns.map(({ title }) => title),
    () => "bold",
  );
  const body = rows.map((row, n) => line(cells[n] ?? [], (index) => columns[index]?.style?.(row)));
  return `${[titles, ...body].map((text) => clip(screen, text)).join("\n")}\n`;
}

/** The columns that are shown. */
function dropped<Row>(screen: Screen, all: readonly Column<Row>[], rows: readonly Row[]): readonly Column<Row>[] {
  const wishes = new Map(
    all.map((column) => {
      const widest = Math.max(column.title.length, ...rows.map((row) => width(oneLine(column.value(row)))));
      return [column, Math.min(widest, Math.max(column.wish ?? widest, column.title.length))];
    }),
  );
  const isEmpty = ({ value }: Column<Row>) => rows.length > 0 && rows.every((row) => oneLine(value(row)) === "");
  const rank = (column: Column<Row>) => (isEmpty(column) ? -1 : (column.drop ?? Number.POSITIVE_INFINITY));
  const order = all.filter((column) => Number.isFinite(rank(column))).toSorted((a, b) => rank(a) - rank(b));
  const total = () => [...wishes.values()].reduce((sum, wish) => sum + wish + gap, -gap);
  for (const column of order) if (total() > screen.columns) wishes.delete(column);
  return all.filter((column) => wishes.has(column));
}

function shrink<Row>(widths: number[], columns: readonly Column<Row>[], available: number): void {
  const total = () => widths.reduce((sum, w) => sum + w, 0) + gap * (widths.length - 1);
  while (total() > available) {
    let widest = -1;
    for (const [index, column] of columns.entries()) {
      const least = Math.max(column.shrinkTo ?? Number.POSITIVE_INFINITY, 1);
      if ((widths[index] ?? 0) > least && (widest < 0 || (widths[index] ?? 0) > (widths[widest] ?? 0))) widest = index;
    }
    if (widest < 0) return;
    widths[widest] = (widths[widest] ?? 0) - 1;
  }
}

/** Characters as a reader counts them. */
function width(text: string): number {
  return Array.from(text).length;
}

/** The text, cut to that many characters with an ellipsis as the last one. */
export function ellipsis(text: string, most: number): string {
  const characters = Array.from(text);
  if (characters.length <= most) return text;
  return most <= 0 ? "" : `${characters.slice(0, most - 1).join("")}…`;
}

const colour = new RegExp(`(${String.fromCharCode(27)}\\[\\d+m)`);

/** Last resort for a table that does not fit even when shrunk; colours do not count as characters. */
function clip(screen: Screen, text: string): string {
  const parts = text.split(colour);
  const whole = parts.reduce((sum, part) => sum + (colour.test(part) ? 0 : width(part)), 0);
  if (whole <= screen.columns) return text;
  let left = screen.columns;
  const kept = parts.map((part) => {
    if (colour.test(part)) return part;
    // What is beyond the edge ends in nothing, and the part on it in the ellipsis.
    const shown = left > 0 && width(part) >= left ? ellipsis(`${part} `, left) : left > 0 ? part : "";
    left -= width(part);
    return shown;
  });
  return kept.join("");
}
