import { describe, expect, it } from "vitest";
import { systemClock } from "../../lib/clock/clock.ts";
import { silentLog } from "../../lib/log/log.ts";
import { Protocol } from "../../proto/gen/embassy/v1/stack.ts";
import { DesiredState, NodeState, type Task, TaskState, TaskStatus } from "../../proto/gen/embassy/v1/state.ts";
import { createControllers } from "../controllers/index.ts";
import { stackProgress } from "../domain/progress.ts";
import { aService, aStack, replicas, TestCluster } from "../domain/testing.ts";
import { CutOver } from "./cutover.ts";
import { unknownNode } from "./session.ts";
import { DispatcherServer } from "./testing.ts";

/** Resolves once the view holds what is looked for. */
async function until(cluster: TestCluster, holds: () => boolean): Promise<void> {
  if (holds()) return;
  await new Promise<void>((resolve) => {
    const subscription = cluster.index.subscribe(() => {
      if (!holds()) return;
      subscription[Symbol.dispose]();
      resolve();
    });
  });
}

/** A cluster with nodes, a dispatcher, and one task of "s_web" on node "a" that is said to run. */
async function oneTask(peers: Parameters<typeof DispatcherServer.start>[2] = {}) {
  const cluster = new TestCluster();
  await cluster.addNodes("a", "b");
  const server = await DispatcherServer.start(cluster, "m", peers);
  await cluster.deploy(aStack("s", [aService("web", { mode: replicas(1) })]));
  const service = cluster.service("s", "web");
  const networkId = Object.values(service.networkIds)[0] ?? "";
  await cluster.store.commit([
    { table: "blocks", id: `${networkId}/10.96.0.0-27`, value: { networkId, cidr: "10.96.0.0/27", nodeId: "a" } },
    { table: "blocks", id: `${networkId}/10.96.0.32-27`, value: { networkId, cidr: "10.96.0.32/27", nodeId: "b" } },
  ]);
  const change = async (over: Partial<Task>) => {
    const known = cluster.index.view.tasks.get("t");
    const base = known ?? {
      id: "t",
      serviceId: service.id,
      stack: "s",
      serviceName: "web",
      slot: 1,
      serviceVersion: 1,
      spec: service.spec,
      nodeId: "a",
      desired: DesiredState.DESIRED_STATE_RUNNING,
      epoch: 1,
      createdAtMs: 1,
      unplaced: "",
      replaces: "",
      networkIds: service.networkIds,
      restarts: 0,
      failures: 0,
      waitsFor: "",
      blobDigests: {},
      hostPorts: [],
      onlyNode: "",
      preempts: [],
      preemptedBy: "",
      moved: "",
    };
    await cluster.store.commit([{ table: "tasks", id: "t", value: { ...base, ...over } }]);
  };
  await change({});
  return {
    cluster,
    server,
    change,
    status: () => cluster.index.view.taskStatuses.get("t"),
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]();
      cluster[Symbol.dispose]();
    },
  };
}

const running = (over: Partial<TaskStatus> = {}) =>
  TaskStatus.create({ taskId: "t", state: TaskState.TASK_STATE_RUNNING, startedAtMs: 1, ...over });

