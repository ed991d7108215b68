import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { systemClock } from "../../lib/clock/clock.ts";
import { ClusterError } from "../../lib/errors/errors.ts";
import { silentLog } from "../../lib/log/log.ts";
import { Assignment, Assignments } from "../../proto/gen/embassy/v1/dispatcher.ts";
import { ContainerSpec } from "../../proto/gen/embassy/v1/stack.ts";
import { DesiredState, Health, TaskState, type TaskStatus } from "../../proto/gen/embassy/v1/state.ts";
import type { Image, ImageStore } from "../images/types.ts";
import type { NetworkDaemon } from "../network/client.ts";
import type { ContainerExit, ContainerStatus, Runtime } from "../runtime/types.ts";
import { Volumes } from "../volumes/volumes.ts";
import type { TaskFiles } from "./files.ts";
import { describePull, TaskManager } from "./manager.ts";
import { RecordStore } from "./record.ts";

const { DESIRED_STATE_READY, DESIRED_STATE_RUNNING, DESIRED_STATE_SHUTDOWN, DESIRED_STATE_REMOVED } = DesiredState;

/** The kernel's and the registry's part, as plain data that outlives any number of managers. */
class Host {
  readonly containers = new Map<string, ContainerStatus>();
  readonly mounts = new Set<string>();
  readonly attached = new Set<string>();
  readonly files = new Set<string>();
  /** How often each container's program was run. */
  readonly runs = new Map<string, number>();
  readonly signals: string[] = [];
  readonly listeners = new Set<(exit: ContainerExit) => void>();
  readonly fail = new Map<string, ClusterError[]>();
  /** Operations that take until then. */
  readonly held = new Map<string, Promise<void>>();
  /** Operations that the living process may still do before it is killed. */
  operationsLeft = Number.POSITIVE_INFINITY;
  operations = 0;
  /** The process that lives; what another one calls never returns. */
  generation = 0;

  exit(id: string, exitCode: number): void {
    const exit = { id, exitCode, oomKilled: false, finishedAtMs: 5, message: "" };
    this.containers.set(id, { id, state: "exited", exit });
    for (const listener of this.listeners) listener(exit);
  }
}

/** One process's access to the host. It dies before an operation takes effect, or after that and before it returns. */
function gate(host: Host, diesBefore: boolean, died: () => void) {
  const generation = ++host.generation;
  return async <T>(name: string, effect: () => T): Promise<T> => {
    await host.held.get(name);
    if (host.generation !== generation) return await new Promise<never>(() => undefined);
    host.operations++;
    const last = --host.operationsLeft < 0;
    if (last) {
      host.generation++;
      if (!diesBefore) await effect();
      died();
      return await new Promise<never>(() => undefined);
    }
    const failure = host.fail.get(name)?.shift();
    if (failure !== undefined) throw failure;
    const result = effect();
    await new Promise((resolve) => setImmediate(resolve));
    return host.generation === generation ? result : await new Promise<never>(() => undefined);
  };
}

const image: Image = {
  reference: "r/web:1",
  platform: "linux/amd64",
  manifestDigest: "sha256:aa",
  configDigest: "sha256:bb",
  config: {
    os: "linux",
    architecture: "amd64",
    entrypoint: [],
    command: ["/web"],
    environment: [],
    user: "",
    workingDir: "",
    exposedPorts: [],
    volumes: [],
    stopSignal: "SIGQUIT",
    labels: {},
    healthcheck: undefined,
  },
  layers: ["l1"],
  sizeBytes: 1,
};

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "embassy-manager-"));
});
afterEach(async () => {
  await rm(directory, { recursive: true });
});

interface Process {
  readonly manager: TaskManager;
  readonly told: Map<string, TaskStatus>;
  readonly history: TaskStatus[];
  /** Resolves once the newest status of the task is as wanted. */
  until(taskId: string, wanted: (status: TaskStatus) => boolean): Promise<TaskStatus>;
  readonly died: Promise<void>;
  isDead(): boolean;
}

