import { closeSync, constants, fstatSync, openSync, readSync, realpathSync } from "node:fs";
import { FileProblem, type FileProblemKind, type Files, STANDARD_INPUT } from "./files.ts";

/** The files of this machine. Only regular files are read, and the standard input. */
export function diskFiles(): Files {
  return {
    read(path, maxBytes) {
      if (path === STANDARD_INPUT) return attempt(() => readUpTo(0, maxBytes));
      // Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
      const descriptor = attempt(() => openSync(path, constants.O_RDONLY | constants.O_NONBLOCK));
      try {
        const stats = fstatSync(descriptor);
        if (stats.isDirectory()) throw new FileProblem("not-a-file", "is a directory");
        if (!stats.isFile()) throw new FileProblem("not-a-file", "is not a regular file");
        return attempt(() => readUpTo(descriptor, maxBytes));
      } finally {
        closeSync(descriptor);
      }
    },
    realpath(path) {
      try {
        return attempt(() => realpathSync(path));
      } catch (error) {
        if (error instanceof FileProblem && error.kind === "missing") return undefined;
        throw error;
      }
    },
  };
}

function readUpTo(descriptor: number, maxBytes: number): Uint8Array {
  const chunks: Uint8Array[] = [];
  let total = 0;
  for (;;) {
    const chunk = new Uint8Array(Math.min(65_536, maxBytes + 1 - total));
    const count = readSync(descriptor, chunk);
    if (count === 0) break;
    total += count;
    if (total > maxBytes) throw new FileProblem("too-large", `is larger than ${maxBytes} bytes`);
    chunks.push(chunk.subarray(0, count));
  }
  return Buffer.concat(chunks);
}

const KINDS: Readonly<Record<string, readonly [FileProblemKind, string]>> = {
  ENOENT: ["missing", "does not exist"],
  ENOTDIR: ["missing", "does not exist: a part of its path is not a directory"],
  EACCES: ["denied", "cannot be read: permission denied"],
  EPERM: ["denied", "cannot be read: permission denied"],
  EISDIR: ["not-a-file", "is a directory"],
  ELOOP: ["loop", "is behind symbolic links that go round in a circle"],
  ENXIO: ["not-a-file", "is not a regular file"],
  ENAMETOOLONG: ["missing", "does not exist: its path is too long"],
};

function attempt<T>(action: () => T): T {
  try {
    return action();
  } catch (error) {
    if (error instanceof FileProblem) throw error;
    const code = error instanceof Error && "code" in error ? String(error.code) : "";
    const [kind, message] = KINDS[code] ?? [
      "failed",
      `cannot be read: ${error instanceof Error ? error.message : String(error)}`,
    ];
    throw new FileProblem(kind, message);
  }
}
