import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Cluster, startCluster } from "../cluster/cluster.ts";
import { deployCounter, hostOf, pids, running, visitors } from "./counter.ts";

describe("a linked service that moves", () => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster({ hosts: 3 });
    await deployCounter(cluster);
  });
  afterAll(async () => await cluster?.[Symbol.asyncDispose]());

  /** The address of redis as the web task sees it: as programs look names up, by DNS alone, and in the link's environment. */
  async function redisAsSeenBy(task: string): Promise<{ byName: string; byDns: string; byEnvironment: string }> {
    const inTask = async (...words: string[]) => (await cluster.run(["exec", task, "--", ...words])).stdout;
    const byName = (await inTask("getent", "hosts", "redis")).split(/\s+/)[0] ?? "";
    // The first address is that of the server.
    const byDns =
      [...(await inTask("busybox", "nslookup", "redis")).matchAll(/^Address: +([\d.]+)$/gm)].at(-1)?.[1] ?? "";
    const byEnvironment = (await inTask("sh", "-c", "echo $REDIS_PORT_6379_TCP_ADDR")).trim();
    return { byName, byDns, byEnvironment };
  }

  it("has a /tmp for everybody in its image", async () => {
    const { stdout } = await cluster.run(["exec", "counter_web.1", "busybox", "stat", "-c", "%a", "/tmp"]);
    expect(stdout.trim()).toBe("1777");
  });

  it("has Docker's whole set of link variables in its consumer", async () => {
    const { stdout } = await cluster.run(["exec", "counter_web.1", "--", "sh", "-c", "env | grep ^REDIS_ | sort"]);
    const { byName } = await redisAsSeenBy("counter_web.1");
    expect(stdout.trim().split("\n")).toEqual([
      `REDIS_NAME=/counter_web.1/redis`,
      `REDIS_PORT=tcp://${byName}:6379`,
      `REDIS_PORT_6379_TCP=tcp://${byName}:6379`,
      `REDIS_PORT_6379_TCP_ADDR=${byName}`,
      `REDIS_PORT_6379_TCP_PORT=6379`,
      `REDIS_PORT_6379_TCP_PROTO=tcp`,
    ]);
  });

  it("keeps its address, its consumers' processes and their environment over ten moves, and answers again within 2 s", async () => {
    const before = await redisAsSeenBy("counter_web.1");
    expect(before).toEqual({ byName: before.byName, byDns: before.byName, byEnvironment: before.byName });
    let moves = 0;
    for (let i = 0; i < 10; i++) {
      const from = await hostOf(cluster, "redis");
      const webBefore = pids(await cluster.tasks(), "web", from);
      const others = cluster.hosts.map(({ name }) => name).filter((name) => name !== from);
      const startedMs = performance.now();
      await using load = visitors(cluster, others);
      await cluster.run(["node", "drain", from]);
      await cluster.until(`redis runs elsewhere than on ${from}`, (tasks) =>
        running(tasks, "redis").some((view) => view.nodeName !== from),
      );
      await load.untilSucceeded(20);

      expect(load.longestOutageMs(startedMs)).toBeLessThan(2_000);
      expect(pids(await cluster.tasks(), "web", from)).toEqual(webBefore);
      const observer = running(await cluster.tasks(), "web").find((view) => view.nodeName !== from);
      expect(await redisAsSeenBy(`counter_web.${observer?.task?.slot}`)).toEqual(before);
      await cluster.run(["node", "activate", from]);
      await cluster.until("web runs on all three hosts", (tasks) => running(tasks, "web").length === 3);
      moves++;
    }
    expect(moves).toBe(10);
  });
});
