import { dirname } from "node:path";
import type { Clock } from "../../lib/clock/clock.ts";
import { asClusterError, type ClusterError, hasCode } from "../../lib/errors/errors.ts";
import type { Log } from "../../lib/log/log.ts";
import { ReconcileLoop } from "../../lib/reconcile/loop.ts";
import type { Assignment, Assignments } from "../../proto/gen/embassy/v1/dispatcher.ts";
import { MountType, PullPolicy } from "../../proto/gen/embassy/v1/stack.ts";
import { DesiredState, Health, TaskState, type TaskStatus } from "../../proto/gen/embassy/v1/state.ts";
import { watchHealth } from "../health/monitor.ts";
import { type HealthPolicy, healthPolicy } from "../health/policy.ts";
import type { PullPolicy as ImagePullPolicy, ImageStore, PullProgress } from "../images/types.ts";
import { removeLogs } from "../logs/files.ts";
import type { RotatedLog } from "../logs/rotation.ts";
import type { NetworkDaemon } from "../network/client.ts";
import type { ContainerExit, ContainerStatus, Runtime } from "../runtime/types.ts";
import type { Volumes } from "../volumes/volumes.ts";
import { containerOf, createRequest, stopGraceMs, stopSignal } from "./container.ts";
import { judge, type Stage, type Verdict } from "./failure.ts";
import type { TaskFiles } from "./files.ts";
import { nextStep, type Outcome, type Step } from "./next-step.ts";
import type { RecordStore, TaskRecord } from "./record.ts";
import { Semaphore } from "./semaphore.ts";
import { describeExit, newRecord, outcomeStates, rejectedRecord, statusOf } from "./status.ts";
import { type ManagedTask, newTask, observe, sameSlot, wantedOf } from "./task.ts";

export interface TaskManagerDeps {
  readonly log: Log;
  readonly clock: Clock;
  readonly runtime: Runtime;
  readonly images: ImageStore;
  readonly network: NetworkDaemon;
  readonly volumes: Volumes;
  readonly files: TaskFiles;
  readonly records: RecordStore;
  /** Creations and starts at once, and as many removals. */
  readonly concurrency: number;
  /** Told of each status; the control plane may be away. */
  readonly report: (status: TaskStatus) => void;
  readonly measure: TaskMeasures;
}

/** What is counted. */
export interface TaskMeasures {
  /** From "wanted running" to "runs". */
  started(ms: number): void;
  pulled(ok: boolean): void;
}

const pullPolicies: Record<PullPolicy, ImagePullPolicy> = {
  [PullPolicy.PULL_POLICY_MISSING]: "missing",
  [PullPolicy.PULL_POLICY_ALWAYS]: "always",
  [PullPolicy.PULL_POLICY_NEVER]: "never",
};

const progressEveryMs = 500;

/** Who is nearest to running comes first: of many tasks that start at once the first run early, and the last no later. */
const urgencies = { mount: 0, create: 1, start: 2 } as const;

/**
 * Runs this node's tasks: brings each, one step at a time, to what it is wanted to be. Works without the control plane; what
 * it says is kept until the next session.
 */
export class TaskManager implements AsyncDisposable {
  readonly #deps: TaskManagerDeps;
  readonly #tasks = new Map<string, ManagedTask>();
  readonly #loop: ReconcileLoop;
  readonly #starts: Semaphore;
  readonly #stops: Semaphore;
  readonly #stopped = new AbortController();
  #exits: Disposable | undefined;
  #sequence: number;
  #onForgotten: (() => void) | undefined;

