import { readdir, readFile, readlink, stat } from "node:fs/promises";
import { isErrno } from "../../lib/errors/errors.ts";

/** A process, told apart from a later one with the same pid by its start time. */
export interface ProcessId {
  readonly pid: number;
  /** Clock ticks since boot, as /proc says. */
  readonly startTime: string;
}

/** Field 22 of /proc/PID/stat; undefined when there is no such process or it has ended and is only waiting to be reaped. */
export async function startTimeOf(pid: number): Promise<string | undefined> {
  const text = await readOrNothing(`/proc/${pid}/stat`);
  // The second field is the program's name in parentheses, which may hold anything.
  const fields = text?.slice(text.lastIndexOf(")") + 2).split(" ");
  return fields === undefined || fields[0] === "Z" || fields[0] === "X" ? undefined : fields[19];
}

/** Is it still that process that runs? */
export async function isRunning(process: ProcessId): Promise<boolean> {
  return (await startTimeOf(process.pid)) === process.startTime;
}

/**
 * The running process that was started with these arguments, all of them, and whose `--data-dir` is that very directory
 * (not one of the same name in another mount namespace). `same` tells whether all its other arguments agree too.
 * There is no pid file: a crash between the start of etcd and the writing of one would leave an etcd that nobody knows of.
 */
export async function findEtcd(
  dataDir: string,
  args: readonly string[],
): Promise<(ProcessId & { readonly same: boolean }) | undefined> {
  const ours = await statOrNothing(dataDir);
  if (ours === undefined) return undefined;
  const network = await readlink("/proc/self/ns/net");
  for (const name of await readdir("/proc")) {
    if (!/^[0-9]+$/.test(name)) continue;
    const command = (await readOrNothing(`/proc/${name}/cmdline`))?.split("\0").slice(0, -1);
    if (command === undefined || !command.includes(`--data-dir=${dataDir}`)) continue;
    const theirs = await statOrNothing(`/proc/${name}/root${dataDir}`);
    if (theirs?.ino !== ours.ino || theirs.dev !== ours.dev) continue;
    const startTime = await startTimeOf(Number(name));
    if (startTime === undefined) continue;
    const same =
      command.length === args.length + 1 &&
      args.every((arg, index) => command[index + 1] === arg) &&
      (await readlink(`/proc/${name}/ns/net`)) === network;
    return { pid: Number(name), startTime, same };
  }
  return undefined;
}

async function readOrNothing(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if (isErrno(error, "ENOENT") || isErrno(error, "ESRCH") || isErrno(error, "EACCES")) return undefined;
    throw error;
  }
}

async function statOrNothing(path: string): Promise<{ readonly ino: number; readonly dev: number } | undefined> {
  try {
    return await stat(path);
  } catch (error) {
    if (isErrno(error, "ENOENT") || isErrno(error, "ESRCH") || isErrno(error, "EACCES")) return undefined;
    throw error;
  }
}
