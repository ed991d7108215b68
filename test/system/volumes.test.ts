import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { pushBusybox } from "../cluster/busybox.ts";
import { type Cluster, startCluster } from "../cluster/cluster.ts";

/** A task on each host, which writes once and waits. */
const writing = `
services:
  db:
    image: $REGISTRY/busybox:1
    deploy: {mode: global}
    volumes: ["data:/data"]
    command: [sh, -c, "echo $$((1 + 1)) >> /data/rows; trap 'exit 0' TERM; while true; do sleep 0.2; done"]
volumes: {data: {}}
`;

describe("volumes", () => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster({ hosts: 2 });
    await pushBusybox(cluster);
    await cluster.deployText("s", writing);
  });
  afterAll(async () => await cluster?.[Symbol.asyncDispose]());

  const listed = async () =>
    (await cluster.json<{ volumes: { name: string; dataNodes: string[] }[] }>(["volumes"])).volumes;
  const untilRows = async (rows: string) =>
    await cluster.untilTrue(`the volume of host-1 has ${JSON.stringify(rows)}`, async () => {
      return (await cluster.run(["exec", "s_db.host-1", "cat", "/data/rows"])).stdout === rows;
    });

  it("stay while a service mounts them and when its stack goes, and are removed with all that is in them when asked", async () => {
    expect(await listed()).toMatchObject([{ name: "s_data", services: ["s_db"], dataNodes: ["host-1", "host-2"] }]);
    const refused = await cluster.clusterctl(["volume", "rm", "s_data"]);
    expect(refused).toMatchObject({ code: 5, stderr: expect.stringContaining("service s_db mounts it") as string });
    await cluster.run(["rm", "s"]);
    expect(await listed()).toMatchObject([{ name: "s_data", services: [], dataNodes: ["host-1", "host-2"] }]);
    await cluster.deployText("s", writing);
    await untilRows("2\n2\n");
    await cluster.run(["rm", "s"]);
    await cluster.run(["volume", "rm", "s_data"]);
    expect(await listed()).toEqual([]);
    await cluster.deployText("s", writing);
    await untilRows("2\n");
  });
});
