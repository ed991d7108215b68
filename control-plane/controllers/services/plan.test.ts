import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  ContainerSpec,
  Dependency,
  DependencyCondition,
  Link,
  Placement,
  PublishedPort,
  Resources,
  RestartCondition,
  RestartPolicy,
  ServiceNetwork,
  type ServiceSpec,
  UpdateFailureAction,
  UpdateOrder,
  UpdatePolicy,
} from "../../../proto/gen/embassy/v1/stack.ts";
import {
  Availability,
  DesiredState,
  Health,
  NodeState,
  type Task,
  TaskState,
  UpdateState,
} from "../../../proto/gen/embassy/v1/state.ts";
import { planDeploy } from "../../api/plan-deploy.ts";
import { stackProgress } from "../../domain/progress.ts";
import { hasEnded, isUp, observedState, observedStatus } from "../../domain/tasks.ts";
import { aService, aStack, replicas, testPools, testSecretDigest } from "../../domain/testing.ts";
import { SteppedCluster } from "../testing.ts";
import { planService } from "./plan.ts";

const image = (name: string) => ContainerSpec.create({ image: `registry/${name}` });

async function threeNodes(...services: ServiceSpec[]): Promise<SteppedCluster> {
  const cluster = new SteppedCluster();
  await cluster.addNodes("a", "b", "c");
  await cluster.deploy(aStack("s", services));
  // What has just started may end at once; after a second it has converged.
  await cluster.settleFor(1);
  return cluster;
}

describe("a replicated service", () => {
  it("gets one task a slot, spread over the nodes, and then nothing more", async () => {
    using cluster = await threeNodes(aService("web"));
    expect(cluster.running("s", "web").map((one) => one.split("@")[0])).toEqual(["1", "2", "3"]);
    expect(new Set(cluster.running("s", "web").map((one) => one.split("@")[1])).size).toBe(3);
    expect(planService(cluster.index, cluster.service("s", "web"), cluster.nowMs).actions).toEqual([]);
    expect(stackProgress(cluster.index, "s").converged).toBe(true);
  });

  it("is scaled without touching the tasks that stay", async () => {
    using cluster = await threeNodes(aService("web"));
    const before = cluster.tasks("s", "web").map(({ id }) => id);
    await cluster.deploy(aStack("s", [aService("web", { mode: replicas(5) })]));
    await cluster.settle();
    expect(cluster.service("s", "web").version).toBe(1);
    expect(cluster.running("s", "web")).toHaveLength(5);
    expect(
      cluster
        .tasks("s", "web")
        .slice(0, 3)
        .map(({ id }) => id),
    ).toEqual(before);
    await cluster.deploy(aStack("s", [aService("web", { mode: replicas(1) })]));
    await cluster.settle();
    expect(cluster.running("s", "web")).toEqual([expect.stringMatching(/^1@/)]);
    expect(stackProgress(cluster.index, "s")).toMatchObject({ converged: true, services: [{ desired: 1, old: 0 }] });
  });

  it("gets other tasks at once for those of a node that is down, and the node that returns must stop its own", async () => {
    using cluster = await threeNodes(aService("web"));
    const lost = cluster.tasks("s", "web").find(({ nodeId }) => nodeId === "b");
    await cluster.setNode("b", NodeState.NODE_STATE_DOWN);
    await cluster.settle();
    expect(cluster.running("s", "web").every((one) => !one.endsWith("@b"))).toBe(true);
    expect(cluster.running("s", "web")).toHaveLength(3);
    expect(cluster.index.view.tasks.get(lost?.id ?? "")?.desired).toBe(DesiredState.DESIRED_STATE_SHUTDOWN);
    await cluster.setNode("b", NodeState.NODE_STATE_READY);
    await cluster.settle();
    expect(cluster.running("s", "web")).toHaveLength(3);
    expect(stackProgress(cluster.index, "s").converged).toBe(true);
  });

  it("keeps its tasks on a node that is silent, gives it no more, and goes on there when it is heard again", async () => {
    using cluster = await threeNodes(aService("web"));
    const before = cluster.running("s", "web");
    const kept = cluster.tasks("s", "web").find(({ nodeId }) => nodeId === "b");
    await cluster.setNode("b", NodeState.NODE_STATE_SILENT);
    await cluster.settle();
    expect(cluster.running("s", "web")).toEqual(before);
    if (kept === undefined) throw new Error("a task is on b");
    expect(observedStatus(cluster.index.view, kept)).toMatchObject({
      state: TaskState.TASK_STATE_RUNNING,
      message: "its node is silent",
    });
    await cluster.deploy(aStack("s", [aService("web", { mode: replicas(6) })]));
    await cluster.settle();
    expect(cluster.running("s", "web").filter((one) => one.endsWith("@b"))).toHaveLength(1);
    expect(cluster.running("s", "web")).toHaveLength(6);
    await cluster.setNode("b", NodeState.NODE_STATE_READY);
    await cluster.settle();
    expect(cluster.running("s", "web")).toEqual(expect.arrayContaining(before));
    expect(cluster.index.view.tasks.get(kept.id)?.desired).toBe(DesiredState.DESIRED_STATE_RUNNING);
    await cluster.setNode("b", NodeState.NODE_STATE_SILENT);
    await cluster.setNode("b", NodeState.NODE_STATE_DOWN);
    await cluster.settle();
    expect(cluster.running("s", "web").filter((one) => one.endsWith("@b"))).toEqual([]);
    expect(cluster.running("s", "web")).toHaveLength(6);
  });

  it("prepares what replaces a task on a silent node, and starts it when the node is down, or has stopped the old one", async () => {
    for (const end of [NodeState.NODE_STATE_DOWN, NodeState.NODE_STATE_READY]) {
      using cluster = await threeNodes(aService("redis", { mode: replicas(1) }));
      const [old] = cluster.tasks("s", "redis");
      if (old === undefined) throw new Error("one task");
      await cluster.setNode(old.nodeId, NodeState.NODE_STATE_SILENT);
      await cluster.deploy(aStack("s", [aService("redis", { mode: replicas(1), container: image("redis:2") })]));
      await cluster.settle();
      const next = () => cluster.tasks("s", "redis").at(-1);
      const states = () => [old, next()].map((task) => task && observedState(cluster.index.view, task));
      expect(next()?.nodeId).not.toBe(old.nodeId);
      expect(states()).toEqual([TaskState.TASK_STATE_RUNNING, TaskState.TASK_STATE_READY]);
      await cluster.setNode(old.nodeId, end);
      await cluster.settle();
      const ended = end === NodeState.NODE_STATE_DOWN ? TaskState.TASK_STATE_ORPHANED : TaskState.TASK_STATE_SHUTDOWN;
      expect(states()).toEqual([ended, TaskState.TASK_STATE_RUNNING]);
    }
  });

  it("leaves a drained node, each task only once its successor is prepared", async () => {
    using cluster = await threeNodes(aService("redis", { mode: replicas(1) }));
    const [old] = cluster.tasks("s", "redis");
    await cluster.drain(old?.nodeId ?? "");
    await cluster.plan();
    const [, next] = cluster.tasks("s", "redis");
    expect(next).toMatchObject({ desired: DesiredState.DESIRED_STATE_READY, replaces: old?.id });
    await cluster.plan();
    // Not prepared yet: the old one goes on.
    expect(cluster.index.view.tasks.get(old?.id ?? "")?.desired).toBe(DesiredState.DESIRED_STATE_RUNNING);
    await cluster.stepNodes();
    await cluster.plan();
    expect(cluster.index.view.tasks.get(old?.id ?? "")?.desired).toBe(DesiredState.DESIRED_STATE_SHUTDOWN);
    expect(cluster.tasks("s", "redis")[1]?.desired).toBe(DesiredState.DESIRED_STATE_READY);
    await cluster.settle();
    expect(cluster.running("s", "redis")).toHaveLength(1);
    expect(cluster.running("s", "redis")[0]).not.toBe(`1@${old?.nodeId}`);
  });

  it("leaves a drained node even when nothing else has room", async () => {
    const reserved = Resources.create({ reservations: { milliCpus: 4_000, memoryBytes: 0, pids: 0, generic: {} } });
    using cluster = await threeNodes(aService("big", { resources: reserved }));
    await cluster.drain("a");
    await cluster.settle();
    expect(cluster.running("s", "big")).toHaveLength(2);
    expect(stackProgress(cluster.index, "s").services[0]?.problems[0]?.task?.unplaced).toContain("CPU");
    await cluster.setAvailability("a", Availability.AVAILABILITY_ACTIVE);
    await cluster.settle();
    expect(cluster.running("s", "big")).toHaveLength(3);
  });

  it("takes over at once when the old task dies while its successor is being prepared", async () => {
    using cluster = await threeNodes(aService("redis", { mode: replicas(1) }));
    const [old] = cluster.tasks("s", "redis");
    await cluster.drain(old?.nodeId ?? "");
    await cluster.plan();
    if (old !== undefined) await cluster.report(old, TaskState.TASK_STATE_FAILED);
    await cluster.plan();
    expect(cluster.tasks("s", "redis").at(-1)).toMatchObject({ desired: DesiredState.DESIRED_STATE_RUNNING });
    await cluster.settle();
    expect(cluster.running("s", "redis")).toHaveLength(1);
  });
});

