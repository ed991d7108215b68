import { describe, expect, it } from "vitest";
import { silentLog } from "../../lib/log/log.ts";
import {
  ContainerSpec,
  Dependency,
  DependencyCondition,
  DisruptionPolicy,
  Placement,
  ResourceAmount,
  Resources,
  type ServiceSpec,
  UpdatePolicy,
} from "../../proto/gen/embassy/v1/stack.ts";
import { TaskState } from "../../proto/gen/embassy/v1/state.ts";
import { observedState, observedStatus } from "../domain/tasks.ts";
import { aService, aStack, replicas } from "../domain/testing.ts";
import { SchedulerFeed } from "./scheduling/feed.ts";
import { planCommit } from "./scheduling/plan.ts";
import { writesOf } from "./services/loop.ts";
import { planService } from "./services/plan.ts";
import { SteppedCluster } from "./testing.ts";

/** Cores that each node of a test has. */
const cores = 4;

/** A service whose tasks need so many cores each; nodes have four. */
function aLoad(name: string, count: number, size: number, over: Partial<ServiceSpec> = {}): ServiceSpec {
  const reservations = ResourceAmount.create({ milliCpus: size * 1_000 });
  return aService(name, { mode: replicas(count), resources: Resources.create({ reservations }), ...over });
}

const keeps = (minAvailable: number) => ({ disruption: DisruptionPolicy.create({ minAvailable }) });
const image = (tag: number) => ({ container: ContainerSpec.create({ image: `registry/app:${tag}` }) });

class Crowd extends SteppedCluster {
  static async of(nodes: readonly string[], ...services: ServiceSpec[]): Promise<Crowd> {
    const cluster = new Crowd();
    await cluster.addNodes(...nodes);
    await cluster.run(...services);
    return cluster;
  }

  /** Deploys and lets everything settle; throws when a node ever runs more than it has. */
  async run(...services: ServiceSpec[]): Promise<void> {
    await this.deploy(aStack("s", services));
    await this.rest(20);
  }

  async rest(seconds: number): Promise<void> {
    await this.settleFor(seconds, () => this.#checkNodes());
  }

  #checkNodes(): void {
    for (const { id } of this.index.view.nodes.values()) {
      const running = this.index
        .tasksOfNode(id)
        .filter((task) => observedState(this.index.view, task) === TaskState.TASK_STATE_RUNNING);
      const used = running.reduce((sum, { spec }) => sum + (spec?.resources?.reservations?.milliCpus ?? 0), 0);
      expect([id, used <= cores * 1_000]).toEqual([id, true]);
    }
  }

  preempted(name: string): string[] {
    return this.tasks("s", name)
      .filter(({ preemptedBy }) => preemptedBy !== "")
      .map(({ slot, preemptedBy }) => `${slot} by ${preemptedBy}`);
  }

  unplaced(name: string): string[] {
    return this.tasks("s", name).flatMap(({ nodeId, unplaced }) => (nodeId === "" ? [unplaced] : []));
  }
}

