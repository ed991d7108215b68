import { ClusterError } from "../../lib/errors/errors.ts";
import { ensureDaemon, findNamed, untilListens } from "./daemons.ts";
import { daemonsOf, type FaultTarget, hostNames, type LabPaths, type LabRecord, processNames } from "./layout.ts";
import { readInit, requireInit } from "./namespaces.ts";
import { type Process, processesOf, signalProcess, untilGone } from "./processes.ts";
import { isCut, setLink, underlayName } from "./underlay.ts";
import { bootHost } from "./up.ts";

/** Kills with SIGKILL: a host with all that runs on it, as when its power fails, or one process. */
export async function kill(paths: LabPaths, target: FaultTarget): Promise<void> {
  const init = requireInit(paths, target.host);
  if (target.process === undefined) {
    // The kernel kills all of a pid namespace with its init.
    const all = processesOf(init);
    signalProcess(init, "SIGKILL");
    await untilGone(all);
    return;
  }
  const process = requireProcess(paths, target);
  signalProcess(process, "SIGKILL");
  await untilGone([process]);
}

/** Stops the processes without ending them (SIGSTOP), as a host that hangs does. */
export function pause(paths: LabPaths, target: FaultTarget): void {
  const init = requireInit(paths, target.host);
  if (target.process !== undefined) {
    signalProcess(requireProcess(paths, target), "SIGSTOP");
    return;
  }
  // Again for those that were started while the first were being stopped.
  for (let round = 0; round < 3; round++) {
    for (const process of processesOf(init)) signalProcess(process, "SIGSTOP");
  }
}

/** Lets paused processes go on. */
export function resume(paths: LabPaths, target: FaultTarget): void {
  const init = requireInit(paths, target.host);
  const paused = target.process === undefined ? processesOf(init) : [requireProcess(paths, target)];
  for (const process of paused) signalProcess(process, "SIGCONT");
}

/** Takes a host off the underlay. What runs on it does not notice until it sends. */
export async function cut(paths: LabPaths, target: FaultTarget): Promise<void> {
  requireWholeHost(target, "cut");
  requireInit(paths, target.host); // One that is down has no link.
  await setLink(requireInit(paths, underlayName), target.host, "down");
}

/** Puts a host back on the underlay. */
export async function heal(paths: LabPaths, target: FaultTarget): Promise<void> {
  requireWholeHost(target, "heal");
  requireInit(paths, target.host); // One that is down has no link.
  await setLink(requireInit(paths, underlayName), target.host, "up");
}

/** Starts what does not run: a host with its daemons, or one daemon. Returns the names of what it started. */
export async function start(paths: LabPaths, lab: LabRecord, target: FaultTarget): Promise<string[]> {
  if (target.process === "etcd") {
    throw new ClusterError("etcd is started by clusterd, as its child", {
      code: "invalid",
      hint: `Start that: clusterctl lab start ${target.host}:clusterd`,
    });
  }
  if (target.process !== undefined && !daemonsOf(lab, target.host).includes(target.process)) {
    throw new ClusterError(`${target.host} runs no ${target.process}`, { code: "invalid", subject: target.host });
  }
  const started: string[] = [];
  if (readInit(paths, target.host) === undefined) {
    if (target.process !== undefined) requireInit(paths, target.host);
    await bootHost(paths, lab, target.host);
    started.push(target.host);
  }
  for (const name of target.process === undefined ? daemonsOf(lab, target.host) : [target.process]) {
    if (await ensureDaemon(paths, lab, target.host, name)) started.push(`${target.host}:${name}`);
  }
  // After the others: one that ends at once must not keep them from their start.
  if (started.includes(`${target.host}:clusterd`)) await untilListens(paths, lab, target.host);
  return started;
}

/** How a process or host is: as `lab status` shows it. */
export type Condition = "running" | "paused" | "down";

export interface HostStatus {
  readonly name: string;
  readonly address: string;
  readonly state: Condition;
  readonly link: "up" | "cut" | "none";
  /** Pid of its init, as this machine counts; 0 when it is down. */
  readonly pid: number;
  /** Only those that belong on this host. */
  readonly processes: Readonly<Record<string, Condition>>;
}

/** The state of every host, by name. */
export async function status(
  paths: LabPaths,
  lab: LabRecord,
  addressOf: (host: string) => string,
): Promise<HostStatus[]> {
  const underlay = readInit(paths, underlayName);
  const condition = (process: Process | undefined): Condition => {
    if (process === undefined) return "down";
    return process.state === "T" ? "paused" : "running";
  };
  return await Promise.all(
    hostNames(lab.hosts).map(async (host): Promise<HostStatus> => {
      const init = readInit(paths, host);
      const names = processNames.filter((name) => daemonsOf(lab, host).includes(name === "etcd" ? "clusterd" : name));
      const all = init === undefined ? [] : processesOf(init);
      return {
        name: host,
        address: addressOf(host),
        state: condition(all.find(({ pid }) => pid === init?.pid)),
        link: init === undefined || underlay === undefined ? "none" : (await isCut(underlay, host)) ? "cut" : "up",
        pid: init?.pid ?? 0,
        processes: Object.fromEntries(
          names.map((name) => [name, condition(init === undefined ? undefined : findNamed(init, name))]),
        ),
      };
    }),
  );
}

function requireWholeHost(target: FaultTarget, verb: string): void {
  if (target.process === undefined) return;
  throw new ClusterError(`\`lab ${verb}\` takes a host, not a process`, {
    code: "invalid",
    hint: `clusterctl lab ${verb} ${target.host}`,
  });
}

function requireProcess(paths: LabPaths, { host, process }: FaultTarget): Process {
  const init = requireInit(paths, host);
  const found = process === undefined ? undefined : findNamed(init, process);
  if (found !== undefined) return found;
  throw new ClusterError(`${process} does not run on ${host}`, {
    code: "conflict",
    subject: `${host}:${process}`,
    hint: "`clusterctl lab status` shows what runs.",
  });
}