describe("restarts", () => {
  it("wait longer after each quick failure, and not at all after the first", async () => {
    using cluster = await threeNodes(aService("bad", { mode: replicas(1) }));
    cluster.crashing.add("bad");
    await cluster.settle();
    const waits: number[] = [];
    for (let n = 0; n < 8; n++) {
      const { wakeAtMs } = planService(cluster.index, cluster.service("s", "bad"), cluster.nowMs);
      waits.push((wakeAtMs ?? 0) - cluster.nowMs);
      cluster.nowMs = wakeAtMs ?? 0;
      await cluster.settle();
    }
    expect(waits).toEqual([500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000]);
    expect(cluster.tasks("s", "bad")).toHaveLength(5);
  });

  it.each([
    [RestartCondition.RESTART_CONDITION_ANY, TaskState.TASK_STATE_COMPLETE, true],
    [RestartCondition.RESTART_CONDITION_ANY, TaskState.TASK_STATE_FAILED, true],
    [RestartCondition.RESTART_CONDITION_ON_FAILURE, TaskState.TASK_STATE_COMPLETE, false],
    [RestartCondition.RESTART_CONDITION_ON_FAILURE, TaskState.TASK_STATE_REJECTED, true],
    [RestartCondition.RESTART_CONDITION_NONE, TaskState.TASK_STATE_FAILED, false],
  ])("with condition %i after state %i: %s", async (condition, state, restarts) => {
    const restart = RestartPolicy.create({ condition });
    using cluster = await threeNodes(aService("job", { mode: replicas(1), restart }));
    const [task] = cluster.tasks("s", "job");
    if (task !== undefined) await cluster.report(task, state);
    await cluster.settle();
    expect(cluster.running("s", "job")).toHaveLength(restarts ? 1 : 0);
    const done = restarts || state === TaskState.TASK_STATE_COMPLETE;
    expect(stackProgress(cluster.index, "s").converged).toBe(done);
  });

  it("that are used up leave a service that is to go on short, also when its tasks end with exit code 0", async () => {
    const restart = RestartPolicy.create({ maxAttempts: 1 });
    using cluster = await threeNodes(aService("web", { mode: replicas(1), restart }));
    for (let n = 0; n < 2; n++) {
      const [task] = cluster.tasks("s", "web").slice(-1);
      if (task !== undefined) await cluster.report(task, TaskState.TASK_STATE_COMPLETE);
      await cluster.settleFor(1);
    }
    const { converged, services } = stackProgress(cluster.index, "s");
    expect(converged).toBe(false);
    expect(services[0]?.problems).toMatchObject([{ gaveUp: expect.stringContaining("max_attempts") }]);
  });

  it("end when max_attempts is reached", async () => {
    const restart = RestartPolicy.create({ maxAttempts: 2, delayMs: 10 });
    using cluster = await threeNodes(aService("bad", { mode: replicas(1), restart }));
    cluster.crashing.add("bad");
    for (let n = 0; n < 10; n++) {
      await cluster.settle();
      cluster.nowMs += 60_000;
    }
    expect(cluster.tasks("s", "bad")).toHaveLength(3);
    expect(stackProgress(cluster.index, "s")).toMatchObject({ converged: false, services: [{ running: 0 }] });
  });
});

