import { describe, expect, it } from "vitest";
import { RebalanceRequest } from "../../../proto/gen/embassy/v1/api.ts";
import {
  ContainerSpec,
  DisruptionPolicy,
  Placement,
  Resources,
  type ServiceSpec,
  UpdatePolicy,
} from "../../../proto/gen/embassy/v1/stack.ts";
import { Availability, Health, NodeState, TaskState } from "../../../proto/gen/embassy/v1/state.ts";
import { planMoves } from "../../api/rebalance.ts";
import { stackProgress } from "../../domain/progress.ts";
import { isUp, observedStatus } from "../../domain/tasks.ts";
import { aService, aStack, mounting, replicas } from "../../domain/testing.ts";
import { defaultControllerSettings } from "../deps.ts";
import { SteppedCluster } from "../testing.ts";

const { rebalanceSettleMs, rebalanceCooldownMs, rebalancePatienceMs } = defaultControllerSettings;
const roundMs = 6_000;
const disruption = DisruptionPolicy.create({ rebalance: true });
const spread = (over: Partial<ServiceSpec> = {}) => aService("web", { mode: replicas(6), disruption, ...over });
const reserving = (milliCpus: number) =>
  Resources.create({ reservations: { milliCpus, memoryBytes: 0, pids: 0, generic: {} } });

/** Three nodes, of which c is empty: it was drained and is active again. */
async function uneven(...services: ServiceSpec[]): Promise<SteppedCluster> {
  const cluster = new SteppedCluster();
  await cluster.addNodes("a", "b", "c");
  await cluster.drain("c");
  await cluster.deploy(aStack("s", services));
  await cluster.settleFor(6);
  await cluster.setAvailability("c", Availability.AVAILABILITY_ACTIVE);
  await cluster.settle();
  return cluster;
}

/** Time goes by, and then for so long that a round has its end. */
async function pass(cluster: SteppedCluster, ms: number, onStep?: () => void): Promise<void> {
  cluster.nowMs += ms;
  await cluster.settleFor(roundMs / 1_000, onStep);
}

/** Passes until this long after the last thing that was done to spread services; what happens then counts as well. */
async function passUntil(cluster: SteppedCluster, ms: number): Promise<void> {
  cluster.nowMs = (cluster.rebalanced.at(-1)?.atMs ?? 0) + ms;
  await cluster.settle();
}

function perNode(cluster: SteppedCluster, name = "web"): Record<string, number> {
  const counts: Record<string, number> = { a: 0, b: 0, c: 0 };
  for (const one of cluster.running("s", name)) {
    const node = one.split("@")[1] ?? "";
    counts[node] = (counts[node] ?? 0) + 1;
  }
  return counts;
}

const kinds = ({ rebalanced }: SteppedCluster) => rebalanced.map(({ kind }) => kind);
const stateOf = (cluster: SteppedCluster, name = "web") =>
  cluster.index.view.serviceStatuses.get(cluster.service("s", name).id)?.rebalance;

/** The cluster until the first task moves, whose successor does not go on. */
async function moving(service = spread()): Promise<SteppedCluster> {
  const cluster = await uneven(service);
  cluster.nowMs += rebalanceSettleMs;
  cluster.frozen = true;
  await cluster.settle();
  expect(kinds(cluster)).toEqual(["move"]);
  return cluster;
}

const successorOf = (cluster: SteppedCluster) => {
  const { moving: marked } = cluster.service("s", "web");
  const tasks = cluster.tasks("s", "web");
  const successor = tasks.find(({ replaces }) => marked.includes(replaces));
  if (successor === undefined) throw new Error(`none of ${JSON.stringify(tasks)} replaces ${marked}`);
  return successor;
};

