import { closeSync, constants, type FSWatcher, openSync, unlinkSync, watch, writeSync } from "node:fs";
import { mkdir, open, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { asClusterError, ClusterError, isErrno } from "../../lib/errors/errors.ts";
import type { Log } from "../../lib/log/log.ts";
import type { RunResult } from "../../lib/process/run.ts";
import type { Spawner } from "../../lib/process/spawner.ts";
import { formatOci, type OciConfig, planBundle } from "./bundle.ts";
import { type CgroupTree, killCgroup, removeCgroup, removeIfEmpty } from "./cgroups.ts";
import {
  conmonCreate,
  isCrun,
  pathsOf,
  type RuntimePaths,
  type RuntimeProgram,
  refusal,
  runtimeRoot,
} from "./conmon.ts";
import { startExec } from "./exec.ts";
import type { HostFacts } from "./host.ts";
import { findByArgument, isAlive, type ProcessIdentity, readProcess, signalProcess, startedAtMs } from "./processes.ts";
import type { SeccompProfile } from "./seccomp.ts";
import { parseSignal } from "./signals.ts";
import type {
  ContainerExit,
  ContainerStatus,
  Created,
  CreateRequest,
  ExecRequest,
  ExecSession,
  Runtime,
  RuntimeProbe,
} from "./types.ts";
import { resolveUser } from "./users.ts";

export interface ContainersDeps {
  readonly paths: RuntimePaths;
  readonly log: Log;
  readonly spawner: Spawner;
  readonly probe: RuntimeProbe;
  readonly program: RuntimeProgram;
  readonly tree: CgroupTree;
  readonly host: HostFacts;
  readonly seccomp: SeccompProfile;
  /** "/embassy-<node>" */
  readonly cgroupParent: string;
  readonly initPath: string;
  /** How often monitors are looked at. */
  readonly monitorIntervalMs: number;
}

/** What is known of a container beside its bundle, in process.json: written after it was created and before it is started. */
interface ContainerRecord {
  readonly runtimePath: string;
  readonly process: ProcessIdentity;
  readonly conmon: ProcessIdentity;
  readonly bootId: string;
}

interface Entry {
  readonly id: string;
  readonly record: ContainerRecord;
  phase: "created" | "running" | "exited";
  startedAtMs: number;
  exit: ContainerExit | undefined;
  /** Its end was told to the watchers. */
  told: boolean;
}

/** What has an entry for each container. */
const runFolders = ["containers", "oci", "persist", "exits"];
const sigkill = 9;
const done: RunResult = { code: 0, stdout: "", stderr: "" };
// Rounds of 10 ms.
const conmonPatience = 30;
// Rounds of 50 ms.
const startPatience = 40;

/** Containers as conmon and an OCI runtime hold them. */
export class Containers implements Runtime {
  readonly probe: RuntimeProbe;
  readonly #deps: ContainersDeps;
  readonly #entries = new Map<string, Entry>();
  readonly #listeners = new Set<(exit: ContainerExit) => void>();
  readonly #waiters = new Map<string, Set<() => void>>();
  /** Containers between the first file and the last: while there are any, the cgroup parent stays. */
  readonly #creating = new Set<string>();
  #watcher: FSWatcher | undefined;
  #monitor: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(deps: ContainersDeps) {
    this.#deps = deps;
    this.probe = deps.probe;
  }

  logPath(id: string): string {
    return pathsOf(this.#deps.paths, id).log;
  }

  async adopt(): Promise<readonly ContainerStatus[]> {
    await this.open();
    const ids = await this.#leftovers();
    const half = new Set<string>();
    const running = await this.#runningByRuntime(ids);
    for (const id of ids) {
      const record = await this.#readRecord(id);
      const exit = await this.#readExit(id);
      const isCreated =
        exit === undefined && record?.bootId === this.#deps.host.bootId && running.get(id) === "created";
      if (record === undefined || (isCreated && !(await this.#goesOn(id, record)))) {
        half.add(id);
        continue;
      }
      const entry: Entry = { id, record, phase: "running", startedAtMs: 0, exit, told: true };
      const alive = record.bootId === this.#deps.host.bootId && (await isAlive(record.process));
      if (exit !== undefined && !alive) entry.phase = "exited";
      else if (alive) entry.startedAtMs = await startedAtMs(record.process);
      else {
        entry.phase = "exited";
        entry.exit = unknownExit(
          id,
          "it ended while nothing watched it: the host was restarted, or its monitor killed",
        );
      }
      this.#entries.set(id, entry);
      if (entry.phase === "running") entry.told = false;
    }
    if (half.size > 0) await this.#dropHalfMade(half);
    await this.#checkMonitors();
    await this.#scanExits();
    return await this.list();
  }

  /** Makes the directories and begins to watch. */
  async open(): Promise<void> {
    const { paths } = this.#deps;
    for (const name of runFolders) await mkdir(join(paths.runDir, name), { recursive: true, mode: 0o700 });
    await mkdir(paths.logDir, { recursive: true, mode: 0o700 });
    // Files of commands that an earlier process ran.
    await rm(join(paths.runDir, "exec"), { recursive: true, force: true });
    this.#watcher = watch(join(paths.runDir, "exits"), (_, name) => {
      if (name !== null && this.#entries.has(name)) this.#background(this.#noteExit(name));
    });
    // The monitor's rounds find exits too, only later.
    this.#watcher.on("error", (error) => this.#deps.log.warn("exits are found by looking, not by notice", { error }));
    this.#scheduleMonitor();
  }

  /** The monitor is polled: a conmon that was killed says nothing. */
  #scheduleMonitor(): void {
    if (this.#closed) return;
    this.#monitor = setTimeout(() => {
      this.#background(
        this.#checkMonitors()
          .then(() => this.#scanExits())
          .finally(() => this.#scheduleMonitor()),
      );
    }, this.#deps.monitorIntervalMs);
    this.#monitor.unref();
  }

  #background(work: Promise<void>): void {
    work.catch((error: unknown) => this.#deps.log.error("watching containers failed", { error }));
  }

  /** Everything that an earlier process may have begun. */
  async #leftovers(): Promise<readonly string[]> {
    const ids = new Set<string>();
    for (const folder of runFolders) {
      for (const name of await readdir(join(this.#deps.paths.runDir, folder))) if (isContainerId(name)) ids.add(name);
    }
    return [...ids].sort();
  }

  /** States as the OCI runtimes tell them; one call for each runtime in use. */
  async #runningByRuntime(ids: readonly string[]): Promise<ReadonlyMap<string, string>> {
    const states = new Map<string, string>();
    const runtimes = new Set<string>();
    for (const id of ids) {
      const record = await this.#readRecord(id);
      if (record !== undefined) runtimes.add(record.runtimePath);
    }
    for (const path of runtimes) {
      const { code, stdout } = await this.#oci(path, ["list", "--format", "json"]);
      if (code !== 0) continue;
      const list = JSON.parse(stdout.trim() || "null") as readonly { id: string; status: string }[] | null;
      for (const { id, status } of list ?? []) states.set(id, status);
    }
    return states;
  }

  /**
   * Ends what a killed agent was in the middle of creating: conmon and the runtime go on without it, and would bring a
   * container to life that nobody knows.
   */
  async #dropHalfMade(ids: ReadonlySet<string>): Promise<void> {
    const bundles = new Set([...ids].map((id) => pathsOf(this.#deps.paths, id).bundle));
    // Conmon last, and only if it does not end by itself: it waits for its children, and without it that is up to process 1.
    for (let attempt = 0; attempt < conmonPatience + 20; attempt += 1) {
      const busy = await findByArgument(bundles);
      if (busy.length === 0) break;
      for (const id of ids) await killCgroup(this.#deps.tree, `${this.#deps.cgroupParent}/${id}`);
      for (const found of busy) {
        if (found.program !== "conmon" || attempt >= conmonPatience) await signalProcess(found, sigkill);
      }
      await delay(10);
    }
    for (const id of ids) {
      this.#deps.log.debug("what there is of a container is removed", { taskId: id });
      await this.#erase(id, (await this.#readRecord(id))?.runtimePath ?? this.probe.path);
    }
  }

  /** Removes whatever there may be of a container that is not known. */
  async discard(id: string): Promise<void> {
    if (!this.#entries.has(id)) await this.#dropHalfMade(new Set([id]));
  }

  async create(request: CreateRequest, signal?: AbortSignal): Promise<Created> {
    const { id } = request;
    if (!isContainerId(id))
      throw new ClusterError(`"${id}" is no container id`, { code: "invalid", subject: `task/${id}` });
    if (this.#entries.has(id) || this.#creating.has(id)) {
      throw new ClusterError("the container exists", { code: "conflict", subject: `task/${id}` });
    }
    this.#creating.add(id);
    try {
      return await this.#create(request, signal);
    } catch (error) {
      await this.#dropHalfMade(new Set([id]));
      signal?.throwIfAborted();
      const { code, message, hint } = asClusterError(error);
      throw new ClusterError(message, { code, hint, subject: `task/${id}`, cause: error });
    } finally {
      this.#creating.delete(id);
    }
  }

  async #create(request: CreateRequest, signal?: AbortSignal): Promise<Created> {
    const { id } = request;
    const { paths, host, seccomp, cgroupParent, initPath } = this.#deps;
    const own = pathsOf(paths, id);
    signal?.throwIfAborted();
    const user = await resolveUser(
      request.rootfs,
      request.container.user === "" ? request.image.user : request.container.user,
      request.container.groupAdd,
    );
    const { config, files, warnings } = planBundle(request, {
      user,
      host,
      seccomp,
      cgroupsPath: `${cgroupParent}/${id}`,
      cgroups: this.probe.cgroups,
      swapAccounting: this.probe.swapAccounting,
      bundleDir: own.bundle,
      initPath,
    });
    await this.createBundle(id, config, files);
    await this.monitored(id, request.container, signal);
    const pid = this.#entries.get(id)?.record.process.pid ?? 0;
    return { pid, warnings };
  }

  /** Writes a bundle. */
  async createBundle(id: string, config: OciConfig, files: Readonly<Record<string, string>>): Promise<void> {
    const own = pathsOf(this.#deps.paths, id);
    await mkdir(own.bundle, { recursive: true, mode: 0o700 });
    await mkdir(own.persist, { recursive: true, mode: 0o700 });
    await Promise.all([
      writeFile(join(own.bundle, "config.json"), formatOci(config)),
      ...Object.entries(files).map(async ([name, content]) => {
        await writeFile(join(own.bundle, name), content, { mode: 0o644 });
      }),
    ]);
  }

  /** Has conmon create the container of a bundle, and records it. */
  async monitored(
    id: string,
    options: { readonly tty: boolean; readonly stdinOpen: boolean },
    signal?: AbortSignal,
  ): Promise<void> {
    const own = pathsOf(this.#deps.paths, id);
    const { tty, stdinOpen } = options;
    const { paths, spawner, program } = this.#deps;
    const pid = await conmonCreate(paths, spawner, { id, program, tty, stdinOpen }, signal);
    const conmonPid = Number(await readFile(own.conmonPidFile, "utf8"));
    const process = await readProcess(pid);
    const conmon = await readProcess(conmonPid);
    if (process === undefined || conmon === undefined) {
      throw new ClusterError("the container's first process ended before it was started", { code: "internal" });
    }
    const record: ContainerRecord = { runtimePath: program.path, process, conmon, bootId: this.#deps.host.bootId };
    const path = join(own.bundle, "process.json");
    await writeFile(`${path}.new`, JSON.stringify(record));
    await rename(`${path}.new`, path);
    this.#entries.set(id, { id, record, phase: "created", startedAtMs: 0, exit: undefined, told: false });
  }

  async start(id: string): Promise<{ readonly startedAtMs: number }> {
    const entry = this.#known(id);
    if (entry.phase === "created") {
      await writeFile(pathsOf(this.#deps.paths, id).letGo, "");
      const { code, stderr } = this.#letGo(id, entry.record)
        ? done
        : await this.#oci(entry.record.runtimePath, ["start", id]);
      if (code !== 0) {
        const { code: kind, message } = refusal(stderr);
        throw new ClusterError(message, { code: kind, subject: `task/${id}` });
      }
      entry.startedAtMs = Date.now();
      // A short program has ended by now.
      if (this.#phase(entry) === "created") entry.phase = "running";
    }
    return { startedAtMs: entry.startedAtMs };
  }

  /** Runs an OCI runtime to its end. */
  async #oci(path: string, args: readonly string[]): Promise<RunResult> {
    const { program, spawner, paths } = this.#deps;
    const { direct, hide } = path === program.path ? program : { direct: path, hide: undefined };
    return await spawner.run(direct, [...runtimeRoot(paths), ...args], { hide });
  }

  /**
   * What `crun start` does, without a process: the container's first process waits for a byte in a fifo, and while there is
   * the fifo, the container counts as created. False when it is not so: the runtime says why, then. With runc the first
   * process is the one that writes, and would fail if this one were killed before it has read.
   */
  #letGo(id: string, { runtimePath }: ContainerRecord): boolean {
    if (!isCrun(runtimePath)) return false;
    const fifo = this.#fifoOf(id);
    let waiting: number | undefined;
    try {
      // Not blocking: nobody reads when the process has ended.
      waiting = openSync(fifo, constants.O_WRONLY | constants.O_NONBLOCK);
      writeSync(waiting, "\0");
      unlinkSync(fifo);
      return true;
    } catch {
      return false;
    } finally {
      if (waiting !== undefined) closeSync(waiting);
    }
  }

  #fifoOf(id: string): string {
    return join(this.#deps.paths.runDir, "oci", id, "exec.fifo");
  }

  /**
   * Of one that the runtime says is created: was it let go before the agent was killed? Then it runs, or is about to, and what it
   * has done it must not do again. The byte may be written and the fifo still there, or `runc start` be under way.
   */
  async #goesOn(id: string, record: ContainerRecord): Promise<boolean> {
    const wasLetGo = await stat(pathsOf(this.#deps.paths, id).letGo).catch(() => undefined);
    if (wasLetGo === undefined) return false;
    if (isCrun(record.runtimePath)) {
      // A second byte does no harm. Where nobody reads, the first one was enough.
      if (!this.#letGo(id, record)) await rm(this.#fifoOf(id), { force: true });
      return true;
    }
    for (let attempt = 0; attempt < startPatience; attempt += 1) {
      if ((await this.#runningByRuntime([id])).get(id) !== "created") return true;
      await delay(50);
    }
    return false;
  }

  #phase(entry: Entry): Entry["phase"] {
    return entry.phase;
  }

  async kill(id: string, signal: string): Promise<void> {
    const number = parseSignal(signal);
    const entry = this.#entries.get(id);
    if (entry === undefined || entry.phase === "exited") return;
    await signalProcess(entry.record.process, number);
  }

  async delete(id: string): Promise<void> {
    const entry = this.#entries.get(id);
    if (entry === undefined) return;
    if (entry.phase !== "exited") {
      await signalProcess(entry.record.process, sigkill);
      await this.#ended(entry);
    }
    this.#entries.delete(id);
    // Conmon ends by itself after the exit file; one that was never started waits for nothing else.
    await this.#erase(id, entry.record.runtimePath);
    await signalProcess(entry.record.conmon, sigkill);
  }

  /** Resolves when the container's end is noted, or when its first process is gone for a second without conmon saying so. */
  async #ended(entry: Entry): Promise<void> {
    const done = new Promise<void>((resolve) => {
      const waiters = this.#waiters.get(entry.id) ?? new Set();
      waiters.add(resolve);
      this.#waiters.set(entry.id, waiters);
    });
    for (let waitedMs = 0; entry.exit === undefined && waitedMs < 15_000; waitedMs += 100) {
      await Promise.race([done, delay(100)]);
      if (entry.exit === undefined) await this.#noteExit(entry.id);
      if (waitedMs >= 1_000 && !(await isAlive(entry.record.process))) break;
    }
    this.#waiters.delete(entry.id);
  }

  /** Removes every trace of a container that is not to run, whatever there is of it. */
  async #erase(id: string, runtimePath: string): Promise<void> {
    const own = pathsOf(this.#deps.paths, id);
    if ((await this.#oci(runtimePath, ["delete", id])).code !== 0) {
      await this.#oci(runtimePath, ["delete", "--force", id]);
    }
    await removeCgroup(this.#deps.tree, `${this.#deps.cgroupParent}/${id}`);
    await rm(join(this.#deps.paths.runDir, "oci", id), { recursive: true, force: true });
    await rm(own.exitFile, { force: true });
    await rm(own.persist, { recursive: true, force: true });
    await rm(own.bundle, { recursive: true, force: true });
    const others = [...this.#creating].some((other) => other !== id) || this.#entries.size > 0;
    if (!others) await removeIfEmpty(this.#deps.tree, this.#deps.cgroupParent);
  }

  async list(): Promise<readonly ContainerStatus[]> {
    return await Promise.resolve(
      [...this.#entries.values()].sort((a, b) => (a.id < b.id ? -1 : 1)).map((entry) => statusOf(entry)),
    );
  }

  async status(id: string): Promise<ContainerStatus | undefined> {
    const entry = this.#entries.get(id);
    return await Promise.resolve(entry === undefined ? undefined : statusOf(entry));
  }

  watchExits(listener: (exit: ContainerExit) => void): Disposable {
    this.#listeners.add(listener);
    return { [Symbol.dispose]: () => void this.#listeners.delete(listener) };
  }

  async exec(id: string, request: ExecRequest, signal?: AbortSignal): Promise<ExecSession> {
    const entry = this.#known(id);
    if (entry.phase !== "running") {
      throw new ClusterError("the task is not running", { code: "conflict", subject: `task/${id}` });
    }
    const own = pathsOf(this.#deps.paths, id);
    const config = JSON.parse(await readFile(join(own.bundle, "config.json"), "utf8")) as OciConfig;
    const user = request.user === "" ? undefined : await resolveUser(config.root.path, request.user, []);
    return await startExec(
      { paths: this.#deps.paths, id, runtimePath: entry.record.runtimePath, config, user, request },
      signal,
    );
  }

  async reopenLog(id: string): Promise<void> {
    this.#known(id);
    // Without a reader there is no monitor, and nobody to reopen anything.
    const control = await open(
      join(pathsOf(this.#deps.paths, id).bundle, "ctl"),
      constants.O_WRONLY | constants.O_NONBLOCK,
    ).catch((error: unknown) => {
      if (isErrno(error, "ENXIO") || isErrno(error, "ENOENT")) return undefined;
      throw error;
    });
    if (control === undefined) return;
    try {
      await control.write("2 0 0\n");
    } finally {
      await control.close();
    }
  }

  #known(id: string): Entry {
    const entry = this.#entries.get(id);
    if (entry === undefined)
      throw new ClusterError("there is no such container", { code: "not-found", subject: `task/${id}` });
    return entry;
  }

  async #readRecord(id: string): Promise<ContainerRecord | undefined> {
    try {
      return JSON.parse(
        await readFile(join(pathsOf(this.#deps.paths, id).bundle, "process.json"), "utf8"),
      ) as ContainerRecord;
    } catch {
      return undefined;
    }
  }

  async #readExit(id: string): Promise<ContainerExit | undefined> {
    const own = pathsOf(this.#deps.paths, id);
    try {
      const exitCode = Number(await readFile(own.exitFile, "utf8"));
      const finishedAtMs = Math.round((await stat(own.exitFile)).mtimeMs);
      const oomKilled = await stat(own.oomFile).then(
        () => true,
        () => false,
      );
      return { id, exitCode, oomKilled, finishedAtMs, message: "" };
    } catch (error) {
      if (isErrno(error, "ENOENT")) return undefined;
      throw error;
    }
  }

  async #noteExit(id: string): Promise<void> {
    const entry = this.#entries.get(id);
    if (entry === undefined || entry.exit !== undefined) return;
    const exit = await this.#readExit(id);
    if (exit !== undefined) this.#end(entry, exit);
  }

  #end(entry: Entry, exit: ContainerExit): void {
    if (entry.exit !== undefined) return;
    entry.exit = exit;
    entry.phase = "exited";
    for (const wake of this.#waiters.get(entry.id) ?? []) wake();
    if (entry.told) return;
    entry.told = true;
    for (const listener of this.#listeners) listener(exit);
  }

  async #scanExits(): Promise<void> {
    for (const entry of this.#entries.values()) if (entry.exit === undefined) await this.#noteExit(entry.id);
  }

  /** Without its monitor a container has no log and no exit code, and may hang on its output: end it. */
  async #checkMonitors(): Promise<void> {
    for (const entry of this.#entries.values()) {
      if (entry.exit !== undefined || (await isAlive(entry.record.conmon))) continue;
      await this.#noteExit(entry.id);
      if (this.#phase(entry) === "exited") continue;
      this.#deps.log.warn("a container's monitor was killed", { taskId: entry.id });
      await signalProcess(entry.record.process, sigkill);
      for (let waited = 0; waited < 500 && (await isAlive(entry.record.process)); waited += 1) await delay(10);
      this.#end(entry, unknownExit(entry.id, "its monitor (conmon) was killed, and with it the exit code and the log"));
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    this.#watcher?.close();
    clearTimeout(this.#monitor);
    await Promise.resolve();
  }
}

function statusOf(entry: Entry): ContainerStatus {
  if (entry.exit !== undefined) return { id: entry.id, state: "exited", exit: entry.exit };
  const { pid } = entry.record.process;
  if (entry.phase === "created") return { id: entry.id, state: "created", pid };
  return { id: entry.id, state: "running", pid, startedAtMs: entry.startedAtMs };
}

function unknownExit(id: string, message: string): ContainerExit {
  return { id, exitCode: -1, oomKilled: false, finishedAtMs: Date.now(), message };
}

/** Ids name files, cgroups and arguments. */
function isContainerId(id: string): boolean {
  return /^[a-z0-9][a-z0-9_-]{0,63}$/.test(id);
}
