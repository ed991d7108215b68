import { cpus, totalmem } from "node:os";

/** The middle value; of an even number of values the mean of the two in the middle. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2;
}

/** Three significant digits: figures of a noisy machine carry no more. */
export function format(value: number): string {
  if (!Number.isFinite(value)) return "-";
  return value >= 1_000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
}

/** "2 cores, 24 GiB": what figures stand beside. */
export function machine(): string {
  return `${cpus().length} cores, ${Math.round(totalmem() / 2 ** 30)} GiB, ${cpus()[0]?.model ?? "unknown processor"}`;
}

/** Prints a Markdown table: what, median, every run, and the ratio to a peer's or a baseline's value when there is one. */
export class Figures {
  readonly #against: string;

  constructor(unit: string, against = "") {
    this.#against = against;
    console.log(
      `| what | median${unit === "" ? "" : ` ${unit}`} | runs |${against === "" ? "" : ` ${against} | ratio |`}`,
    );
    console.log(`|---|---|---|${against === "" ? "" : "---|---|"}`);
  }

  row(what: string, runs: readonly number[], peer?: number): void {
    const middle = median(runs);
    const compared = peer === undefined ? " | |" : ` ${format(peer)} | ${format(middle / peer)} |`;
    const line = `| ${what} | ${format(middle)} | ${runs.map(format).join(" ")} |`;
    console.log(this.#against === "" ? line : line + compared);
  }
}
