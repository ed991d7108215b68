import { spawn } from "node:child_process";
import { mkdir, open, readFile, rename, stat } from "node:fs/promises";
import { createServer } from "node:net";
import { dirname } from "node:path";
import type { Clock } from "../../lib/clock/clock.ts";
import { ClusterError, isErrno, messageOf } from "../../lib/errors/errors.ts";
import type { Log } from "../../lib/log/log.ts";
import { type EtcdSettings, etcdArguments } from "./arguments.ts";
import { findEtcd, isRunning, type ProcessId, startTimeOf } from "./process.ts";

export interface SupervisorDeps {
  readonly log: Log;
  readonly clock: Clock;
}

export interface SupervisorOptions {
  readonly settings: EtcdSettings;
  /** Path, or a name that is looked up in PATH. */
  readonly binary: string;
  /** etcd's own output, appended; moved to `<logFile>.1` when it has grown. */
  readonly logFile: string;
}

const adoptedPollMs = 200;
const stopGraceMs = 5_000;
const minBackoffMs = 100;
const maxBackoffMs = 5_000;
/** A process that lived this long was a good start: its end is answered at once. */
const settledMs = 10_000;
const earlyEndsToFail = 3;
const logLimitBytes = 16 * 1024 * 1024;

type Ended = { readonly process: ProcessId; readonly ended: Promise<string> };

/**
 * Keeps one etcd running on its data directory. etcd outlives a clusterd that is killed: the next one adopts it when it
 * runs with the very arguments that we would give, and replaces it when not.
 */
export class EtcdSupervisor implements AsyncDisposable {
  readonly #deps: SupervisorDeps;
  readonly #options: SupervisorOptions;
  readonly #args: readonly string[];
  readonly #stop = new AbortController();
  readonly #failing = Promise.withResolvers<string>();
  #current: Ended;
  #loop: Promise<void>;

  private constructor(deps: SupervisorDeps, options: SupervisorOptions, args: readonly string[], first: Ended) {
    this.#deps = deps;
    this.#options = options;
    this.#args = args;
    this.#current = first;
    this.#loop = this.#supervise();
  }

  /**
   * Adopts or starts etcd. Resolves once the process runs; whether it serves is the client's to find out. Throws
   * `not-found` without a binary, `conflict` when a port is taken, `unavailable` when it cannot be started.
   */
  static async start(deps: SupervisorDeps, options: SupervisorOptions): Promise<EtcdSupervisor> {
    const args = etcdArguments(options.settings);
    await mkdir(options.settings.dataDir, { recursive: true, mode: 0o700 });
    const running = await findEtcd(options.settings.dataDir, args);
    if (running?.same === true) {
      deps.log.info("etcd adopted", { pid: running.pid });
      return new EtcdSupervisor(deps, options, args, adopt(deps.clock, running));
    }
    if (running !== undefined) {
      deps.log.info("etcd runs with other arguments and is replaced", { pid: running.pid });
      await end(deps, running);
    }
    await checkFree(options.settings.clientListen, "--etcd-listen");
    await checkFree(options.settings.peerListen, "--etcd-peer-listen");
    return new EtcdSupervisor(deps, options, args, await launch(deps, options, args));
  }

  /** The running process; for tests and diagnostics. */
  get pid(): number {
    return this.#current.process.pid;
  }

  /** Resolves, with why, once etcd has ended that often soon after its start: something is wrong that a restart does not mend. */
  async failing(): Promise<string> {
    return await this.#failing.promise;
  }

  /** Resolves when the present process ends, with why. */
  async ended(): Promise<string> {
    return await this.#current.ended;
  }

