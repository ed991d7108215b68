import { spawn } from "node:child_process";
import { closeSync, existsSync, openSync, readFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { ClusterError } from "../../lib/errors/errors.ts";
import {
  type DaemonName,
  daemonsOf,
  hostAddress,
  type LabPaths,
  type LabRecord,
  managerPort,
  type ProcessName,
  type ProcessRecord,
  registryAddress,
  registryPort,
} from "./layout.ts";
import { inside, installation, labEnvironment, outsidePath, requireInit } from "./namespaces.ts";
import { commandLine, type Process, processesOf, processInside } from "./processes.ts";

/** The Node binary itself, not a wrapper that would stand between the lab and the daemon's pid. */
export const nodeBinary = process.execPath;

/** The bundle of a daemon. Throws `not-found` when it is not built. */
export function bundle(name: DaemonName): string {
  const path = join(installation, "dist", `${name}.mjs`);
  if (existsSync(path)) return path;
  throw new ClusterError(`${name} is not built: ${path} is missing`, {
    code: "not-found",
    hint: `Run \`npm run setup\` in ${installation}.`,
  });
}

/**
 * A node's own daemons keep little alive: with the engine's default of 16 MB they hold 5 to 7 MB more for its garbage. As in
 * the first line of bin/noded and bin/netd.
 */
function engineFlags(name: DaemonName): string[] {
  return name === "clusterd" ? [] : ["--max-semi-space-size=1"];
}

/** What a daemon is started with; the defaults of paths and ports hold, as each host has its own. */
export function daemonCommand(lab: LabRecord, name: DaemonName): string[] {
  const command = [nodeBinary, ...engineFlags(name), bundle(name), "run"];
  if (name !== "noded") return command;
  const registries = [`registry.lab:${registryPort}`, `${registryAddress(lab)}:${registryPort}`];
  return [...command, ...registries.flatMap((registry) => ["--insecure-registry", registry])];
}

// The daemon's parent is the host's init, as it would be a service manager, and the lab knows it by the pid it wrote.
// setsid does not fork here, so $! is the daemon itself.
const startScript = 'file=$1; shift; setsid "$@" & echo $! >"$file"';

/** Starts a program on a host, detached, with its output appended to the host's log of that name. */
export async function startDetached(
  paths: LabPaths,
  host: string,
  name: string,
  command: readonly string[],
): Promise<void> {
  const init = requireInit(paths, host);
  const log = openSync(paths.log(host, name), "a");
  try {
    const [program = "", ...args] = inside(init, ["sh", "-c", startScript, "sh", `/run/lab/${name}.pid`, ...command]);
    await new Promise<void>((resolve, reject) => {
      const child = spawn(program, args, { cwd: "/", stdio: ["ignore", log, log], env: labEnvironment(paths) });
      child.on("error", reject);
      child.on("close", (code) => {
        if (code === 0) resolve();
        else {
          const words = `${name} cannot be started on ${host}: exit code ${code}`;
          reject(new ClusterError(words, { code: "internal", hint: `Its log: ${paths.log(host, name)}` }));
        }
      });
    });
  } finally {
    closeSync(log);
  }
}

/** A process that `startDetached` started and that still runs; undefined when it does not. */
export function findDetached(init: ProcessRecord, name: string): Process | undefined {
  const file = outsidePath(init, `/run/lab/${name}.pid`);
  if (!existsSync(file)) return undefined;
  return processInside(init, Number(readFileSync(file, "utf8")));
}

/** A process of a host by its name; undefined when it does not run. */
export function findNamed(init: ProcessRecord, name: ProcessName): Process | undefined {
  if (name !== "etcd") {
    const found = findDetached(init, name);
    // The pid could have been given to something else after the daemon ended.
    return found !== undefined && commandLine(found.pid).some((word) => word.endsWith(`/${name}.mjs`))
      ? found
      : undefined;
  }
  const clusterd = findDetached(init, "clusterd");
  const inHost = processesOf(init).filter(({ command }) => command === "etcd");
  return inHost.find(({ parent }) => parent === clusterd?.pid) ?? inHost[0];
}

/** Starts a daemon unless it runs. True: it was started. */
export async function ensureDaemon(paths: LabPaths, lab: LabRecord, host: string, name: DaemonName): Promise<boolean> {
  if (findNamed(requireInit(paths, host), name) !== undefined) return false;
  await startDetached(paths, host, name, daemonCommand(lab, name));
  return true;
}

/** Daemons of a host that do not run. */
export function missingDaemons(lab: LabRecord, init: ProcessRecord, host: string): DaemonName[] {
  return daemonsOf(lab, host).filter((name) => findNamed(init, name) === undefined);
}

/**
 * An error for a daemon that ended or does not serve, with what it said last: a daemon that gives up prints message and hint
 * beneath its log.
 */
export function daemonError(
  paths: LabPaths,
  host: string,
  name: DaemonName,
  what: string,
  cause?: unknown,
): ClusterError {
  const lines = logTail(paths, host, name).split("\n");
  const [message, ...hints] = lines.slice(lines.findLastIndex((line) => line.startsWith("{")) + 1);
  const log = `Its log: ${paths.log(host, name)}`;
  return new ClusterError(message ? `${what}: ${message}` : what, {
    code: "internal",
    subject: `${host}:${name}`,
    hint: [...hints, log].join("\n"),
    cause,
  });
}

/** How long a daemon that has been started is watched for its end. */
const watchMs = 2_000;

/** Waits until a clusterd that was started answers. Throws `internal` when it ends instead; one that waits for others is left to that. */
export async function untilListens(paths: LabPaths, lab: LabRecord, host: string): Promise<void> {
  const deadline = performance.now() + watchMs;
  const address = { host: hostAddress(lab, host), port: managerPort, timeout: 500 };
  while (performance.now() < deadline) {
    if (findNamed(requireInit(paths, host), "clusterd") === undefined) {
      throw daemonError(paths, host, "clusterd", `clusterd ended on ${host}`);
    }
    const listens = await new Promise<boolean>((resolve) => {
      const socket = connect(address);
      const end = (answer: boolean) => () => {
        socket.destroy();
        resolve(answer);
      };
      socket.on("connect", end(true)).on("error", end(false)).on("timeout", end(false));
    });
    if (listens) return;
    await delay(50);
  }
}

/** The last lines of a process's log, for people. */
export function logTail(paths: LabPaths, host: string, name: string, lines = 15): string {
  const file = paths.log(host, name);
  if (!existsSync(file)) return "";
  return readFileSync(file, "utf8").trimEnd().split("\n").slice(-lines).join("\n");
}