describe("a session", () => {
  it("is refused to a node that the cluster does not know, and to other certificates", async () => {
    await using one = await oneTask();
    const stranger = (await one.server.node("stranger")).hello();
    await expect(stranger.open()).rejects.toMatchObject({ code: "not-found", subject: "node/stranger" });
    const admin = await one.server.client("admin", "admin");
    const stream = admin.session();
    const failure = new Promise<unknown>((resolve) => stream.on("error", resolve));
    stream.on("data", () => undefined);
    expect(await failure).toMatchObject({ details: expect.stringContaining("role node") });
  });

  it("is refused for a while, and not for good, by a manager that has not heard of the node yet", async () => {
    using cluster = new TestCluster();
    await cluster.addNodes("a");
    expect(await unknownNode(cluster.store, "a")).toMatchObject({ code: "unavailable", subject: "node/a" });
    expect(await unknownNode(cluster.store, "b")).toMatchObject({ code: "not-found", subject: "node/b" });
  });

  it("begins with a welcome and everything the node should hold, and goes on with what changes", async () => {
    await using one = await oneTask();
    const node = await one.server.node("a");
    node.idle = true;
    await node.hello().open();
    expect(node.received.map(({ message }) => message?.$case)).toEqual(["welcome", "assignments"]);
    expect(node.received[0]?.message?.value).toMatchObject({ nodeName: "a", leaseTtlMs: 5_000, clusterId: "cluster" });
    expect(node.assignments.get("t")).toMatchObject({
      taskName: "s_web.1",
      desired: DesiredState.DESIRED_STATE_RUNNING,
    });
    expect(one.cluster.index.view.sessions.get("a")).toMatchObject({ clusterd: "m" });
    await one.change({ desired: DesiredState.DESIRED_STATE_SHUTDOWN });
    await node.until(() =>
      node.assignments.get("t")?.desired === DesiredState.DESIRED_STATE_SHUTDOWN ? true : undefined,
    );
    await one.cluster.store.commit([{ table: "tasks", id: "t", value: undefined }]);
    await node.until(() => (node.assignments.has("t") ? undefined : true));
  });

  it("takes states only forward, only of the node's own tasks, and none with an old sequence", async () => {
    await using one = await oneTask();
    const node = await one.server.node("a");
    node.idle = true;
    await node.hello().open();
    const other = await one.server.node("b");
    await other.hello().open();
    other.report(running({ state: TaskState.TASK_STATE_FAILED }));
    node.report(running({ sequence: 5, message: "five" }));
    node.report(running({ sequence: 4, message: "four" }));
    node.report(running({ sequence: 6, state: TaskState.TASK_STATE_PREPARING }));
    node.report(running({ sequence: 7, message: "seven" }));
    await until(one.cluster, () => one.status()?.message === "seven");
    expect(one.status()).toMatchObject({ state: TaskState.TASK_STATE_RUNNING, sequence: 7 });
    node.report(running({ sequence: 8, state: TaskState.TASK_STATE_FAILED, exitCode: 3 }));
    node.report(running({ sequence: 9, state: TaskState.TASK_STATE_SHUTDOWN }));
    node.report(running({ sequence: 10, state: TaskState.TASK_STATE_FAILED, exitCode: 4 }));
    await until(one.cluster, () => one.status()?.state === TaskState.TASK_STATE_FAILED);
    // A round trip: whatever came before has been looked at.
    await one.change({ desired: DesiredState.DESIRED_STATE_SHUTDOWN });
    await node.until(() =>
      node.assignments.get("t")?.desired === DesiredState.DESIRED_STATE_SHUTDOWN ? true : undefined,
    );
    expect(one.status()).toMatchObject({ state: TaskState.TASK_STATE_FAILED, exitCode: 3 });
  });

  it("believes a node that counts anew after its restart", async () => {
    await using one = await oneTask();
    const first = await one.server.node("a");
    first.idle = true;
    await first.hello().open();
    first.report(running({ sequence: 90 }));
    await until(one.cluster, () => one.status()?.sequence === 90);
    const second = await one.server.node("a");
    second.idle = true;
    await second.hello([running({ sequence: 1, state: TaskState.TASK_STATE_FAILED })]).open();
    await until(one.cluster, () => one.status()?.state === TaskState.TASK_STATE_FAILED);
    await expect(first.until(() => undefined)).rejects.toMatchObject({ code: "unavailable" });
  });

  it("ends when the node is removed from the cluster", async () => {
    await using one = await oneTask();
    const node = await (await one.server.node("a")).hello().open();
    await one.cluster.store.commit([{ table: "nodes", id: "a", value: undefined }]);
    await expect(node.until(() => undefined)).rejects.toMatchObject({ code: "not-found", subject: "node/a" });
  });

  it("is registered again when its lease ended although the node was heard", async () => {
    await using one = await oneTask();
    const node = await (await one.server.node("a")).hello().open();
    const before = one.cluster.index.view.sessions.get("a");
    // Leases of the memory store count from 1: the member's, then the node's.
    one.cluster.store.expireLease(2n);
    await until(one.cluster, () => one.cluster.index.view.sessions.get("a") !== undefined);
    expect(one.cluster.index.view.sessions.get("a")?.sessionId).toBe(before?.sessionId);
    node.heartbeat();
  });

  it("writes what a heartbeat says of the node's disk once, and keeps it beside what it says of the network", async () => {
    await using one = await oneTask();
    const { cluster } = one;
    const status = () => cluster.index.view.nodeStatuses.get("a");
    const node = await (await one.server.node("a")).hello().open();
    const both = { networkProblem: "netd is not there", diskProblem: "the disk of /x is nearly full" };
    node.heartbeat({ diskProblem: both.diskProblem });
    await until(cluster, () => status()?.diskProblem === both.diskProblem);
    const { revision } = cluster.index.view;
    for (let n = 0; n < 5; n++) node.heartbeat({ diskProblem: both.diskProblem });
    node.heartbeat(both);
    await until(cluster, () => status()?.networkProblem === both.networkProblem);
    expect(cluster.index.view.revision).toBe(revision + 1);
    const again = await (await one.server.node("a")).hello().open();
    await until(cluster, () => cluster.index.view.revision > revision + 1);
    expect(status()).toMatchObject(both);
    again.heartbeat();
    await until(cluster, () => status()?.diskProblem === "" && status()?.networkProblem === "");
  });

  it("writes which images the node holds once each time that they differ, and keeps them over sessions", async () => {
    await using one = await oneTask();
    const { cluster } = one;
    const images = () => cluster.index.view.nodeStatuses.get("a")?.images.join();
    const node = await (await one.server.node("a")).hello().open();
    node.holds([3, 4_000_000_000]);
    await until(cluster, () => images() === "3,4000000000");
    const { revision } = cluster.index.view;
    node.holds([3, 4_000_000_000]);
    for (let n = 0; n < 5; n++) node.heartbeat();
    node.heartbeat({ diskProblem: "full" });
    await until(cluster, () => cluster.index.view.nodeStatuses.get("a")?.diskProblem === "full");
    expect(cluster.index.view.revision).toBe(revision + 1);
    const again = await (await one.server.node("a")).hello().open();
    await until(cluster, () => cluster.index.view.revision > revision + 1);
    expect(images()).toBe("3,4000000000");
    again.holds([]);
    await until(cluster, () => images() === "");
    expect(cluster.index.view.nodeStatuses.get("a")?.diskProblem).toBe("full");
  });

  it("keeps what a heartbeat says of the node's network, also when the session is registered again, until one says otherwise", async () => {
    await using one = await oneTask();
    const { cluster } = one;
    const problem = () => cluster.index.view.nodeStatuses.get("a")?.networkProblem;
    const node = await (await one.server.node("a")).hello().open();
    expect(problem()).toBe("");
    node.heartbeat({ networkProblem: "netd is not there" });
    await until(cluster, () => problem() === "netd is not there");
    const { revision } = cluster.index.view;
    const again = await (await one.server.node("a")).hello().open();
    await until(cluster, () => cluster.index.view.revision > revision);
    expect(problem()).toBe("netd is not there");
    again.heartbeat();
    await until(cluster, () => problem() === "");
    expect(cluster.index.view.nodeStatuses.get("a")?.state).toBe(NodeState.NODE_STATE_READY);
  });
});

