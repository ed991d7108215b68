import { describe, expect, it } from "vitest";
import { RebalanceRequest } from "../../proto/gen/embassy/v1/api.ts";
import { ContainerSpec, Mount, MountType, Resources, type ServiceSpec } from "../../proto/gen/embassy/v1/stack.ts";
import { Availability, NodeState } from "../../proto/gen/embassy/v1/state.ts";
import { SteppedCluster } from "../controllers/testing.ts";
import { stackProgress } from "../domain/progress.ts";
import { aService, aStack, replicas } from "../domain/testing.ts";
import { planMoves } from "./rebalance.ts";

const everything = RebalanceRequest.create();

/** Three nodes, of which c is empty again after a drain. */
async function uneven(...services: ServiceSpec[]): Promise<SteppedCluster> {
  const cluster = new SteppedCluster();
  await cluster.addNodes("a", "b", "c");
  await cluster.deploy(aStack("s", services));
  await cluster.settle();
  await cluster.drain("c");
  await cluster.settle();
  await cluster.setAvailability("c", Availability.AVAILABILITY_ACTIVE);
  await cluster.settle();
  return cluster;
}

function perNode(cluster: SteppedCluster, name: string): Record<string, number> {
  const counts: Record<string, number> = { a: 0, b: 0, c: 0 };
  for (const one of cluster.running("s", name))
    counts[one.split("@")[1] ?? ""] = (counts[one.split("@")[1] ?? ""] ?? 0) + 1;
  return counts;
}

describe("rebalance", () => {
  it("fills a node that is back, one task after the other, and none stops before its successor is up", async () => {
    using cluster = await uneven(aService("web", { mode: replicas(6) }));
    expect(perNode(cluster, "web")).toEqual({ a: 3, b: 3, c: 0 });
    const plan = planMoves(cluster.index, everything);
    expect(plan.moves.map(({ to }) => to)).toEqual(["c", "c"]);
    expect(plan.moves[0]?.why).toContain("has 3 tasks in");
    await cluster.store.commit(plan.writes);
    const sizes = new Set<number>();
    await cluster.settleFor(4, () => sizes.add(cluster.running("s", "web").length));
    expect(sizes).toEqual(new Set([6, 7]));
    expect(perNode(cluster, "web")).toEqual({ a: 2, b: 2, c: 2 });
    expect(stackProgress(cluster.index, "s").converged).toBe(true);
    expect(planMoves(cluster.index, everything).moves).toEqual([]);
  });

  it("asked for again while it is under way, goes on with what has begun and with no more than that", async () => {
    using cluster = await uneven(aService("web", { mode: replicas(6) }));
    await cluster.store.commit(planMoves(cluster.index, everything).writes);
    await cluster.plan();
    const again = planMoves(cluster.index, everything);
    expect(again.moves).toHaveLength(1);
    await cluster.store.commit(again.writes);
    await cluster.settleFor(4);
    expect(perNode(cluster, "web")).toEqual({ a: 2, b: 2, c: 2 });
    // Six at first, two for those of c, and two moves.
    expect(cluster.tasks("s", "web")).toHaveLength(10);
  });

  it("leaves the old task running when its place is lost meanwhile, and takes the move back when it is asked again", async () => {
    const resources = Resources.create({ reservations: { milliCpus: 1_300, memoryBytes: 0, pids: 0, generic: {} } });
    using cluster = await uneven(aService("web", { mode: replicas(6), resources }));
    const before = cluster.running("s", "web");
    await cluster.store.commit(planMoves(cluster.index, everything).writes);
    await cluster.setNode("c", NodeState.NODE_STATE_DOWN);
    await cluster.settle();
    expect(cluster.running("s", "web")).toEqual(before);
    expect(stackProgress(cluster.index, "s").converged).toBe(false);
    const plan = planMoves(cluster.index, everything);
    expect(plan.moves).toEqual([]);
    await cluster.store.commit(plan.writes);
    await cluster.settle();
    expect(cluster.running("s", "web")).toEqual(before);
    expect(stackProgress(cluster.index, "s").converged).toBe(true);
  });

  it("counts on no move that it is not asked for", async () => {
    const sized = (milliCpus: number) => ({
      resources: Resources.create({ reservations: { milliCpus, memoryBytes: 0, pids: 0, generic: {} } }),
    });
    using cluster = new SteppedCluster();
    await cluster.addNodes("a");
    await cluster.deploy(aStack("s", [aService("web", { mode: replicas(2), ...sized(1_500) })]));
    await cluster.settle();
    await cluster.addNodes("b");
    await cluster.setAvailability("a", Availability.AVAILABILITY_PAUSE);
    await cluster.deploy(
      aStack("t", [
        aService("db", { mode: replicas(2), ...sized(1_000) }),
        aService("x", { mode: replicas(1), ...sized(1_000) }),
      ]),
    );
    await cluster.settle();
    await cluster.setAvailability("a", Availability.AVAILABILITY_ACTIVE);
    const planned = (service: string) =>
      planMoves(cluster.index, RebalanceRequest.create({ service })).moves.map(
        ({ taskName }) => taskName.split(".")[0],
      );
    // On b there is room for one of web once one of db has gone.
    expect(planned("")).toEqual(["t_db", "s_web"]);
    expect(planned("s_web")).toEqual([]);
    expect(planned("t_db")).toEqual(["t_db"]);
  });

  it("moves only what it is asked for, and never tasks with volumes", async () => {
    const mounts = [Mount.create({ type: MountType.MOUNT_TYPE_VOLUME, source: "data", target: "/data" })];
    const data = aService("data", { container: ContainerSpec.create({ image: "registry/data", mounts }) });
    using cluster = await uneven(aService("web"), aService("api"), data);
    const planned = (request: Partial<RebalanceRequest>) =>
      planMoves(cluster.index, RebalanceRequest.create(request)).moves.map(({ taskName }) => taskName.split(".")[0]);
    expect(planned({})).toEqual(expect.arrayContaining(["s_web", "s_api"]));
    expect(planned({})).toHaveLength(2);
    expect(planned({ service: "s_web" })).toEqual(["s_web"]);
    expect(planned({ service: "data" })).toEqual([]);
    expect(() => planned({ service: "nosuch" })).toThrow("there is no service nosuch");
  });
});
