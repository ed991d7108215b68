import { randomBytes } from "node:crypto";
import { open, readFile, rename, rm, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { ClusterError, isErrno } from "../../lib/errors/errors.ts";

/** A name that nothing else has, for the folder of half-made things. */
export function temporaryName(): string {
  return randomBytes(10).toString("hex");
}

/** Puts content at a path so that after any crash there is either all of it or what was there before. */
export async function writeDurably(temporary: string, path: string, content: string | Buffer): Promise<void> {
  const draft = join(temporary, temporaryName());
  try {
    const file = await open(draft, "w", 0o600);
    try {
      await file.writeFile(content);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(draft, path);
    await syncDirectory(dirname(path));
  } catch (error) {
    await rm(draft, { force: true });
    throw error;
  }
}

/** Makes renames in a directory survive a power cut. */
export async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, "r");
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

/** The content, or undefined when there is no such file. */
export async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if (isErrno(error, "ENOENT")) return undefined;
    throw error;
  }
}

export async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if (isErrno(error, "ENOENT")) return false;
    throw error;
  }
}

/** `exhausted` for a full disk or quota, the error itself otherwise. */
export function diskFull(error: unknown, path: string): unknown {
  const full =
    isErrno(error, "ENOSPC") ||
    isErrno(error, "EDQUOT") ||
    // GNU tar says "Wrote only" of a write that the disk cut short.
    (error instanceof Error && /No space left on device|Disk quota exceeded|Wrote only \d+ of/.test(error.message));
  if (!full) return error;
  return new ClusterError(`the disk of ${path} is full`, {
    code: "exhausted",
    hint: "Free space on this node; unused images are removed by the agent on its own.",
    cause: error,
  });
}
