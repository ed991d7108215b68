import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { pushBusybox } from "../cluster/busybox.ts";
import { type Cluster, startCluster, type TaskView } from "../cluster/cluster.ts";
import { running, visitors } from "./counter.ts";

/** "1 2 3": the slots of the service's tasks, as often as each is there. */
const slots = (views: readonly TaskView[]) => views.map(({ task }) => task.slot).join(" ");

describe("a host that is cut off and comes back", () => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster({ hosts: 3 });
    await pushBusybox(cluster);
    const file = join(import.meta.dirname, "stacks/partition.yml");
    await cluster.run(["deploy", file, "s"], { environment: { REGISTRY: cluster.registry } });
  });
  afterAll(async () => await cluster?.[Symbol.asyncDispose]());

  /** Lines of the asker on a host; every request to near is one. */
  async function asked(host: string): Promise<string[]> {
    return (await cluster.run(["logs", `s_asker.${host}`])).stdout.trim().split("\n");
  }

  /** How many web servers run on a host, whatever the control plane knows. */
  async function servers(host: string): Promise<number> {
    const { stdout } = await cluster.exec(host, ["pgrep", "--count", "--full", "^httpd"]);
    return Number(stdout);
  }

  it("gives up what was replaced meanwhile, and everything is there once; those that were not cut off notice nothing", async () => {
    // The control plane is on host-1.
    const cut = "host-3";
    const before = await cluster.tasks();
    const old = running(before, "web").filter(({ nodeName }) => nodeName === cut);
    expect([slots(running(before, "web")), old.length, await servers(cut)]).toEqual(["1 2 3", 1, 1]);

    // An asker may begin before the server of its link listens.
    await cluster.untilTrue("near answers on both hosts that stay", async () =>
      (await Promise.all(["host-1", "host-2"].map(asked))).every((lines) => lines.at(-1)?.endsWith("| page")),
    );
    const askedBefore = new Map<string, number>();
    for (const host of ["host-1", "host-2"]) askedBefore.set(host, (await asked(host)).length);

    await cluster.cut(cut);
    await cluster.until(
      "the web task is replaced elsewhere",
      (tasks) => slots(running(tasks, "web").filter(({ nodeName }) => nodeName !== cut)) === "1 2 3",
    );
    {
      await using load = visitors(cluster, ["host-1", "host-2"]);
      await load.untilSucceeded(400);
      expect(load.failures()).toEqual({});
    }
    const meanwhile = await cluster.tasks();
    expect(meanwhile.filter(({ nodeName }) => nodeName === cut)).toEqual([]);
    // Nobody can stop it there, and it may serve those on its side.
    expect(await servers(cut)).toBe(1);

    await cluster.heal(cut);
    await cluster.untilTrue("the container that was replaced is stopped", async () => (await servers(cut)) === 0);
    await cluster.until("an asker runs on every host again", (tasks) => running(tasks, "asker").length === 3);
    const after = await cluster.tasks();
    expect(slots(running(after, "web"))).toBe("1 2 3");
    expect(after).toHaveLength(7);
    const said = (await cluster.tasks({ all: true })).find(({ task }) => task.id === old[0]?.task.id);
    expect(said?.status?.state).toBe("shutdown");
    for (const { name } of cluster.hosts) {
      for (const url of ["http://near:8080/", "http://web:8080/", "http://web:8080/", "http://web:8080/"]) {
        const words = ["exec", `s_asker.${name}`, "--", "timeout", "2", "wget", "-q", "-O", "-", url];
        expect((await cluster.clusterctl(words)).stdout).toBe("page\n");
      }
    }
    await using load = visitors(
      cluster,
      cluster.hosts.map(({ name }) => name),
    );
    await load.untilSucceeded(60);
    expect(load.failures()).toEqual({});

    for (const host of ["host-1", "host-2"]) {
      const lines = (await asked(host)).slice(askedBefore.get(host));
      expect(lines.length).toBeGreaterThan(100);
      expect(lines.filter((line) => !line.endsWith("| page"))).toEqual([]);
    }
  });
});
