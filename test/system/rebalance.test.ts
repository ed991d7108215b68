import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { pushBusybox } from "../cluster/busybox.ts";
import { type Cluster, startCluster } from "../cluster/cluster.ts";
import { running, visitors } from "./counter.ts";

interface Foretold {
  readonly moves: readonly { readonly taskName: string; readonly from: string; readonly to: string }[];
  readonly stops: readonly { readonly taskName: string }[];
  readonly waits: readonly unknown[];
}

describe("a node that gives its tasks away", () => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster({ hosts: 3 });
    await pushBusybox(cluster);
    const file = join(import.meta.dirname, "stacks/partition.yml");
    await cluster.run(["deploy", file, "s"], { environment: { REGISTRY: cluster.registry } });
  });
  afterAll(async () => await cluster?.[Symbol.asyncDispose]());

  it("does so as `clusterctl simulate` foretold, which changes nothing", async () => {
    // The name that people see: of a global service the node's.
    const places = async () =>
      new Map(
        (await cluster.tasks())
          .filter(({ status }) => status?.state === "running")
          .map(({ task, nodeName }) => [`s_${task.serviceName}.${task.slot || nodeName}`, nodeName]),
      );
    const before = await places();
    expect(before.size).toBe(7);
    const { moves, stops, waits } = await cluster.json<Foretold>(["simulate", "--drain", "host-3"]);
    expect(moves).toMatchObject([{ taskName: expect.stringMatching(/^s_web\.[123]$/), from: "host-3" }]);
    expect(stops).toMatchObject([{ taskName: "s_asker.host-3" }]);
    expect(waits).toEqual([]);
    expect(await places()).toEqual(before);

    await cluster.run(["node", "drain", "host-3"]);
    const after = new Map(before);
    for (const { taskName } of stops) after.delete(taskName);
    for (const { taskName, to } of moves) after.set(taskName, to);
    expect(await places()).toEqual(after);
    const [move] = moves;
    const { stdout } = await cluster.run(["why", move?.taskName ?? "", "host-3"]);
    expect(stdout).toContain(`${move?.taskName} is on ${move?.to}, running.`);
    expect(stdout).toContain(`host-3 would not take ${move?.taskName}:\n  node is drained. Activate node host-3.`);
  });

  it("gets its share again by `clusterctl rebalance`, and no request fails meanwhile", async () => {
    const spread = async () =>
      running(await cluster.tasks(), "web")
        .map(({ nodeName }) => nodeName)
        .sort();
    await cluster.run(["node", "drain", "host-3"]);
    await cluster.run(["node", "activate", "host-3"]);
    expect(await spread()).not.toContain("host-3");

    const dry = await cluster.json<{ moves: { taskName: string; to: string }[] }>(["rebalance", "--dry-run", "s"]);
    expect(dry.moves).toMatchObject([{ taskName: expect.stringMatching(/^s_web\.[123]$/), to: "host-3" }]);
    expect(await spread()).not.toContain("host-3");

    await using load = visitors(cluster, ["host-1", "host-2", "host-3"]);
    await load.untilSucceeded(20);
    const { stderr } = await cluster.run(["rebalance", "s"]);
    expect(stderr).toContain("1 task moved after");
    await load.untilSucceeded(20);
    expect(await spread()).toEqual(["host-1", "host-2", "host-3"]);
    expect((await cluster.run(["rebalance", "s_web"])).stderr).toContain("nothing to move");
    expect(load.failures()).toEqual({});
  });
});