describe("an update", () => {
  const next = (update?: UpdatePolicy, count = 4) =>
    aService("web", { mode: replicas(count), container: image("web:2"), update });
  const upNow = (cluster: SteppedCluster) =>
    cluster.tasks("s", "web").filter(({ id }) => isUp(cluster.index.view.taskStatuses.get(id))).length;

  it.each([
    ["one at a time when nothing is said", undefined, 3],
    ["as many at a time as it says", UpdatePolicy.create({ parallelism: 3 }), 1],
    [
      "without a gap when it starts first",
      UpdatePolicy.create({ parallelism: 1, order: UpdateOrder.UPDATE_ORDER_START_FIRST }),
      4,
    ],
    ["all at once for 0", UpdatePolicy.create({ parallelism: 0 }), 0],
  ])("replaces tasks %s", async (_, update, least) => {
    using cluster = await threeNodes(aService("web", { mode: replicas(4) }));
    await cluster.deploy(aStack("s", [next(update)]));
    expect(cluster.service("s", "web").version).toBe(2);
    let fewest = 4;
    await cluster.settleFor(8, () => {
      fewest = Math.min(fewest, upNow(cluster));
    });
    expect(fewest).toBe(least);
    expect(cluster.running("s", "web")).toHaveLength(4);
    expect(stackProgress(cluster.index, "s").converged).toBe(true);
  });

  it("waits its delay between batches", async () => {
    using cluster = await threeNodes(aService("web", { mode: replicas(4) }));
    await cluster.deploy(aStack("s", [next(UpdatePolicy.create({ parallelism: 2, delayMs: 10_000 }))]));
    await cluster.settle();
    const count = () => cluster.tasks("s", "web").filter((task) => task.serviceVersion === 2).length;
    expect(count()).toBe(2);
    expect(planService(cluster.index, cluster.service("s", "web"), cluster.nowMs).wakeAtMs).toBe(
      cluster.nowMs + 10_000,
    );
    cluster.nowMs += 10_000;
    await cluster.settle();
    expect(count()).toBe(4);
  });

  it("leaves the old tasks running when the new ones cannot be prepared", async () => {
    using cluster = await threeNodes(aService("web", { mode: replicas(4) }));
    cluster.rejected.add(2);
    await cluster.deploy(aStack("s", [next()]));
    for (let n = 0; n < 5; n++) {
      await cluster.settle();
      cluster.nowMs += 60_000;
    }
    expect(upNow(cluster)).toBe(4);
    const progress = stackProgress(cluster.index, "s");
    expect(progress).toMatchObject({ converged: false, services: [{ running: 0, old: 4 }] });
    expect(progress.services[0]?.problems[0]?.status?.state).toBe(TaskState.TASK_STATE_REJECTED);
  });

  describe("whose new tasks fail while they are watched", () => {
    const watched = (policy: Partial<UpdatePolicy> = {}) =>
      UpdatePolicy.create({ parallelism: 1, monitorMs: 5_000, ...policy });
    /** Four tasks, of which the new version's crash as soon as they run; some minutes later. */
    async function crashingUpdate(policy?: UpdatePolicy): Promise<SteppedCluster> {
      const cluster = await threeNodes(aService("web", { mode: replicas(4) }));
      cluster.crashingVersions.add(2);
      await cluster.deploy(aStack("s", [next(policy)]));
      for (let n = 0; n < 5; n++) {
        await cluster.settle();
        cluster.nowMs += 60_000;
      }
      return cluster;
    }
    const oldOnes = (cluster: SteppedCluster) =>
      cluster
        .tasks("s", "web")
        .filter((task) => task.serviceVersion === 1 && !hasEnded(observedState(cluster.index.view, task))).length;
    const plan = (cluster: SteppedCluster) => planService(cluster.index, cluster.service("s", "web"), cluster.nowMs);

    it.each([
      ["pauses, and leaves the other old tasks running", watched(), 3],
      ["pauses when nothing is said", undefined, 3],
      ["pauses after as many as begin at once", watched({ parallelism: 2 }), 2],
      ["pauses when more than the tolerated share fail", watched({ maxFailureRatio: 0.25 }), 2],
      ["goes on when that is asked for", watched({ failureAction: 1 }), 0],
      ["goes on while no more than the tolerated share fail", watched({ maxFailureRatio: 1 }), 0],
    ])("%s", async (_, policy, left) => {
      using cluster = await crashingUpdate(policy);
      expect(oldOnes(cluster)).toBe(left);
      const { updateMessage } = plan(cluster);
      if (left === 3) expect(updateMessage).toBe("update paused, 4 of 4 to go: web.1 failed: exit code 0");
      else if (left > 0)
        expect(updateMessage).toContain("update paused, 4 of 4 to go: web.1, web.2 failed (web.1: exit code 0)");
    });

    it("pauses for one that was never healthy, however long that took to see", async () => {
      using cluster = await threeNodes(aService("web", { mode: replicas(2) }));
      await cluster.deploy(aStack("s", [next(watched(), 2)]));
      const isReady = (task: Task | undefined) =>
        task !== undefined && observedState(cluster.index.view, task) >= TaskState.TASK_STATE_READY;
      const newOne = () => cluster.tasks("s", "web").find(({ serviceVersion }) => serviceVersion === 2);
      for (let n = 0; n < 10 && !isReady(newOne()); n++) {
        await cluster.plan();
        await cluster.stepNodes();
      }
      cluster.frozen = true;
      await cluster.settle();
      const task = newOne();
      if (task === undefined) throw new Error("no task of version 2");
      await cluster.report(task, TaskState.TASK_STATE_RUNNING, { health: Health.HEALTH_STARTING, upAtMs: 0 });
      cluster.nowMs += 60_000;
      await cluster.report(task, TaskState.TASK_STATE_FAILED, { message: "unhealthy: no answer", upAtMs: 0 });
      cluster.frozen = false;
      await cluster.settle();
      expect(plan(cluster).updateMessage).toBe("update paused, 2 of 2 to go: web.1 failed: unhealthy: no answer");
      expect(oldOnes(cluster)).toBe(1);
    });

    it("goes on by itself once what failed has stayed up", async () => {
      using cluster = await crashingUpdate(watched());
      cluster.crashingVersions.clear();
      await cluster.settle();
      expect(oldOnes(cluster)).toBe(3);
      expect(plan(cluster)).toMatchObject({
        wakeAtMs: cluster.nowMs + 5_000,
        updateMessage: expect.stringContaining("paused"),
      });
      cluster.nowMs += 5_000;
      await cluster.settleFor(8);
      expect(oldOnes(cluster)).toBe(0);
      expect(stackProgress(cluster.index, "s").converged).toBe(true);
      expect(plan(cluster).updateMessage).toBe("");
    });

    it("leaves those alone that it had not replaced when the service goes back", async () => {
      using cluster = await crashingUpdate(watched());
      const kept = cluster.tasks("s", "web").filter(({ id }) => isUp(cluster.index.view.taskStatuses.get(id)));
      expect(kept).toHaveLength(3);
      await cluster.deploy(aStack("s", [aService("web", { mode: replicas(4) })]));
      await cluster.settleFor(8);
      const live = cluster.tasks("s", "web").filter(({ id }) => isUp(cluster.index.view.taskStatuses.get(id)));
      expect(live.map(({ id }) => id)).toEqual(expect.arrayContaining(kept.map(({ id }) => id)));
      expect(stackProgress(cluster.index, "s")).toMatchObject({ converged: true, services: [{ running: 4, old: 0 }] });
      // And forward again: a number that no task has, so that what failed before is not held against it.
      cluster.crashingVersions.clear();
      await cluster.deploy(aStack("s", [next(watched())]));
      expect(cluster.service("s", "web").version).toBe(3);
      await cluster.settleFor(8);
      expect(stackProgress(cluster.index, "s").converged).toBe(true);
    });

    it.each([
      ["all of monitor for the first batch, and a second for each after", watched(), [1, 1, 1, 1, 1, 2, 3, 4]],
      ["so for more at once", watched({ parallelism: 2 }), [2, 2, 2, 2, 2, 4]],
      ["no longer than monitor", watched({ monitorMs: 500 }), [1, 2, 3, 4]],
      ["a second when it goes on whatever fails", watched({ failureAction: 1 }), [1, 2, 3, 4]],
    ])("waits %s", async (_, policy, replaced) => {
      using cluster = await threeNodes(aService("web", { mode: replicas(4) }));
      await cluster.deploy(aStack("s", [next(policy)]));
      const seen: number[] = [];
      for (let n = 0; n < replaced.length; n++) {
        await cluster.settle();
        seen.push(4 - oldOnes(cluster));
        cluster.nowMs = plan(cluster).wakeAtMs === undefined ? cluster.nowMs : cluster.nowMs + 1_000;
      }
      expect(seen).toEqual(replaced);
      expect(stackProgress(cluster.index, "s").converged).toBe(true);
    });

    it.each([
      [1_000, TaskState.TASK_STATE_FAILED],
      [3_000, TaskState.TASK_STATE_FAILED],
      [4_000, TaskState.TASK_STATE_FAILED],
      [3_000, TaskState.TASK_STATE_COMPLETE],
    ])("gives up one task to a version whose own end after %i ms as %i", async (afterMs, state) => {
      using cluster = await threeNodes(aService("web", { mode: replicas(4) }));
      await cluster.deploy(aStack("s", [next(watched())]));
      for (let second = 0; second < 120; second++) {
        await cluster.settle();
        cluster.nowMs += 1_000;
        for (const task of cluster.tasks("s", "web").filter(({ serviceVersion }) => serviceVersion === 2)) {
          const status = cluster.index.view.taskStatuses.get(task.id);
          if (isUp(status) && cluster.nowMs - (status?.upAtMs ?? 0) >= afterMs) await cluster.report(task, state);
        }
      }
      expect(oldOnes(cluster)).toBe(3);
    });

    it("gives the next version a clean slate", async () => {
      using cluster = await crashingUpdate(watched());
      const mended = aService("web", { mode: replicas(4), container: image("web:3"), update: watched() });
      await cluster.deploy(aStack("s", [mended]));
      await cluster.settleFor(8);
      expect(oldOnes(cluster)).toBe(0);
      expect(stackProgress(cluster.index, "s").converged).toBe(true);
    });

    it.each([
      [4_999, true],
      [5_000, false],
    ])("counts a failure after %i ms: %s", async (afterMs, paused) => {
      using cluster = await threeNodes(aService("web", { mode: replicas(2) }));
      await cluster.deploy(aStack("s", [next(watched({ delayMs: 60_000 }), 2)]));
      await cluster.settle();
      cluster.nowMs += afterMs;
      const [first] = cluster.tasks("s", "web").filter(({ serviceVersion }) => serviceVersion === 2);
      if (first !== undefined) await cluster.report(first, TaskState.TASK_STATE_FAILED);
      await cluster.settle();
      expect(plan(cluster).updateMessage.includes("paused")).toBe(paused);
    });
  });

  describe("of a service of which some slots are not up", () => {
    const version = (n: number, count: number, parallelism: number, restart?: RestartPolicy) =>
      aStack("s", [
        aService("web", {
          mode: replicas(count),
          container: image(`web:${n}`),
          update: UpdatePolicy.create({ parallelism, monitorMs: 5_000 }),
          restart,
        }),
      ]);
    /** A service whose second version crashes, and whose update has paused. */
    async function pausedUpdate(count: number, parallelism: number): Promise<SteppedCluster> {
      const cluster = await threeNodes(aService("web", { mode: replicas(count) }));
      cluster.crashingVersions.add(2);
      await cluster.deploy(version(2, count, parallelism));
      await cluster.settleFor(10);
      return cluster;
    }
    const latest = (cluster: SteppedCluster, slot: number): Task => {
      const task = cluster.tasks("s", "web").findLast((one) => one.slot === slot);
      if (task === undefined) throw new Error(`no task in slot ${slot}`);
      return task;
    };
    const upSlots = (cluster: SteppedCluster) =>
      cluster
        .tasks("s", "web")
        .flatMap(({ id, slot }) => (isUp(cluster.index.view.taskStatuses.get(id)) ? [slot] : []));
    async function fewestUp(cluster: SteppedCluster, seconds: number): Promise<number> {
      let fewest = Number.POSITIVE_INFINITY;
      await cluster.settleFor(seconds, () => {
        fewest = Math.min(fewest, upSlots(cluster).length);
      });
      return fewest;
    }

    it.each([
      ["two slots, and the fix works", 2, 1, false],
      ["two slots, and the fix crashes too", 2, 1, true],
      ["four slots of which two may be away", 4, 2, false],
      ["four slots of which two may be away, and the fix crashes too", 4, 2, true],
    ])("takes no healthy one until those are up: %s", async (_, count, parallelism, crashes) => {
      using cluster = await pausedUpdate(count, parallelism);
      const others = Array.from({ length: count - parallelism }, (_, n) => n + 1 + parallelism);
      expect(upSlots(cluster)).toEqual(others);
      if (crashes) cluster.crashingVersions.add(3);
      await cluster.deploy(version(3, count, parallelism));
      await cluster.plan();
      expect(cluster.tasks("s", "web").flatMap((task) => (task.serviceVersion === 3 ? [task.slot] : []))).toEqual(
        Array.from({ length: parallelism }, (_, n) => n + 1),
      );
      expect(await fewestUp(cluster, 20)).toBe(count - parallelism);
      const old = others.filter((slot) => latest(cluster, slot).serviceVersion === 1);
      expect(old).toEqual(crashes ? others : []);
      expect(stackProgress(cluster.index, "s").converged).toBe(!crashes);
    });

    it.each([
      ["crashed a moment ago", 2, TaskState.TASK_STATE_FAILED, Health.HEALTH_NONE],
      ["is not healthy yet", 2, TaskState.TASK_STATE_RUNNING, Health.HEALTH_STARTING],
      ["is unhealthy", 2, TaskState.TASK_STATE_RUNNING, Health.HEALTH_UNHEALTHY],
      ["is the first", 1, TaskState.TASK_STATE_RUNNING, Health.HEALTH_STARTING],
    ])("begins with one of the old version that %s", async (_, slot, state, health) => {
      using cluster = await threeNodes(aService("web", { mode: replicas(2) }));
      await cluster.report(latest(cluster, slot), state, { health });
      await cluster.deploy(version(2, 2, 1));
      const [other] = upSlots(cluster);
      expect(other).toBe(3 - slot);
      await cluster.settle();
      expect([latest(cluster, slot), latest(cluster, 3 - slot)].map((task) => task.serviceVersion)).toEqual([2, 1]);
      expect(await fewestUp(cluster, 20)).toBe(1);
      expect(stackProgress(cluster.index, "s").converged).toBe(true);
    });

    it.each([
      ["soon", 0],
      ["after it was watched", 60_000],
    ])("waits for one of the new version that crashes %s, while the next is prepared", async (_, afterMs) => {
      using cluster = await threeNodes(aService("web", { mode: replicas(2) }));
      await cluster.deploy(version(2, 2, 1));
      for (let n = 0; n < 20 && latest(cluster, 2).serviceVersion === 1; n++) {
        await cluster.settle();
        cluster.nowMs += 1_000;
        await cluster.plan();
      }
      expect(latest(cluster, 2)).toMatchObject({ serviceVersion: 2, desired: DesiredState.DESIRED_STATE_READY });
      cluster.crashingVersions.add(2);
      cluster.nowMs += afterMs;
      await cluster.report(latest(cluster, 1), TaskState.TASK_STATE_FAILED);
      await cluster.settleFor(60);
      expect(upSlots(cluster)).toEqual([2]);
      cluster.crashingVersions.clear();
      expect(await fewestUp(cluster, 120)).toBe(1);
      expect(stackProgress(cluster.index, "s").converged).toBe(true);
    });

    it("replaces one that is unhealthy before it stops another whose successor is ready", async () => {
      using cluster = await threeNodes(aService("web", { mode: replicas(2) }));
      await cluster.deploy(version(2, 2, 1));
      await cluster.plan();
      await cluster.report(latest(cluster, 2), TaskState.TASK_STATE_RUNNING, { health: Health.HEALTH_UNHEALTHY });
      expect(latest(cluster, 1).serviceVersion).toBe(2);
      expect(await fewestUp(cluster, 20)).toBe(1);
      expect(stackProgress(cluster.index, "s").converged).toBe(true);
    });

    it.each([
      ["holds for one that gave up, and says so", UpdateFailureAction.UPDATE_FAILURE_ACTION_PAUSE, 1],
      ["does not when it is to continue", UpdateFailureAction.UPDATE_FAILURE_ACTION_CONTINUE, 0],
    ])("%s", async (_, failureAction, left) => {
      const restart = RestartPolicy.create({ condition: RestartCondition.RESTART_CONDITION_NONE });
      using cluster = await threeNodes(aService("web", { mode: replicas(2), restart }));
      const update = UpdatePolicy.create({ parallelism: 1, monitorMs: 5_000, delayMs: 20_000, failureAction });
      await cluster.deploy(aStack("s", [{ ...next(update, 2), restart }]));
      await cluster.settleFor(10);
      await cluster.report(latest(cluster, 1), TaskState.TASK_STATE_FAILED);
      await cluster.settleFor(60);
      expect(upSlots(cluster)).toEqual([2]);
      expect(latest(cluster, 2).serviceVersion).toBe(2 - left);
      const { updateMessage } = planService(cluster.index, cluster.service("s", "web"), cluster.nowMs);
      expect(updateMessage).toBe(left === 0 ? "" : "update paused, 2 of 2 to go: web.1 failed: exit code 0");
    });

    it("takes none while new slots are not up either", async () => {
      using cluster = await threeNodes(aService("web", { mode: replicas(2) }));
      cluster.crashingVersions.add(2);
      await cluster.deploy(version(2, 4, 1));
      expect(await fewestUp(cluster, 10)).toBe(2);
      cluster.crashingVersions.clear();
      expect(await fewestUp(cluster, 60)).toBe(2);
      expect(stackProgress(cluster.index, "s").converged).toBe(true);
    });
  });

  it("stops the old task first where both do not fit", async () => {
    const one = Placement.create({ maxReplicasPerNode: 1 });
    using cluster = await threeNodes(aService("web", { placement: one }));
    await cluster.deploy(aStack("s", [aService("web", { placement: one, container: image("web:2") })]));
    await cluster.settleFor(8);
    expect(cluster.running("s", "web")).toHaveLength(3);
    expect(stackProgress(cluster.index, "s").converged).toBe(true);
  });
});

