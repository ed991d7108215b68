import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  ContainerSpec,
  DisruptionPolicy,
  OnNodeLoss,
  Resources,
  type ServiceSpec,
  UpdateOrder,
  UpdatePolicy,
} from "../../../proto/gen/embassy/v1/stack.ts";
import {
  Availability,
  DesiredState,
  Health,
  NodeState,
  type Service,
  type Task,
  TaskState,
} from "../../../proto/gen/embassy/v1/state.ts";
import { KeptTasks } from "../../domain/disruption.ts";
import { importanceOf } from "../../domain/scheduler-facts.ts";
import { seatOf } from "../../domain/seats.ts";
import { isHeardServing, isLive, observedState } from "../../domain/tasks.ts";
import { aService, aStack, mounting, replicas } from "../../domain/testing.ts";
import { effort } from "../../scheduler/arbitraries.ts";
import { SteppedCluster } from "../testing.ts";
import { expectedBy, writesOf } from "./loop.ts";
import { planService } from "./plan.ts";

const keeps = (minAvailable: number) => ({ disruption: DisruptionPolicy.create({ minAvailable }) });
const image = (version: number) => ContainerSpec.create({ image: `registry/web:${version}` });
const stopFirst = (parallelism: number) => ({ update: UpdatePolicy.create({ parallelism, monitorMs: 5_000 }) });
const whole = {
  resources: Resources.create({ reservations: { milliCpus: 4_000, memoryBytes: 0, pids: 0, generic: {} } }),
};
const global: Partial<ServiceSpec> = { mode: { $case: "global", value: {} } };

/** Slots of the service that are up: by a task that goes on, on a node that is heard and was not drained by force. */
function slotsUp({ index: { view } }: SteppedCluster, service: Service): Set<string> {
  const up = new Set<string>();
  for (const task of view.tasks.values()) {
    const node = view.nodes.get(task.nodeId);
    const forced = node?.availability === Availability.AVAILABILITY_DRAIN && node.drainForced;
    if (task.serviceId === service.id && isHeardServing(view, task) && !forced) up.add(seatOf(task));
  }
  return up;
}

/** The fewest slots of s_web that were up at any moment while the cluster came to rest. */
async function fewestUp(cluster: SteppedCluster, seconds = 10): Promise<number> {
  let fewest = Number.POSITIVE_INFINITY;
  const look = () => {
    fewest = Math.min(fewest, slotsUp(cluster, cluster.service("s", "web")).size);
  };
  await cluster.settleFor(seconds, look);
  return fewest;
}

async function nodesWith(names: readonly string[], web: Partial<ServiceSpec>): Promise<SteppedCluster> {
  const cluster = new SteppedCluster();
  await cluster.addNodes(...names);
  await cluster.deploy(aStack("s", [aService("web", web)]));
  await cluster.settleFor(10);
  return cluster;
}

const on = (cluster: SteppedCluster, node: string) =>
  cluster.tasks("s", "web").filter((task) => task.nodeId === node && isLive(cluster.index.view, task));

