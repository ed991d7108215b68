import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { pushBusybox } from "../cluster/busybox.ts";
import { type Cluster, type NodeView, startCluster, type TaskView } from "../cluster/cluster.ts";
import { clusterctlCommand } from "../cluster/command.ts";
import { pids, running } from "./counter.ts";

describe("most hosts fall silent together", () => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster({ hosts: 3 });
    await pushBusybox(cluster);
    const file = join(import.meta.dirname, "stacks/partition.yml");
    await cluster.run(["deploy", file, "s"], { environment: { REGISTRY: cluster.registry } });
  });
  afterAll(async () => await cluster?.[Symbol.asyncDispose]());

  /** What a reading command says on the host itself, which may be cut off from here. */
  async function jsonOn<T>(host: string, args: readonly string[]): Promise<T> {
    const words = [...clusterctlCommand, "--context", cluster.contextFile, ...args, "--output", "json"];
    const { code, stdout, stderr } = await cluster.exec(host, words);
    if (code !== 0) throw new Error(`${args.join(" ")} on ${host}: ${stdout}${stderr}`);
    return JSON.parse(stdout) as T;
  }

  const nodesOn = async (host: string) => (await jsonOn<{ nodes: NodeView[] }>(host, ["nodes"])).nodes;
  const tasksOn = async (host: string) => (await jsonOn<{ tasks: TaskView[] }>(host, ["ps"])).tasks;
  const states = (nodes: readonly NodeView[]) =>
    Object.fromEntries(nodes.map(({ spec, status }) => [spec.name, status?.state]));

  /** Pid by task id of everything that runs. */
  const everything = (tasks: readonly TaskView[]) => ({
    ...pids(tasks, "web"),
    ...pids(tasks, "near"),
    ...pids(tasks, "asker"),
  });

  /** Lines of the asker on a host; every request to near, which is on host-2, is one. */
  const asked = async (host: string) => (await cluster.run(["logs", `s_asker.${host}`])).stdout.trim().split("\n");

  it("since the manager's own was cut off: nothing is replaced, and nobody but that host notices", async () => {
    const before = everything(await cluster.tasks());
    expect(Object.keys(before)).toHaveLength(7);
    const others = ["host-2", "host-3"];
    await cluster.untilTrue("near answers on the other hosts", async () =>
      (await Promise.all(others.map(asked))).every((lines) => lines.at(-1)?.endsWith("| page")),
    );
    const askedBefore = new Map<string, number>();
    for (const host of others) askedBefore.set(host, (await asked(host)).length);

    await cluster.cut("host-1");
    await cluster.untilTrue("the manager has the other hosts for silent", async () => {
      const { "host-1": own, ...rest } = states(await nodesOn("host-1"));
      return own === "ready" && Object.values(rest).join() === "silent,silent";
    });
    const seen = await nodesOn("host-1");
    for (const { spec, status } of seen.filter(({ spec: { name } }) => name !== "host-1")) {
      expect(status?.message, spec.name).toMatch(/^[23] of 3 nodes went silent together/);
    }
    const metrics = `fetch("http://127.0.0.1:7402/metrics").then((r) => r.text()).then(console.log)`;
    const { stdout } = await cluster.exec("host-1", [clusterctlCommand[0], "-e", metrics]);
    expect(stdout).toContain('embassy_nodes{state="silent"} 2\nembassy_nodes{state="down"} 0');
    const meanwhile = await tasksOn("host-1");
    expect(everything(meanwhile)).toEqual(before);
    expect(meanwhile).toHaveLength(7);
    expect(meanwhile.filter(({ status }) => status?.message === "its node is silent")).toHaveLength(5);

    await cluster.heal("host-1");
    await cluster.untilNodes("all nodes are ready", (nodes) => nodes.every(({ status }) => status?.state === "ready"));
    const after = await cluster.tasks({ all: true });
    expect(everything(after)).toEqual(before);
    expect(after).toHaveLength(7);
    for (const host of others) {
      const lines = (await asked(host)).slice(askedBefore.get(host));
      expect(lines.length).toBeGreaterThan(20);
      expect(lines.filter((line) => !line.endsWith("| page"))).toEqual([]);
    }
    expect(cluster.logs(1_000)).toContain('"message":"node silent"');
  });

  it("since they are lost: links lead to what is left, and who drains or removes a host has its tasks at once", async () => {
    await cluster.killHost("host-2");
    await cluster.killHost("host-3");
    await cluster.untilNodes(
      "the other hosts are silent",
      (nodes) => nodes.filter(({ status }) => status?.state === "silent").length === 2,
    );
    const onFirst = (tasks: readonly TaskView[]) =>
      running(tasks, "web").filter(({ nodeName }) => nodeName === "host-1").length;
    expect(onFirst(await cluster.tasks())).toBe(1);
    const ask = ["exec", "s_asker.host-1", "--", "timeout", "2", "wget", "-q", "-O", "-", "http://web:8080/"];
    await cluster.untilTrue("five requests in a row come to the server that is left", async () => {
      for (let n = 0; n < 5; n++) if ((await cluster.clusterctl(ask)).stdout !== "page\n") return false;
      return true;
    });
    await cluster.run(["node", "drain", "host-2"]);
    await cluster.until("what host-2 had of web runs here", (tasks) => onFirst(tasks) === 2);
    await cluster.run(["node", "rm", "host-3"]);
    await cluster.until("what host-3 had of web runs here", (tasks) => onFirst(tasks) === 3);
  });
});
