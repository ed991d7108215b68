import { existsSync, readdirSync, readFileSync, rmdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { isErrno } from "../../lib/errors/errors.ts";
import type { LabPaths, ProcessRecord } from "./layout.ts";
import { isAlive, processesOfLab, signalProcess, untilGone } from "./processes.ts";
import { lock, readRecord, removeIfEmpty, removeRoot } from "./record.ts";
import { releaseSubnet } from "./subnet.ts";
import { deleteMachineLink } from "./underlay.ts";

/** Names of everything under hosts/, the underlay among them. */
function hostDirectories(paths: LabPaths): string[] {
  const directory = join(paths.directory, "hosts");
  return existsSync(directory) ? readdirSync(directory) : [];
}

function readJson(file: string): unknown {
  try {
    return JSON.parse(readFileSync(file, "utf8"));
  } catch {
    return undefined; // Not written yet, or only half, when `lab up` was killed.
  }
}

/** The inits recorded, whether they still run or not. */
function recordedInits(paths: LabPaths): ProcessRecord[] {
  return hostDirectories(paths).flatMap((host) => (readJson(paths.init(host)) as ProcessRecord | undefined) ?? []);
}

/** Ids of the nodes that joined from this lab: the names of their cgroups. */
export function nodeIdsOf(paths: LabPaths): string[] {
  return hostDirectories(paths).flatMap((host) => {
    const node = readJson(join(paths.host(host), "lib/noded/node.json")) as { nodeId?: string } | undefined;
    return node?.nodeId === undefined ? [] : [node.nodeId];
  });
}

/**
 * Ends every process of the lab and removes all that it made on this machine: namespaces and mounts go with their
 * processes, then links, cgroups and files. Does what is left to do, so it also cleans up after a `lab up` that was
 * killed. False: there was nothing.
 */
export async function takeDown(paths: LabPaths): Promise<boolean> {
  if (!existsSync(paths.directory)) return false;
  using _lock = lock(paths);
  const record = readRecordLeniently(paths);
  await endProcesses(paths);
  await deleteMachineLink(paths);
  for (const nodeId of nodeIdsOf(paths)) await removeCgroups(`embassy-${nodeId}`);
  await removeDirectory(paths.directory);
  if (record !== undefined) releaseSubnet(paths, record.subnet);
  // Others may have labs here.
  removeIfEmpty(join(paths.root, ".subnets"));
  removeRoot(paths);
  return true;
}

function readRecordLeniently(paths: LabPaths) {
  try {
    return readRecord(paths);
  } catch {
    return undefined; // A record that cannot be read must not keep its lab alive.
  }
}

async function endProcesses(paths: LabPaths): Promise<void> {
  // With its init all of a host ends, and what waits for the init ends by itself.
  const inits = recordedInits(paths).filter(isAlive);
  for (const init of inits) signalProcess(init, "SIGKILL");
  await untilGone(inits);
  // A process may start another between the list and its end: what the first round leaves, the next one finds.
  for (let round = 0; round < 5; round++) {
    const processes = processesOfLab(paths.directory, recordedInits(paths));
    if (processes.length === 0) return;
    for (const process of processes) signalProcess(process, "SIGKILL");
    await untilGone(processes);
  }
}

/** Removes a cgroup and those below it in every hierarchy of this machine. Their processes must have ended. */
async function removeCgroups(name: string): Promise<void> {
  const root = "/sys/fs/cgroup";
  const parents = existsSync(join(root, "cgroup.controllers"))
    ? [root]
    : readdirSync(root).map((hierarchy) => join(root, hierarchy));
  for (const parent of parents) await removeCgroup(join(parent, name));
}

async function removeCgroup(directory: string): Promise<void> {
  if (!existsSync(directory)) return;
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    if (entry.isDirectory()) await removeCgroup(join(directory, entry.name));
  }
  // The kernel lets go of a process's cgroup a moment after the process has ended.
  await eventually(() => rmdirSync(directory), "EBUSY");
}

async function removeDirectory(directory: string): Promise<void> {
  // A mount of a host that has just ended may hold a directory a moment longer.
  await eventually(() => rmSync(directory, { recursive: true, force: true }), "EBUSY", "ENOTEMPTY");
}

async function eventually(action: () => void, ...passing: readonly string[]): Promise<void> {
  const deadline = performance.now() + 5_000;
  for (;;) {
    try {
      action();
      return;
    } catch (error) {
      if (isErrno(error, "ENOENT")) return;
      if (!passing.some((code) => isErrno(error, code)) || performance.now() > deadline) throw error;
      await delay(20);
    }
  }
}