describe("ports that programs of a host have", () => {
  const sshd = { port: 22, protocol: Protocol.PROTOCOL_TCP, hostIp: "", by: "sshd (pid 7)", listensAt: "" };

  it("are kept before the state that they were found with counts as applied, over new sessions and streams, until the host says otherwise", async () => {
    await using one = await oneTask();
    const { cluster, server } = one;
    const busy = () => cluster.index.view.nodeStatuses.get("a")?.busyPorts;
    const node = await (await server.node("a")).hello().open();
    const netd = await server.netd("a");
    netd.silent = true;
    const state = await netd.waiting.until(() => netd.states.at(-1));
    // Keeping it takes as long as another host's first state, so that the acknowledgement is there meanwhile.
    const { store } = cluster;
    const commit = store.commit.bind(store);
    store.commit = async (...args) => {
      const other = await server.netd("b");
      await other.waiting.until(() => other.states.at(-1));
      return await commit(...args);
    };
    const settled = server.dispatcher.networkSettled(AbortSignal.timeout(10_000)).then(() => busy());
    netd.busy(sshd);
    netd.ack(state.revision);
    expect(await settled).toEqual([sshd]);
    store.commit = commit;
    const { revision } = cluster.index.view;
    await (await server.node("a")).hello().open();
    await until(cluster, () => cluster.index.view.revision > revision);
    expect(busy()).toEqual([sshd]);
    const again = await server.netd("a");
    expect(busy()).toEqual([sshd]);
    again.busy();
    await until(cluster, () => busy()?.length === 0);
    node.close();
  });

  it("are kept later when that cannot be at once, and the acknowledgement does not wait for it", async () => {
    await using one = await oneTask();
    const { cluster, server } = one;
    await cluster.store.commit([{ table: "nodeStatuses", id: "a", value: undefined }]);
    const netd = await server.netd("a");
    netd.silent = true;
    const state = await netd.waiting.until(() => netd.states.at(-1));
    const settled = server.dispatcher.networkSettled(AbortSignal.timeout(10_000));
    // The node has had no session: there is nowhere to keep it.
    netd.busy(sshd);
    netd.ack(state.revision);
    await settled;
    await (await server.node("a")).hello().open();
    await until(cluster, () => cluster.index.view.nodeStatuses.get("a")?.busyPorts.length === 1);
  });
});

