import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Cluster, startCluster } from "../cluster/cluster.ts";
import { deployCounter, pids, visitors } from "./counter.ts";

describe("SIGKILL under steady requests", () => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster({ hosts: 3 });
    await deployCounter(cluster);
  });
  afterAll(async () => await cluster?.[Symbol.asyncDispose]());

  /** Pid by task id of everything that runs. */
  async function running(): Promise<Record<string, number>> {
    const tasks = await cluster.tasks();
    return { ...pids(tasks, "web"), ...pids(tasks, "redis") };
  }

  // etcd is clusterd's child, and comes back by itself while clusterd lives.
  const cases = [
    { what: "noded", kill: ["noded"], start: ["noded"] },
    { what: "netd", kill: ["netd"], start: ["netd"] },
    { what: "clusterd", kill: ["clusterd"], start: ["clusterd"] },
    { what: "etcd", kill: ["etcd"], start: [] },
    {
      what: "all of them on one host",
      kill: ["noded", "netd", "clusterd", "etcd"],
      start: ["clusterd", "netd", "noded"],
    },
  ];
  it.each(cases)("$what: containers keep their pids, no request fails, nothing is doubled or lost", async (one) => {
    const before = await running();
    expect(Object.keys(before)).toHaveLength(4);
    await using load = visitors(cluster, ["host-1", "host-2", "host-3"]);
    await load.untilSucceeded(20);
    for (const process of one.kill) await cluster.kill("host-1", process);
    await load.untilSucceeded(50);
    for (const process of one.start) await cluster.start("host-1", process);
    await load.untilSucceeded(100);
    await cluster.untilNodes("all nodes are ready", (nodes) => nodes.every(({ status }) => status?.state === "ready"));
    expect(await running()).toEqual(before);

    // A change goes through all that was killed, and only what it asks for happens.
    await cluster.run(["scale", "counter_redis=3"]);
    await cluster.run(["scale", "counter_redis=1"]);
    const after = await running();
    expect(Object.keys(after)).toHaveLength(4);
    const kept = Object.entries(before).filter(([id, pid]) => after[id] === pid);
    expect(kept).toEqual(Object.entries(before));
    expect(load.failures()).toEqual({});
  });

  it("a netd that is dead or frozen is shown of its node, until it is back", async () => {
    const shows = async (problem: RegExp) =>
      await cluster.untilNodes(`host-2 shows ${problem}`, (nodes) => {
        const status = nodes.find(({ spec }) => spec.name === "host-2")?.status;
        return status?.state === "ready" && problem.test(status.networkProblem);
      });
    await cluster.kill("host-2", "netd");
    await shows(/^netd is not there$/);
    await cluster.start("host-2", "netd");
    await shows(/^$/);
    await cluster.pause("host-2:netd");
    await shows(/^netd did not answer within 2 s$/);
    await cluster.resume("host-2:netd");
    await shows(/^$/);
  });
});
