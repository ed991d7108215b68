import { readdir, readFile, rmdir, statfs } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { isErrno } from "../../lib/errors/errors.ts";
import type { CgroupMode } from "./types.ts";

/** The machine's cgroup file systems. */
export interface CgroupTree {
  readonly mode: CgroupMode;
  /** Where each hierarchy is mounted. */
  readonly mountPoints: readonly string[];
}

const cgroup2Magic = 0x63677270;

/** Hierarchies out of /proc/self/mountinfo. */
export function parseCgroupMounts(mountinfo: string): readonly { readonly path: string; readonly version: 1 | 2 }[] {
  const mounts: { path: string; version: 1 | 2 }[] = [];
  for (const line of mountinfo.split("\n")) {
    const [before = "", after = ""] = line.split(" - ");
    const type = after.split(" ")[0];
    // A bind of a part of a hierarchy is not the hierarchy.
    const [, , , root, path] = before.split(" ");
    if ((type !== "cgroup" && type !== "cgroup2") || path === undefined || root !== "/") continue;
    if (!mounts.some((mount) => mount.path === path)) mounts.push({ path, version: type === "cgroup" ? 1 : 2 });
  }
  return mounts;
}

/** v2 when /sys/fs/cgroup is cgroup2, hybrid when a v2 hierarchy lies beside v1 ones, else v1. */
export async function readCgroupTree(): Promise<CgroupTree> {
  const mounts = parseCgroupMounts(await readFile("/proc/self/mountinfo", "utf8"));
  const { type } = await statfs("/sys/fs/cgroup");
  const mode = type === cgroup2Magic ? "v2" : mounts.some((mount) => mount.version === 2) ? "hybrid" : "v1";
  return { mode, mountPoints: mounts.map((mount) => mount.path) };
}

/** The limits in force of a cgroup; undefined where none can be read. */
export async function readLimits(
  tree: CgroupTree,
  path: string,
): Promise<{ readonly memoryBytes: number | undefined; readonly pids: number | undefined }> {
  const first = async (files: readonly string[]) => {
    for (const file of files) {
      const text = await readFile(file, "utf8").catch(() => undefined);
      if (text !== undefined && /^[0-9]+\s*$/.test(text)) return Number(text);
    }
    return undefined;
  };
  const all = (file: string) => tree.mountPoints.map((mount) => join(mount, path, file));
  return {
    memoryBytes: await first([...all("memory.max"), ...all("memory.limit_in_bytes")]),
    pids: await first(all("pids.max")),
  };
}

/** Can a memory limit name swap too? Looks at the given cgroup, which has to exist. */
export async function hasSwapAccounting(tree: CgroupTree, path: string): Promise<boolean> {
  for (const mount of tree.mountPoints) {
    for (const file of ["memory.swap.max", "memory.memsw.limit_in_bytes"]) {
      if ((await readFile(join(mount, path, file), "utf8").catch(() => undefined)) !== undefined) return true;
    }
  }
  return false;
}

/** Kills everything in a cgroup of ours. Not there: nothing happens. */
export async function killCgroup(tree: CgroupTree, path: string): Promise<void> {
  for (const mount of tree.mountPoints) await killAll(join(mount, path));
}

/** Kills what is left in a cgroup of ours and removes it with those below it. Not there: nothing happens. */
export async function removeCgroup(tree: CgroupTree, path: string): Promise<void> {
  for (const mount of tree.mountPoints) await removeTree(join(mount, path));
}

async function removeTree(path: string): Promise<void> {
  let entries: Awaited<ReturnType<typeof readdirTypes>>;
  try {
    entries = await readdirTypes(path);
  } catch (error) {
    if (isErrno(error, "ENOENT")) return;
    throw error;
  }
  for (const entry of entries) if (entry.isDirectory()) await removeTree(join(path, entry.name));
  // The kernel takes a moment to let go of the dead: EBUSY until then.
  for (let attempt = 0; ; attempt += 1) {
    if (await tryRmdir(path)) return;
    if (attempt >= 50) return;
    await killAll(path);
    await delay(Math.min(2 ** attempt, 50));
  }
}

async function readdirTypes(path: string) {
  return await readdir(path, { withFileTypes: true });
}

async function killAll(path: string): Promise<void> {
  const text = await readFile(join(path, "cgroup.procs"), "utf8").catch(() => "");
  for (const line of text.split("\n")) {
    const pid = Number(line);
    if (line === "" || pid <= 1 || pid === process.pid) continue;
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // Gone already.
    }
  }
}

async function tryRmdir(path: string): Promise<boolean> {
  try {
    await rmdir(path);
    return true;
  } catch (error) {
    if (isErrno(error, "ENOENT")) return true;
    if (isErrno(error, "EBUSY") || isErrno(error, "ENOTEMPTY")) return false;
    throw error;
  }
}

/** Removes a cgroup that has neither processes nor children, in every hierarchy; leaves it where it has. */
export async function removeIfEmpty(tree: CgroupTree, path: string): Promise<void> {
  for (const mount of tree.mountPoints) await tryRmdir(join(mount, path));
}
