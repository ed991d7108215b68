import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Cluster, startCluster } from "../cluster/cluster.ts";
import { deployCounter, hostOf, running } from "./counter.ts";

describe("a host that dies", () => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster({ hosts: 3 });
    await deployCounter(cluster);
    // The control plane is on host-1: what dies is one of the others, with redis on it.
    await cluster.run(["node", "drain", "host-1"]);
    await cluster.until("redis runs beside host-1", (tasks) =>
      running(tasks, "redis").some((v) => v.nodeName !== "host-1"),
    );
    await cluster.run(["node", "activate", "host-1"]);
    await cluster.until("web runs on all hosts", (tasks) => running(tasks, "web").length === 3);
  });
  afterAll(async () => await cluster?.[Symbol.asyncDispose]());

  it("has its tasks elsewhere, and no DNS answer or ambassador that names it, within 8 s", async () => {
    const victim = await hostOf(cluster, "redis");
    const dead = (await cluster.tasks())
      .filter((view) => view.nodeName === victim)
      .flatMap((view) => view.status?.addresses.map(({ address }) => address) ?? []);
    const witness = running(await cluster.tasks(), "web").find((view) => view.nodeName !== victim);
    const task = `counter_web.${witness?.task?.slot}`;
    const killedAtMs = performance.now();
    await cluster.killHost(victim);

    await cluster.until(
      "redis runs elsewhere",
      (tasks) => running(tasks, "redis").some((view) => view.nodeName !== victim),
      { timeoutMs: 20_000 },
    );
    const answers = async () => (await cluster.run(["exec", task, "--", "getent", "ahostsv4", "tasks.redis"])).stdout;
    await cluster.untilTrue("DNS does not name the dead host's tasks", async () => {
      const told = (await answers()).split(/\s+/);
      return dead.every((address) => !told.includes(address));
    });
    const ruleset = async () => {
      const witnesses = cluster.hosts.filter(({ name }) => name !== victim);
      const texts = await Promise.all(
        witnesses.map(async ({ name }) => (await cluster.exec(name, ["nft", "list", "ruleset"])).stdout),
      );
      return texts.join("\n");
    };
    await cluster.untilTrue("no ambassador names the dead host's tasks", async () => {
      const text = await ruleset();
      return dead.every((address) => !new RegExp(`\\b${address.replaceAll(".", "\\.")}\\b`).test(text));
    });
    expect(performance.now() - killedAtMs).toBeLessThan(8_000);
  });
});
