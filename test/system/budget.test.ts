import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { pushBusybox } from "../cluster/busybox.ts";
import { type Cluster, startCluster } from "../cluster/cluster.ts";
import { running, visitors } from "./counter.ts";

const file = join(import.meta.dirname, "stacks/budget.yml");

describe("a service that has to keep its tasks up", () => {
  let cluster: Cluster;
  const deploy = async (version: string) =>
    await cluster.run(["deploy", file, "s"], { environment: { REGISTRY: cluster.registry, VERSION: version } });
  const hostsOf = async (service: string) =>
    running(await cluster.tasks(), service)
      .map(({ nodeName }) => nodeName)
      .sort();
  beforeAll(async () => {
    cluster = await startCluster({ hosts: 3 });
    await pushBusybox(cluster);
    // Its tasks are where they will have to leave.
    await cluster.run(["node", "pause", "host-1"]);
    await deploy("1");
  });
  afterAll(async () => await cluster?.[Symbol.asyncDispose]());

  it("loses no request to an update, nor to drains of all its hosts at once; what nothing else takes stays, with the reason", async () => {
    expect(await hostsOf("web")).toEqual(["host-2", "host-3"]);
    await using load = visitors(cluster, ["host-1"]);
    await load.untilSucceeded(20);
    await deploy("2");
    await cluster.run(["node", "activate", "host-1"]);

    const dry = await cluster.run(["node", "drain", "host-2", "host-3", "--dry-run"]);
    expect(dry.stdout).toMatch(/s_whole\.[12] +host-[23] +\(stays\)/);
    await cluster.run(["node", "drain", "host-2", "host-3", "--detach"]);
    await cluster.until("both web tasks on host-1, one of whole left", (tasks) => {
      const web = tasks.filter(({ task }) => task.serviceName === "web");
      return (
        web.length === 2 && web.every(({ nodeName }) => nodeName === "host-1") && running(tasks, "whole").length === 1
      );
    });
    const drain = await cluster.clusterctl(["node", "drain", "host-2", "host-3", "--timeout", "1s"]);
    expect(drain.code).toBe(4);
    const why =
      /s_whole\.[12] goes on: s_whole has to keep 1 up \(x-disruption\.min_available\), and has 1; its successor has no place: /;
    expect(drain.stderr).toMatch(why);
    expect(drain.stderr).toContain("clusterctl node drain --force host-");
    expect(await hostsOf("web")).toEqual(["host-1", "host-1"]);
    expect(await hostsOf("whole")).toHaveLength(1);
    expect((await cluster.run(["nodes"])).stdout).toMatch(why);
    expect((await cluster.run(["ps", "s_whole"])).stdout).toContain("s_whole has to keep 1 up");
    await load.untilSucceeded(20);
    expect(load.failures()).toEqual({});

    await cluster.run(["node", "drain", "host-2", "host-3", "--force"]);
    expect(await hostsOf("whole")).toEqual([]);
  });
});