describe("ordered cut-over", () => {
  const setUp = async () => {
    const one = await oneTask();
    const node = await one.server.node("a");
    node.idle = true;
    await node.hello().open();
    const here = await one.server.netd("a");
    const there = await one.server.netd("b");
    const { networkIds } = one.cluster.service("s", "web");
    const addresses = Object.values(networkIds).map((networkId) => ({ networkId, address: "10.96.0.9" }));
    node.report(running({ addresses }));
    for (const netd of [here, there]) {
      await netd.waiting.until(() => netd.states.find(({ endpoints }) => endpoints.length > 0));
    }
    there.silent = true;
    await one.change({ desired: DesiredState.DESIRED_STATE_SHUTDOWN });
    const removal = await there.waiting.until(() =>
      there.states.find(({ removed }) => removed?.endpoints.includes("t")),
    );
    const told = () => (node.assignments.get("t")?.desired === DesiredState.DESIRED_STATE_SHUTDOWN ? true : undefined);
    return { one, node, here, there, removal, told };
  };

  it("tells the node to stop only when every host has let go", async () => {
    const { one, node, there, removal, told } = await setUp();
    await using _ = one;
    // A node that asks anew meanwhile is told to go on as well.
    node.close();
    const again = await one.server.node("a");
    again.idle = true;
    await again.hello([running()]).open();
    expect(again.assignments.get("t")?.desired).toBe(DesiredState.DESIRED_STATE_RUNNING);
    expect(told()).toBeUndefined();
    there.ack(removal.revision);
    await again.until(() =>
      again.assignments.get("t")?.desired === DesiredState.DESIRED_STATE_SHUTDOWN ? true : undefined,
    );
  });

  it("does not wait for hosts that are down or silent", async () => {
    await using one = await oneTask();
    const { cluster } = one;
    await cluster.addNodes("c", "d");
    await cluster.setNode("b", NodeState.NODE_STATE_DOWN);
    await cluster.setNode("c", NodeState.NODE_STATE_SILENT);
    const asked = Promise.withResolvers<string[]>();
    const cutOver = new CutOver({
      index: cluster.index,
      network: {
        knowsEndpoint: () => true,
        released: async (_task, _revision, isLost) => {
          asked.resolve(["a", "b", "c", "d"].filter((id) => !isLost(id)));
          return await Promise.resolve();
        },
      },
      releasedElsewhere: async () => await Promise.resolve(true),
      serves: () => true,
      clock: systemClock,
      log: silentLog,
      onRelease: () => undefined,
    });
    using _ = cluster.index.subscribe((changes, revision) => cutOver.observe(changes, revision));
    await one.change({ desired: DesiredState.DESIRED_STATE_SHUTDOWN });
    expect(await asked.promise).toEqual(["a", "d"]);
  });

  it.each([NodeState.NODE_STATE_DOWN, NodeState.NODE_STATE_SILENT])(
    "what is settled does not wait for a host that was cut off, once it is known (state %s)",
    async (state) => {
      await using one = await oneTask();
      const { cluster, server } = one;
      const netd = await server.netd("b");
      // Its stream stays open, as one does that was cut off, and nothing comes.
      netd.silent = true;
      await netd.waiting.until(() => netd.states.at(-1));
      const under = server.dispatcher.networkSettled(AbortSignal.timeout(10_000)).then(() => "settled");
      const elsewhere = server.dispatcher.settledAt(cluster.index.view.revision).then(() => "settled");
      await cluster.setNode("b", state);
      expect([await under, await elsewhere]).toEqual(["settled", "settled"]);
      await server.dispatcher.networkSettled(AbortSignal.timeout(10_000));
      expect(server.dispatcher.networkProgress("b")).toMatchObject({ acked: 0 });
    },
  );

  it("does not wait for a host whose stream is gone", async () => {
    const { one, node, there, told } = await setUp();
    await using _ = one;
    expect(told()).toBeUndefined();
    there.close();
    await node.until(told);
  });

  it("asks the other members for the hosts that they serve", async () => {
    const asked: string[] = [];
    const others: DispatcherServer[] = [];
    await using one = await oneTask({
      released: async (taskId, revision) => {
        asked.push(taskId);
        await Promise.all(others.map(async ({ dispatcher }) => await dispatcher.released(taskId, revision)));
        return true;
      },
    });
    await using other = await DispatcherServer.start(one.cluster, "m2");
    others.push(other);
    await until(one.cluster, () => one.cluster.index.view.memberSessions.size === 2);
    const node = await one.server.node("a");
    node.idle = true;
    await node.hello().open();
    const there = await other.netd("b");
    const { networkIds } = one.cluster.service("s", "web");
    const addresses = Object.values(networkIds).map((networkId) => ({ networkId, address: "10.96.0.9" }));
    node.report(running({ addresses }));
    await there.waiting.until(() => there.states.find(({ endpoints }) => endpoints.length > 0));
    there.silent = true;
    await one.change({ desired: DesiredState.DESIRED_STATE_SHUTDOWN });
    const removal = await there.waiting.until(() =>
      there.states.find(({ removed }) => removed?.endpoints.includes("t")),
    );
    // The same question again, later than the fact: the answer waits for the ack as well.
    let answered = false;
    const late = other.dispatcher.released("t", removal.revision).then(() => {
      answered = true;
    });
    await new Promise((resolve) => setImmediate(resolve));
    expect(answered).toBe(false);
    const told = () => (node.assignments.get("t")?.desired === DesiredState.DESIRED_STATE_SHUTDOWN ? true : undefined);
    expect(told()).toBeUndefined();
    there.ack(removal.revision);
    await late;
    await node.until(told);
    expect(asked).toEqual(["t"]);
  });

  it("waits three seconds and no longer", async () => {
    const { one, node, told } = await setUp();
    await using _ = one;
    expect(told()).toBeUndefined();
    await node.until(told);
  });
});

