/** How a stream is written to: whether it is a terminal, its width, and whether colours are wanted. */
export interface Screen {
  readonly isTerminal: boolean;
  /** Characters a line; Infinity when it is no terminal, where nothing is cut. */
  readonly columns: number;
  readonly colours: boolean;
  write(text: string): void;
}

/** The screen of a stream. Colours only on a terminal, and not with NO_COLOR (no-color.org) or TERM=dumb. */
export function screenOf(stream: NodeJS.WriteStream, environment: NodeJS.ProcessEnv): Screen {
  const isTerminal = stream.isTTY === true;
  return {
    isTerminal,
    get columns() {
      return isTerminal ? stream.columns || 80 : Number.POSITIVE_INFINITY;
    },
    colours: isTerminal && !environment["NO_COLOR"] && environment["TERM"] !== "dumb",
    write: (text) => {
      stream.write(text);
    },
  };
}

const codes = { red: 31, green: 32, yellow: 33, blue: 34, magenta: 35, cyan: 36, dim: 2, bold: 1 } as const;
export type Style = keyof typeof codes;

/** The text in that style, or as it is on a screen without colours. */
export function styled(screen: Screen, style: Style | undefined, text: string): string {
  return screen.colours && style !== undefined ? `\u001b[${codes[style]}m${text}\u001b[0m` : text;
}

const prefixStyles: readonly Style[] = ["cyan", "yellow", "green", "magenta", "blue", "red"];

/** A style for a name, always the same one: tells the lines of several tasks apart. */
export function styleFor(name: string): Style {
  let sum = 0;
  for (const character of name) sum = (sum * 31 + (character.codePointAt(0) ?? 0)) >>> 0;
  return prefixStyles[sum % prefixStyles.length] ?? "cyan";
}

// What would move the cursor or end the line when somebody else's text is printed.
const control = /\p{Cc}/gu;

/** The text on one line, without control characters. */
export function oneLine(text: string): string {
  return text
    .replace(/[\r\n\t]+/g, " ")
    .replace(control, "")
    .trim();
}