/** Starts a manager on the host, as a new process would. */
function spawn(host: Host, diesBefore = true): Process {
  const died = Promise.withResolvers<void>();
  const act = gate(host, diesBefore, died.resolve);
  host.listeners.clear();
  const told = new Map<string, TaskStatus>();
  const history: TaskStatus[] = [];
  const waiting = new Set<() => void>();
  const runtime: Runtime = {
    probe: { version: "fake 1", path: "/fake", cgroups: "v1", swapAccounting: false },
    adopt: () =>
      act("adopt", () => {
        for (const [id, { state }] of host.containers) if (state === "created") host.containers.delete(id);
        return [...host.containers.values()];
      }),
    create: ({ id }) =>
      act("create", () => {
        if (host.containers.has(id)) throw new ClusterError("exists", { code: "conflict" });
        expect(host.mounts.has(id) && host.attached.has(id)).toBe(true);
        host.containers.set(id, { id, state: "created", pid: 10 });
        return { pid: 10, warnings: [] };
      }),
    start: (id) =>
      act("start", () => {
        expect(host.containers.get(id)?.state).toBe("created");
        host.containers.set(id, { id, state: "running", pid: 10, startedAtMs: 1 });
        host.runs.set(id, (host.runs.get(id) ?? 0) + 1);
        return { startedAtMs: 1 };
      }),
    kill: (id, signal) =>
      act("kill", () => {
        host.signals.push(signal);
        if (host.containers.get(id)?.state === "running") host.exit(id, signal === "SIGKILL" ? 137 : 131);
      }),
    delete: (id) => act("delete", () => void host.containers.delete(id)),
    list: async () => await Promise.resolve([...host.containers.values()]),
    status: async (id) => await Promise.resolve(host.containers.get(id)),
    watchExits: (listener) => {
      host.listeners.add(listener);
      return { [Symbol.dispose]: () => void host.listeners.delete(listener) };
    },
    exec: async () => await Promise.reject(new Error("not here")),
    logPath: (id) => join(directory, "log", `${id}.log`),
    reopenLog: async () => await Promise.resolve(),
    [Symbol.asyncDispose]: async () => await Promise.resolve(),
  };
  const images: ImageStore = {
    pull: (_, options) => {
      // A pull that is not wanted any more ends with the reason.
      const aborted = new Promise<never>((_resolve, reject) => {
        options?.signal?.addEventListener("abort", () => reject(options.signal?.reason), { once: true });
      });
      return Promise.race([act("pull", () => image), aborted]);
    },
    find: async () => await Promise.resolve(image),
    list: async () => await Promise.resolve([image]),
    mount: (_, id) =>
      act("mount", () => {
        host.mounts.add(id);
        return `/root/${id}`;
      }),
    unmount: (id) => act("unmount", () => void host.mounts.delete(id)),
    containers: async () => await Promise.resolve([...host.mounts]),
    collect: async () => await Promise.resolve({ images: 0, layers: 0 }),
  };
  const network: NetworkDaemon = {
    attach: ({ taskId }) =>
      act("attach", () => {
        host.attached.add(taskId);
        const addresses = [{ networkId: "n", address: "10.0.0.2" }];
        return { netnsPath: `/ns/${taskId}`, addresses, dnsAddress: "169.254.42.1", mtu: 1450 };
      }),
    detach: (taskId) => act("detach", () => void host.attached.delete(taskId)),
    list: () => act("list", () => [...host.attached].map((taskId) => ({ taskId, serviceId: "", addresses: [] }))),
  };
  const files = {
    write: ({ taskId }: Assignment) => act("files", () => void host.files.add(taskId)),
    mounts: () => [],
    remove: (taskId: string) => act("remove files", () => void host.files.delete(taskId)),
    list: async () => await Promise.resolve([...host.files]),
  } as unknown as TaskFiles;
  const store = new RecordStore(join(directory, "tasks"), silentLog);
  const records = {
    load: () => store.load(),
    writeAssignment: async (assignment: Assignment) =>
      await act("write assignment", () => store.writeAssignment(assignment)),
    writeRecord: async (id: string, record: never) => await act("write", () => store.writeRecord(id, record)),
    remove: async (id: string) => await act("write", () => store.remove(id)),
  } as unknown as RecordStore;
  const manager = new TaskManager({
    log: silentLog,
    clock: systemClock,
    runtime,
    images,
    network,
    volumes: new Volumes(join(directory, "volumes")),
    files,
    records,
    concurrency: 2,
    report: (status) => {
      const before = told.get(status.taskId);
      if (before !== undefined) {
        expect(status.sequence).toBeGreaterThan(before.sequence);
        expect(status.state).toBeGreaterThanOrEqual(before.state);
      }
      told.set(status.taskId, status);
      history.push(status);
      for (const wake of waiting) wake();
    },
    measure: { started() {}, pulled() {} },
  });
  return {
    manager,
    told,
    history,
    died: died.promise,
    isDead: () => host.operationsLeft < 0,
    until: async (taskId, wanted) =>
      await new Promise((resolve) => {
        const look = () => {
          const status = manager.statuses().find((one) => one.taskId === taskId);
          if (status === undefined || !wanted(status)) return;
          waiting.delete(look);
          resolve(status);
        };
        waiting.add(look);
        look();
      }),
  };
}

