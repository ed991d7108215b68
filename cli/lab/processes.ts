import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { ClusterError, isErrno } from "../../lib/errors/errors.ts";
import type { ProcessRecord } from "./layout.ts";

/** A process of this machine, as /proc shows it. */
export interface Process extends ProcessRecord {
  readonly parent: number;
  /** State letter: R, S, D, T (stopped), Z. */
  readonly state: string;
  readonly command: string;
}

function read(pid: number | string, file: string): string | undefined {
  try {
    return readFileSync(`/proc/${pid}/${file}`, "utf8");
  } catch {
    return undefined; // Gone since it was listed, or not ours to read.
  }
}

function link(pid: number, name: string): string | undefined {
  try {
    return readlinkSync(`/proc/${pid}/ns/${name}`);
  } catch {
    return undefined;
  }
}

/** The process with that pid; undefined when there is none. */
export function findProcess(pid: number): Process | undefined {
  const stat = read(pid, "stat");
  if (stat === undefined) return undefined;
  // The command stands in parentheses and may hold any character.
  const close = stat.lastIndexOf(")");
  const fields = stat.slice(close + 2).split(" ");
  return {
    pid,
    command: stat.slice(stat.indexOf("(") + 1, close),
    state: fields[0] ?? "",
    parent: Number(fields[1]),
    startTime: fields[19] ?? "",
  };
}

/** Every process of this machine. */
export function listProcesses(): Process[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => findProcess(Number(name)) ?? []);
}

/** Is it still that process, and more than a zombie? */
export function isAlive(record: ProcessRecord | undefined): record is ProcessRecord {
  if (record === undefined) return false;
  const now = findProcess(record.pid);
  return now !== undefined && now.startTime === record.startTime && now.state !== "Z" && now.state !== "X";
}

/**
 * The processes of a host, parents first, the host's init being the first: those in its pid namespace and all that
 * descend from them, in whatever namespaces they are.
 */
export function processesOf(init: ProcessRecord): Process[] {
  if (!isAlive(init)) return [];
  const namespace = link(init.pid, "pid");
  const all = listProcesses().filter((process) => process.state !== "Z");
  const inside = new Set<number>();
  for (const { pid } of all) if (link(pid, "pid") === namespace) inside.add(pid);
  const byPid = new Map(all.map((process) => [process.pid, process]));
  const belongs = (pid: number): boolean => {
    if (inside.has(pid)) return true;
    const parent = byPid.get(pid)?.parent ?? 0;
    if (parent === 0 || !belongs(parent)) return false;
    inside.add(pid);
    return true;
  };
  return all.filter(({ pid }) => belongs(pid)).sort((a, b) => Number(a.startTime) - Number(b.startTime));
}

/** The process that has this pid within the pid namespace of `init`. */
export function processInside(init: ProcessRecord, innerPid: number): Process | undefined {
  if (!isAlive(init)) return undefined;
  const namespace = link(init.pid, "pid");
  return listProcesses().find(
    ({ pid, state }) =>
      state !== "Z" &&
      link(pid, "pid") === namespace &&
      Number(
        read(pid, "status")
          ?.match(/^NSpid:.*?(\d+)$/m)
          ?.at(1),
      ) === innerPid,
  );
}

/** The process's argument vector. */
export function commandLine(pid: number): string[] {
  return read(pid, "cmdline")?.split("\0").slice(0, -1) ?? [];
}

/**
 * Every process that belongs to one of these inits, by pid namespace, descent, network or mount namespace (that is how
 * a shell of `lab exec` is in a host), and every one started with `EMBASSY_LAB=<marker>` in its environment (which finds
 * an init that was started and not yet recorded).
 */
export function processesOfLab(marker: string, inits: readonly ProcessRecord[]): Process[] {
  const alive = inits.filter(isAlive);
  // Of live inits only: the kernel gives the numbers of namespaces that are gone to new ones.
  const namespaces = new Set(alive.flatMap(({ pid }) => [link(pid, "net"), link(pid, "mnt")]));
  const variable = `EMBASSY_LAB=${marker}`;
  const found = new Map<number, Process>();
  for (const init of alive) for (const process of processesOf(init)) found.set(process.pid, process);
  for (const process of listProcesses()) {
    if (process.state === "Z") continue;
    const { pid } = process;
    const marked = read(pid, "environ")?.split("\0").includes(variable) ?? false;
    if (marked || namespaces.has(link(pid, "net") ?? "") || namespaces.has(link(pid, "mnt") ?? "")) {
      found.set(pid, process);
    }
  }
  found.delete(globalThis.process.pid);
  return [...found.values()];
}

/** Sends a signal; a process that is gone already is no error. */
export function signalProcess(record: ProcessRecord, signal: NodeJS.Signals): void {
  const now = findProcess(record.pid);
  if (now === undefined || now.startTime !== record.startTime) return;
  try {
    process.kill(record.pid, signal);
  } catch (error) {
    if (!isErrno(error, "ESRCH")) throw error;
  }
}

/** Resolves once none of them runs. Throws `unavailable`, naming those left. */
export async function untilGone(records: readonly ProcessRecord[], timeoutMs = 10_000): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const left = records.filter(isAlive);
    if (left.length === 0) return;
    if (performance.now() > deadline) {
      throw new ClusterError(`processes do not end: ${left.map(({ pid }) => pid).join(", ")}`, {
        code: "unavailable",
        hint: "Look at them with `ps`; a process in state D waits for the kernel.",
      });
    }
    await delay(10);
  }
}