describe("an update that goes back when it fails", () => {
  const back = (over: Partial<UpdatePolicy> = {}) =>
    UpdatePolicy.create({
      parallelism: 1,
      monitorMs: 5_000,
      failureAction: UpdateFailureAction.UPDATE_FAILURE_ACTION_ROLLBACK,
      ...over,
    });
  const web = (n: number, over: Partial<ServiceSpec> = {}) =>
    aService("web", { mode: replicas(4), container: image(`web:${n}`), update: back(), ...over });
  const deploy = async (cluster: SteppedCluster, ...services: ServiceSpec[]) =>
    await cluster.deploy(aStack("s", services));
  const live = (cluster: SteppedCluster) =>
    cluster.tasks("s", "web").filter(({ id }) => isUp(cluster.index.view.taskStatuses.get(id)));
  const status = (cluster: SteppedCluster) =>
    cluster.index.view.serviceStatuses.get(cluster.service("s", "web").id) ?? fail("no status");
  const fail = (message: string): never => {
    throw new Error(message);
  };
  /** Version 1 runs on three nodes, and version 2 was deployed, whose tasks crash. */
  async function crashing(over: Partial<ServiceSpec> = {}): Promise<SteppedCluster> {
    const cluster = await threeNodes(web(1));
    cluster.crashingVersions.add(2);
    await deploy(cluster, web(2, over));
    return cluster;
  }

  it("puts back what it replaced, leaves the rest alone, and says what failed", async () => {
    using cluster = await threeNodes(web(1));
    const before = live(cluster).map(({ id }) => id);
    cluster.crashingVersions.add(2);
    await deploy(cluster, web(2));
    let fewest = 4;
    await cluster.settleFor(10, () => {
      fewest = Math.min(fewest, live(cluster).length);
    });
    expect(fewest).toBe(3);
    expect(live(cluster).map(({ serviceVersion }) => serviceVersion)).toEqual([1, 1, 1, 1]);
    expect(live(cluster).filter(({ id }) => before.includes(id))).toHaveLength(3);
    const service = cluster.service("s", "web");
    expect(service).toMatchObject({
      version: 1,
      stable: undefined,
      spec: { container: { image: "registry/web:1" } },
      rollback: { failedVersion: 2, revision: 2, why: expect.stringMatching(/^web.1 failed: /) },
    });
    expect(status(cluster)).toMatchObject({
      updateState: UpdateState.UPDATE_STATE_ROLLED_BACK,
      updateMessage: `rolled back: ${service.rollback?.why}`,
      convergedVersion: 1,
    });
    expect(cluster.index.stack("s")).toMatchObject({ revision: 2, rolledBack: ["web"], convergedAtMs: 0 });
    // Not what was deployed.
    expect(stackProgress(cluster.index, "s").converged).toBe(false);
    expect(await cluster.plan()).toEqual([]);
  });

  it("does not while no more than the tolerated share fail", async () => {
    using cluster = await crashing({ update: back({ maxFailureRatio: 1 }) });
    await cluster.settleFor(30);
    expect(cluster.service("s", "web")).toMatchObject({ version: 2, rollback: undefined });
  });

  it("does for tasks that fit nowhere, and for those that end with 0 though they are to go on", async () => {
    const big = Resources.create({ reservations: { milliCpus: 64_000, memoryBytes: 0, pids: 0, generic: {} } });
    using cluster = await threeNodes(web(1));
    await deploy(cluster, web(2, { resources: big }));
    await cluster.settleFor(4);
    expect(cluster.service("s", "web").version).toBe(2);
    expect(status(cluster).updateMessage).toMatch(/^updating, 4 of 4 to go: web.1 has no place: .*CPU/);
    await cluster.settleFor(10);
    expect(cluster.service("s", "web").rollback?.why).toMatch(/^web.1 has no place: .*CPU/);
    expect(live(cluster)).toHaveLength(4);

    await deploy(cluster, web(3));
    const failed = cluster.service("s", "web").version;
    for (let n = 0; n < 10; n++) {
      await cluster.settle();
      for (const task of live(cluster)) {
        if (task.serviceVersion === failed) await cluster.report(task, TaskState.TASK_STATE_COMPLETE);
      }
      cluster.nowMs += 1_000;
    }
    await cluster.settle();
    expect(cluster.service("s", "web").rollback).toMatchObject({ failedVersion: failed });
    expect(live(cluster)).toHaveLength(4);
  });

  it("tries again what failed when that is deployed again, and says so", async () => {
    using cluster = await crashing();
    await cluster.settleFor(10);
    const facts = { by: "t", nowMs: 0, mintId: () => "x", settings: testPools, secretDigest: testSecretDigest };
    const again = planDeploy(cluster.index, aStack("s", [web(2)]), facts);
    expect(again).toMatchObject({ revision: 3, updated: ["service/web"], triedAgain: ["service/web"] });
    await deploy(cluster, web(2));
    expect(cluster.service("s", "web")).toMatchObject({ version: 3, rollback: undefined, stable: { version: 1 } });
    await cluster.settleFor(20);
    expect(stackProgress(cluster.index, "s").converged).toBe(true);
    expect(status(cluster)).toMatchObject({ updateState: UpdateState.UPDATE_STATE_NONE, convergedVersion: 3 });
    expect(cluster.service("s", "web").stable).toBeUndefined();
    expect(planDeploy(cluster.index, aStack("s", [web(2)]), facts)).toMatchObject({ writes: [], triedAgain: [] });
  });

  it("tries again also in the middle of going back, and none of what failed stays", async () => {
    using cluster = await threeNodes(web(1));
    await deploy(cluster, web(2, { update: back({ parallelism: 4 }) }));
    await cluster.settle();
    const [first] = live(cluster);
    if (first !== undefined) await cluster.report(first, TaskState.TASK_STATE_FAILED);
    await cluster.plan();
    expect(cluster.service("s", "web")).toMatchObject({ version: 1, rollback: { failedVersion: 2 } });
    expect(live(cluster).map(({ serviceVersion }) => serviceVersion)).toEqual([2, 2, 2]);
    await deploy(cluster, web(2));
    // What it was going back to had converged, so that this one may fail as well.
    expect(cluster.service("s", "web")).toMatchObject({ version: 3, stable: { version: 1 }, rollback: undefined });
    await cluster.settleFor(30);
    expect(live(cluster).map(({ serviceVersion }) => serviceVersion)).toEqual([3, 3, 3, 3]);
    expect(stackProgress(cluster.index, "s").converged).toBe(true);
  });

  it("goes back as its rollback_config says, and not as the update went", async () => {
    const startFirst = back({ order: UpdateOrder.UPDATE_ORDER_START_FIRST, parallelism: 2 });
    using cluster = await threeNodes(web(1));
    await deploy(cluster, web(2, { update: back({ parallelism: 4 }), rollback: startFirst }));
    await cluster.settle();
    expect(live(cluster).map(({ serviceVersion }) => serviceVersion)).toEqual([2, 2, 2, 2]);
    const [first] = live(cluster);
    if (first !== undefined) await cluster.report(first, TaskState.TASK_STATE_FAILED);
    let fewest = 4;
    await cluster.settleFor(20, () => {
      fewest = Math.min(fewest, live(cluster).length);
    });
    expect(fewest).toBe(3);
    expect(live(cluster).map(({ serviceVersion }) => serviceVersion)).toEqual([1, 1, 1, 1]);
    expect(status(cluster).updateState).toBe(UpdateState.UPDATE_STATE_ROLLED_BACK);
  });

  it.each([
    [UpdateFailureAction.UPDATE_FAILURE_ACTION_PAUSE, UpdateState.UPDATE_STATE_ROLLBACK_PAUSED],
    [UpdateFailureAction.UPDATE_FAILURE_ACTION_ROLLBACK, UpdateState.UPDATE_STATE_ROLLBACK_PAUSED],
    [UpdateFailureAction.UPDATE_FAILURE_ACTION_CONTINUE, UpdateState.UPDATE_STATE_ROLLING_BACK],
  ])("whose rollback fails as well goes nowhere else: action %i ends in state %i", async (failureAction, state) => {
    using cluster = await crashing({ update: back({ parallelism: 2 }), rollback: back({ failureAction }) });
    cluster.crashing.add("web");
    for (let n = 0; n < 20; n++) {
      await cluster.settle();
      cluster.nowMs += 500;
    }
    expect(status(cluster).updateState).toBe(state);
    expect(cluster.service("s", "web")).toMatchObject({ version: 1, rollback: { failedVersion: 2 } });
    // Once it stays up, it ends where it was to.
    cluster.crashing.clear();
    await cluster.settleFor(90);
    expect(status(cluster).updateState).toBe(UpdateState.UPDATE_STATE_ROLLED_BACK);
    expect(live(cluster)).toHaveLength(4);
  });

  it("has not gone back while what it went back to fails within monitor", async () => {
    using cluster = await crashing();
    for (let n = 0; n < 20; n++) {
      await cluster.settle();
      cluster.nowMs += 1_000;
      for (const task of live(cluster)) {
        const { upAtMs = 0 } = cluster.index.view.taskStatuses.get(task.id) ?? {};
        const isPutBack = task.serviceVersion === 1 && task.epoch > 1;
        if (isPutBack && cluster.nowMs - upAtMs >= 3_000) await cluster.report(task, TaskState.TASK_STATE_FAILED);
      }
    }
    await cluster.settle();
    expect(status(cluster)).toMatchObject({
      updateState: UpdateState.UPDATE_STATE_ROLLBACK_PAUSED,
      updateMessage: "rollback paused, 1 of 4 to go: web.1 failed: exit code 0",
      convergedVersion: 0,
    });
  });

  it("pauses when there is nothing to go back to, and leaves alone what fails long after", async () => {
    using cluster = new SteppedCluster();
    await cluster.addNodes("a", "b", "c");
    cluster.crashingVersions.add(1).add(2);
    await deploy(cluster, web(1));
    await cluster.settleFor(3);
    await deploy(cluster, web(2));
    await cluster.settleFor(10);
    expect(cluster.service("s", "web")).toMatchObject({ version: 2, stable: undefined, rollback: undefined });
    cluster.crashingVersions.clear();
    await deploy(cluster, web(3));
    await cluster.settleFor(60);
    expect(status(cluster).convergedVersion).toBe(3);
    await deploy(cluster, web(4));
    await cluster.settleFor(20);
    cluster.crashingVersions.add(4);
    await cluster.settleFor(20);
    expect(cluster.service("s", "web")).toMatchObject({ version: 4, rollback: undefined });
  });

  it.each([
    ["has no place since its node was drained", 0],
    ["fails, which is tolerated", 0.25],
  ])(
    "is over although a slot %s: what fails long after is no failure of it, and the next goes back to it",
    async (_, ratio) => {
      const placement = Placement.create({ maxReplicasPerNode: 2 });
      const update = back({ maxFailureRatio: ratio });
      using cluster = await threeNodes(web(1, { placement, update }));
      if (ratio === 0) {
        for (const node of ["a", "b"]) await cluster.drain(node);
        await cluster.settle();
      }
      await deploy(cluster, web(2, { placement, update }));
      for (let n = 0; n < 60; n++) {
        await cluster.settle();
        cluster.nowMs += 1_000;
        const [first] = live(cluster).filter(({ slot, serviceVersion }) => slot === 1 && serviceVersion === 2);
        if (ratio > 0 && first !== undefined) await cluster.report(first, TaskState.TASK_STATE_FAILED);
      }
      expect(cluster.service("s", "web")).toMatchObject({ version: 2, stable: undefined, rollback: undefined });
      expect(status(cluster).convergedVersion).toBe(2);
      cluster.crashing.add("web");
      await cluster.settleFor(60);
      expect(cluster.service("s", "web")).toMatchObject({ version: 2, rollback: undefined });
      await deploy(cluster, web(3, { placement, update: back() }));
      await cluster.settleFor(60);
      expect(cluster.service("s", "web")).toMatchObject({ version: 2, rollback: { failedVersion: 3 } });
    },
  );

  it("gives the service its networks, addresses and ports back", async () => {
    const on = (...networks: string[]) => networks.map((network) => ServiceNetwork.create({ network }));
    const ports = [PublishedPort.create({ target: 80, published: 8_080 }), PublishedPort.create({ target: 81 })];
    using cluster = await threeNodes(web(1, { networks: on("back", "default"), ports }));
    const had = status(cluster);
    const networks = cluster.service("s", "web").networkIds;
    cluster.crashingVersions.add(2);
    await deploy(cluster, web(2));
    expect(status(cluster).ports).toEqual([]);
    // Nobody else gets them meanwhile.
    const other = aStack("t", [aService("x", { ports: [PublishedPort.create({ target: 1, published: 8_080 })] })]);
    await expect(cluster.deploy(other)).rejects.toThrow("port 8080/tcp is taken by s_web");
    await cluster.settleFor(10);
    expect(cluster.service("s", "web").networkIds).toEqual(networks);
    expect(cluster.index.view.networks.get(networks["back"] ?? "")?.removed).toBe(false);
    expect(status(cluster)).toMatchObject({ vips: had.vips, ports: had.ports });
    // The file has no such network: once what it says works, that is gone.
    cluster.crashingVersions.clear();
    await deploy(cluster, web(2));
    await cluster.settleFor(30);
    expect([...cluster.index.view.networks.values()].map(({ spec }) => spec?.name)).toEqual(["default"]);
  });

  it("leaves a port to the service of the stack that has it now", async () => {
    const ports = [PublishedPort.create({ target: 80, published: 8_080 })];
    using cluster = await threeNodes(web(1, { ports }));
    cluster.crashingVersions.add(2);
    await deploy(cluster, web(2), aService("proxy", { ports }));
    await cluster.settleFor(10);
    expect(cluster.service("s", "web").rollback).toBeDefined();
    expect(status(cluster).ports).toEqual([]);
  });
});

