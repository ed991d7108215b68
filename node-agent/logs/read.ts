import { type FSWatcher, watch } from "node:fs";
import { type FileHandle, open, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { isErrno } from "../../lib/errors/errors.ts";
import { logFiles } from "./files.ts";
import { LineJoiner, type LogLine, parseRecord } from "./parse.ts";

/** A place in a log that another reading can begin at. Files are known by how they begin: names move on with each rotation. */
export interface LogPlace {
  /** How the file begins, at most `beginningBytes`; empty: the oldest file there is. */
  readonly file: string;
  /** Of a record of that file. */
  readonly offset: number;
  /** How many lines from there on are not wanted. */
  readonly skip: number;
}

/** Where a reading begins. */
export interface LogStart extends LogPlace {
  /** How many lines of the tail there are from here on; 0 when another place was asked for. */
  readonly lines: number;
  /** The place that was asked for is in no file any more: lines may be missing, or come twice. */
  readonly lost: boolean;
}

/** A line, and the place behind it. */
export interface PlacedLine extends LogLine {
  readonly next: LogPlace;
}

export interface ReadOptions {
  /** Of the file that is written now. */
  readonly path: string;
  /** Lines from the end; -1: all. */
  readonly tail: number;
  /** Records before it are left out; microseconds since 1970. */
  readonly sinceUs: number;
  /** From there, whatever the tail; the rest of the options as they were. */
  readonly from?: LogPlace | undefined;
  /** Goes on with what is written, until this signal says that nothing more will be written, and to its end. undefined: ends with what is there. */
  readonly follow: AbortSignal | undefined;
  readonly signal: AbortSignal;
  /** Called once, before the first line. */
  readonly onStart?: (start: LogStart) => Promise<void>;
}

const blockBytes = 64 * 1024;
const newline = 0x0a;
/** A record begins with a time of 35 characters, to the nanosecond: no two files of a log begin alike. */
const beginningBytes = 35;

/**
 * The lines of a log, oldest first, across rotated files; as many at once as a block of the file has, never none. Ends early when the
 * signal is aborted.
 */
export async function* readLog(options: ReadOptions): AsyncGenerator<PlacedLine[]> {
  const joiner = new LineJoiner();
  const { sinceUs } = options;
  // Lines of the two streams are put together side by side, so a reading can begin anew only where both are between lines.
  let next: LogPlace = { file: "", offset: 0, skip: 0 };
  let unwanted = 0;
  const onStart = async (start: LogStart) => {
    unwanted = start.skip;
    await options.onStart?.(start);
  };
  const started = { ...options, onStart };
  for await (const block of options.follow === undefined ? blocks(started) : follow(started, options.follow)) {
    const { file } = block;
    const ready: PlacedLine[] = [];
    for (const placed of block.records) {
      const record = parseRecord(placed.data);
      if (record === undefined || record.timeUs < sinceUs) continue;
      if (joiner.isEmpty) next = { file, offset: placed.start, skip: 0 };
      const lines = joiner.push(record);
      for (let n = 0; n < lines.length; n++) {
        const isLast = n === lines.length - 1 && joiner.isEmpty;
        next = isLast ? { file, offset: placed.end, skip: 0 } : { ...next, skip: next.skip + 1 };
        if (unwanted > 0) unwanted--;
        else ready.push(placedAt(lines[n] as LogLine, next));
      }
    }
    if (ready.length > 0) yield ready;
  }
  if (options.signal.aborted) return;
  const ready: PlacedLine[] = [];
  for (const line of joiner.flush()) {
    next = { ...next, skip: next.skip + 1 };
    if (unwanted > 0) unwanted--;
    else ready.push(placedAt(line, next));
  }
  if (ready.length > 0) yield ready;
}

const placedAt = ({ timeUs, stderr, text, partial }: LogLine, next: LogPlace): PlacedLine => ({
  timeUs,
  stderr,
  text,
  partial,
  next,
});

/** A file that is being read. */
interface Position {
  readonly file: FileHandle;
  readonly inode: number;
  readonly splitter: Splitter;
  /** How it begins; empty while it is empty. */
  beginning: string;
  offset: number;
}

interface Opened {
  /** Oldest first. */
  readonly positions: Position[];
  readonly start: LogStart;
}

/** Opens the files to read, each where the reading begins. The caller closes them. */
async function openAll({ path, tail, from }: Pick<ReadOptions, "path" | "tail" | "from">): Promise<Opened> {
  const positions: Position[] = [];
  const seen = new Set<number>();
  const isEverything = from !== undefined || tail < 0;
  let missing = isEverything ? Number.POSITIVE_INFINITY : tail;
  let found = from === undefined || from.file === "";
  // Newest first: a rotation in between shows one file under two names, and leaves none out.
  for (const name of (await logFiles(path)).reverse()) {
    const file = await openFile(name);
    if (file === undefined) continue;
    const { ino, size } = await file.stat();
    if (seen.has(ino)) {
      await file.close();
      continue;
    }
    seen.add(ino);
    const beginning = await beginningOf(file);
    const isThere = from !== undefined && from.file !== "" && beginning.startsWith(from.file);
    const tailed = isEverything ? undefined : await tailStart(file, size, missing);
    const offset = isThere ? from.offset : (tailed?.offset ?? 0);
    positions.push({ file, inode: ino, splitter: new Splitter(offset), beginning, offset });
    found ||= isThere;
    if (isThere) break;
    missing -= tailed?.lines ?? 0;
    // An empty one says nothing of where it begins: the one before it does.
    if (missing <= 0 && beginning !== "") break;
  }
  positions.reverse();
  const first = positions.find(({ beginning }) => beginning !== "");
  const lines = isEverything ? 0 : tail - Math.max(0, missing);
  const skip = found ? (from?.skip ?? 0) : 0;
  return { positions, start: { file: first?.beginning ?? "", offset: first?.offset ?? 0, skip, lines, lost: !found } };
}

async function beginningOf(file: FileHandle): Promise<string> {
  const { buffer, bytesRead } = await file.read(Buffer.alloc(beginningBytes), 0, beginningBytes, 0);
  return buffer.toString("latin1", 0, bytesRead);
}

async function openFile(path: string): Promise<FileHandle | undefined> {
  try {
    return await open(path, "r");
  } catch (error) {
    if (isErrno(error, "ENOENT")) return undefined;
    throw error;
  }
}

/** Where the last `wanted` complete lines of a file begin, and how many there are from there on. */
export async function tailStart(
  file: FileHandle,
  size: number,
  wanted: number,
): Promise<{ readonly offset: number; readonly lines: number }> {
  let lines = 0;
  let end = size;
  // The record behind the newline that was found last begins here.
  let next = size;
  let rest = Buffer.alloc(0);
  while (end > 0) {
    const start = Math.max(0, end - blockBytes);
    const block = Buffer.alloc(end - start);
    await file.read(block, 0, block.length, start);
    const data = Buffer.concat([block, rest]);
    for (let at = block.length - 1; at >= 0; at--) {
      if (data[at] !== newline) continue;
      if (isFullRecord(data.subarray(at + 1, next - start))) {
        if (lines === wanted) return { offset: next, lines };
        lines++;
      }
      next = start + at + 1;
    }
    rest = data.subarray(0, Math.max(0, next - start));
    end = start;
  }
  if (isFullRecord(rest)) {
    if (lines === wanted) return { offset: next, lines };
    lines++;
  }
  return { offset: 0, lines };
}

function isFullRecord(line: Buffer): boolean {
  const end = line.indexOf(newline);
  return parseRecord(end < 0 ? line : line.subarray(0, end))?.partial === false;
}

/** A record without its newline, and where it lies. */
interface Placed {
  readonly data: Buffer;
  readonly start: number;
  readonly end: number;
}

/** What one read of a file brought. */
interface Block {
  readonly file: string;
  readonly records: readonly Placed[];
}

/** Splits what is read of a file into records; keeps an unfinished one for the next block. */
class Splitter {
  #rest: Buffer = Buffer.alloc(0);
  #offset: number;

  /** Of the first byte that will be pushed. */
  constructor(offset: number) {
    this.#offset = offset;
  }

  push(block: Buffer): Placed[] {
    const records: Placed[] = [];
    const data = this.#rest.length === 0 ? block : Buffer.concat([this.#rest, block]);
    const base = this.#offset;
    let start = 0;
    for (let end = data.indexOf(newline); end >= 0; end = data.indexOf(newline, start)) {
      records.push({ data: data.subarray(start, end), start: base + start, end: base + end + 1 });
      start = end + 1;
    }
    this.#rest = data.subarray(start);
    this.#offset = base + start;
    return records;
  }
}

/** Reads on from the position to the present end. */
async function* drain(position: Position, signal: AbortSignal): AsyncGenerator<Block> {
  while (!signal.aborted) {
    // A new buffer each time: the lines given out before are parts of the old one.
    const buffer = Buffer.allocUnsafe(blockBytes);
    const { bytesRead } = await position.file.read(buffer, 0, blockBytes, position.offset);
    if (bytesRead === 0) return;
    position.offset += bytesRead;
    if (position.beginning.length < beginningBytes) position.beginning = await beginningOf(position.file);
    const records = position.splitter.push(buffer.subarray(0, bytesRead));
    yield { file: position.beginning, records };
  }
}

async function* blocks(options: ReadOptions): AsyncGenerator<Block> {
  const { positions, start } = await openAll(options);
  try {
    await options.onStart?.(start);
    for (const position of positions) yield* drain(position, options.signal);
  } finally {
    await Promise.all(positions.map(({ file }) => file.close()));
  }
}

async function* follow(options: ReadOptions, ended: AbortSignal): AsyncGenerator<Block> {
  const { path, signal } = options;
  const changes = new Changes(path, ended, signal);
  const { positions, start } = await openAll(options);
  try {
    await options.onStart?.(start);
    for (let done = false; !done && !signal.aborted; ) {
      // Before reading: what is written from now on is another change.
      done = changes.take();
      const current = positions.at(-1);
      for (const position of positions) yield* drain(position, signal);
      const inode = await stat(path).then(
        ({ ino }) => ino,
        () => undefined,
      );
      if (inode !== undefined && inode !== current?.inode) {
        // Rotated: the writer has left the old file for the new one. What came last into the old one first.
        for (const position of positions) yield* drain(position, signal);
        const file = await openFile(path);
        if (file === undefined) continue;
        await Promise.all(positions.splice(0).map((position) => position.file.close()));
        const { ino } = await file.stat();
        positions.push({ file, inode: ino, splitter: new Splitter(0), beginning: "", offset: 0 });
        changes.watchFile();
        done = false;
      } else if (!done) await changes.next();
    }
  } finally {
    changes[Symbol.dispose]();
    await Promise.all(positions.map(({ file }) => file.close()));
  }
}

/** Tells that a log may have changed: by inotify on its file, and on its directory for the file that comes after a rotation. */
class Changes implements Disposable {
  readonly #path: string;
  readonly #signal: AbortSignal;
  readonly #directory: FSWatcher;
  #file: FSWatcher | undefined;
  readonly #ended: AbortSignal;
  #wake = Promise.withResolvers<void>();
  readonly #changed = () => this.#wake.resolve();

  constructor(path: string, ended: AbortSignal, signal: AbortSignal) {
    this.#path = path;
    this.#signal = signal;
    this.#ended = ended;
    const name = path.slice(dirname(path).length + 1);
    // Only names: the directory's events of other logs being written are many and cheap, and wake nobody.
    this.#directory = watch(dirname(path), (event, changed) => {
      if (event === "rename" && changed === name) this.#changed();
    });
    this.#directory.on("error", this.#changed);
    signal.addEventListener("abort", this.#changed, { once: true });
    ended.addEventListener("abort", this.#changed, { once: true });
    this.watchFile();
  }

  /** Watches the file that is at the path now. */
  watchFile(): void {
    this.#file?.close();
    this.#file = undefined;
    try {
      this.#file = watch(this.#path, this.#changed);
      this.#file.on("error", this.#changed);
    } catch (error) {
      if (!isErrno(error, "ENOENT")) throw error;
    }
  }

  /** Waits for a change since the last `take`. */
  async next(): Promise<void> {
    if (this.#file === undefined) {
      this.watchFile();
      if (this.#file !== undefined) return;
    }
    await this.#wake.promise;
  }

  /** Forgets what changed so far; true: nothing more will come. */
  take(): boolean {
    this.#wake = Promise.withResolvers<void>();
    return this.#ended.aborted;
  }

  [Symbol.dispose](): void {
    this.#signal.removeEventListener("abort", this.#changed);
    this.#ended.removeEventListener("abort", this.#changed);
    this.#directory.close();
    this.#file?.close();
  }
}
