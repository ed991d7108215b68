import { describe, expect, it } from "vitest";
import {
  ContainerSpec,
  RestartCondition,
  RestartPolicy,
  type ServiceSpec,
  UpdateOrder,
  UpdatePolicy,
} from "../../proto/gen/embassy/v1/stack.ts";
import { SteppedCluster } from "../controllers/testing.ts";
import { stackProgress } from "../domain/progress.ts";
import { aService, aStack, replicas } from "../domain/testing.ts";
import { planRestart } from "./restart.ts";

async function clusterOf(...services: ServiceSpec[]): Promise<SteppedCluster> {
  const cluster = new SteppedCluster();
  await cluster.addNodes("a", "b");
  await cluster.deploy(aStack("s", services));
  await cluster.settleFor(10);
  return cluster;
}

async function restart(cluster: SteppedCluster, ...words: string[]) {
  const plan = planRestart(cluster.index, words);
  await cluster.store.commit(plan.writes);
  return plan.services;
}

const versions = (cluster: SteppedCluster, name: string) =>
  cluster
    .tasks("s", name)
    .filter(({ desired }) => desired === 1)
    .map(({ serviceVersion }) => serviceVersion);

describe("a restart", () => {
  const startFirst = UpdatePolicy.create({ parallelism: 1, order: UpdateOrder.UPDATE_ORDER_START_FIRST });

  it("replaces every task as the update policy says, and leaves other services alone", async () => {
    using cluster = await clusterOf(
      aService("web", { mode: replicas(3), update: startFirst }),
      aService("db", { mode: replicas(1) }),
    );
    const before = new Set(cluster.tasks("s", "web").map(({ id }) => id));
    expect(await restart(cluster, "web")).toEqual([{ stack: "s", service: "web", version: 2 }]);
    const sizes = new Set<number>();
    await cluster.settleFor(10, () => sizes.add(cluster.running("s", "web").length));
    expect(sizes).toEqual(new Set([3, 4]));
    expect(versions(cluster, "web")).toEqual([2, 2, 2]);
    expect(cluster.tasks("s", "web").filter(({ id, desired }) => before.has(id) && desired === 1)).toEqual([]);
    expect(versions(cluster, "db")).toEqual([1]);
    expect(stackProgress(cluster.index, "s")).toMatchObject({ converged: true });
    expect(stackProgress(cluster.index, "s").services.map(({ name, version }) => [name, version])).toEqual([
      ["db", 1],
      ["web", 2],
    ]);
  });

  it("tries slots again that gave up, and counts their attempts anew", async () => {
    const restartPolicy = RestartPolicy.create({ condition: RestartCondition.RESTART_CONDITION_ANY, maxAttempts: 1 });
    using cluster = new SteppedCluster();
    await cluster.addNodes("a");
    cluster.crashing.add("web");
    await cluster.deploy(aStack("s", [aService("web", { mode: replicas(1), restart: restartPolicy })]));
    await cluster.settleFor(10);
    expect(cluster.tasks("s", "web")).toHaveLength(2);
    await restart(cluster, "s_web");
    await cluster.settleFor(10);
    expect(cluster.tasks("s", "web")).toHaveLength(4);
    cluster.crashing.clear();
    await restart(cluster, "s_web");
    await cluster.settleFor(10);
    expect(cluster.running("s", "web")).toHaveLength(1);
    expect(stackProgress(cluster.index, "s").converged).toBe(true);
  });

  it("replaces the tasks of a global service", async () => {
    using cluster = await clusterOf(aService("agent", { mode: { $case: "global", value: {} } }));
    await restart(cluster, "agent");
    await cluster.settleFor(10);
    expect(versions(cluster, "agent")).toEqual([2, 2]);
  });

  it("asked for again while it is under way, replaces what it has made too", async () => {
    using cluster = await clusterOf(aService("web", { mode: replicas(2) }));
    await restart(cluster, "web", "s_web");
    await cluster.plan();
    expect(await restart(cluster, "web")).toEqual([{ stack: "s", service: "web", version: 3 }]);
    await cluster.settleFor(10);
    expect(versions(cluster, "web")).toEqual([3, 3]);
  });

  it("stays in force when a deploy goes back and forth in the middle of it", async () => {
    const at = (image: string) => [aService("web", { mode: replicas(3), container: ContainerSpec.create({ image }) })];
    using cluster = await clusterOf(...at("r/web:1"));
    await restart(cluster, "web");
    while (!versions(cluster, "web").includes(2)) {
      await cluster.plan();
      await cluster.stepNodes();
    }
    await cluster.deploy(aStack("s", at("r/web:2")));
    await cluster.deploy(aStack("s", at("r/web:1")));
    await cluster.settleFor(10);
    expect(versions(cluster, "web")).toEqual([2, 2, 2]);
  });

  it("of a name that nothing or a stack has changes nothing, and says so", async () => {
    using cluster = await clusterOf(aService("web"), aService("db"));
    expect(() => planRestart(cluster.index, ["web", "nosuch"])).toThrow("there is no service nosuch");
    expect(() => planRestart(cluster.index, ["s"])).toThrow(
      expect.objectContaining({ message: "s is a stack, not a service", hint: "Its services: s_db, s_web." }),
    );
  });
});