const id = "aaaaaaaaaaaa";
const other = "bbbbbbbbbbbb";
const assignment = (desired: DesiredState, taskId = id) =>
  Assignment.create({
    taskId,
    taskName: "s_web.1",
    desired,
    container: { image: image.reference, stopGraceMs: 60_000 },
  });
const assignments = (set: Assignment[], complete = false, remove: string[] = []) =>
  Assignments.create({ revision: 1, complete, set, remove });
const inState = (state: TaskState) => (status: TaskStatus) => status.state === state;
const { TASK_STATE_READY, TASK_STATE_RUNNING, TASK_STATE_SHUTDOWN, TASK_STATE_REJECTED, TASK_STATE_FAILED } = TaskState;

/** Waits until the manager has forgotten the task. */
async function gone(process: Process, taskId: string): Promise<void> {
  while (process.manager.find(taskId) !== undefined && !process.isDead())
    await new Promise((resolve) => setImmediate(resolve));
}

function expectNothingLeft(host: Host): void {
  expect([...host.containers.keys(), ...host.mounts, ...host.attached, ...host.files]).toEqual([]);
}

describe("TaskManager", () => {
  it("prepares a task, starts it on leave, stops it with the image's signal, and forgets it", async () => {
    const host = new Host();
    const node = spawn(host);
    await using manager = node.manager;
    await manager.adopt();
    await manager.assign(assignments([assignment(DESIRED_STATE_READY)], true));
    await node.until(id, inState(TASK_STATE_READY));
    expect(host.containers.get(id)?.state).toBe("created");
    await manager.assign(assignments([assignment(DESIRED_STATE_RUNNING)]));
    expect(await node.until(id, inState(TASK_STATE_RUNNING))).toMatchObject({
      pid: 10,
      imageDigest: "sha256:aa",
      addresses: [{ networkId: "n", address: "10.0.0.2" }],
    });
    await manager.assign(assignments([assignment(DESIRED_STATE_SHUTDOWN)]));
    expect(await node.until(id, inState(TASK_STATE_SHUTDOWN))).toMatchObject({ exitCode: 131 });
    expect(host.signals).toEqual(["SIGQUIT"]);
    await manager.assign(assignments([], false, [id]));
    await gone(node, id);
    expectNothingLeft(host);
    expect(await new RecordStore(join(directory, "tasks"), silentLog).load()).toEqual([]);
  });

  it("does nothing about an assignment before it is written down", async () => {
    const host = new Host();
    const node = spawn(host);
    await using manager = node.manager;
    await manager.adopt();
    const pull = Promise.withResolvers<void>();
    host.held.set("pull", pull.promise);
    await manager.assign(assignments([assignment(DESIRED_STATE_READY)], true));
    const disk = Promise.withResolvers<void>();
    host.held.set("write assignment", disk.promise);
    const assigned = manager.assign(assignments([assignment(DESIRED_STATE_SHUTDOWN)]));
    pull.resolve();
    await node.until(id, inState(TASK_STATE_READY));
    disk.resolve();
    await assigned;
    expect(await node.until(id, inState(TASK_STATE_SHUTDOWN))).toMatchObject({ exitCode: 0 });
  });

  it("stops what it is asked to stop when the disk is full, and rejects what is new", async () => {
    const host = new Host();
    const node = spawn(host);
    await using manager = node.manager;
    await manager.adopt();
    await manager.assign(assignments([assignment(DESIRED_STATE_RUNNING)], true));
    await node.until(id, inState(TASK_STATE_RUNNING));
    const full = new ClusterError("no space left on device", { code: "unavailable" });
    host.fail.set("write assignment", [full, full]);
    await manager.assign(assignments([assignment(DESIRED_STATE_SHUTDOWN), assignment(DESIRED_STATE_RUNNING, other)]));
    await node.until(id, inState(TASK_STATE_SHUTDOWN));
    const message = "the node cannot write it down: no space left on device";
    expect(await node.until(other, inState(TASK_STATE_REJECTED))).toMatchObject({ message });
    expect(node.told.get(other)).toMatchObject({ message });
    expect(host.runs.get(other)).toBeUndefined();
    await manager.assign(assignments([], true));
    for (const taskId of [id, other]) await gone(node, taskId);
    expectNothingLeft(host);
  });

  it("never tells a task with a health check to be up before its first check", async () => {
    const host = new Host();
    const checked = assignment(DESIRED_STATE_RUNNING);
    const healthcheck = { test: ["CMD", "check"], intervalMs: 60_000, timeoutMs: 1_000, retries: 2 };
    checked.container = ContainerSpec.fromPartial({ ...checked.container, healthcheck });
    const node = spawn(host);
    await using manager = node.manager;
    await manager.adopt();
    await manager.assign(assignments([checked, assignment(DESIRED_STATE_RUNNING, other)], true));
    await node.until(id, inState(TASK_STATE_RUNNING));
    const told = () => node.history.find(({ taskId, state }) => taskId === id && state === TASK_STATE_RUNNING);
    // It runs before that is written down, and is told after that.
    while (told() === undefined) await new Promise((resolve) => setImmediate(resolve));
    expect(told()).toMatchObject({ health: Health.HEALTH_STARTING, upAtMs: 0 });
    expect((await node.until(other, inState(TASK_STATE_RUNNING))).upAtMs).toBeGreaterThan(0);
  });

  it("stops what is unhealthy, and tells it failed in the words of its check, over a restart too", async () => {
    const host = new Host();
    const checked = assignment(DESIRED_STATE_RUNNING);
    const test = ["CMD", "check"];
    checked.container = ContainerSpec.fromPartial({
      ...checked.container,
      healthcheck: { test, intervalMs: 1, timeoutMs: 1_000, retries: 2 },
    });
    // The first process is never able to stop it.
    host.fail.set(
      "kill",
      Array.from({ length: 50 }, () => new ClusterError("busy", { code: "unavailable" })),
    );
    {
      const node = spawn(host);
      await using manager = node.manager;
      await manager.adopt();
      await manager.assign(assignments([checked]));
      const status = await node.until(id, ({ health }) => health === Health.HEALTH_UNHEALTHY);
      expect(status).toMatchObject({ state: TASK_STATE_RUNNING, message: "unhealthy: not here" });
    }
    host.fail.clear();
    const node = spawn(host);
    await using manager = node.manager;
    await manager.adopt();
    expect(await node.until(id, inState(TASK_STATE_FAILED))).toMatchObject({
      exitCode: 131,
      message: "unhealthy: not here",
    });
    expect(host.signals).toEqual(["SIGQUIT"]);
  });

  it.each([
    ["the next of a slot", "s"],
    ["the first of a slot of a service that was removed and is deployed again", "t"],
  ])("starts %s once the one that stops there has ended", async (_, serviceId) => {
    const host = new Host();
    const node = spawn(host);
    await using manager = node.manager;
    await manager.adopt();
    const of = (taskId: string) => ({
      ...assignment(DESIRED_STATE_RUNNING, taskId),
      stack: "s",
      serviceName: "web",
      serviceId: taskId === id ? "s" : serviceId,
      slot: 1,
    });
    await manager.assign(assignments([of(id)], true));
    await manager.assign(assignments([{ ...of(other), desired: DESIRED_STATE_READY }]));
    await node.until(id, inState(TASK_STATE_RUNNING));
    await node.until(other, inState(TASK_STATE_READY));
    host.fail.set(
      "kill",
      Array.from({ length: 3 }, () => new ClusterError("busy", { code: "unavailable" })),
    );
    await manager.assign(assignments([of(other)], true));
    await node.until(other, inState(TASK_STATE_RUNNING));
    expect(host.containers.get(id)?.state).not.toBe("running");
  });

  it("tells how a task ended, and leaves nothing of it but its record", async () => {
    const host = new Host();
    const node = spawn(host);
    await using manager = node.manager;
    await manager.adopt();
    await manager.assign(assignments([assignment(DESIRED_STATE_RUNNING)]));
    await node.until(id, inState(TASK_STATE_RUNNING));
    host.exit(id, 3);
    expect(await node.until(id, inState(TASK_STATE_FAILED))).toMatchObject({
      exitCode: 3,
      message: "exited with code 3",
    });
    while (manager.find(id)?.record.released !== true) await new Promise((resolve) => setImmediate(resolve));
    expectNothingLeft(host);
    // What it is wanted to be changes nothing any more.
    await manager.assign(assignments([assignment(DESIRED_STATE_SHUTDOWN)]));
    expect(manager.statuses()).toMatchObject([{ state: TASK_STATE_FAILED }]);
  });

  it("rejects what can never start, with the registry's words, and waits for netd as long as it takes", async () => {
    const host = new Host();
    const node = spawn(host);
    await using manager = node.manager;
    await manager.adopt();
    const unknown = new ClusterError("manifest unknown: r/web:1", { code: "not-found" });
    host.fail.set("pull", [unknown]);
    await manager.assign(assignments([assignment(DESIRED_STATE_RUNNING)]));
    expect(await node.until(id, inState(TASK_STATE_REJECTED))).toMatchObject({ message: "manifest unknown: r/web:1" });
    const away = () => new ClusterError("netd does not answer", { code: "unavailable" });
    host.fail.set("attach", [away(), away(), away(), away()]);
    await manager.assign(assignments([assignment(DESIRED_STATE_RUNNING, other)]));
    await node.until(other, inState(TASK_STATE_RUNNING));
    expect(node.history.filter(({ message }) => message === "netd does not answer").length).toBe(4);
  });

  it("rejects at once a task whose port a program of the host has: another host may take it", async () => {
    const host = new Host();
    const node = spawn(host);
    await using manager = node.manager;
    await manager.adopt();
    host.fail.set("attach", [new ClusterError("port 22 is in use by sshd (pid 7)", { code: "conflict" })]);
    await manager.assign(assignments([assignment(DESIRED_STATE_RUNNING)]));
    // A second attempt would succeed.
    await node.until(id, (status) => [TASK_STATE_REJECTED, TASK_STATE_RUNNING].some((state) => state === status.state));
    expect(manager.statuses()).toMatchObject([
      { state: TASK_STATE_REJECTED, message: "port 22 is in use by sshd (pid 7)" },
    ]);
  });

  it("removes what a complete set does not name, and nothing before there is one", async () => {
    const host = new Host();
    {
      const node = spawn(host);
      await using manager = node.manager;
      await manager.adopt();
      await manager.assign(
        assignments([assignment(DESIRED_STATE_RUNNING), assignment(DESIRED_STATE_RUNNING, other)], true),
      );
      await node.until(id, inState(TASK_STATE_RUNNING));
      await node.until(other, inState(TASK_STATE_RUNNING));
    }
    const node = spawn(host);
    await using manager = node.manager;
    await manager.adopt();
    expect(manager.statuses().map(({ state }) => state)).toEqual([TASK_STATE_RUNNING, TASK_STATE_RUNNING]);
    await manager.assign(assignments([], false));
    expect(host.signals).toEqual([]);
    await manager.assign(assignments([assignment(DESIRED_STATE_RUNNING, other)], true));
    await gone(node, id);
    expect([...host.containers.keys()]).toEqual([other]);
    expect(host.runs.get(other)).toBe(1);
  });

  it("removes what belongs to no task", async () => {
    const host = new Host();
    host.containers.set("cccccccccccc", { id: "cccccccccccc", state: "running", pid: 1, startedAtMs: 1 });
    host.mounts.add("dddddddddddd");
    host.files.add("eeeeeeeeeeee");
    host.attached.add("ffffffffffff");
    await using manager = spawn(host).manager;
    await manager.adopt();
    await manager.sweepNetwork(new AbortController().signal);
    expectNothingLeft(host);
  });
});