describe("a slot that fits nowhere", () => {
  const onePerNode = Placement.create({ maxReplicasPerNode: 1 });
  const version = (n: number, over: Partial<ServiceSpec> = {}) =>
    aService("web", { mode: replicas(4), placement: onePerNode, container: image(`web:${n}`), ...over });
  const upVersions = (cluster: SteppedCluster) =>
    cluster
      .tasks("s", "web")
      .flatMap((task) => (isUp(cluster.index.view.taskStatuses.get(task.id)) ? [task.serviceVersion] : []));

  it("and had no place before either holds no update", async () => {
    using cluster = await threeNodes(version(1));
    await cluster.deploy(aStack("s", [version(2)]));
    await cluster.settleFor(20);
    expect(upVersions(cluster)).toEqual([2, 2, 2]);
    await cluster.deploy(aStack("s", [version(3)]));
    await cluster.settleFor(20);
    expect(upVersions(cluster)).toEqual([3, 3, 3]);
  });

  it("since its node was drained holds no update", async () => {
    using cluster = await threeNodes(version(1, { mode: replicas(3) }));
    await cluster.drain("a");
    await cluster.settle();
    await cluster.deploy(aStack("s", [version(2, { mode: replicas(3) })]));
    await cluster.settleFor(20);
    expect(upVersions(cluster)).toEqual([2, 2]);
    await cluster.setAvailability("a", Availability.AVAILABILITY_ACTIVE);
    await cluster.settleFor(20);
    expect(upVersions(cluster)).toEqual([2, 2, 2]);
  });

  it("since its node was drained in the middle of an update does not hold that", async () => {
    using cluster = await threeNodes(version(1, { mode: replicas(3) }));
    await cluster.deploy(aStack("s", [version(2, { mode: replicas(3) })]));
    await cluster.settle();
    expect(upVersions(cluster).toSorted((a, b) => a - b)).toEqual([1, 1, 2]);
    await cluster.drain(cluster.tasks("s", "web").find(({ slot }) => slot === 2)?.nodeId ?? "");
    await cluster.settleFor(20);
    expect(upVersions(cluster)).toEqual([2, 2]);
  });

  it("since another task took its place is no failure of an update that is watched still", async () => {
    const update = UpdatePolicy.create({
      parallelism: 1,
      monitorMs: 5_000,
      failureAction: UpdateFailureAction.UPDATE_FAILURE_ACTION_ROLLBACK,
    });
    using cluster = await threeNodes(version(1, { mode: replicas(3) }));
    await cluster.deploy(aStack("s", [version(2, { mode: replicas(3), update })]));
    await cluster.settleFor(8);
    expect(upVersions(cluster)).toEqual([2, 2, 2]);
    expect(cluster.service("s", "web").stable).toBeDefined();
    const task = cluster.tasks("s", "web").findLast(({ slot }) => slot === 3);
    if (task === undefined) throw new Error("no task in slot 3");
    await cluster.setAvailability(task.nodeId, Availability.AVAILABILITY_PAUSE);
    const value = { ...task, desired: DesiredState.DESIRED_STATE_SHUTDOWN };
    await cluster.store.commit([{ table: "tasks", id: task.id, value }]);
    await cluster.settleFor(20);
    expect(upVersions(cluster)).toEqual([2, 2]);
    expect(cluster.service("s", "web")).toMatchObject({ version: 2, rollback: undefined, stable: undefined });
  });

  it("since an update took its place holds that one, and each that follows, which says which slot and why", async () => {
    const big = Resources.create({ reservations: { milliCpus: 64_000, memoryBytes: 0, pids: 0, generic: {} } });
    using cluster = await threeNodes(version(1, { mode: replicas(3) }));
    for (const n of [2, 3, 4]) {
      await cluster.deploy(aStack("s", [version(n, { mode: replicas(3), resources: big })]));
      await cluster.settleFor(20);
      expect(upVersions(cluster)).toEqual([1, 1]);
      const { updateMessage } = planService(cluster.index, cluster.service("s", "web"), cluster.nowMs);
      expect(updateMessage).toMatch(/^update paused, 3 of 3 to go: web.1 has no place: /);
    }
    await cluster.deploy(aStack("s", [version(5, { mode: replicas(3) })]));
    await cluster.settleFor(20);
    expect(upVersions(cluster)).toEqual([5, 5, 5]);
  });
});

