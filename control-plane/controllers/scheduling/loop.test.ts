import { describe, expect, it } from "vitest";
import { imageFingerprint } from "../../../lib/images/reference.ts";
import { ContainerSpec, Placement, Resources } from "../../../proto/gen/embassy/v1/stack.ts";
import { NodeState, TaskState } from "../../../proto/gen/embassy/v1/state.ts";
import { aService, aStack, replicas } from "../../domain/testing.ts";
import { writesOf } from "../services/loop.ts";
import { planService } from "../services/plan.ts";
import { SteppedCluster } from "../testing.ts";
import { planCommit } from "./plan.ts";

async function pending(count: number, over = {}): Promise<SteppedCluster> {
  const cluster = new SteppedCluster();
  await cluster.addNodes("a", "b", "c");
  cluster.frozen = true;
  await cluster.deploy(aStack("s", [aService("web", { mode: replicas(count), ...over })]));
  return cluster;
}

describe("scheduling", () => {
  it("says why a task fits nowhere, and places it once it does", async () => {
    const resources = Resources.create({
      reservations: { milliCpus: 0, memoryBytes: 12 * 2 ** 30, pids: 0, generic: {} },
    });
    using cluster = await pending(1, { resources });
    await cluster.settle();
    expect(cluster.tasks("s", "web")[0]?.unplaced).toMatch(/3 nodes: .*memory/);
    const status = cluster.index.nodeStatus("b");
    const description = status?.description;
    if (status === undefined || description === undefined) throw new Error("a node describes itself");
    const grown = { ...status, description: { ...description, memoryBytes: 16 * 2 ** 30 } };
    await cluster.store.commit([{ table: "nodeStatuses", id: "b", value: grown }]);
    await cluster.settle();
    expect(cluster.tasks("s", "web")[0]).toMatchObject({ nodeId: "b", unplaced: "" });
  });

  it("places by what nodes announce, and says what none has", async () => {
    const reservations = { milliCpus: 0, memoryBytes: 0, pids: 0, generic: { gpu: 2 } };
    using cluster = await pending(2, { resources: Resources.create({ reservations }) });
    await cluster.settle();
    expect(cluster.tasks("s", "web").map(({ unplaced }) => unplaced)).toEqual(
      Array(2).fill("3 nodes: 2 gpu needed, none there"),
    );
    const announce = async (id: string, generic: Record<string, number>) => {
      const status = cluster.index.nodeStatus(id);
      if (status?.description === undefined) throw new Error("a node describes itself");
      const description = { ...status.description, generic };
      await cluster.store.commit([{ table: "nodeStatuses", id, value: { ...status, description } }]);
      await cluster.settle();
    };
    await announce("a", { gpu: 1 });
    expect(cluster.tasks("s", "web").map(({ nodeId }) => nodeId)).toEqual(["", ""]);
    const explained = cluster.feed.scheduler.unplaced().map(({ explanation }) => explanation.summary);
    expect(explained).toEqual(["2 nodes: 2 gpu needed, none there; 1: 2 gpu needed, 1 free"]);
    await announce("b", { gpu: 3 });
    expect(cluster.tasks("s", "web").map(({ nodeId }) => nodeId)).toEqual(["b", ""]);
    await announce("a", { gpu: 2 });
    expect(cluster.tasks("s", "web").map(({ nodeId }) => nodeId)).toEqual(["b", "a"]);
  });

  it("keeps new tasks off a node whose disk is nearly full, leaves those that run there, and places what waited when it is not", async () => {
    using cluster = await pending(3, { placement: Placement.create({ maxReplicasPerNode: 1 }) });
    const say = async (diskProblem: string) => {
      const status = cluster.index.nodeStatus("b");
      if (status === undefined) throw new Error("a node has a status");
      await cluster.store.commit([{ table: "nodeStatuses", id: "b", value: { ...status, diskProblem } }]);
      await cluster.settle();
    };
    const nodes = (stack: string) => cluster.tasks(stack, "web").map(({ nodeId }) => nodeId);
    cluster.frozen = false;
    await cluster.settle();
    const before = nodes("s").sort();
    await say("the disk of /x is nearly full");
    expect(nodes("s").sort()).toEqual(before);
    const placement = Placement.create({ maxReplicasPerNode: 1 });
    await cluster.deploy(aStack("t", [aService("web", { mode: replicas(3), placement })]));
    await cluster.settle();
    expect(nodes("t").sort()).toEqual(["", "a", "c"]);
    const waits = cluster.tasks("t", "web").find(({ nodeId }) => nodeId === "");
    expect(waits?.unplaced).toContain("1: disk is nearly full");
    await say("");
    expect(nodes("t").sort()).toEqual(["a", "b", "c"]);
    expect(before).toEqual(["a", "b", "c"]);
  });

  it("places where the image is, however it is written, when nothing else tells nodes apart", async () => {
    for (const holder of ["a", "b", "c"]) {
      using cluster = await pending(1, { container: ContainerSpec.create({ image: "redis" }) });
      const images = [imageFingerprint("docker.io/library/redis:latest")];
      const status = cluster.index.nodeStatus(holder);
      if (status === undefined) throw new Error("a node has a status");
      await cluster.store.commit([{ table: "nodeStatuses", id: holder, value: { ...status, images } }]);
      await cluster.settle();
      expect(cluster.tasks("s", "web").map(({ nodeId }) => nodeId)).toEqual([holder]);
    }
  });

  it("takes a placement back whose commit failed", async () => {
    using cluster = await pending(3);
    const service = cluster.service("s", "web");
    let n = 0;
    const plan = planService(cluster.index, service, cluster.nowMs);
    await cluster.store.commit(writesOf(cluster.index, service, plan, cluster.nowMs, () => `t${n++}`));
    const { placements } = cluster.feed.scheduler.schedule();
    expect(placements).toHaveLength(3);
    const { writes, placed, expect: expected } = planCommit(cluster.index, placements, 27);
    cluster.store.leading = false;
    const hold = cluster.feed.hold(placements, placed);
    await expect(cluster.store.commit(writes, { expect: expected, fenced: true })).rejects.toMatchObject({
      subject: "leader",
    });
    // Placed in a commit under way, whatever else becomes of the task meanwhile.
    const [held] = cluster.tasks("s", "web");
    if (held !== undefined)
      await cluster.store.commit([{ table: "tasks", id: held.id, value: { ...held, waitsFor: "db" } }]);
    expect(cluster.feed.scheduler.schedule().placements).toEqual([]);
    cluster.feed.release(hold);
    expect(cluster.feed.scheduler.schedule().placements).toHaveLength(3);
  });

  it.each([true, false])(
    "counts no task on a node that is lost while the commit is under way, known by its writes: %s",
    async (known) => {
      using cluster = await pending(3);
      const service = cluster.service("s", "web");
      let n = 0;
      const plan = planService(cluster.index, service, cluster.nowMs);
      await cluster.store.commit(writesOf(cluster.index, service, plan, cluster.nowMs, () => `t${n++}`));
      const { scheduler } = cluster.feed;
      const { placements } = scheduler.schedule();
      const { writes, placed } = planCommit(cluster.index, placements, 27);
      const hold = cluster.feed.hold(placements, known ? placed : []);
      await cluster.setNode("b", NodeState.NODE_STATE_DOWN);
      await cluster.store.commit(writes);
      cluster.feed.release(hold);
      const nodes = () => new Set(scheduler.snapshot().tasks.map(({ node }) => node));
      expect(nodes()).toEqual(new Set(["a", "c"]));
      await cluster.setNode("b", NodeState.NODE_STATE_READY);
      expect(nodes()).toEqual(new Set(["a", "b", "c"]));
    },
  );

  it("gives a node its block with its first task, and expects the ones it has", async () => {
    using cluster = await pending(2, { placement: Placement.create({ constraints: ["node.hostname == a"] }) });
    await cluster.plan();
    expect([...cluster.index.view.blocks.values()].map(({ nodeId }) => nodeId)).toEqual(["a"]);
    expect(cluster.tasks("s", "web").map(({ nodeId }) => nodeId)).toEqual(["a", "a"]);
    const [task] = cluster.tasks("s", "web");
    const again = { task: task?.id ?? "", node: "a", ports: [], preempts: [] };
    const [blockId] = cluster.index.view.blocks.entries();
    expect(planCommit(cluster.index, [again], 27).expect).toEqual([
      { table: "blocks", id: blockId?.[0], revision: cluster.index.view.blocks.revisionOf(blockId?.[0] ?? "") },
    ]);
  });

  it("tries another node after a failure", async () => {
    using cluster = await pending(1);
    const seen = new Set<string>();
    for (let n = 0; n < 3; n++) {
      await cluster.settle();
      const task = cluster.tasks("s", "web").at(-1);
      seen.add(task?.nodeId ?? "");
      if (task !== undefined) await cluster.report(task, TaskState.TASK_STATE_REJECTED);
      cluster.nowMs += 60_000;
    }
    expect([...seen].sort()).toEqual(["a", "b", "c"]);
  });
});