describe("a service of higher priority", () => {
  it("takes the place of one of lower, whose task waits for another and says why, and comes back", async () => {
    const batch = aLoad("batch", 2, 3);
    using cluster = await Crowd.of(["a", "b"], batch);
    expect(cluster.running("s", "batch")).toHaveLength(2);
    await cluster.run(batch, aLoad("vital", 1, 2, { priority: 10 }));
    const [vital] = cluster.running("s", "vital");
    expect(vital).toMatch(/^1@/);
    expect(cluster.running("s", "batch")).toHaveLength(1);
    expect(cluster.preempted("batch")).toEqual([expect.stringMatching(/^[12] by s_vital\.1$/)]);
    expect(cluster.unplaced("batch")).toEqual([
      expect.stringMatching(/^preempted by s_vital\.1; 2 nodes: .*CPU needed/),
    ]);
    const gone = cluster.tasks("s", "batch").find(({ preemptedBy }) => preemptedBy !== "");
    expect(gone && observedStatus(cluster.index.view, gone)).toMatchObject({
      state: TaskState.TASK_STATE_SHUTDOWN,
      message: "preempted by s_vital.1",
    });
    await cluster.run(batch);
    expect(cluster.running("s", "batch")).toHaveLength(2);
  });

  it("stops nobody while there is room, and nobody of its own priority or above", async () => {
    const others = [aLoad("batch", 1, 2), aLoad("peer", 1, 4, { priority: 10 }), aLoad("boss", 1, 4, { priority: 11 })];
    using cluster = await Crowd.of(["a", "b", "c"], ...others);
    await cluster.run(...others, aLoad("vital", 1, 2, { priority: 10 }));
    expect(cluster.running("s", "vital")).toHaveLength(1);
    await cluster.run(...others, aLoad("vital", 1, 2, { priority: 10 }), aLoad("more", 1, 4, { priority: 10 }));
    expect(cluster.unplaced("more")).toHaveLength(1);
    expect(["batch", "peer", "boss", "vital"].flatMap((name) => cluster.preempted(name))).toEqual([]);
  });

  it("leaves so many up as the budget says, of those that are up", async () => {
    const batch = aLoad("batch", 3, 3, keeps(2));
    const placement = Placement.create({ constraints: ["node.hostname == a"] });
    const vital = aLoad("vital", 1, 2, { priority: 10, placement });
    using cluster = await Crowd.of(["a", "b", "c"], batch);
    const down = cluster.tasks("s", "batch").find(({ nodeId }) => nodeId === "c");
    if (down === undefined) throw new Error("each node has one");
    await cluster.report(down, TaskState.TASK_STATE_FAILED);
    cluster.frozen = true;
    await cluster.run(batch, vital);
    expect(cluster.tasks("s", "batch").filter(({ slot }) => slot === down.slot)).toHaveLength(2);
    // Three have a place, and one of them is not up.
    expect([cluster.unplaced("vital"), cluster.preempted("batch")]).toEqual([
      [expect.stringContaining("CPU needed")],
      [],
    ]);
    cluster.frozen = false;
    await cluster.rest(5);
    expect(cluster.running("s", "vital")).toEqual(["1@a"]);
    expect(cluster.running("s", "batch")).toHaveLength(2);
  });

  it("may take more once the budget is lowered, which replaces no task", async () => {
    const vital = aLoad("vital", 1, 2, { priority: 10 });
    using cluster = await Crowd.of(["a", "b"], aLoad("batch", 2, 3, keeps(2)), vital);
    const before = cluster.running("s", "batch");
    const version = cluster.service("s", "batch").version;
    expect(before).toHaveLength(1);
    await cluster.removeStack("s");
    await cluster.rest(1);
    await cluster.run(aLoad("batch", 2, 3, keeps(2)));
    await cluster.run(aLoad("batch", 2, 3, keeps(2)), vital);
    expect(cluster.running("s", "vital")).toEqual([]);
    await cluster.run(aLoad("batch", 2, 3, keeps(1)), vital);
    expect(cluster.running("s", "vital")).toHaveLength(1);
    expect(cluster.running("s", "batch")).toHaveLength(1);
    expect(cluster.service("s", "batch").version).toBe(version);
  });

  it("compares those that it counts on, as they may be stopped for another reason at the same moment", async () => {
    using cluster = await Crowd.of(["a", "b", "c"], aLoad("batch", 3, 4, keeps(2)));
    await cluster.deploy(aStack("t", [aLoad("vital", 1, 4, { priority: 10 })]));
    const vital = cluster.service("t", "vital");
    const wanted = planService(cluster.index, vital, cluster.nowMs);
    await cluster.store.commit(writesOf(cluster.index, vital, wanted, cluster.nowMs, cluster.mintId));
    const { placements } = cluster.feed.scheduler.schedule();
    const { stopped, writes, expect: counted } = planCommit(cluster.index, placements, 27);
    expect(stopped).toHaveLength(1);
    const [other] = cluster.tasks("s", "batch").filter(({ id }) => !stopped.includes(id));
    if (other === undefined) throw new Error("two are left");
    await cluster.store.commit([{ table: "tasks", id: other.id, value: other }]);
    await expect(cluster.store.commit(writes, { expect: counted })).rejects.toMatchObject({ code: "conflict" });
  });

  it("takes a share of the replicas for the budget, also after they are scaled", async () => {
    const half = { disruption: DisruptionPolicy.create({ minAvailablePercent: 50 }) };
    const vital = aLoad("vital", 3, 4, { priority: 10 });
    using cluster = await Crowd.of(["a", "b", "c", "d"], aLoad("batch", 4, 4, half));
    await cluster.run(aLoad("batch", 4, 4, half), vital);
    expect(cluster.running("s", "vital")).toHaveLength(2);
    await cluster.run(aLoad("batch", 2, 4, half), vital);
    expect(cluster.running("s", "vital")).toHaveLength(3);
    expect(cluster.running("s", "batch")).toHaveLength(1);
  });

  it("given to what runs and waits replaces no task, and holds at once", async () => {
    using cluster = await Crowd.of(["a"], aLoad("batch", 1, 4), aLoad("vital", 1, 4));
    expect([cluster.running("s", "batch"), cluster.running("s", "vital")]).toEqual([["1@a"], []]);
    await cluster.run(aLoad("batch", 1, 4), aLoad("vital", 1, 4, { priority: 1 }));
    expect([cluster.running("s", "batch"), cluster.running("s", "vital")]).toEqual([[], ["1@a"]]);
    expect(cluster.service("s", "vital").version).toBe(1);
    // The other way round nobody is stopped: it holds for who comes next.
    await cluster.run(aLoad("batch", 1, 4, { priority: 2 }), aLoad("vital", 1, 4, { priority: 1 }));
    expect([cluster.running("s", "batch"), cluster.running("s", "vital")]).toEqual([["1@a"], []]);
  });

  it("is updated in the place that it has: others are not stopped for a successor", async () => {
    const batch = aLoad("batch", 2, 2);
    const vital = (tag: number) =>
      aLoad("vital", 2, 2, { priority: 10, ...image(tag), update: UpdatePolicy.create({ parallelism: 1 }) });
    using cluster = await Crowd.of(["a", "b"], batch, vital(1));
    await cluster.run(batch, vital(2));
    expect(
      cluster
        .tasks("s", "vital")
        .filter((task) => observedState(cluster.index.view, task) === TaskState.TASK_STATE_RUNNING)
        .map(({ serviceVersion }) => serviceVersion),
    ).toEqual([2, 2]);
    expect(cluster.preempted("batch")).toEqual([]);
  });

  it("that waits for another service stops nobody before it may start", async () => {
    const batch = aLoad("batch", 1, 4);
    const at = (name: string) => ({ placement: Placement.create({ constraints: [`node.hostname == ${name}`] }) });
    const db = aLoad("db", 1, 0, at("b"));
    const dependsOn = [
      Dependency.create({ service: "db", condition: DependencyCondition.DEPENDENCY_CONDITION_STARTED, required: true }),
    ];
    const vital = aLoad("vital", 1, 4, { priority: 10, dependsOn, ...at("a") });
    using cluster = await Crowd.of(["a"], batch);
    await cluster.run(batch, db, vital);
    expect([cluster.running("s", "batch"), cluster.preempted("batch")]).toEqual([["1@a"], []]);
    await cluster.addNodes("b");
    await cluster.rest(5);
    expect([cluster.running("s", "vital"), cluster.running("s", "batch")]).toEqual([["1@a"], ["1@b"]]);
  });

  it("is waited for by nobody else's task, whoever leads meanwhile", async () => {
    const batch = aLoad("batch", 2, 3);
    using cluster = await Crowd.of(["a", "b"], batch);
    await cluster.deploy(aStack("s", [batch, aLoad("vital", 1, 2, { priority: 10 })]));
    cluster.frozen = true;
    await cluster.settle();
    const [vital] = cluster.tasks("s", "vital");
    expect(vital?.preempts).toHaveLength(1);
    // A new leader counts both until the node has said that one has ended.
    const { scheduler } = new SchedulerFeed(cluster.index, silentLog);
    expect(scheduler.schedule().placements).toEqual([]);
    cluster.frozen = false;
    await cluster.rest(5);
    expect(cluster.running("s", "vital")).toHaveLength(1);
  });
});