describe("a global service", () => {
  const everywhere: ServiceSpec["mode"] = { $case: "global", value: {} };

  it("has a task on each node that is up, not drained, and meets its constraints", async () => {
    const placement = Placement.create({ constraints: ["node.hostname != c"] });
    using cluster = await threeNodes(aService("agent", { mode: everywhere, placement }));
    expect(cluster.running("s", "agent").sort()).toEqual(["a@a", "b@b"]);
    await cluster.addNodes("d");
    await cluster.drain("a");
    await cluster.settle();
    expect(cluster.running("s", "agent").sort()).toEqual(["b@b", "d@d"]);
    expect(stackProgress(cluster.index, "s").converged).toBe(true);
    await cluster.setNode("b", NodeState.NODE_STATE_DOWN);
    await cluster.settle();
    expect(cluster.running("s", "agent")).toEqual(["d@d"]);
    await cluster.setNode("b", NodeState.NODE_STATE_READY);
    await cluster.settle();
    expect(cluster.running("s", "agent").sort()).toEqual(["b@b", "d@d"]);
  });

  it("gives no task to a node that is silent, and leaves one that is there", async () => {
    using cluster = await threeNodes(aService("agent", { mode: everywhere }));
    await cluster.setNode("a", NodeState.NODE_STATE_SILENT);
    await cluster.addNodes("d");
    await cluster.setNode("d", NodeState.NODE_STATE_SILENT);
    await cluster.settle();
    expect(cluster.running("s", "agent").sort()).toEqual(["a@a", "b@b", "c@c"]);
    expect(stackProgress(cluster.index, "s").converged).toBe(true);
  });

  it("gives no task to a node that is paused, and leaves one that is there", async () => {
    using cluster = await threeNodes(aService("agent", { mode: everywhere }));
    await cluster.setAvailability("a", Availability.AVAILABILITY_PAUSE);
    await cluster.addNodes("d");
    await cluster.setAvailability("d", Availability.AVAILABILITY_PAUSE);
    await cluster.settle();
    expect(cluster.running("s", "agent").sort()).toEqual(["a@a", "b@b", "c@c"]);
    expect(stackProgress(cluster.index, "s").converged).toBe(true);
  });
});

