import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { chmod, lstat } from "node:fs/promises";
import { pipeline } from "node:stream/promises";
import { createGunzip, createZstdDecompress } from "node:zlib";
import { ClusterError, messageOf } from "../../lib/errors/errors.ts";
import { type LayerNotes, WhiteoutFilter } from "./whiteouts.ts";

const xattrs = ["--xattrs", "--xattrs-include=*"];
const extract = [
  "--extract",
  "--file=-",
  "--numeric-owner",
  ...xattrs,
  "--same-permissions",
  "--same-owner",
  "--delay-directory-restore",
];
const decoderChunkBytes = 256 * 1024;

export interface Unpacked extends LayerNotes {
  /** Digest of the uncompressed archive. */
  readonly diffId: string;
}

/**
 * Unpacks a layer, compressed with gzip, zstd or not at all, into an empty directory in the form that overlayfs takes as a
 * lower one. Reads the source to its end. Throws `invalid` for what tar cannot unpack, `internal` with tar's words.
 */
export async function unpackLayer(
  source: AsyncIterable<Buffer>,
  directory: string,
  signal: AbortSignal,
): Promise<Unpacked> {
  const filter = new WhiteoutFilter();
  const hash = createHash("sha256");
  let notes: LayerNotes | undefined;
  let sourceEnded = false;

  async function* whole(): AsyncGenerator<Buffer> {
    yield* source;
    sourceEnded = true;
  }
  async function* filtered(): AsyncGenerator<Buffer> {
    for await (const chunk of decompress(whole())) {
      hash.update(chunk);
      // One write a chunk: a layer of small files would otherwise be a system call per header.
      const parts = [...filter.push(chunk)];
      if (parts.length > 0) yield parts.length === 1 && parts[0] !== undefined ? parts[0] : Buffer.concat(parts);
    }
    const rest = filter.end();
    const parts: Buffer[] = [];
    for (let next = rest.next(); ; next = rest.next()) {
      if (next.done === true) {
        notes = next.value;
        break;
      }
      parts.push(next.value);
    }
    yield Buffer.concat(parts);
  }

  await withTar([...extract, "-C", directory], signal, async (input) => {
    await pipeline(filtered(), input);
  });
  if (!sourceEnded) throw new ClusterError("the layer has bytes after its compressed content", { code: "invalid" });
  if (notes === undefined) throw new ClusterError("the layer's archive has no end", { code: "invalid" });
  return { ...notes, diffId: `sha256:${hash.digest("hex")}` };
}

async function withTar(
  args: readonly string[],
  signal: AbortSignal,
  feed: (input: NodeJS.WritableStream) => Promise<void>,
): Promise<void> {
  const tar = spawn("tar", args, {
    stdio: ["pipe", "ignore", "pipe"],
    env: { PATH: process.env["PATH"], LC_ALL: "C" },
  });
  let words = "";
  tar.stderr.on("data", (chunk: Buffer) => {
    words = (words + chunk.toString()).slice(-4000);
  });
  const ended = new Promise<number>((resolve, reject) => {
    tar.on("error", reject);
    tar.on("close", (code) => resolve(code ?? -1));
  });
  const kill = () => tar.kill("SIGKILL");
  signal.addEventListener("abort", kill, { once: true });
  try {
    // Together: when tar fails first, the feed only sees a broken pipe and tar's own words tell why.
    const [fed, exit] = await Promise.allSettled([feed(tar.stdin), ended]);
    signal.throwIfAborted();
    if (exit.status === "rejected")
      throw new ClusterError(`cannot run tar: ${messageOf(exit.reason)}`, { code: "internal" });
    if (fed.status === "rejected" && !isBrokenPipe(fed.reason)) throw fed.reason;
    // With 0 tar has read the archive's end, and a feed that was cut there by its exit has nothing more to say.
    if (exit.value !== 0) {
      throw new ClusterError(`tar cannot unpack the layer: ${words.trim() || `exit code ${exit.value}`}`, {
        code: "internal",
      });
    }
  } finally {
    signal.removeEventListener("abort", kill);
    if (tar.exitCode === null) kill();
  }
}

function isBrokenPipe(error: unknown): boolean {
  return (
    error instanceof Error && "code" in error && (error.code === "EPIPE" || error.code === "ERR_STREAM_PREMATURE_CLOSE")
  );
}