  /** Stops etcd: SIGTERM, and SIGKILL when that does not end it. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort(new Error("stopped"));
    await this.#loop;
    await end(this.#deps, this.#current.process);
  }

  async #supervise(): Promise<void> {
    const { log, clock } = this.#deps;
    let backoffMs = 0;
    let early = 0;
    while (!this.#stop.signal.aborted) {
      const startedMs = clock.monotonicMs();
      const why = await Promise.race([this.#current.ended, aborted(this.#stop.signal)]);
      if (this.#stop.signal.aborted) return;
      const settled = clock.monotonicMs() - startedMs >= settledMs;
      early = settled ? 0 : early + 1;
      if (early >= earlyEndsToFail) this.#failing.resolve(why);
      backoffMs = settled ? 0 : Math.min(Math.max(backoffMs * 2, minBackoffMs), maxBackoffMs);
      log.warn("etcd ended and is started again", { pid: this.pid, why, inMs: backoffMs });
      for (let launched = false; !launched && !this.#stop.signal.aborted; ) {
        try {
          await clock.sleep(backoffMs, this.#stop.signal);
          this.#current = await launch(this.#deps, this.#options, this.#args);
          launched = true;
        } catch (error) {
          if (this.#stop.signal.aborted) return;
          backoffMs = Math.min(Math.max(backoffMs * 2, minBackoffMs), maxBackoffMs);
          log.error("etcd cannot be started", { error, retryInMs: backoffMs });
        }
      }
    }
  }
}

async function launch(deps: SupervisorDeps, options: SupervisorOptions, args: readonly string[]): Promise<Ended> {
  const { binary, logFile } = options;
  await rotate(logFile);
  await mkdir(dirname(logFile), { recursive: true, mode: 0o700 });
  const output = await open(logFile, "a", 0o600);
  try {
    // Detached: a session of its own, so that neither Ctrl-C nor the end of clusterd reaches it. Environment variables named ETCD_*
    // would count as flags.
    const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("ETCD_")));
    const child = spawn(binary, args, {
      detached: true,
      stdio: ["ignore", output.fd, output.fd],
      env: environment,
      cwd: "/",
    });
    const ended = new Promise<string>((resolve) => {
      child.once("exit", (code, signal) => {
        void lastError(logFile).then((text) =>
          resolve(`${signal ?? `exit code ${code}`}${text === "" ? "" : `: ${text}`}`),
        );
      });
    });
    await new Promise<void>((resolve, reject) => {
      child.once("spawn", resolve);
      child.once("error", reject);
    });
    const pid = child.pid ?? 0;
    const startTime = (await startTimeOf(pid)) ?? "";
    deps.log.info("etcd started", { pid });
    return { process: { pid, startTime }, ended };
  } catch (cause) {
    if (isErrno(cause, "ENOENT")) {
      throw new ClusterError(`the etcd program ${binary} does not exist`, {
        code: "not-found",
        subject: "--etcd-binary",
        hint: "Install Debian's package etcd-server (apt-get install etcd-server), give --etcd-binary, or use --etcd-endpoints.",
        cause,
      });
    }
    throw new ClusterError(`the etcd program ${binary} cannot be started: ${messageOf(cause)}`, {
      code: "unavailable",
      subject: "--etcd-binary",
      cause,
    });
  } finally {
    await output.close();
  }
}

/** Not our child, so its end is only to be seen in /proc. */
function adopt(clock: Clock, process: ProcessId): Ended {
  const poll = async () => {
    while (await isRunning(process)) await clock.sleep(adoptedPollMs);
    return "ended while adopted";
  };
  return { process, ended: poll() };
}

async function end(deps: SupervisorDeps, target: ProcessId): Promise<void> {
  for (const signal of ["SIGTERM", "SIGKILL"] as const) {
    if (!(await isRunning(target))) return;
    try {
      process.kill(target.pid, signal);
    } catch (error) {
      if (!isErrno(error, "ESRCH")) throw error;
    }
    const untilMs = deps.clock.monotonicMs() + stopGraceMs;
    while (deps.clock.monotonicMs() < untilMs) {
      if (!(await isRunning(target))) return;
      await deps.clock.sleep(20);
    }
  }
  deps.log.error("etcd does not end", { pid: target.pid });
}

async function rotate(logFile: string): Promise<void> {
  try {
    if ((await stat(logFile)).size > logLimitBytes) await rename(logFile, `${logFile}.1`);
  } catch (error) {
    if (!isErrno(error, "ENOENT")) throw error;
  }
}

/** What etcd said last at level error or worse: its lines are JSON. */
async function lastError(logFile: string): Promise<string> {
  const lines = (await readFile(logFile, "utf8").catch(() => "")).trimEnd().split("\n").slice(-40).reverse();
  for (const line of lines) {
    try {
      const { level, msg, error }: { level?: string; msg?: string; error?: string } = JSON.parse(line);
      if (level === "fatal" || level === "panic" || level === "error") return [msg, error].filter(Boolean).join(": ");
    } catch {
      // Go's own panics are plain text.
      if (line.startsWith("panic:")) return line;
    }
  }
  return "";
}

/** Throws `conflict` when somebody listens there already. */
async function checkFree(listen: string, flag: string): Promise<void> {
  const colon = listen.lastIndexOf(":");
  const server = createServer();
  try {
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen({ host: listen.slice(0, colon), port: Number(listen.slice(colon + 1)) }, resolve);
    });
    await new Promise<void>((resolve) => server.close(() => resolve()));
  } catch (cause) {
    throw new ClusterError(`the embedded etcd cannot listen on ${listen}: ${messageOf(cause)}`, {
      code: isErrno(cause, "EADDRINUSE") ? "conflict" : "invalid",
      subject: flag,
      hint: `Stop what listens there (\`ss -ltnp\` shows it), or give ${flag} another address.`,
      cause,
    });
  }
}

async function aborted(signal: AbortSignal): Promise<string> {
  if (!signal.aborted) await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
  return "stopped";
}