describe("a disruption budget", () => {
  it.each([
    ["of none: all of the node's tasks at once", {}, 1],
    ["of one less than all: one by one", keeps(3), 3],
    ["of half", { disruption: DisruptionPolicy.create({ minAvailablePercent: 50 }) }, 2],
    ["of all: start-first", keeps(4), 4],
    ["of more than all: start-first", keeps(9), 4],
  ])("%s", async (_, over, fewest) => {
    using cluster = await nodesWith(["a"], { mode: replicas(4), ...over });
    await cluster.addNodes("b");
    await cluster.setNode("b", NodeState.NODE_STATE_READY);
    // One of them is elsewhere already.
    const [first] = cluster.tasks("s", "web");
    await cluster.report(first as NonNullable<typeof first>, TaskState.TASK_STATE_FAILED);
    await cluster.settleFor(10);
    expect(on(cluster, "b")).toHaveLength(1);
    await cluster.drain("a");
    expect(await fewestUp(cluster)).toBe(fewest);
    expect(on(cluster, "a")).toEqual([]);
    expect(cluster.running("s", "web")).toHaveLength(4);
  });

  it("is one for several drains and an update at once", async () => {
    using cluster = await nodesWith(["a", "b", "c", "d"], { mode: replicas(4), ...keeps(3), ...stopFirst(2) });
    await cluster.deploy(
      aStack("s", [aService("web", { mode: replicas(4), ...keeps(3), ...stopFirst(2), container: image(2) })]),
    );
    await cluster.plan();
    for (const node of ["a", "b", "c"]) await cluster.drain(node);
    expect(await fewestUp(cluster, 30)).toBe(3);
    expect(cluster.running("s", "web").map((one) => one.split("@")[1])).toEqual(["d", "d", "d", "d"]);
    expect(
      cluster
        .tasks("s", "web")
        .filter((task) => isLive(cluster.index.view, task))
        .map((task) => task.serviceVersion),
    ).toEqual([2, 2, 2, 2]);
  });

  it.each([
    [2, keeps(3), 3],
    [4, keeps(3), 3],
    [4, keeps(1), 1],
    [1, keeps(4), 4],
    [0, keeps(4), 4],
    [2, {}, 2],
  ])("slows an update of parallelism %i down with %j", async (parallelism, over, fewest) => {
    const web = { mode: replicas(4), ...stopFirst(parallelism), ...over };
    using cluster = await nodesWith(["a", "b"], web);
    await cluster.deploy(aStack("s", [aService("web", { ...web, container: image(2) })]));
    expect(await fewestUp(cluster, 30)).toBe(fewest);
    expect(
      cluster
        .tasks("s", "web")
        .filter((task) => isLive(cluster.index.view, task))
        .map((task) => task.serviceVersion),
    ).toEqual([2, 2, 2, 2]);
  });

  it("waits for what is down, says so, and goes on when that is up", async () => {
    using cluster = await nodesWith(["a", "b", "c"], { mode: replicas(3), ...keeps(2) });
    const [first, second] = cluster.tasks("s", "web");
    if (first === undefined || second === undefined) throw new Error("three tasks");
    await cluster.report(first, TaskState.TASK_STATE_RUNNING, { health: Health.HEALTH_UNHEALTHY });
    await cluster.drain(second.nodeId);
    expect(await fewestUp(cluster)).toBe(2);
    expect(on(cluster, second.nodeId).map(({ id }) => id)).toEqual([second.id]);
    const why = "s_web has to keep 2 up (x-disruption.min_available), and has 2";
    expect(new KeptTasks(cluster.index).why(second)).toBe(why);
    expect(new KeptTasks(cluster.index).why(first)).toBe("");
    await cluster.report(first, TaskState.TASK_STATE_RUNNING, { health: Health.HEALTH_HEALTHY });
    expect(await fewestUp(cluster)).toBe(2);
    expect(on(cluster, second.nodeId)).toEqual([]);
  });

  it("holds a drain when nothing else has room, says so, and lets a forced one go on", async () => {
    using cluster = await nodesWith(["a", "b"], { mode: replicas(2), ...whole, ...keeps(2) });
    await cluster.drain("a");
    expect(await fewestUp(cluster)).toBe(2);
    const [kept] = on(cluster, "a");
    if (kept === undefined) throw new Error("it goes on");
    expect(new KeptTasks(cluster.index).why(kept)).toMatch(
      /^s_web has to keep 2 up \(x-disruption.min_available\), and has 2; its successor has no place: .*CPU/,
    );
    const node = cluster.index.view.nodes.get("a");
    if (node === undefined) throw new Error("there is a");
    await cluster.store.commit([{ table: "nodes", id: "a", value: { ...node, drainForced: true } }]);
    await cluster.settle();
    expect(on(cluster, "a")).toEqual([]);
    expect(cluster.running("s", "web")).toHaveLength(1);
  });

  it("holds a drain no longer when it is lowered, or when room comes", async () => {
    for (const mend of ["lower", "room"]) {
      const web = { mode: replicas(2), ...whole };
      using cluster = await nodesWith(["a", "b"], { ...web, ...keeps(2) });
      await cluster.drain("a");
      await cluster.settle();
      expect(on(cluster, "a")).toHaveLength(2 - on(cluster, "b").length);
      if (mend === "lower") await cluster.deploy(aStack("s", [aService("web", { ...web, ...keeps(1) })]));
      else await cluster.addNodes("c");
      expect(await fewestUp(cluster)).toBe(mend === "lower" ? 1 : 2);
      expect(on(cluster, "a")).toEqual([]);
      expect(cluster.service("s", "web").version).toBe(1);
    }
  });

  it("does not hold what is lost: nothing waits then", async () => {
    using cluster = await nodesWith(["a", "b"], { mode: replicas(4), ...keeps(4) });
    await cluster.setNode("a", NodeState.NODE_STATE_DOWN);
    await cluster.settle();
    expect(cluster.running("s", "web").every((one) => one.endsWith("@b"))).toBe(true);
    expect(cluster.running("s", "web")).toHaveLength(4);
  });

  it("keeps a global service on nodes that are drained together", async () => {
    using cluster = await nodesWith(["a", "b", "c"], { ...global, ...keeps(2) });
    await cluster.drain("a");
    await cluster.drain("b");
    expect(await fewestUp(cluster)).toBe(2);
    const [kept] = on(cluster, "b");
    if (kept === undefined) throw new Error("it goes on");
    expect(new KeptTasks(cluster.index).why(kept)).toContain("has to keep 2 up");
    await cluster.setAvailability("a", Availability.AVAILABILITY_ACTIVE);
    await cluster.settleFor(1);
    expect(cluster.running("s", "web").sort()).toEqual(["a@a", "c@c"]);
  });

  it("of all starts no second task on what the first writes to, and says what an update waits for", async () => {
    const container = (version: number) => mounting(["data"], { image: `registry/db:${version}` });
    const web = { mode: replicas(1) };
    using cluster = await nodesWith(["a", "b"], { ...web, container: container(1) });
    const service = cluster.service("s", "web");
    const spec = { ...service.spec, ...keeps(1), container: container(2) } as ServiceSpec;
    await cluster.store.commit([{ table: "services", id: service.id, value: { ...service, spec, version: 2 } }]);
    expect(await fewestUp(cluster)).toBe(1);
    const { updateMessage } = planService(cluster.index, cluster.service("s", "web"), cluster.nowMs);
    expect(updateMessage).toMatch(
      /; web\.1 goes on for now: the service has to keep 1 up \(x-disruption.min_available\), and has 1$/,
    );
    const lowered = { ...cluster.service("s", "web"), spec: { ...spec, ...keeps(0) } };
    await cluster.store.commit([{ table: "services", id: service.id, value: lowered }]);
    await cluster.settleFor(10);
    expect(cluster.tasks("s", "web").at(-1)?.serviceVersion).toBe(2);
    expect(cluster.running("s", "web")).toHaveLength(1);
  });

  it("of all starts the second task first where that is on another node, and its volume may begin anew there", async () => {
    const container = mounting(["data"], {}, OnNodeLoss.ON_NODE_LOSS_RECREATE);
    using cluster = await nodesWith(["a"], { mode: replicas(2), container, ...keeps(2) });
    await cluster.addNodes("b");
    await cluster.drain("a");
    expect(await fewestUp(cluster)).toBe(2);
    expect(on(cluster, "a")).toEqual([]);
  });

  it("lets only one of two happen that would stop one task each at the same moment", async () => {
    const over = { mode: replicas(3), ...keeps(2) };
    using cluster = await nodesWith(["a", "b", "c"], over);
    const [first, second] = cluster.tasks("s", "web");
    if (first === undefined || second === undefined) throw new Error("three tasks");
    await cluster.drain(first.nodeId);
    for (let step = 0; step < 2; step++) {
      await cluster.plan();
      await cluster.report(cluster.tasks("s", "web")[1] as Task, TaskState.TASK_STATE_READY);
    }
    const service = cluster.service("s", "web");
    await cluster.store.commit([{ table: "tasks", id: first.id, value: first }]);
    const plan = planService(cluster.index, service, cluster.nowMs);
    expect(plan.actions).toMatchObject([{ kind: "stop", taskId: first.id }]);
    const writes = writesOf(cluster.index, service, plan, cluster.nowMs, cluster.mintId);
    const expected = expectedBy(cluster.index, service, plan, writes);
    expect(expected.map(({ id }) => id)).toContain(second.id);
    const value = { ...second, desired: DesiredState.DESIRED_STATE_SHUTDOWN };
    await cluster.store.commit([{ table: "tasks", id: second.id, value }]);
    await expect(cluster.store.commit(writes, { expect: expected })).rejects.toMatchObject({ code: "conflict" });
  });

  it.each([0, 1, 2])("counts what was asked to stop as down for those who preempt: task %i", async (going) => {
    using cluster = await nodesWith(["a", "b", "c"], { mode: replicas(3), ...whole, ...keeps(2) });
    cluster.frozen = true;
    const task = cluster.tasks("s", "web")[going];
    if (task === undefined) throw new Error("three tasks");
    const value = { ...task, desired: DesiredState.DESIRED_STATE_SHUTDOWN };
    await cluster.store.commit([{ table: "tasks", id: task.id, value }]);
    await cluster.deploy(aStack("t", [aService("vital", { mode: replicas(2), ...whole, priority: 5 })]));
    await cluster.plan();
    expect(slotsUp(cluster, cluster.service("s", "web")).size).toBe(2);
  });
});

