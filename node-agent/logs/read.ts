import { type FSWatcher, watch } from "node:fs";
import { type FileHandle, open, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { isErrno } from "../../lib/errors/errors.ts";
import { logFiles } from "./files.ts";
import { LineJoiner, type LogLine, parseRecord } from "./parse.ts";

export interface ReadOptions {
  /** Of the file that is written now. */
  readonly path: string;
  /** Lines from the end; -1: all. */
  readonly tail: number;
  /** Records before it are left out; microseconds since 1970. */
  readonly sinceUs: number;
  /** Goes on with what is written, until this signal says that nothing more will be written, and to its end. undefined: ends with what is there. */
  readonly follow: AbortSignal | undefined;
  readonly signal: AbortSignal;
}

const blockBytes = 64 * 1024;
const newline = 0x0a;

/** The lines of a log, oldest first, across rotated files. Ends early when the signal is aborted. */
export async function* readLog(options: ReadOptions): AsyncGenerator<LogLine> {
  const joiner = new LineJoiner();
  const { sinceUs } = options;
  for await (const line of options.follow === undefined ? records(options) : follow(options, options.follow)) {
    const record = parseRecord(line);
    if (record !== undefined && record.timeUs >= sinceUs) yield* joiner.push(record);
  }
  if (!options.signal.aborted) yield* joiner.flush();
}

interface Position {
  readonly file: FileHandle;
  readonly inode: number;
  offset: number;
}

/** Opens every file there is, oldest first, at the place where the last `tail` lines begin. The caller closes them. */
async function openTail(path: string, tail: number): Promise<Position[]> {
  const positions: Position[] = [];
  const seen = new Set<number>();
  let missing = tail < 0 ? Number.POSITIVE_INFINITY : tail;
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
    const { offset, lines } = Number.isFinite(missing) ? await tailStart(file, size, missing) : { offset: 0, lines: 0 };
    positions.push({ file, inode: ino, offset });
    missing -= lines;
    if (missing <= 0) break;
  }
  return positions.reverse();
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

/** Splits what is read into records; keeps an unfinished one for the next block. */
class Splitter {
  #rest: Buffer = Buffer.alloc(0);

  *push(block: Buffer): Generator<Buffer> {
    const data = this.#rest.length === 0 ? block : Buffer.concat([this.#rest, block]);
    let start = 0;
    for (let end = data.indexOf(newline); end >= 0; end = data.indexOf(newline, start)) {
      yield data.subarray(start, end);
      start = end + 1;
    }
    this.#rest = data.subarray(start);
  }
}

/** Reads on from the position to the present end. */
async function* drain(position: Position, splitter: Splitter, signal: AbortSignal): AsyncGenerator<Buffer> {
  while (!signal.aborted) {
    // A new buffer each time: the lines given out before are parts of the old one.
    const buffer = Buffer.allocUnsafe(blockBytes);
    const { bytesRead } = await position.file.read(buffer, 0, blockBytes, position.offset);
    if (bytesRead === 0) return;
    position.offset += bytesRead;
    yield* splitter.push(buffer.subarray(0, bytesRead));
  }
}

async function* records({ path, tail, signal }: ReadOptions): AsyncGenerator<Buffer> {
  const positions = await openTail(path, tail);
  try {
    const splitter = new Splitter();
    for (const position of positions) yield* drain(position, splitter, signal);
  } finally {
    await Promise.all(positions.map(({ file }) => file.close()));
  }
}

async function* follow({ path, tail, signal }: ReadOptions, ended: AbortSignal): AsyncGenerator<Buffer> {
  const changes = new Changes(path, ended, signal);
  const positions = await openTail(path, tail);
  try {
    const splitter = new Splitter();
    for (let done = false; !done && !signal.aborted; ) {
      // Before reading: what is written from now on is another change.
      done = changes.take();
      const current = positions.at(-1);
      for (const position of positions) yield* drain(position, splitter, signal);
      const inode = await stat(path).then(
        ({ ino }) => ino,
        () => undefined,
      );
      if (inode !== undefined && inode !== current?.inode) {
        // Rotated: the writer has left the old file for the new one. What came last into the old one first.
        for (const position of positions) yield* drain(position, splitter, signal);
        const file = await openFile(path);
        if (file === undefined) continue;
        await Promise.all(positions.splice(0).map((position) => position.file.close()));
        positions.push({ file, inode: (await file.stat()).ino, offset: 0 });
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