  constructor(deps: TaskManagerDeps) {
    this.#deps = deps;
    this.#starts = new Semaphore(deps.concurrency);
    this.#stops = new Semaphore(deps.concurrency);
    // Above what an earlier process gave out, whose last words may not have been written down.
    this.#sequence = deps.clock.nowMs() * 1_000;
    this.#loop = new ReconcileLoop({
      name: "task",
      log: deps.log,
      // Waiting for a registry costs nothing: what is costly has its own bounds.
      concurrency: Number.POSITIVE_INFINITY,
      keys: () => this.#tasks.keys(),
      resyncIntervalMs: 30_000,
      reconcile: (taskId, signal) => this.#reconcile(taskId, signal),
    });
  }

  // ---- what others ask

  /** The newest status of everything the node holds. */
  statuses(): TaskStatus[] {
    return [...this.#tasks.values()].map((task) => statusOf(task.id, task.record));
  }

  /** A task the node holds; its log is there, and its container when it runs. */
  find(taskId: string): Readonly<ManagedTask> | undefined {
    return this.#tasks.get(taskId);
  }

  /** The logs that grow. */
  runningLogs(): RotatedLog[] {
    const running = [...this.#tasks.values()].filter((task) => task.container.kind === "running");
    return running.map((task) => ({
      taskId: task.id,
      path: this.#deps.runtime.logPath(task.id),
      maxBytes: task.assignment.container?.log?.maxBytes ?? 0,
      maxFiles: task.assignment.container?.log?.maxFiles ?? 0,
    }));
  }

  /** References of the images that tasks have, or are about to have. */
  imagesInUse(): string[] {
    const live = [...this.#tasks.values()].filter((task) => task.record.outcome === undefined);
    return live
      .flatMap((task) => [task.assignment.container?.image ?? "", task.record.image?.reference ?? ""])
      .filter(Boolean);
  }

  /** Names of the tasks that mount the volume, or are about to. */
  mounting(volume: string): string[] {
    return [...this.#tasks.values()].flatMap(({ assignment, record }) => {
      const isLive = record.outcome === undefined || !record.released;
      const mounts = assignment.container?.mounts ?? [];
      const isMounted = mounts.some(({ type, source }) => type === MountType.MOUNT_TYPE_VOLUME && source === volume);
      return isLive && isMounted ? [assignment.taskName] : [];
    });
  }

  /**
   * Takes what the control plane says the node is to hold. Nothing is done about it before it is written down: whoever comes
   * after a crash must know why it was done. Resolves then, and the work goes on by itself. What a complete set does not name
   * is removed. With no room to write, a new task is rejected; one that is known changes all the same, since a full disk must
   * not keep it from stopping.
   */
  async assign(assignments: Assignments): Promise<void> {
    const { set, remove, complete } = assignments;
    const named = new Set(set.map((assignment) => assignment.taskId));
    const dropped = complete ? [...this.#tasks.keys()].filter((taskId) => !named.has(taskId)) : remove;
    const changes = [...set.flatMap((one) => this.#news(one)), ...dropped.flatMap((taskId) => this.#removal(taskId))];
    const written = await Promise.allSettled(
      changes.map((assignment) => this.#deps.records.writeAssignment(assignment)),
    );
    // All at once: who starts in a slot looks at whether the one before it is to stop.
    for (const [index, assignment] of changes.entries()) {
      const result = written[index];
      const failure = result?.status === "rejected" ? asClusterError(result.reason) : undefined;
      if (failure !== undefined) {
        const { taskId, taskName } = assignment;
        this.#deps.log.warn("assignment not written down", { taskId, task: taskName, error: failure });
      }
      this.#apply(assignment, failure);
    }
    if (set.length + dropped.length > 0) {
      this.#deps.log.info("assigned", { set: set.length, removed: dropped.length, complete, changed: changes.length });
    }
  }

  /** The assignment as it is to be from now on; none when nothing changes. What is wanted only moves forward. */
  #news(assignment: Assignment): Assignment[] {
    const task = this.#tasks.get(assignment.taskId);
    if (task === undefined) return [assignment];
    const known = task.assignment;
    if (assignment.desired <= known.desired && task.secretsKnown) return [];
    const desired = Math.max(known.desired, assignment.desired) as DesiredState;
    return [{ ...known, secrets: assignment.secrets, desired }];
  }

  #removal(taskId: string): Assignment[] {
    const known = this.#tasks.get(taskId)?.assignment;
    const desired = DesiredState.DESIRED_STATE_REMOVED;
    return known === undefined || known.desired === desired ? [] : [{ ...known, desired }];
  }

  #apply(assignment: Assignment, unwritten: ClusterError | undefined): void {
    const { desired, taskId } = assignment;
    const running = DesiredState.DESIRED_STATE_RUNNING;
    let task = this.#tasks.get(taskId);
    const before = task?.assignment.desired;
    if (task === undefined) {
      const record = { ...newRecord(), ...this.#stamp() };
      task = newTask(assignment, unwritten === undefined ? record : rejectedRecord(record, unwritten), true);
      this.#tasks.set(taskId, task);
      if (unwritten !== undefined) this.#deps.report(statusOf(taskId, task.record));
    } else {
      task.assignment = assignment;
      // What is removed needs none any more.
      task.secretsKnown = true;
    }
    if (desired > running) task.preparing?.abort(new Error("not wanted any more"));
    if (desired === running && before !== running) task.wantedAtMs = this.#deps.clock.monotonicMs();
    this.#loop.mark(taskId);
  }

  // ---- from one process to the next

  /**
   * Takes over what an earlier process left: tasks go on where they were, what belongs to none is removed. Once, first. Of a
   * node that was removed, every task is to be removed.
   */
  async adopt(nodeRemoved = false): Promise<void> {
    const { runtime, records, log } = this.#deps;
    for (const { assignment: stored, record } of await records.load()) {
      const assignment = nodeRemoved ? { ...stored, desired: DesiredState.DESIRED_STATE_REMOVED } : stored;
      const known = record ?? { ...newRecord(), ...this.#stamp() };
      this.#sequence = Math.max(this.#sequence, known.sequence);
      this.#tasks.set(assignment.taskId, newTask(assignment, known, assignment.secrets.length === 0));
    }
    this.#exits = runtime.watchExits((exit) => this.#exited(exit));
    const orphans: string[] = [];
    let running = 0;
    for (const status of await runtime.adopt()) {
      const task = this.#tasks.get(status.id);
      if (task === undefined || task.record.released) orphans.push(status.id);
      else await this.#adoptContainer(task, status);
      if (task?.container.kind === "running") running++;
    }
    await Promise.all(
      orphans.map(async (taskId) => {
        log.warn("container removed: it belongs to no task", { taskId });
        await this.#stops.run(0, () => runtime.delete(taskId));
      }),
    );
    await this.#sweep();
    log.info("adopted", { tasks: this.#tasks.size, running, orphans: orphans.length });
    this.#loop.markAll();
  }

  async #adoptContainer(task: ManagedTask, status: ContainerStatus): Promise<void> {
    switch (status.state) {
      case "created":
        break;
      case "running": {
        // Its exit may have been told in the meantime.
        if (task.container.kind === "none") task.container = { kind: "running" };
        const { pid, startedAtMs } = status;
        if (task.record.state < TaskState.TASK_STATE_RUNNING) {
          const state = TaskState.TASK_STATE_RUNNING;
          await this.#update(task, { state, message: "", pid, startedAtMs, health: firstHealth(task) });
        }
        break;
      }
      case "exited":
        this.#exited(status.exit);
        break;
      default:
        status satisfies never;
    }
  }

  /** Removes what tasks leave on the host and no task that has yet to end owns. */
  async #sweep(): Promise<void> {
    const { images, files, runtime, log } = this.#deps;
    const isOrphan = (taskId: string) => this.#tasks.get(taskId)?.record.released ?? true;
    for (const taskId of (await images.containers()).filter(isOrphan)) {
      log.warn("file system removed: it belongs to no task", { taskId });
      await images.unmount(taskId);
    }
    for (const taskId of (await files.list()).filter(isOrphan)) await files.remove(taskId);
    // The directory of logs is the runtime's; which of them have an owner only the tasks say.
    await removeLogs(dirname(runtime.logPath("any")), (taskId) => !this.#tasks.has(taskId));
  }

  /** Has netd take away what belongs to no task. Tried until netd answers. */
  async sweepNetwork(signal: AbortSignal): Promise<void> {
    const { network, log, clock } = this.#deps;
    for (let delayMs = 200; !signal.aborted; delayMs = Math.min(delayMs * 2, 10_000)) {
      try {
        for (const { taskId } of await network.list()) {
          if (this.#tasks.get(taskId)?.record.released === false) continue;
          log.warn("network detached: it belongs to no task", { taskId });
          await network.detach(taskId);
        }
        return;
      } catch (error) {
        log.debug("netd does not answer", { error });
      }
      await clock.sleep(delayMs, signal).catch(() => undefined);
    }
  }

  /** Resolves once the node holds no task, and nothing of one is left on the host; or when the signal is aborted. */
  async untilEmpty(signal: AbortSignal): Promise<void> {
    while (this.#tasks.size > 0 && !signal.aborted) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#onForgotten = resolve;
      signal.addEventListener("abort", () => resolve(), { once: true });
      await promise;
    }
  }

  /** Stops working and watching; containers go on. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopped.abort(new Error("noded stops"));
    this.#exits?.[Symbol.dispose]();
    for (const task of this.#tasks.values()) {
      task.preparing?.abort(new Error("noded stops"));
      task.health?.stop.abort();
    }
    await this.#loop[Symbol.asyncDispose]();
    await Promise.allSettled([...this.#tasks.values()].map((task) => task.writing));
  }

  // ---- one task

  async #reconcile(taskId: string, signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const task = this.#tasks.get(taskId);
      if (task === undefined) return;
      const others = { predecessorStops: this.#predecessorStops(task), roomIsTaken: this.#roomIsTaken(task) };
      const step = nextStep(wantedOf(task), observe(task, others, this.#deps.clock.nowMs()));
      if (step.kind === "wait") {
        if (step.forMs !== undefined) this.#loop.markAfter(taskId, step.forMs);
        this.#minding(task);
        return;
      }
      this.#deps.log.debug("step", { taskId, step: step.kind, why: step.why });
      await this.#do(task, step);
    }
  }

  /** While it does, a start would give the slot two containers. Not when both may run: then the older is not asked to stop yet. */
  #predecessorStops(task: ManagedTask): boolean {
    if (task.container.kind !== "created") return false;
    return [...this.#tasks.values()].some(
      (other) =>
        other.container.kind === "running" &&
        other.assignment.desired > DesiredState.DESIRED_STATE_RUNNING &&
        sameSlot(task, other),
    );
  }

  /** Those that make room for it were told to stop, or will be: the network lets go of them first. */
  #roomIsTaken(task: ManagedTask): boolean {
    return task.assignment.preempts.some((id) => {
      const other = this.#tasks.get(id);
      return other !== undefined && other.record.outcome === undefined;
    });
  }

  async #do(task: ManagedTask, step: Exclude<Step, { kind: "wait" }>): Promise<void> {
    switch (step.kind) {
      case "prepare":
        return await this.#prepare(task, step);
      case "mount":
        return await this.#guard(task, "mount", () => this.#starts.run(urgencies.mount, () => this.#mount(task)));
      case "create":
        return await this.#guard(task, "create", () => this.#starts.run(urgencies.create, () => this.#create(task)));
      case "start":
        return await this.#guard(task, "start", () => this.#starts.run(urgencies.start, () => this.#start(task)));
      case "signal":
        return await this.#signal(task);
      case "kill":
        return await this.#kill(task);
      case "settle":
        return await this.#settle(task, step.outcome, step.exitCode, endMessage(task, step));
      case "release":
        return await this.#release(task);
      case "forget":
        return await this.#forget(task);
      default:
        return step satisfies never;
    }
  }

  /** Tries it; a failure either ends the task or is thrown, to be tried again by the loop. */
  async #guard(task: ManagedTask, stage: Stage, work: () => Promise<void>): Promise<void> {
    try {
      await work();
      task.failures.delete(stage);
    } catch (error) {
      await this.#failed(task, failureOf(task, stage, error));
    }
  }

  async #failed(task: ManagedTask, { stage, error, verdict }: Failure): Promise<void> {
    if (this.#stopped.signal.aborted) return;
    // Cut short because it is not wanted any more: the next step says what is.
    if (task.assignment.desired > DesiredState.DESIRED_STATE_RUNNING) return;
    if (verdict === "reject") {
      this.#deps.log.warn("task rejected", { taskId: task.id, task: task.assignment.taskName, stage, error });
      return await this.#settle(task, "rejected", 0, error.message);
    }
    await this.#update(task, { message: error.message });
    throw error;
  }

  // ---- steps on the way up

  async #prepare(task: ManagedTask, step: Extract<Step, { kind: "prepare" }>): Promise<void> {
    task.preparing = new AbortController();
    const { signal } = task.preparing;
    // After a failure its cause stays in sight while it is tried again.
    if (task.failures.size === 0) {
      const message = step.image ? `pulling ${containerOf(task.assignment).image}` : "preparing";
      // Not written down: after a restart it is prepared again, and told again.
      this.#tell(task, { state: Math.max(task.record.state, TaskState.TASK_STATE_PREPARING) as TaskState, message });
    }
    // The network does not wait for the image; one that can never succeed ends the wait for the others.
    const failures: Failure[] = [];
    const part = async (stage: Stage, wanted: boolean, work: () => Promise<void>) => {
      if (!wanted) return;
      try {
        await work();
        task.failures.delete(stage);
      } catch (error) {
        if (signal.aborted) return;
        const failure = failureOf(task, stage, error);
        failures.push(failure);
        if (failure.verdict === "reject") task.preparing?.abort(failure.error);
      }
    };
    await Promise.all([
      part("image", step.image, () => this.#pull(task, signal)),
      part("network", step.network, () => this.#attach(task, signal)),
      part("files", step.files, async () => {
        await this.#deps.files.write(task.assignment, task.secretsKnown);
        task.filesReady = true;
      }),
    ]);
    task.preparing = undefined;
    const cause = failures.find(({ verdict }) => verdict === "reject") ?? failures[0];
    if (cause !== undefined) await this.#failed(task, cause);
  }

  async #pull(task: ManagedTask, signal: AbortSignal): Promise<void> {
    const container = containerOf(task.assignment);
    let toldAtMs = this.#deps.clock.monotonicMs();
    const onProgress = (progress: PullProgress) => {
      const nowMs = this.#deps.clock.monotonicMs();
      if (signal.aborted || nowMs - toldAtMs < progressEveryMs) return;
      toldAtMs = nowMs;
      this.#tell(task, { message: describePull(container.image, progress) });
    };
    try {
      const image = await this.#deps.images.pull(container.image, {
        policy: pullPolicies[container.pullPolicy],
        platform: container.platform,
        signal,
        onProgress,
      });
      task.record = { ...task.record, image };
      task.imageReady = true;
      this.#deps.measure.pulled(true);
    } catch (error) {
      if (!signal.aborted) this.#deps.measure.pulled(false);
      throw error;
    }
  }

  async #attach(task: ManagedTask, signal: AbortSignal): Promise<void> {
    const { assignment } = task;
    const sysctls = Object.entries(assignment.container?.sysctls ?? {}).filter(([name]) => name.startsWith("net."));
    const { netnsPath, addresses, dnsAddress } = await this.#deps.network.attach(
      {
        taskId: task.id,
        serviceId: assignment.serviceId,
        slot: assignment.slot,
        networkIds: assignment.networks.map((network) => network.networkId),
        sysctls: Object.fromEntries(sysctls),
        hostPorts: assignment.hostPorts,
        dns: assignment.container?.dns ?? [],
      },
      signal,
    );
    task.record = { ...task.record, network: { netnsPath, addresses, dnsAddress } };
    task.networkReady = true;
  }

  async #mount(task: ManagedTask): Promise<void> {
    const { image } = task.record;
    if (image === undefined) {
      task.imageReady = false;
      return;
    }
    try {
      task.rootfs = await this.#deps.images.mount(image, task.id);
    } catch (error) {
      if (hasCode(error, "not-found")) task.imageReady = false;
      throw error;
    }
  }

  async #create(task: ManagedTask): Promise<void> {
    const { runtime, volumes, files } = this.#deps;
    const { assignment, rootfs } = task;
    const { image, network } = task.record;
    if (image === undefined || network === undefined || rootfs === undefined) {
      task.imageReady = image !== undefined;
      task.networkReady = network !== undefined;
      return;
    }
    const wanted = containerOf(assignment).mounts;
    const mounts = await Promise.all(wanted.map((mount) => volumes.resolve(mount, rootfs)));
    const request = createRequest(assignment, image, rootfs, network, [...mounts, ...files.mounts(assignment)]);
    let created: Awaited<ReturnType<Runtime["create"]>>;
    try {
      created = await runtime.create(request);
    } catch (error) {
      if (hasCode(error, "conflict")) await runtime.delete(task.id);
      throw error;
    }
    task.container = { kind: "created" };
    for (const warning of created.warnings) this.#deps.log.warn("task is limited", { taskId: task.id, warning });
    const state = TaskState.TASK_STATE_READY;
    const patch = { state, pid: created.pid, message: created.warnings.join("; ") };
    // Written down before it may run, so that its addresses and image are known to whoever adopts it.
    if (assignment.desired === DesiredState.DESIRED_STATE_READY) await this.#update(task, patch);
    else await this.#write(task, patch);
  }

  async #start(task: ManagedTask): Promise<void> {
    const { startedAtMs } = await this.#deps.runtime.start(task.id);
    // It may have ended already.
    if (task.container.kind === "created") task.container = { kind: "running" };
    await this.#update(task, { state: TaskState.TASK_STATE_RUNNING, startedAtMs, health: firstHealth(task) });
    if (task.wantedAtMs !== undefined) this.#deps.measure.started(this.#deps.clock.monotonicMs() - task.wantedAtMs);
  }

  // ---- while it runs

  /** A task that is as it should be: its health is watched while it runs. */
  #minding(task: ManagedTask): void {
    const policy = policyOf(task);
    if (task.container.kind !== "running" || task.health !== undefined || policy === undefined) return;
    // What is being stopped is not asked how it is any more.
    if (task.record.stopSentAtMs !== undefined || task.assignment.desired > DesiredState.DESIRED_STATE_RUNNING) return;
    if (this.#stopped.signal.aborted) return;
    const stop = new AbortController();
    task.health = { policy, stop };
    const onChange = ({ health, output }: { health: Health; output: string }) => {
      const unhealthy = health === Health.HEALTH_UNHEALTHY;
      const message = unhealthy ? `unhealthy: ${output}` : "";
      // Final: the next step stops it, and a late success must not take that back.
      if (unhealthy) stop.abort();
      this.#update(task, { health, message, ...(unhealthy ? { unhealthy: message } : {}) })
        .catch((error: unknown) => this.#deps.log.error("health not written down", { taskId: task.id, error }))
        .finally(() => unhealthy && this.#loop.mark(task.id));
    };
    const { runtime, clock } = this.#deps;
    const { health, startedAtMs } = task.record;
    void watchHealth({ runtime, clock, taskId: task.id, policy, health, startedAtMs, onChange }, stop.signal);
  }

  #exited(exit: ContainerExit): void {
    const task = this.#tasks.get(exit.id);
    if (task === undefined) return;
    task.container = { kind: "exited", exitCode: exit.exitCode };
    task.exit = exit;
    task.health?.stop.abort();
    task.health = undefined;
    this.#loop.mark(task.id);
    for (const other of this.#tasks.values()) if (sameSlot(task, other)) this.#loop.mark(other.id);
  }

  // ---- steps on the way down

  async #signal(task: ManagedTask): Promise<void> {
    const signal = stopSignal(task.assignment, task.record.image);
    task.health?.stop.abort();
    task.health = undefined;
    try {
      await this.#deps.runtime.kill(task.id, signal);
    } catch (error) {
      if (!hasCode(error, "invalid")) throw error;
      this.#deps.log.warn("unknown stop signal, SIGTERM sent instead", { taskId: task.id, signal });
      await this.#deps.runtime.kill(task.id, "SIGTERM");
    }
    // After it was sent: a process killed in between sends it twice, and never lets the grace pass without it.
    const message = unhealthyWords(task) ?? `stopping: ${signal} sent`;
    await this.#update(task, { stopSentAtMs: this.#deps.clock.nowMs(), message });
  }

  async #kill(task: ManagedTask): Promise<void> {
    const message = unhealthyWords(task) ?? "killed: its grace is over";
    try {
      // Before: whoever adopts it must know why it died.
      await this.#update(task, { killedAtMs: this.#deps.clock.nowMs(), message });
    } finally {
      // A full disk must not keep it alive.
      await this.#deps.runtime.kill(task.id, "SIGKILL");
    }
  }

  async #settle(task: ManagedTask, outcome: Outcome, exitCode: number, message: string): Promise<void> {
    task.preparing?.abort(new Error("it has ended"));
    const oomKilled = task.exit?.oomKilled ?? false;
    const finishedAtMs = task.exit?.finishedAtMs ?? this.#deps.clock.nowMs();
    const state = outcomeStates[outcome];
    try {
      await this.#update(task, {
        outcome,
        state,
        exitCode,
        oomKilled,
        finishedAtMs,
        message,
        health: Health.HEALTH_NONE,
      });
    } finally {
      task.ended.abort();
      for (const other of this.#tasks.values()) {
        if (other.assignment.preempts.includes(task.id)) this.#loop.mark(other.id);
      }
    }
    const { taskName } = task.assignment;
    this.#deps.log.info("task ended", { taskId: task.id, task: taskName, outcome, exitCode, detail: message });
  }

  async #release(task: ManagedTask): Promise<void> {
    const { runtime, network, images, files } = this.#deps;
    await this.#stops.run(0, async () => {
      await runtime.delete(task.id);
      const results = await Promise.allSettled([
        network.detach(task.id),
        images.unmount(task.id),
        files.remove(task.id),
      ]);
      for (const result of results) if (result.status === "rejected") throw result.reason;
    });
    task.container = { kind: "none" };
    task.rootfs = undefined;
    await this.#write(task, { released: true });
  }

  async #forget(task: ManagedTask): Promise<void> {
    const { runtime, records } = this.#deps;
    await task.writing;
    await removeLogs(dirname(runtime.logPath(task.id)), (taskId) => taskId === task.id);
    await records.remove(task.id);
    this.#tasks.delete(task.id);
    this.#onForgotten?.();
  }

  // ---- what is written down and told

  #stamp(): { readonly sequence: number; readonly observedAtMs: number } {
    return { sequence: ++this.#sequence, observedAtMs: this.#deps.clock.nowMs() };
  }

  /** Changes the record without telling. */
  async #write(task: ManagedTask, patch: Partial<TaskRecord>): Promise<void> {
    // A state once reached is never taken back, whatever is done again after a restart.
    const state = Math.max(task.record.state, patch.state ?? 0) as TaskState;
    const record = { ...task.record, ...patch, state };
    const upAtMs = record.upAtMs || (isUp(record) ? this.#deps.clock.nowMs() : 0);
    task.record = { ...record, upAtMs };
    // One write at a time, each of what is newest by then.
    task.writing = task.writing.then(
      () => this.#deps.records.writeRecord(task.id, task.record),
      () => this.#deps.records.writeRecord(task.id, task.record),
    );
    await task.writing;
  }

  /** Changes the record, and tells the control plane once it is written down. */
  async #update(task: ManagedTask, patch: Partial<TaskRecord>): Promise<void> {
    try {
      await this.#write(task, { ...patch, ...this.#stamp() });
    } finally {
      // A full disk must not hide how a task fares.
      this.#deps.report(statusOf(task.id, task.record));
    }
  }

  /** Tells what need not outlive this process. */
  #tell(task: ManagedTask, patch: Partial<TaskRecord>): void {
    task.record = { ...task.record, ...patch, ...this.#stamp() };
    this.#deps.report(statusOf(task.id, task.record));
  }
}