describe("the whole path", () => {
  it("takes 60 replicas on three hosts from deploy to converged, in few transactions", async () => {
    using cluster = new TestCluster();
    await cluster.addNodes("a", "b", "c");
    await using server = await DispatcherServer.start(cluster);
    for (const name of ["a", "b", "c"]) {
      await (await server.node(name)).hello().open();
      await server.netd(name);
    }
    const stop = new AbortController();
    const leading = createControllers({
      index: cluster.index,
      store: cluster.store,
      log: silentLog,
      clock: systemClock,
    }).run(stop.signal);
    const before = cluster.index.view.revision;
    await cluster.deploy(aStack("s", [aService("web", { mode: replicas(60) })]));
    await until(cluster, () => stackProgress(cluster.index, "s").converged);
    expect(cluster.index.view.revision - before).toBeLessThan(30);
    await cluster.drain("a");
    await until(cluster, () => stackProgress(cluster.index, "s").converged);
    expect(cluster.index.tasksOfNode("a").every(({ desired }) => desired === DesiredState.DESIRED_STATE_SHUTDOWN)).toBe(
      true,
    );
    await cluster.removeStack("s");
    await until(cluster, () => stackProgress(cluster.index, "s").removed);
    stop.abort();
    await leading;
  });
});

describe("most nodes fall silent together", () => {
  const leaseTtlMs = 1_000;
  /** Three nodes with a task each, of which a goes on to beat and the others are gone and quiet; and the leader's loops. */
  const setUp = async (silentHoldMs: number) => {
    const cluster = new TestCluster();
    await cluster.addNodes("a", "b", "c");
    const server = await DispatcherServer.start(cluster, "m", {}, { leaseTtlMs, heartbeatIntervalMs: 300 });
    await until(cluster, () => cluster.index.view.memberSessions.get("m") !== undefined);
    const open = async (name: string) => await (await server.node(name)).hello().open();
    const beating = (await open("a")).beat(100);
    const others = [await open("b"), await open("c")];
    const stop = new AbortController();
    const { index, store } = cluster;
    const settings = { silentHoldMs, reconnectGraceMs: 60_000 };
    const leading = createControllers({ index, store, log: silentLog, clock: systemClock, settings }).run(stop.signal);
    await cluster.deploy(aStack("s", [aService("web")]));
    await until(cluster, () => stackProgress(index, "s").converged);
    const tasks = () => cluster.tasks("s", "web").map(({ id }) => id);
    const before = tasks();
    for (const node of others) node.close();
    await until(cluster, () => ["b", "c"].every((id) => index.view.sessions.get(id)?.quiet === true));
    expect(index.view.sessions.get("a")?.quiet).toBe(false);
    return {
      cluster,
      before,
      tasks,
      // Leases of the memory store count from 1: the member's, then those of a, b and c.
      lose: (node: "b" | "c") => store.expireLease({ b: 3n, c: 4n }[node]),
      open,
      state: (id: string) => index.nodeStatus(id)?.state,
      async [Symbol.asyncDispose]() {
        beating[Symbol.dispose]();
        stop.abort();
        await leading;
        await server[Symbol.asyncDispose]();
        cluster[Symbol.dispose]();
      },
    };
  };

  it("and keep their tasks until they come back", async () => {
    await using one = await setUp(60_000);
    const { cluster, before, tasks, state } = one;
    one.lose("b");
    await until(cluster, () => state("b") === NodeState.NODE_STATE_SILENT);
    expect(["a", "c"].map(state)).toEqual([NodeState.NODE_STATE_READY, NodeState.NODE_STATE_READY]);
    expect(cluster.index.nodeStatus("b")?.message).toMatch(/^2 of 3 nodes went silent together, .* for 1 min$/);
    one.lose("c");
    await until(cluster, () => state("c") === NodeState.NODE_STATE_SILENT);
    using _ = (await one.open("b")).beat(100);
    await until(cluster, () => state("b") === NodeState.NODE_STATE_READY);
    expect(tasks()).toEqual(before);
    // Most are heard again, and c has the grace.
    expect(state("c")).toBe(NodeState.NODE_STATE_SILENT);
    await cluster.drain("c");
    await until(cluster, () => state("c") === NodeState.NODE_STATE_DOWN && stackProgress(cluster.index, "s").converged);
    expect(tasks().filter((id) => before.includes(id))).toHaveLength(3);
    expect(cluster.index.tasksOfNode("c").every(({ desired }) => desired === DesiredState.DESIRED_STATE_SHUTDOWN)).toBe(
      true,
    );
  });

  it("and have them replaced after the hold", async () => {
    await using one = await setUp(500);
    const { cluster, before, state } = one;
    one.lose("b");
    one.lose("c");
    const silent = new Set<string>();
    using _ = cluster.index.subscribe(() => {
      for (const id of ["b", "c"]) if (state(id) === NodeState.NODE_STATE_SILENT) silent.add(id);
    });
    await until(
      cluster,
      () =>
        cluster.index.tasksOfNode("a").filter(({ desired }) => desired === DesiredState.DESIRED_STATE_RUNNING)
          .length === 3,
    );
    await until(cluster, () => stackProgress(cluster.index, "s").converged);
    expect([...silent].sort()).toEqual(["b", "c"]);
    expect(one.tasks().filter((id) => !before.includes(id))).toHaveLength(2);
  });
});

describe("a node whose lease ends", () => {
  it("is down at once while its member lives", async () => {
    await using one = await oneTask();
    const { index, store } = one.cluster;
    await until(one.cluster, () => index.view.memberSessions.get("m") !== undefined);
    const incarnation = index.view.memberSessions.get("m")?.incarnation ?? "";
    const status = index.nodeStatus("a");
    if (status === undefined) throw new Error("a node has a status");
    const lease = await store.grantLease(5_000);
    const session = { nodeId: "a", sessionId: "s", clusterd: "m", openedAtMs: 1, quiet: false };
    await store.commit([
      { table: "sessions", id: "a", value: session, lease },
      { table: "nodeStatuses", id: "a", value: { ...status, clusterd: "m", incarnation } },
    ]);
    const stop = new AbortController();
    const leading = createControllers({ index, store, log: silentLog, clock: systemClock }).run(stop.signal);
    store.expireLease(lease);
    await until(one.cluster, () => index.nodeStatus("a")?.state === NodeState.NODE_STATE_DOWN);
    stop.abort();
    await leading;
  });
});
