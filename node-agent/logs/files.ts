import { readdir, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { isErrno } from "../../lib/errors/errors.ts";
import { isId } from "../../lib/ids/ids.ts";

/** A log's files, oldest first: `<path>.2`, `<path>.1`, `<path>`. Those that exist. */
export async function logFiles(path: string): Promise<string[]> {
  const base = basename(path);
  const names = await readdir(dirname(path)).catch(() => []);
  const numbered = names.flatMap((name) => {
    if (name === base) return [{ name, age: 0 }];
    const age = name.startsWith(`${base}.`) ? Number(name.slice(base.length + 1)) : Number.NaN;
    return Number.isInteger(age) && age > 0 ? [{ name, age }] : [];
  });
  return numbered.toSorted((a, b) => b.age - a.age).map(({ name }) => join(dirname(path), name));
}

/** The size of the file that is written now; undefined: there is none. */
export async function logSize(path: string): Promise<number | undefined> {
  try {
    return (await stat(path)).size;
  } catch (error) {
    if (isErrno(error, "ENOENT")) return undefined;
    throw error;
  }
}

/** Makes room for a new file at the path, and keeps at most `maxFiles` with that one. The writer goes on in `<path>.1` until it is told. */
export async function rotate(path: string, maxFiles: number): Promise<void> {
  const keep = Math.max(1, maxFiles);
  for (const file of await logFiles(path)) {
    const age = file === path ? 0 : Number(file.slice(path.length + 1));
    // Of the oldest the name may still be taken: rename replaces it.
    if (age > 0 && age + 1 >= keep) await rm(file, { force: true });
    else await rename(file, `${path}.${age + 1}`);
  }
}

/** Removes every file of the tasks that are chosen; files are named by their task's id. */
export async function removeLogs(directory: string, chosen: (taskId: string) => boolean): Promise<void> {
  for (const name of await readdir(directory).catch(() => [])) {
    const taskId = name.slice(0, 12);
    if (isId(taskId) && chosen(taskId)) await rm(join(directory, name), { force: true, recursive: true });
  }
}