function policyOf({ assignment, record }: ManagedTask): HealthPolicy | undefined {
  return healthPolicy(assignment.container?.healthcheck, record.image?.config.healthcheck);
}

/** Told with the very first "running": who waits for its health must not take it for healthy before its first check. */
function firstHealth(task: ManagedTask): Health {
  return policyOf(task) === undefined ? Health.HEALTH_NONE : Health.HEALTH_STARTING;
}

/** As the control plane counts it. */
function isUp({ state, health }: TaskRecord): boolean {
  return state === TaskState.TASK_STATE_RUNNING && (health === Health.HEALTH_NONE || health === Health.HEALTH_HEALTHY);
}

interface Failure {
  readonly stage: Stage;
  readonly error: ClusterError;
  readonly verdict: Verdict;
}

/** Counts the failure, and says what comes of it. */
function failureOf(task: ManagedTask, stage: Stage, caught: unknown): Failure {
  const error = asClusterError(caught);
  const attempt = (task.failures.get(stage) ?? 0) + 1;
  task.failures.set(stage, attempt);
  return { stage, error, verdict: judge(stage, error, attempt) };
}

function endMessage(task: ManagedTask, step: Extract<Step, { kind: "settle" }>): string {
  const unhealthy = unhealthyWords(task);
  if (unhealthy !== undefined && step.outcome === "failed") return unhealthy;
  const { exit } = task;
  if (exit === undefined) return step.why;
  if (exit.message !== "") return exit.message;
  if (task.record.killedAtMs !== undefined) {
    return `killed: it did not stop within ${stopGraceMs(task.assignment) / 1_000} s of the stop signal`;
  }
  return step.outcome === "complete" ? "" : describeExit(step.exitCode, exit.oomKilled);
}

/** Why it was given up, if that is why it stops: not when it was asked to stop. */
function unhealthyWords({ assignment, record }: ManagedTask): string | undefined {
  if (assignment.desired > DesiredState.DESIRED_STATE_RUNNING || record.health !== Health.HEALTH_UNHEALTHY)
    return undefined;
  return record.unhealthy ?? "unhealthy: its health check failed";
}

/** "pulling web:1: 2 of 5 layers, 40 %"; "pulling web:1" as long as nothing is known of its layers. */
export function describePull(image: string, { layersDone, layersTotal, bytesDone, bytesTotal }: PullProgress): string {
  if (layersTotal === 0) return `pulling ${image}`;
  const percent = bytesTotal === 0 ? 100 : Math.floor((bytesDone / bytesTotal) * 100);
  return `pulling ${image}: ${layersDone} of ${layersTotal} layers, ${percent} %`;
}