describe("a service that is to be spread", () => {
  it("gets its share of a node that is active again, once the cluster rests, one task after the other", async () => {
    using cluster = await uneven(spread());

    cluster.nowMs += rebalanceSettleMs - 1;
    await cluster.settle();
    expect(perNode(cluster)).toEqual({ a: 3, b: 3, c: 0 });
    expect(cluster.rebalanced).toEqual([]);
    const up = new Set<number>();
    await pass(cluster, 1, () => up.add(cluster.running("s", "web").length));
    expect(up).toEqual(new Set([6, 7]));
    expect(perNode(cluster)).toEqual({ a: 2, b: 2, c: 2 });
    expect(kinds(cluster)).toEqual(["move", "moved", "move", "moved"]);
    expect(stackProgress(cluster.index, "s").converged).toBe(true);
    expect(cluster.service("s", "web").moving).toEqual([]);
    expect(stateOf(cluster)).toMatchObject({ taskId: "", failures: 0, left: 0 });
  });

  it("says of each task that was moved where to and why", async () => {
    using cluster = await uneven(spread());
    await pass(cluster, rebalanceSettleMs);
    const moved = cluster.tasks("s", "web").filter((task) => task.moved !== "");
    expect(moved).toHaveLength(2);
    for (const task of moved) {
      expect(observedStatus(cluster.index.view, task).message).toMatch(
        /^moved to c: s_web has 3 tasks in [ab] and [01] in c$/,
      );
    }
    expect(stateOf(cluster)?.message).toMatch(
      /^web\.\d was moved from [ab] to c: s_web has 3 tasks in [ab] and 1 in c$/,
    );
  });

  it("is planned once and not again for as long as nothing changes", async () => {
    using cluster = await uneven(spread());
    await pass(cluster, rebalanceSettleMs);
    const before = cluster.running("s", "web");
    for (let n = 0; n < 20; n++) await pass(cluster, rebalanceCooldownMs);
    expect(cluster.running("s", "web")).toEqual(before);
    expect(cluster.rebalanced).toHaveLength(4);
  });

  it.each<[string, (cluster: SteppedCluster) => Promise<void>]>([
    ["joins", async (cluster) => await cluster.addNodes("d")],
    [
      "returns",
      async (cluster) => {
        await cluster.setNode("c", NodeState.NODE_STATE_DOWN);
        await cluster.settleFor(6);
        await cluster.setNode("c", NodeState.NODE_STATE_READY);
      },
    ],
    [
      "has another label",
      async (cluster) => {
        const node = cluster.index.view.nodes.get("c");
        if (node === undefined) throw new Error("no node c");
        await cluster.store.commit([{ table: "nodes", id: "c", value: { ...node, labels: { use: "no" } } }]);
        await cluster.deploy(
          aStack("s", [spread({ placement: Placement.create({ constraints: ["node.labels.use != no"] }) })]),
        );
        await cluster.settleFor(60);
        expect(perNode(cluster)).toEqual({ a: 3, b: 3, c: 0 });
        await cluster.store.commit([{ table: "nodes", id: "c", value: { ...node, labels: {} } }]);
      },
    ],
  ])("is spread again when a node %s", async (_, change) => {
    using cluster = new SteppedCluster();
    await cluster.addNodes("a", "b", "c");
    await cluster.deploy(aStack("s", [spread({ mode: replicas(6) })]));
    await cluster.settleFor(6);
    await change(cluster);
    await cluster.settle();
    cluster.nowMs += rebalanceSettleMs - 1;
    await cluster.settle();
    expect(cluster.rebalanced).toEqual([]);
    await pass(cluster, rebalanceSettleMs);
    expect(kinds(cluster)).toContain("moved");
    const counts = Object.values(perNode(cluster)).filter((count) => count > 0);
    expect(Math.max(...counts) - Math.min(...counts)).toBeLessThanOrEqual(1);
  });

  it.each<[string, ServiceSpec]>([
    ["does not ask for it", spread({ disruption: undefined })],
    ["has a volume", spread({ container: mounting(["data"]) })],
    ["is global", aService("web", { mode: { $case: "global", value: {} }, disruption: undefined })],
    ["keeps all of its tasks", spread({ disruption: DisruptionPolicy.create({ rebalance: true, minAvailable: 6 }) })],
    ["packs", spread({ placement: Placement.create({ strategy: 1 }) })],
  ])("stays where it is when it %s", async (_, service) => {
    using cluster = await uneven(service);
    for (let n = 0; n < 5; n++) await pass(cluster, rebalanceCooldownMs);
    expect(cluster.rebalanced).toEqual([]);
  });

  it("is moved by no more tasks in a round than it has above `min_available`", async () => {
    using cluster = await uneven(spread({ disruption: DisruptionPolicy.create({ rebalance: true, minAvailable: 5 }) }));
    await pass(cluster, rebalanceSettleMs);
    expect(kinds(cluster)).toEqual(["move", "moved"]);
    await passUntil(cluster, rebalanceCooldownMs - 1);
    expect(cluster.rebalanced).toHaveLength(2);
    await pass(cluster, 1);
    expect(perNode(cluster)).toEqual({ a: 2, b: 2, c: 2 });
  });

  it("waits for tasks that are young, not up or not healthy, and for an update", async () => {
    using cluster = await uneven(spread());
    const [first] = cluster.tasks("s", "web");
    if (first === undefined) throw new Error("no task");
    await cluster.report(first, TaskState.TASK_STATE_RUNNING, { health: Health.HEALTH_UNHEALTHY });
    await pass(cluster, 10 * rebalanceSettleMs);
    expect(cluster.rebalanced).toEqual([]);
    await cluster.report(first, TaskState.TASK_STATE_RUNNING, { health: Health.HEALTH_HEALTHY });
    const container = ContainerSpec.create({ image: "registry/web:2" });
    await cluster.deploy(
      aStack("s", [spread({ container, update: UpdatePolicy.create({ parallelism: 1, monitorMs: 3_600_000 }) })]),
    );
    for (let n = 0; n < 3; n++) await pass(cluster, rebalanceSettleMs);
    expect(cluster.service("s", "web").stable).toBeDefined();
    expect(cluster.rebalanced).toEqual([]);
  });

  it("does not move a task that is younger than the settling time", async () => {
    using cluster = await uneven(spread());
    cluster.nowMs += rebalanceSettleMs - 1;
    for (const task of cluster.tasks("s", "web")) {
      if (task.nodeId === "a") await cluster.report(task, TaskState.TASK_STATE_RUNNING, { upAtMs: cluster.nowMs });
    }
    await pass(cluster, 1);
    const froms = () => cluster.rebalanced.flatMap((action) => (action.kind === "move" ? [action.from] : []));
    expect(froms()).toEqual(["b"]);
    await pass(cluster, rebalanceSettleMs);
    await pass(cluster, rebalanceCooldownMs);
    expect(froms()).toEqual(["b", "a"]);
  });

  it("does not begin before the silent nodes are heard or lost", async () => {
    using cluster = await uneven(spread());
    await cluster.addNodes("d");
    await cluster.setNode("d", NodeState.NODE_STATE_SILENT);
    await pass(cluster, 1);
    await pass(cluster, 10 * rebalanceSettleMs);
    expect(cluster.rebalanced).toEqual([]);
    await cluster.setNode("d", NodeState.NODE_STATE_DOWN);
    await pass(cluster, 1);
    await pass(cluster, rebalanceSettleMs);
    expect(perNode(cluster)).toEqual({ a: 2, b: 2, c: 2 });
  });

  it("is moved beside no more than one other at once", async () => {
    const others = ["api", "db", "www"].map((name) => aService(name, { mode: replicas(6), disruption }));
    using cluster = await uneven(spread(), ...others);
    let most = 0;
    await pass(cluster, rebalanceSettleMs, () => {
      const moves = [...cluster.index.view.serviceStatuses.values()].filter(({ rebalance }) => rebalance?.taskId);
      most = Math.max(most, moves.length);
    });
    expect(most).toBe(2);
    for (const name of ["web", "api", "db", "www"]) expect(perNode(cluster, name)).toEqual({ a: 2, b: 2, c: 2 });
  });

  it("counts on no place that the scheduler would not choose: what draws a task back moves it never", async () => {
    const drawn = { to: { $case: "node" as const, value: "node.hostname == a" }, weight: 100 };
    using cluster = new SteppedCluster();
    await cluster.addNodes("a", "b");
    const placement = Placement.create({ affinities: Array.from({ length: 8 }, () => drawn) });
    await cluster.deploy(aStack("s", [spread({ placement })]));
    await cluster.settleFor(6);
    const before = perNode(cluster);
    expect((before["a"] ?? 0) - (before["b"] ?? 0)).toBeGreaterThan(1);
    for (let n = 0; n < 20; n++) await pass(cluster, rebalanceCooldownMs);
    expect(cluster.rebalanced).toEqual([]);
    expect(perNode(cluster)).toEqual(before);
  });

  it("is left alone after a round, also by another leader, and is spread again after the cooldown", async () => {
    using cluster = await uneven(spread());
    await pass(cluster, rebalanceSettleMs);
    const began = cluster.rebalanced.length;
    await cluster.drain("c");
    await cluster.settleFor(6);
    await cluster.setAvailability("c", Availability.AVAILABILITY_ACTIVE);
    cluster.newLeader();
    await cluster.settle();
    await passUntil(cluster, rebalanceCooldownMs - 1);
    expect(cluster.rebalanced).toHaveLength(began);
    await pass(cluster, 1);
    expect(perNode(cluster)).toEqual({ a: 2, b: 2, c: 2 });
  });
});

