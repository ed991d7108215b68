import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { pushBusybox } from "../cluster/busybox.ts";
import { type Cluster, startCluster } from "../cluster/cluster.ts";
import { running, visitors } from "./counter.ts";

describe("a node that was empty", () => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster({ hosts: 3 });
    await pushBusybox(cluster);
    const file = join(import.meta.dirname, "stacks/partition.yml");
    await cluster.run(["deploy", file, "s"], { environment: { REGISTRY: cluster.registry } });
  });
  afterAll(async () => await cluster?.[Symbol.asyncDispose]());

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
