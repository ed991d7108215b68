import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { pushBusybox } from "../cluster/busybox.ts";
import { type Cluster, startCluster } from "../cluster/cluster.ts";
import { root } from "../cluster/command.ts";
import { pids, running, visitors } from "./counter.ts";

interface ManagerView {
  readonly name: string;
  readonly state: string;
  readonly leader: boolean;
  readonly etcd: string;
}

const clusterd = `${join(root, "node_modules/node/bin/node")} ${join(root, "dist/clusterd.mjs")}`;

describe("three managers", () => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster({ hosts: 3, managers: 3 });
    await pushBusybox(cluster);
  });
  afterAll(async () => await cluster?.[Symbol.asyncDispose]());

  const managers = async () => (await cluster.json<{ managers: ManagerView[] }>(["managers"])).managers;
  const leader = async () => {
    const found = (await managers()).find((manager) => manager.leader);
    if (found === undefined) throw new Error("nobody leads");
    return found.name;
  };
  const isWhole = ({ state, etcd }: ManagerView) => state === "ready" && (etcd === "leader" || etcd === "voter");
  const untilManagers = async (names: readonly string[]) => {
    await cluster.untilTrue(
      `managers ${names.join(", ")} serve`,
      async () => {
        const found = (await managers()).filter(isWhole).map(({ name }) => name);
        return found.join() === names.join();
      },
      { timeoutMs: 60_000 },
    );
  };
  const killManager = async (host: string) => {
    await cluster.kill(host, "clusterd");
    await cluster.kill(host, "etcd");
  };
  /** Tasks on every host but one. */
  const web = (except: string, text: string) => `
services:
  web:
    image: ${cluster.registry}/busybox:1
    command: ["httpd", "-f", "-p", "8080", "-h", "/www"]
    ports: ["8080:8080"]
    deploy:
      mode: global
      placement: { constraints: ["node.hostname != ${except}"] }
  other:
    image: ${cluster.registry}/busybox:1
    command: ["sleep", "inf"]
    stop_grace_period: 1s
    environment: { TEXT: "${text}" }
    deploy: { replicas: 1, placement: { constraints: ["node.hostname != ${except}"] } }
`;

  it("lose the leader's host: nothing that runs notices, the others take over, and it comes back", async () => {
    const lost = await leader();
    const left = cluster.hosts.map(({ name }) => name).filter((name) => name !== lost);
    await cluster.deployText("shop", web(lost, "one"));
    const before = pids(await cluster.tasks(), "web");
    expect(Object.keys(before)).toHaveLength(2);
    await using load = visitors(cluster, left);
    await load.untilSucceeded(50);

    const killedAtMs = performance.now();
    await cluster.killHost(lost);
    await cluster.untilTrue("another leads", async () => (await leader()) !== lost);
    const ledAfterMs = performance.now() - killedAtMs;
    await cluster.deployText("shop", web(lost, "two"));
    console.log(
      `another leads after ${(ledAfterMs / 1_000).toFixed(1)} s, and has deployed after ${((performance.now() - killedAtMs) / 1_000).toFixed(1)} s`,
    );
    await cluster.untilNodes("the other nodes are ready, this one is down", (nodes) =>
      nodes.every(({ spec, status }) => (status?.state === "ready") === (spec.name !== lost)),
    );
    expect(pids(await cluster.tasks(), "web")).toEqual(before);

    await cluster.start(lost);
    await untilManagers(["host-1", "host-2", "host-3"]);
    await load.untilSucceeded(50);
    expect(load.failures()).toEqual({});
    // What follows asks it too: its ports lead to the others' tasks a moment after it is back.
    await using back = visitors(cluster, [lost]);
    await back.untilSucceeded(20);
  });

  it("lose two: what runs goes on, commands say why they fail, and one that comes back is enough", async () => {
    const before = pids(await cluster.tasks(), "web");
    await using load = visitors(cluster, ["host-1", "host-2", "host-3"]);
    await killManager("host-2");
    await killManager("host-3");
    await cluster.untilTrue("commands fail for want of a quorum", async () => {
      const { code, stderr } = await cluster.clusterctl(["ps"]);
      return code !== 0 && stderr.includes("manager host-1 has no quorum: etcd answers on 1 of 3 managers");
    });
    expect(await cluster.clusterctl(["scale", "shop_other=2"])).toMatchObject({
      stdout: "",
      stderr: expect.stringMatching(/has no quorum.*and 2 are needed\nStart clusterd on the others again/s),
    });
    await load.untilSucceeded(50);
    await cluster.start("host-3", "clusterd");
    await untilManagers(["host-1", "host-3"]);
    await cluster.run(["scale", "shop_other=2"]);
    await cluster.until("both run", (tasks) => running(tasks, "other").length === 2);
    expect(pids(await cluster.tasks(), "web")).toEqual(before);
    expect(load.failures()).toEqual({});
  });

  it("let a lost one be removed, which then ends itself, and take its host in again", async () => {
    await cluster.run(["manager", "rm", "host-2"]);
    expect((await managers()).map(({ name }) => name)).toEqual(["host-1", "host-3"]);
    // The lab goes on with the others, and says so.
    const { stdout: steps } = await cluster.run(["lab", "up", "--name", cluster.name]);
    expect(steps).toContain("clusterd ended on host-2: manager host-2 was removed from the cluster\n");
    expect(await cluster.clusterctl(["lab", "kill", "--name", cluster.name, "host-2:clusterd"])).toMatchObject({
      code: 5,
    });
    const { stdout: token } = await cluster.run(["token", "create", "--role", "manager"]);
    const address = cluster.hosts[0]?.address ?? "";
    const shell = async (line: string) => await cluster.exec("host-2", ["sh", "-c", line]);
    const join = async (of: string, more = "") =>
      await shell(`${clusterd} join --manager ${address} --token ${of.trim()} ${more}`);
    expect(await join(token)).toMatchObject({ code: 1, stderr: expect.stringContaining("holds a cluster already") });

    // Neither a token that nobody gave, nor one of another cluster, leaves anything behind.
    const elsewhere = "--state-dir /run/lab/elsewhere";
    expect(await join(token.replace(/[a-z2-7]{32}\n/, "a".repeat(32)), elsewhere)).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("the join token is not known to the cluster"),
    });
    expect(await join(token.replace(/[0-9a-f]{64}/, "0".repeat(64)), elsewhere)).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("does not belong to the cluster that the join token is for"),
    });
    expect((await shell("ls /run/lab/elsewhere")).stdout).toBe("");

    await shell("rm -r /var/lib/embassy/clusterd");
    expect(await join(token)).toMatchObject({ code: 0 });
    await cluster.start("host-2", "clusterd");
    await untilManagers(["host-1", "host-2", "host-3"]);
  });

  it("lose two for good: the last one goes on alone, and takes others in", async () => {
    const before = pids(await cluster.tasks(), "web");
    const shell = async (host: string, line: string) => await cluster.exec(host, ["sh", "-c", line]);
    const recover = async (flags = "") => await shell("host-1", `${clusterd} recover ${flags}`);
    expect(await recover()).toMatchObject({ code: 1, stderr: expect.stringContaining("another clusterd uses") });
    await cluster.killHost("host-2");
    await cluster.kill("host-1", "clusterd");
    expect(await recover("--others-are-lost")).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/the manager on \S+ is not lost: its etcd answers/),
    });
    await cluster.killHost("host-3");
    expect(await recover()).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("this makes host-1 the only manager, and forgets those on"),
    });
    expect(await recover("--others-are-lost")).toMatchObject({
      code: 0,
      stderr: expect.stringContaining("Manager host-1 is the only one now. Forgotten: host-2, host-3."),
    });
    expect(await recover("--others-are-lost")).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("has no others beside it"),
    });
    await cluster.start("host-1", "clusterd");
    await untilManagers(["host-1"]);
    const after = pids(await cluster.tasks(), "web");
    const kept = Object.keys(before).filter((name) => before[name] === after[name]);
    expect(kept.length).toBeGreaterThan(0);
    // Most hosts are silent, so that their tasks are not replaced yet: a stack for this one.
    await cluster.deployText(
      "alone",
      `
services:
  here:
    image: ${cluster.registry}/busybox:1
    command: ["sleep", "inf"]
    stop_grace_period: 1s
    deploy: { placement: { constraints: ["node.hostname == host-1"] } }
`,
    );

    // One of the lost is there again after all: the cluster does not know it, and its nodes go on.
    // Not `run`: it fails when it sees clusterd end.
    await cluster.clusterctl(["lab", "start", "--name", cluster.name, "host-3"]);
    await cluster.untilTrue("its clusterd has ended", async () =>
      cluster.logs(200).includes("manager host-3 was removed from the cluster"),
    );
    await untilManagers(["host-1"]);
    const { stdout: token } = await cluster.run(["token", "create", "--role", "manager"]);
    await shell("host-3", "rm -r /var/lib/embassy/clusterd");
    const address = cluster.hosts[0]?.address ?? "";
    expect(await shell("host-3", `${clusterd} join --manager ${address} --token ${token.trim()}`)).toMatchObject({
      code: 0,
    });
    await cluster.start("host-3", "clusterd");
    await untilManagers(["host-1", "host-3"]);
  });
});