describe("a move that is under way", () => {
  it("goes on when a user asks for a rebalance meanwhile, whose other moves come after it", async () => {
    using cluster = await moving();
    const [own] = cluster.service("s", "web").moving;
    await cluster.store.commit(planMoves(cluster.index, RebalanceRequest.create()).writes);
    expect(cluster.service("s", "web").moving).toEqual([own, expect.any(String)]);
    cluster.frozen = false;
    await cluster.settleFor(roundMs / 1_000);
    expect(perNode(cluster)).toEqual({ a: 2, b: 2, c: 2 });
    expect(kinds(cluster)).toEqual(["move", "moved"]);
    expect(stateOf(cluster)?.taskId).toBe("");
  });

  it("is over when it is taken back, and the old task goes on", async () => {
    using cluster = await moving();
    const before = cluster.running("s", "web");
    const service = cluster.service("s", "web");
    await cluster.store.commit([{ table: "services", id: service.id, value: { ...service, moving: [] } }]);
    cluster.frozen = false;
    await cluster.settle();
    expect(kinds(cluster)).toEqual(["move", "dropped"]);
    expect(cluster.running("s", "web")).toEqual(before);
  });

  it("is finished by another leader", async () => {
    using cluster = await moving();
    cluster.newLeader();
    cluster.frozen = false;
    await cluster.settle();
    await pass(cluster, rebalanceSettleMs);
    expect(kinds(cluster)).toEqual(["move", "moved", "move", "moved"]);
    expect(perNode(cluster)).toEqual({ a: 2, b: 2, c: 2 });
  });

  it.each<[string, (cluster: SteppedCluster) => Promise<void>, RegExp]>([
    [
      "fails",
      async (cluster) => {
        const task = successorOf(cluster);
        await cluster.report(task, TaskState.TASK_STATE_FAILED, { message: "exited with code 1" });
      },
      /^web\.\d was not moved: its successor on c ended: exited with code 1$/,
    ],
    [
      "is rejected",
      async (cluster) => {
        await cluster.report(successorOf(cluster), TaskState.TASK_STATE_REJECTED, { message: "no such image" });
      },
      /was not moved: its successor on c ended: no such image$/,
    ],
    [
      "comes to the same node",
      async (cluster) => {
        const task = successorOf(cluster);
        const nodeId = cluster.index.view.tasks.get(task.replaces)?.nodeId ?? "";
        await cluster.store.commit([{ table: "tasks", id: task.id, value: { ...task, nodeId } }]);
      },
      /was not moved: its successor would be on the same node$/,
    ],
    [
      "is not up in time",
      async (cluster) => {
        cluster.nowMs += rebalancePatienceMs;
        await cluster.settle();
      },
      /was not moved: its successor was not up after 300 s$/,
    ],
    [
      "loses its node, and has no other",
      async (cluster) => {
        await cluster.setNode("c", NodeState.NODE_STATE_DOWN);
      },
      /was not moved: its successor on c ended: its node is gone$/,
    ],
  ])("ends when the new task %s, and the old one goes on", async (_, happens, message) => {
    using cluster = await moving(spread({ resources: reserving(1_300) }));
    const before = cluster.running("s", "web");
    await happens(cluster);
    cluster.frozen = false;
    await cluster.settle(() => expect(cluster.running("s", "web")).toEqual(before));
    expect(kinds(cluster)).toEqual(["move", "failed"]);
    expect(stateOf(cluster)).toMatchObject({
      taskId: "",
      left: 0,
      failures: 1,
      message: expect.stringMatching(message),
    });
    expect(cluster.service("s", "web").moving).toEqual([]);
    expect(stackProgress(cluster.index, "s").converged).toBe(true);
  });

  it("is not tried again before the cooldown, which grows", async () => {
    using cluster = await uneven(spread());
    cluster.crashing.add("web");
    const running = cluster.tasks("s", "web");
    // Only what is new crashes.
    const next = async (ms: number) => {
      await passUntil(cluster, ms);
      for (const task of running) {
        expect(isUp(cluster.index.view.taskStatuses.get(task.id))).toBe(true);
      }
    };
    cluster.spared = new Set(running.map(({ id }) => id));
    await pass(cluster, rebalanceSettleMs);
    expect(kinds(cluster)).toEqual(["move", "failed"]);
    await next(2 * rebalanceCooldownMs - 1);
    expect(cluster.rebalanced).toHaveLength(2);
    await next(2 * rebalanceCooldownMs);
    expect(kinds(cluster).slice(2)).toEqual(["move", "failed"]);
    await next(4 * rebalanceCooldownMs - 1);
    expect(cluster.rebalanced).toHaveLength(4);
    cluster.crashing.clear();
    await pass(cluster, 1);
    expect(perNode(cluster)).toEqual({ a: 2, b: 2, c: 2 });
    expect(stateOf(cluster)?.failures).toBe(0);
  });

  it.each<[string, (cluster: SteppedCluster) => Promise<void>]>([
    ["is updated", async (cluster) => await cluster.deploy(aStack("s", [spread({ container: image(2) })]))],
    ["is scaled down", async (cluster) => await cluster.deploy(aStack("s", [spread({ mode: replicas(1) })]))],
    ["is removed", async (cluster) => await cluster.removeStack("s")],
    [
      "is no longer to be spread",
      async (cluster) => await cluster.deploy(aStack("s", [spread({ disruption: undefined })])),
    ],
  ])("comes to an end when its service %s", async (_, happens) => {
    using cluster = await moving();
    await happens(cluster);
    cluster.frozen = false;
    await cluster.settleFor(60);
    for (const { rebalance } of cluster.index.view.serviceStatuses.values()) expect(rebalance?.taskId).toBe("");
    for (const { moving: marked } of cluster.index.view.services.values()) expect(marked).toEqual([]);
    for (const [, progress] of Object.entries(stackProgress(cluster.index, "s").services)) expect(progress.old).toBe(0);
  });
});

const image = (version: number) => ContainerSpec.create({ image: `registry/web:${version}` });