const nodeNames = ["a", "b", "c", "d"];

const historyArbitrary = fc.record({
  replicas: fc.integer({ min: 2, max: 5 }),
  least: fc.integer({ min: 1, max: 4 }),
  isGlobal: fc.nat({ max: 5 }).map((n) => n === 0),
  parallelism: fc.nat({ max: 3 }),
  order: fc.constantFrom(
    UpdateOrder.UPDATE_ORDER_STOP_FIRST,
    UpdateOrder.UPDATE_ORDER_STOP_FIRST,
    UpdateOrder.UPDATE_ORDER_START_FIRST,
  ),
  events: fc.array(
    fc.oneof(
      { weight: 5, arbitrary: fc.record({ kind: fc.constant("plan" as const), n: fc.nat() }) },
      { weight: 5, arbitrary: fc.record({ kind: fc.constant("step" as const), n: fc.nat() }) },
      { weight: 4, arbitrary: fc.record({ kind: fc.constant("settle" as const), n: fc.nat() }) },
      {
        weight: 8,
        arbitrary: fc.record({
          kind: fc.constantFrom(
            "drain",
            "drain",
            "force",
            "activate",
            "down",
            "silent",
            "ready",
            "deploy",
            "crash",
            "crash",
            "breaks",
            "mends",
            "settle",
            "wait",
          ),
          n: fc.nat(),
        }),
      },
    ),
    { maxLength: 40, size: "max" },
  ),
});

