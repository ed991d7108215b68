import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { ClusterError, isErrno, messageOf } from "../../lib/errors/errors.ts";
import { defaultLab, LabPaths, type LabRecord, type ProcessRecord } from "./layout.ts";
import { findProcess, isAlive } from "./processes.ts";

/** The lab's record; undefined when there is no such lab. */
export function readRecord(paths: LabPaths): LabRecord | undefined {
  try {
    return JSON.parse(readFileSync(paths.record, "utf8")) as LabRecord;
  } catch (error) {
    if (isErrno(error, "ENOENT")) return undefined;
    throw new ClusterError(`${paths.record} cannot be read: ${messageOf(error)}`, {
      code: "internal",
      hint: `Remove the lab with \`clusterctl lab down --name ${paths.name}\`.`,
      cause: error,
    });
  }
}

/** Like readRecord. Throws `not-found`, naming the labs that there are. */
export function requireRecord(paths: LabPaths): LabRecord {
  const record = readRecord(paths);
  if (record !== undefined) return record;
  const labs = listLabs(paths.root);
  throw new ClusterError(`there is no lab ${paths.name}`, {
    code: "not-found",
    subject: `lab/${paths.name}`,
    hint:
      labs.length === 0
        ? "Make one with `clusterctl lab up`."
        : `Labs here: ${labs.join(", ")}. Choose one with --name.`,
  });
}

/** Replaces the record in one step. */
export function writeRecord(paths: LabPaths, record: LabRecord): void {
  writeFileSync(`${paths.record}.new`, `${JSON.stringify(record, null, 2)}\n`);
  renameSync(`${paths.record}.new`, paths.record);
}

/** Names of the labs on this machine. */
export function listLabs(root: string): string[] {
  if (!existsSync(root)) return [];
  return readdirSync(root)
    .filter((name) => !name.startsWith(".") && existsSync(new LabPaths(root, name).record))
    .sort();
}

/**
 * The lab that is meant when none is named: the default one if there is anything of it, else the only one that is up. Throws
 * `invalid`, with their names, when there are several others.
 */
export function unnamedLab(root: string): string {
  // What an interrupted `lab up` leaves has no record.
  if (existsSync(new LabPaths(root, defaultLab).directory)) return defaultLab;
  const labs = listLabs(root);
  if (labs.length > 1) {
    throw new ClusterError(`there are ${labs.length} labs: ${labs.join(", ")}`, {
      code: "invalid",
      subject: "--name",
      hint: `Say which: --name ${labs[0]}`,
    });
  }
  return labs[0] ?? defaultLab;
}

/** Makes a lab's directory, and notes whether the root was made with it. */
export function makeDirectory(paths: LabPaths): void {
  if (mkdirSync(paths.root, { recursive: true }) !== undefined) writeFileSync(paths.rootMade, "");
  mkdirSync(paths.directory, { recursive: true });
}

/** Removes the root when nothing else is in it, and a lab has made it: not a directory that somebody has made for labs. */
export function removeRoot(paths: LabPaths): void {
  if (!existsSync(paths.rootMade) || readdirSync(paths.root).length > 1) return;
  rmSync(paths.rootMade, { force: true });
  removeIfEmpty(paths.root);
  // Another lab came into it meanwhile, and is to remove it in its turn.
  if (existsSync(paths.root)) writeFileSync(paths.rootMade, "");
}

/** Removes a directory that is empty, and leaves any other. */
export function removeIfEmpty(directory: string): void {
  try {
    rmdirSync(directory);
  } catch (error) {
    if (!["ENOTEMPTY", "ENOENT", "EBUSY"].some((code) => isErrno(error, code))) {
      throw new Error(`${directory} cannot be removed: ${messageOf(error)}`, { cause: error });
    }
  }
}

/** Keeps other `lab up` and `lab down` of the same lab out until it is disposed. Throws `conflict`. */
export function lock(paths: LabPaths): Disposable {
  const own = findProcess(process.pid);
  const content = JSON.stringify({ pid: process.pid, startTime: own?.startTime ?? "" } satisfies ProcessRecord);
  for (;;) {
    try {
      writeFileSync(paths.lock, content, { flag: "wx" });
      return { [Symbol.dispose]: () => rmSync(paths.lock, { force: true }) };
    } catch (error) {
      if (!isErrno(error, "EEXIST")) throw error;
    }
    const holder = readHolder(paths.lock);
    if (isAlive(holder)) {
      throw new ClusterError(`another command is changing lab ${paths.name} (pid ${holder.pid})`, {
        code: "conflict",
        subject: `lab/${paths.name}`,
        hint: "Wait until it has ended.",
      });
    }
    rmSync(paths.lock, { force: true });
  }
}

function readHolder(file: string): ProcessRecord | undefined {
  try {
    return JSON.parse(readFileSync(file, "utf8")) as ProcessRecord;
  } catch {
    return undefined; // Removed meanwhile, or its writer was killed halfway.
  }
}