describe("dependencies", () => {
  it.each([
    ["started", DependencyCondition.DEPENDENCY_CONDITION_STARTED, TaskState.TASK_STATE_RUNNING],
    ["completed", DependencyCondition.DEPENDENCY_CONDITION_COMPLETED, TaskState.TASK_STATE_COMPLETE],
  ])("are prepared for and waited for until %s", async (_, condition, state) => {
    using cluster = new SteppedCluster();
    await cluster.addNodes("a");
    const dependsOn = [Dependency.create({ service: "db", condition, required: true })];
    const restart = RestartPolicy.create({ condition: RestartCondition.RESTART_CONDITION_ON_FAILURE });
    await cluster.deploy(
      aStack("s", [aService("db", { mode: replicas(1), restart }), aService("web", { mode: replicas(1), dependsOn })]),
    );
    await cluster.plan();
    const [web] = cluster.tasks("s", "web");
    const [db] = cluster.tasks("s", "db");
    expect(web).toMatchObject({ desired: DesiredState.DESIRED_STATE_READY, nodeId: "a" });
    expect(web?.waitsFor).toContain("db");
    expect(stackProgress(cluster.index, "s").services[1]?.problems).toMatchObject([{ task: { id: web?.id } }]);
    cluster.nowMs += 3_600_000;
    expect(await cluster.plan()).toEqual([]);
    if (db !== undefined) await cluster.report(db, state);
    await cluster.plan();
    expect(cluster.tasks("s", "web")[0]).toMatchObject({ desired: DesiredState.DESIRED_STATE_RUNNING, waitsFor: "" });
  });

  it("by a link hold a start back for five seconds and no longer", async () => {
    using cluster = new SteppedCluster();
    await cluster.addNodes("a");
    cluster.frozen = true;
    const link = (service: string) => [Link.create({ service }), Link.create({ service, alias: "also" })];
    await cluster.deploy(
      aStack("s", [
        aService("one", { mode: replicas(1), links: link("two") }),
        aService("two", { mode: replicas(1), links: link("one") }),
      ]),
    );
    await cluster.settle();
    const { wakeAtMs } = planService(cluster.index, cluster.service("s", "one"), cluster.nowMs);
    expect(wakeAtMs).toBe(cluster.nowMs + 5_000);
    expect(cluster.tasks("s", "one")[0]?.waitsFor).toBe("two to start");
    cluster.nowMs += 5_000;
    await cluster.settle();
    expect(cluster.tasks("s", "one")[0]?.desired).toBe(DesiredState.DESIRED_STATE_RUNNING);
    expect(cluster.tasks("s", "two")[0]?.desired).toBe(DesiredState.DESIRED_STATE_RUNNING);
  });

  it("do not count once the version has started", async () => {
    const links = [Link.create({ service: "db" })];
    using cluster = await threeNodes(
      aService("db", { mode: replicas(1) }),
      aService("web", { mode: replicas(1), links }),
    );
    for (const name of ["db", "web"]) {
      const [task] = cluster.tasks("s", name);
      if (task !== undefined) await cluster.report(task, TaskState.TASK_STATE_FAILED);
    }
    const { actions } = planService(cluster.index, cluster.service("s", "web"), cluster.nowMs);
    expect(actions).toMatchObject([{ kind: "create", desired: DesiredState.DESIRED_STATE_RUNNING, waitsFor: "" }]);
  });
});

