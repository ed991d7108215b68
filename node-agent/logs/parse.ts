/** One record of a log in Kubernetes' format: "<RFC 3339 time> stdout|stderr F|P <text>". */
export interface LogRecord {
  /** Microseconds since 1970. */
  readonly timeUs: number;
  readonly stderr: boolean;
  /** The line goes on in the stream's next record. */
  readonly partial: boolean;
  readonly text: Buffer;
}

/** Parses one record without its newline; undefined when it is none. */
export function parseRecord(line: Buffer): LogRecord | undefined {
  const timeEnd = line.indexOf(0x20);
  // "stdout" and "stderr" are equally long.
  const streamEnd = timeEnd + 7;
  if (timeEnd < 20 || line[streamEnd] !== 0x20 || line[streamEnd + 2] !== 0x20) return undefined;
  const stream = line.toString("latin1", timeEnd + 1, streamEnd);
  const tag = line[streamEnd + 1];
  const timeUs = parseTimeUs(line.toString("latin1", 0, timeEnd));
  if ((stream !== "stdout" && stream !== "stderr") || (tag !== 0x46 && tag !== 0x50) || timeUs === undefined) {
    return undefined;
  }
  return { timeUs, stderr: stream === "stderr", partial: tag === 0x50, text: line.subarray(streamEnd + 3) };
}

const timeRule = /^(\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?(Z|[+-]\d{2}:\d{2})$/;

function parseTimeUs(text: string): number | undefined {
  const [, seconds, fraction = "", zone] = timeRule.exec(text) ?? [];
  if (seconds === undefined) return undefined;
  const ms = Date.parse(`${seconds}${zone}`);
  return Number.isNaN(ms) ? undefined : ms * 1_000 + Number(fraction.padEnd(6, "0").slice(0, 6));
}

/** A line of a task's output, or a piece of one that is longer than a chunk. */
export interface LogLine {
  /** Of its first record. */
  readonly timeUs: number;
  readonly stderr: boolean;
  readonly text: Buffer;
  /** It goes on in the stream's next line. */
  readonly partial: boolean;
}

/** Longest piece of a line. */
export const maxLineBytes = 64 * 1024;

interface Open {
  readonly timeUs: number;
  readonly parts: Buffer[];
  bytes: number;
}

/** Puts records together to lines, each stream by itself. */
export class LineJoiner {
  readonly #open = new Map<boolean, Open>();

  /** Are both streams between lines? */
  get isEmpty(): boolean {
    return this.#open.size === 0;
  }

  /** The lines that this record completes, or fills up to the longest piece. */
  push({ timeUs, stderr, partial, text }: LogRecord): LogLine[] {
    const known = this.#open.get(stderr);
    if (known === undefined && !partial && text.length <= maxLineBytes)
      return [{ timeUs, stderr, text, partial: false }];
    const open = known ?? { timeUs, parts: [], bytes: 0 };
    // What is kept outlives the buffer that it was read into.
    open.parts.push(Buffer.from(text));
    open.bytes += text.length;
    if (partial && open.bytes <= maxLineBytes) {
      this.#open.set(stderr, open);
      return [];
    }
    const lines: LogLine[] = [];
    let rest = Buffer.concat(open.parts);
    while (rest.length > maxLineBytes) {
      lines.push({ timeUs: open.timeUs, stderr, text: rest.subarray(0, maxLineBytes), partial: true });
      rest = rest.subarray(maxLineBytes);
    }
    if (partial) this.#open.set(stderr, { timeUs: open.timeUs, parts: [rest], bytes: rest.length });
    else {
      this.#open.delete(stderr);
      lines.push({ timeUs: open.timeUs, stderr, text: rest, partial: false });
    }
    return lines;
  }

  /** What never got its end: the log ended, or its next record is in a file that is gone. */
  flush(): LogLine[] {
    const lines = [...this.#open].map(([stderr, { timeUs, parts }]) => ({
      timeUs,
      stderr,
      text: Buffer.concat(parts),
      partial: false,
    }));
    this.#open.clear();
    return lines;
  }
}
