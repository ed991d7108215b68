import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { pushBusybox } from "../cluster/busybox.ts";
import { type Cluster, startCluster, type TaskView } from "../cluster/cluster.ts";

/** A service whose tasks each write a row and wait. */
const writing = (deploy: string, volume = "") => `
services:
  db:
    image: $REGISTRY/busybox:1
    deploy: {${deploy}}
    volumes: ["data:/data"]
    command: [sh, -c, "echo $$((1 + 1)) >> /data/rows; trap 'exit 0' TERM; while true; do sleep 0.2; done"]
volumes: {data: {${volume}}}
`;
const everywhere = writing("mode: global");

interface Volume {
  readonly name: string;
  readonly dataNodes: readonly string[];
  readonly homes: readonly { readonly slot: number; readonly node: string; readonly problem: string }[];
}

describe("volumes", () => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster({ hosts: 2 });
    await pushBusybox(cluster);
    await cluster.deployText("s", everywhere);
  });
  afterAll(async () => await cluster?.[Symbol.asyncDispose]());

  const listed = async () => (await cluster.json<{ volumes: Volume[] }>(["volumes"])).volumes;
  const untilRows = async (rows: string, task = "s_db.host-1") =>
    await cluster.untilTrue(`${task} has ${JSON.stringify(rows)}`, async () => {
      return (await cluster.run(["exec", task, "cat", "/data/rows"])).stdout === rows;
    });
  const isRunning = (stack: string, host: string) => (tasks: readonly TaskView[]) =>
    tasks.some(
      ({ task, status, nodeName }) => task.stack === stack && status?.state === "running" && nodeName === host,
    );
  const waits = (stack: string, why: string) => (tasks: readonly TaskView[]) =>
    tasks.some(({ task }) => task.stack === stack && task.unplaced === why);

  it("stay while a service mounts them and when its stack goes, and are removed with all that is in them when asked", async () => {
    expect(await listed()).toMatchObject([{ name: "s_data", services: ["s_db"], dataNodes: ["host-1", "host-2"] }]);
    const { volumes } = await cluster.json<{ volumes: { bytes: Record<string, number> }[] }>(["volumes", "--size"]);
    expect(volumes[0]?.bytes).toEqual({
      "host-1": expect.any(Number) as number,
      "host-2": expect.any(Number) as number,
    });
    const refused = await cluster.clusterctl(["volume", "rm", "s_data"]);
    expect(refused).toMatchObject({ code: 5, stderr: expect.stringContaining("service s_db mounts it") as string });
    await cluster.run(["rm", "s"]);
    expect(await listed()).toMatchObject([{ name: "s_data", services: [], dataNodes: ["host-1", "host-2"] }]);
    await cluster.deployText("s", everywhere);
    await untilRows("2\n2\n");
    await cluster.run(["rm", "s"]);
    await cluster.run(["volume", "rm", "s_data"]);
    expect(await listed()).toEqual([]);
    await cluster.deployText("s", everywhere);
    await untilRows("2\n");
  });

  it("are found again by a stack that was removed, are waited for when their host is drained, and left when the file says so", async () => {
    await cluster.deployText("d", writing("replicas: 1"));
    const home = (await cluster.tasks()).find(({ task }) => task.stack === "d")?.nodeName ?? "";
    const other = home === "host-1" ? "host-2" : "host-1";
    await untilRows("2\n", "d_db.1");
    await cluster.run(["rm", "d"]);
    // The other host is the emptier one.
    await cluster.deployText("busy", writing(`replicas: 3, placement: {constraints: ["node.hostname == ${home}"]}`));
    await cluster.deployText("d", writing("replicas: 1"));
    await cluster.until(`d_db runs on ${home}`, isRunning("d", home));
    await untilRows("2\n2\n", "d_db.1");
    const drained = await cluster.run(["node", "drain", home]);
    const why = `its volume d_data is on ${home}, which is drained`;
    expect(drained.stderr).toContain(`warning: d_db.1 has no place: ${why}`);
    expect((await cluster.tasks()).filter(({ task }) => task.stack === "d")).toMatchObject([
      { task: { unplaced: why } },
    ]);
    expect((await listed()).find(({ name }) => name === "d_data")).toMatchObject({
      homes: [{ slot: 1, node: home, problem: "drained" }],
      dataNodes: [home],
    });
    await cluster.deployText("d", writing("replicas: 1", "x-on-node-loss: recreate"));
    await cluster.until(`d_db runs on ${other}`, isRunning("d", other));
    await untilRows("2\n", "d_db.1");
    await cluster.run(["node", "activate", home]);
    await cluster.run(["rm", "d", "busy"]);
    await cluster.run(["volume", "rm", "d_data", "busy_data"]);
    expect((await listed()).map(({ name }) => name)).toEqual(["s_data"]);
  });

  it("are waited for when their host is lost, and neither they nor their host can be forgotten unasked", async () => {
    await cluster.deployText("e", writing('replicas: 1, placement: {constraints: ["node.hostname == host-2"]}'));
    await cluster.deployText("e", writing("replicas: 1"));
    await cluster.until("e_db runs on host-2", isRunning("e", "host-2"));
    await untilRows("2\n2\n", "e_db.1");
    const why = "its volume e_data is on host-2, which is down";
    const ids = async () => (await cluster.tasks()).filter(({ task }) => task.stack === "e").map(({ task }) => task.id);
    const before = await ids();
    // Its container goes on, and nothing replaces it.
    await cluster.kill("host-2", "noded");
    await cluster.until("e_db is not heard", waits("e", why));
    await cluster.start("host-2", "noded");
    await cluster.until("e_db runs on host-2", isRunning("e", "host-2"));
    expect(await ids()).toEqual(before);
    await untilRows("2\n2\n", "e_db.1");
    await cluster.killHost("host-2");
    await cluster.until("e_db waits", waits("e", why));
    await cluster.run(["rm", "e"]);
    expect(await cluster.clusterctl(["volume", "rm", "e_data"])).toMatchObject({
      code: 6,
      stderr: expect.stringContaining("volume e_data has data on host-2") as string,
    });
    expect(await cluster.clusterctl(["node", "rm", "host-2"])).toMatchObject({
      code: 5,
      stderr: expect.stringContaining("volumes have their data on node host-2: e_data, s_data") as string,
    });
    await cluster.start("host-2");
    await cluster.untilNodes("host-2 is back", (nodes) => nodes.every(({ status }) => status?.state === "ready"));
    await cluster.deployText("e", writing("replicas: 1"));
    await cluster.until("e_db runs on host-2", isRunning("e", "host-2"));
    await untilRows("2\n2\n2\n", "e_db.1");
  });
});