describe("over random histories", () => {
  it("no drain and no update takes a service with enough room below its budget, and all comes to rest", async () => {
    let stopped = 0;
    let held = 0;
    await fc.assert(
      fc.asyncProperty(historyArbitrary, async (given) => {
        const specOf = (version: number): ServiceSpec =>
          aService("web", {
            mode: given.isGlobal ? global.mode : replicas(given.replicas),
            ...keeps(given.least),
            update: UpdatePolicy.create({ parallelism: given.parallelism, order: given.order, monitorMs: 5_000 }),
            container: image(version),
          });
        using cluster = new SteppedCluster();
        await cluster.addNodes(...nodeNames);
        await cluster.deploy(aStack("s", [specOf(1)]));
        await cluster.settleFor(6);
        const { index } = cluster;
        let before = slotsUp(cluster, cluster.service("s", "web"));
        using _ = index.subscribe((changes) => {
          const service = cluster.service("s", "web");
          const up = slotsUp(cluster, service);
          const asked = changes.some(
            ({ table, before: was, after }) => table === "tasks" && was?.desired !== after?.desired,
          );
          if (asked && [...before].some((slot) => !up.has(slot))) {
            stopped++;
            if (up.size < (importanceOf(service.spec).minAvailable ?? 0)) {
              throw new Error(`${up.size} of ${given.least} are up after a stop: ${JSON.stringify(changes)}`);
            }
          }
          before = up;
        });
        let version = 1;
        for (const { kind, n } of given.events) {
          const node = nodeNames[n % nodeNames.length] ?? "";
          const spec = index.view.nodes.get(node);
          if (spec === undefined) throw new Error("there are four nodes");
          const tasks = cluster.tasks("s", "web").filter((task) => isLive(index.view, task));
          const task = tasks[n % Math.max(1, tasks.length)];
          switch (kind) {
            case "plan":
              await cluster.plan();
              break;
            case "step":
              await cluster.stepNodes();
              break;
            case "drain":
            case "force": {
              const value = { ...spec, availability: Availability.AVAILABILITY_DRAIN, drainForced: kind === "force" };
              await cluster.store.commit([{ table: "nodes", id: node, value }]);
              break;
            }
            case "activate":
              await cluster.setAvailability(node, Availability.AVAILABILITY_ACTIVE);
              break;
            case "down":
              await cluster.setNode(node, NodeState.NODE_STATE_DOWN);
              break;
            case "silent":
              await cluster.setNode(node, NodeState.NODE_STATE_SILENT);
              break;
            case "ready":
              await cluster.setNode(node, NodeState.NODE_STATE_READY);
              break;
            case "deploy":
              await cluster.deploy(aStack("s", [specOf(++version)]));
              break;
            case "crash":
              if (task !== undefined && observedState(index.view, task) === TaskState.TASK_STATE_RUNNING) {
                await cluster.report(task, TaskState.TASK_STATE_FAILED);
              }
              break;
            case "breaks":
              cluster.crashingVersions.add(version);
              break;
            case "mends":
              cluster.crashingVersions.clear();
              break;
            case "settle":
              // What crashes goes on to do so, so that it may not come to rest.
              for (let round = 0; round < 10; round++) {
                await cluster.plan();
                await cluster.stepNodes();
              }
              break;
            default:
              cluster.nowMs += 1_000 + (n % 8_000);
          }
        }
        const waits = new KeptTasks(index);
        if ([...index.view.tasks.values()].some((task) => waits.why(task) !== "")) held++;
        // All is mended: the nodes are up, one takes tasks, and nothing fails any more.
        cluster.crashingVersions.clear();
        for (const node of nodeNames) await cluster.setNode(node, NodeState.NODE_STATE_READY);
        await cluster.setAvailability("a", Availability.AVAILABILITY_ACTIVE);
        await cluster.settleFor(150);
        const service = cluster.service("s", "web");
        const live = cluster.tasks("s", "web").filter((task) => isLive(index.view, task));
        const kept = new KeptTasks(index);
        const drained = live.filter(
          ({ nodeId }) => index.view.nodes.get(nodeId)?.availability === Availability.AVAILABILITY_DRAIN,
        );
        // A global service has nowhere else to go.
        if (given.isGlobal) for (const task of drained) expect(kept.why(task)).not.toBe("");
        else {
          expect(drained).toEqual([]);
          expect(cluster.running("s", "web")).toHaveLength(given.replicas);
        }
        for (const task of live) if (!drained.includes(task)) expect(task.serviceVersion).toBe(service.version);
        expect(planService(index, service, cluster.nowMs).actions).toEqual([]);
      }),
      effort(150),
    );
    expect(stopped).toBeGreaterThan(50);
    expect(held).toBeGreaterThan(10);
  }, 120_000);
});
