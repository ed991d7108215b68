import { writeSync } from "node:fs";

const keptBytesMost = 256 * 1024;
const retryMs = 200;

/**
 * Writes log lines to a file descriptor, at once. What cannot be written (a full disk, a reader that is slow or gone) never ends
 * the program: up to 256 KiB of whole lines are kept and written when there is room again, followed by one line that says how
 * many came after them and are lost.
 */
export class LogWriter {
  readonly #fd: number;
  #kept: Buffer[] = [];
  #keptBytes = 0;
  #lost = 0;
  #retry: NodeJS.Timeout | undefined;

  constructor(fd: number) {
    this.#fd = fd;
  }

  write(text: string): void {
    this.#keep(text);
    // While it fails, not with each line.
    if (this.#retry === undefined) this.flush();
  }

  /** Writes what is kept, as far as there is room. */
  flush(): void {
    clearTimeout(this.#retry);
    this.#retry = undefined;
    let rest = Buffer.concat(this.#kept);
    try {
      while (rest.length > 0) rest = rest.subarray(writeSync(this.#fd, rest));
    } catch {
      this.#retry = setTimeout(() => this.flush(), retryMs).unref();
    }
    this.#kept = rest.length === 0 ? [] : [rest];
    this.#keptBytes = rest.length;
    if (this.#lost > 0 && this.#retry === undefined) {
      const told = { level: "warn", time: new Date().toISOString(), lines: this.#lost };
      this.#lost = 0;
      this.write(`${JSON.stringify({ ...told, message: "lines lost: the log could not be written" })}\n`);
    }
  }

  #keep(text: string): void {
    const line = Buffer.from(text);
    if (this.#keptBytes + line.length > keptBytesMost && this.#kept.length > 0) this.#lost++;
    else {
      this.#kept.push(line);
      this.#keptBytes += line.length;
    }
  }
}