/** By the first bytes and not by the media type: registries hold gzip layers named plain, and the other way round. */
async function* decompress(source: AsyncGenerator<Buffer>): AsyncGenerator<Buffer> {
  const head: Buffer[] = [];
  let have = 0;
  while (have < 4) {
    const next = await source.next();
    if (next.done === true) break;
    head.push(next.value);
    have += next.value.length;
  }
  const first = Buffer.concat(head);
  async function* all(): AsyncGenerator<Buffer> {
    yield first;
    yield* source;
  }
  const magic = first.length < 4 ? 0 : first.readUInt32LE(0);
  const gzip = (magic & 0xffff) === 0x8b1f;
  const zstd = magic === 0xfd2fb528 || (magic & 0xfffffff0) >>> 0 === 0x184d2a50;
  if (!gzip && !zstd) {
    yield* all();
    return;
  }
  const decoder = gzip
    ? createGunzip({ chunkSize: decoderChunkBytes })
    : createZstdDecompress({ chunkSize: decoderChunkBytes });
  let broken: unknown;
  const feeding = pipeline(all(), decoder).catch((error: unknown) => {
    broken = error;
  });
  try {
    for await (const chunk of decoder as AsyncIterable<Buffer>) yield chunk;
  } catch (error) {
    await feeding;
    throw decoding(broken ?? error);
  } finally {
    decoder.destroy();
  }
  await feeding;
  if (broken !== undefined) throw decoding(broken);
}

/** The decoder's own errors have codes Z_* and ZSTD_*; everything else comes from the source as it is. */
function decoding(error: unknown): unknown {
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  if (!code.startsWith("Z_") && !code.startsWith("ZSTD")) return error;
  return new ClusterError(`the layer cannot be decompressed: ${messageOf(error)}`, { code: "invalid", cause: error });
}

/** A layer's directory and what it hides. */
export interface LowerLayer {
  readonly directory: string;
  readonly opaque: ReadonlySet<string>;
}

/**
 * Gives directories that a layer's archive only implied the metadata of the lower layers' directories that they stand
 * over. `lowers`: highest first. What is nowhere below is left to root, 0755.
 */
export async function adoptMetadata(
  directory: string,
  implicit: readonly string[],
  lowers: readonly LowerLayer[],
  signal: AbortSignal,
): Promise<void> {
  const from = new Map<string, string[]>();
  for (const name of implicit) {
    await chmod(rawPath(directory, name), 0o755);
    const lower = await findBelow(name, lowers);
    if (lower !== undefined) from.set(lower, [...(from.get(lower) ?? []), name]);
  }
  for (const [lower, names] of from) await copyMetadata(lower, directory, names, signal);
}

/** Names in archives are bytes, not text. */
function rawPath(directory: string, name: string): Buffer {
  return Buffer.concat([Buffer.from(`${directory}/`), Buffer.from(name, "latin1")]);
}

/** The highest layer that has it as a directory, unless something above hides it. */
async function findBelow(name: string, lowers: readonly LowerLayer[]): Promise<string | undefined> {
  const parts = name.split("/");
  for (const { directory, opaque } of lowers) {
    let path = "";
    let hidden = opaque.has("");
    let found = true;
    for (const part of parts) {
      path = path === "" ? part : `${path}/${part}`;
      const entry = await lstat(rawPath(directory, path)).catch(() => undefined);
      if (entry === undefined) found = false;
      // Anything but a directory there (a whiteout, a file, a link) hides what lies below it.
      else if (!entry.isDirectory()) return undefined;
      if (!found) break;
      hidden ||= opaque.has(path);
    }
    if (found) return directory;
    if (hidden) return undefined;
  }
  return undefined;
}

async function copyMetadata(from: string, to: string, names: readonly string[], signal: AbortSignal): Promise<void> {
  const list = Buffer.from(names.map((name) => `./${name}\0`).join(""), "latin1");
  const create = [
    "--create",
    "--file=-",
    "--format=posix",
    "--numeric-owner",
    ...xattrs,
    "--xattrs-exclude=trusted.overlay.*",
  ];
  const source = spawn("tar", [...create, "--no-recursion", "-C", from, "--null", "--verbatim-files-from", "-T", "-"], {
    stdio: ["pipe", "pipe", "ignore"],
    env: { PATH: process.env["PATH"], LC_ALL: "C" },
  });
  const ended = new Promise<number>((resolve, reject) => {
    source.on("error", reject);
    source.on("close", (code) => resolve(code ?? -1));
  });
  source.stdin.end(list);
  await withTar([...extract, "-C", to], signal, async (input) => await pipeline(source.stdout, input));
  if ((await ended) !== 0) throw new ClusterError("tar cannot read a lower layer's directories", { code: "internal" });
}