describe("TaskManager, killed at any instant", () => {
  /** What the control plane wants in turn; the next once the one before is so. */
  const life = [
    { desired: DESIRED_STATE_READY, reached: TASK_STATE_READY },
    { desired: DESIRED_STATE_RUNNING, reached: TASK_STATE_RUNNING },
    { desired: DESIRED_STATE_SHUTDOWN, reached: TASK_STATE_SHUTDOWN },
    { desired: DESIRED_STATE_REMOVED, reached: undefined },
  ] as const;

  async function live(process: Process, from: number, before?: TaskStatus): Promise<number> {
    const { manager } = process;
    let at = from;
    if (before !== undefined) process.told.set(id, before);
    const work = (async () => {
      await manager.adopt();
      for (; at < life.length; at++) {
        const stage = life[at];
        if (stage === undefined) break;
        // As the control plane does it: a session begins with a complete set.
        await manager.assign(
          assignments(stage.desired === DESIRED_STATE_REMOVED ? [] : [assignment(stage.desired)], true),
        );
        if (stage.reached === undefined) await gone(process, id);
        else await process.until(id, (status) => status.state >= stage.reached);
      }
      await manager.sweepNetwork(new AbortController().signal);
    })();
    await Promise.race([work, process.died]);
    return at;
  }

  async function liveWithDeathAt(operation: number, diesBefore: boolean): Promise<boolean> {
    const host = new Host();
    host.operationsLeft = operation;
    const first = spawn(host, diesBefore);
    const at = await live(first, 0);
    const killed = host.operationsLeft < 0;
    host.operationsLeft = Number.POSITIVE_INFINITY;
    if (killed) {
      const second = spawn(host);
      await live(second, at, first.told.get(id));
      await second.manager[Symbol.asyncDispose]();
    } else await first.manager[Symbol.asyncDispose]();
    expect(host.runs.get(id)).toBe(1);
    expectNothingLeft(host);
    expect(await new RecordStore(join(directory, "tasks"), silentLog).load()).toEqual([]);
    return killed;
  }

  it.each([true, false])(
    "goes on where it was, runs it once, leaves nothing (dies before the effect: %s)",
    async (before) => {
      let operation = 0;
      while (await liveWithDeathAt(operation, before)) operation++;
      // Fewer would mean that the life above was not lived.
      expect(operation).toBeGreaterThan(15);
    },
  );
});

describe("how a pull goes", () => {
  it("is told once something is known of the image", () => {
    const none = { layersTotal: 0, layersDone: 0, bytesTotal: 0, bytesDone: 0 };
    expect(describePull("web:1", none)).toBe("pulling web:1");
    expect(describePull("web:1", { ...none, layersTotal: 2, layersDone: 1, bytesTotal: 200, bytesDone: 81 })).toBe(
      "pulling web:1: 1 of 2 layers, 40 %",
    );
    expect(describePull("web:1", { ...none, layersTotal: 2, layersDone: 2 })).toBe(
      "pulling web:1: 2 of 2 layers, 100 %",
    );
  });
});
