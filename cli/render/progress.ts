import { oneLine, type Screen } from "./style.ts";
import { ellipsis } from "./table.ts";

/**
 * Lines that tell how work goes. On a terminal they are redrawn in place; elsewhere each line is printed once when it
 * changes, so that a log stays readable.
 */
export class Progress {
  readonly #screen: Screen;
  #drawn = 0;
  #printed = new Map<string, string>();

  constructor(screen: Screen) {
    this.#screen = screen;
  }

  /** Shows these lines, by key. */
  show(lines: ReadonlyMap<string, string>): void {
    if (this.#screen.isTerminal) {
      const most = this.#screen.columns - 1;
      const text = [...lines.values()].map((line) => `\u001b[2K${ellipsis(oneLine(line), most)}\n`).join("");
      this.#screen.write(this.#back() + text + this.#clearBelow(lines.size));
      this.#drawn = lines.size;
      return;
    }
    for (const [key, line] of lines) {
      if (this.#printed.get(key) === line) continue;
      this.#printed.set(key, line);
      this.#screen.write(`${oneLine(line)}\n`);
    }
  }

  /** Leaves what is drawn and starts anew below it. */
  done(): void {
    this.#drawn = 0;
  }

  #back(): string {
    return this.#drawn > 0 ? `\u001b[${this.#drawn}A` : "";
  }

  #clearBelow(now: number): string {
    return this.#drawn > now ? "\u001b[J" : "";
  }
}