describe("removal", () => {
  it("stops everything, and then leaves nothing", async () => {
    using cluster = await threeNodes(aService("web"), aService("db", { mode: replicas(1) }));
    await cluster.removeStack("s");
    await cluster.plan();
    expect(stackProgress(cluster.index, "s")).toMatchObject({ revision: 0, removed: false });
    await cluster.settle();
    expect(stackProgress(cluster.index, "s")).toMatchObject({ revision: 0, removed: true, services: [] });
    const { view } = cluster.index;
    for (const table of ["tasks", "taskStatuses", "services", "serviceStatuses", "networks", "blocks"] as const) {
      expect([table, view[table].size]).toEqual([table, 0]);
    }
  });

  it("does not wait for a node that is down", async () => {
    using cluster = await threeNodes(aService("web"));
    await cluster.setNode("a", NodeState.NODE_STATE_DOWN);
    await cluster.removeStack("s");
    await cluster.settle();
    expect(stackProgress(cluster.index, "s").removed).toBe(true);
  });
});

type Step =
  | { readonly kind: "scale"; readonly to: number }
  | {
      readonly kind: "update";
      readonly startFirst: boolean;
      readonly parallelism: number;
      readonly monitorMs: number;
      readonly failureAction: UpdateFailureAction;
    }
  | { readonly kind: "node"; readonly id: string; readonly to: "up" | "down" | "silent" | "active" | "drain" | "pause" }
  | { readonly kind: "crash"; readonly pick: number }
  | { readonly kind: "work"; readonly rounds: number };

const steps: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ kind: fc.constant("scale" as const), to: fc.integer({ min: 0, max: 6 }) }),
  fc.record({
    kind: fc.constant("update" as const),
    startFirst: fc.boolean(),
    parallelism: fc.integer({ min: 0, max: 3 }),
    monitorMs: fc.constantFrom(0, 5_000),
    failureAction: fc.constantFrom<UpdateFailureAction>(0, 1, 2),
  }),
  fc.record({
    kind: fc.constant("node" as const),
    id: fc.constantFrom("a", "b", "c"),
    to: fc.constantFrom(
      "up" as const,
      "down" as const,
      "silent" as const,
      "active" as const,
      "drain" as const,
      "pause" as const,
    ),
  }),
  fc.record({ kind: fc.constant("crash" as const), pick: fc.nat(20) }),
  fc.record({ kind: fc.constant("work" as const), rounds: fc.integer({ min: 0, max: 3 }) }),
);

describe("whatever happens", () => {
  it("it comes to rest, and once the nodes are back every slot has one task of the newest version", async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(steps, { maxLength: 25 }), async (history) => {
        using cluster = await threeNodes(aService("web"));
        let count = 3;
        let version = 1;
        let update = UpdatePolicy.create({ parallelism: 1 });
        const deploy = async () =>
          await cluster.deploy(
            aStack("s", [aService("web", { mode: replicas(count), container: image(`web:${version}`), update })]),
          );
        for (const step of history) {
          if (step.kind === "scale") {
            count = step.to;
            await deploy();
          } else if (step.kind === "update") {
            version++;
            const { parallelism, monitorMs, failureAction } = step;
            update = UpdatePolicy.create({ parallelism, monitorMs, failureAction, order: step.startFirst ? 1 : 0 });
            await deploy();
          } else if (step.kind === "node") {
            if (step.to === "up") await cluster.setNode(step.id, NodeState.NODE_STATE_READY);
            else if (step.to === "down") await cluster.setNode(step.id, NodeState.NODE_STATE_DOWN);
            else if (step.to === "silent") await cluster.setNode(step.id, NodeState.NODE_STATE_SILENT);
            else await cluster.setAvailability(step.id, { active: 0, pause: 1, drain: 2 }[step.to] as Availability);
          } else if (step.kind === "crash") {
            const running = cluster.tasks("s", "web").filter(({ id }) => isUp(cluster.index.view.taskStatuses.get(id)));
            const task = running[step.pick % Math.max(1, running.length)];
            if (task !== undefined) await cluster.report(task, TaskState.TASK_STATE_FAILED);
          } else {
            for (let n = 0; n < step.rounds; n++) {
              await cluster.plan();
              await cluster.stepNodes();
            }
          }
        }
        for (const id of ["a", "b", "c"]) {
          await cluster.setNode(id, NodeState.NODE_STATE_READY);
          await cluster.setAvailability(id, Availability.AVAILABILITY_ACTIVE);
        }
        // Far enough for every restart delay, and often enough for every batch.
        const rest = async () => {
          for (let n = 0; n < 10; n++) {
            await cluster.settle();
            cluster.nowMs += 120_000;
          }
          await cluster.settle();
        };
        await rest();
        if (cluster.service("s", "web").rollback !== undefined) {
          const { converged, services } = stackProgress(cluster.index, "s");
          expect({ converged, running: services[0]?.running, old: services[0]?.old }).toEqual({
            converged: false,
            running: services[0]?.desired,
            old: 0,
          });
          // Nothing fails any more, so that it works when it is tried again.
          await deploy();
          await rest();
        }
        expect(stackProgress(cluster.index, "s")).toMatchObject({
          converged: true,
          services: [{ desired: count, running: count, old: 0 }],
        });
        expect(cluster.running("s", "web").map((one) => one.split("@")[0])).toEqual(
          Array.from({ length: count }, (_, n) => String(n + 1)),
        );
        expect(await cluster.plan()).toEqual([]);
      }),
      { seed: 7, numRuns: 60 },
    );
  });
});
