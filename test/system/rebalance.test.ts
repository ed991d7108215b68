import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { pushBusybox } from "../cluster/busybox.ts";
import { type Cluster, startCluster, type TaskView } from "../cluster/cluster.ts";
import { running, visitors } from "./counter.ts";
import { SteadyRequests } from "./steady.ts";

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

  it("gets its share again by itself of a service that asks for it, and no request fails meanwhile", async () => {
    await cluster.restartWith("host-1", "clusterd", ["--rebalance-settle", "5s"]);
    await cluster.untilTrue("clusterd answers", async () => (await cluster.clusterctl(["info"])).code === 0);
    const file = join(import.meta.dirname, "stacks/spread.yml");
    await cluster.run(["deploy", file, "u"], { environment: { REGISTRY: cluster.registry } });
    const perHost = (tasks: readonly TaskView[]) =>
      ["host-1", "host-2", "host-3"].map((name) => running(tasks, "six").filter((one) => one.nodeName === name).length);
    await cluster.until("two tasks a host", (tasks) => perHost(tasks).join() === "2,2,2");
    await cluster.run(["node", "drain", "host-3"]);
    await cluster.until("three tasks on each of two hosts", (tasks) => perHost(tasks).join() === "3,3,0");

    const urls = cluster.hosts.map(({ address }) => `http://${address}:8081/`);
    await using load = new SteadyRequests(urls, 50);
    await load.untilSucceeded(20);
    await cluster.run(["node", "activate", "host-3"]);
    const isSpread = (tasks: readonly TaskView[]) => perHost(tasks).join() === "2,2,2";
    await cluster.until("two tasks a host again", isSpread, { timeoutMs: 60_000 });
    await load.untilSucceeded(50);
    expect(load.failures()).toEqual({});

    const ended = (await cluster.tasks({ all: true })).filter(({ task }) => task.stack === "u");
    const moved = ended.filter(({ status }) => status?.message.startsWith("moved "));
    expect(moved.map(({ status }) => status?.message)).toEqual(
      Array(2).fill(expect.stringMatching(/^moved to host-3: u_six has 3 tasks in host-[12] and [01] in host-3$/)),
    );
    expect((await cluster.run(["services", "u"])).stdout).toMatch(/six\.\d was moved from host-[12] to host-3/);
    expect((await cluster.run(["rebalance", "u"])).stderr).toContain("nothing to move");
  });
});
