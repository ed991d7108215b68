import { readdir, readFile } from "node:fs/promises";
import { basename } from "node:path";

/** A process that is told apart from a later one with the same pid. */
export interface ProcessIdentity {
  readonly pid: number;
  /** Clock ticks (10 ms) since boot. */
  readonly startTicks: number;
}

const ticksPerSecond = 100;

/** Reads /proc/<pid>/stat; undefined when there is no such process, or only its zombie. */
export async function readProcess(pid: number): Promise<ProcessIdentity | undefined> {
  let text: string;
  try {
    text = await readFile(`/proc/${pid}/stat`, "utf8");
  } catch {
    return undefined;
  }
  // The second field, the name in brackets, may hold blanks and brackets of its own.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  if (fields[0] === "Z" || fields[0] === "X") return undefined;
  return { pid, startTicks: Number(fields[19]) };
}

/** Is it still the same process, and alive? */
export async function isAlive(identity: ProcessIdentity): Promise<boolean> {
  return (await readProcess(identity.pid))?.startTicks === identity.startTicks;
}

/** When a process began, in milliseconds since 1970. */
export async function startedAtMs(identity: ProcessIdentity): Promise<number> {
  const uptimeS = Number((await readFile("/proc/uptime", "utf8")).split(" ")[0]);
  return Math.round(Date.now() - (uptimeS - identity.startTicks / ticksPerSecond) * 1000);
}

/** Sends a signal unless the process has ended. */
export async function signalProcess(identity: ProcessIdentity, signal: number): Promise<void> {
  if (!(await isAlive(identity))) return;
  try {
    process.kill(identity.pid, signal);
  } catch (error) {
    if (!(error instanceof Error && "code" in error && error.code === "ESRCH")) throw error;
  }
}

/** Processes that have one of these strings as one of their arguments, by pid ascending, each with its program's file name. */
export async function findByArgument(
  wanted: ReadonlySet<string>,
): Promise<readonly (ProcessIdentity & { readonly program: string })[]> {
  const found: (ProcessIdentity & { program: string })[] = [];
  for (const name of await readdir("/proc")) {
    if (!/^[0-9]+$/.test(name) || Number(name) === process.pid) continue;
    const text = await readFile(`/proc/${name}/cmdline`, "utf8").catch(() => "");
    const [program = "", ...args] = text.split("\0");
    if (!args.some((argument) => wanted.has(argument))) continue;
    const identity = await readProcess(Number(name));
    if (identity !== undefined) found.push({ ...identity, program: basename(program) });
  }
  return found;
}
