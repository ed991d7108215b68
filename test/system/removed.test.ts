import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { pushBusybox } from "../cluster/busybox.ts";
import { type Cluster, startCluster } from "../cluster/cluster.ts";

/** A service that writes a row when it starts, and another when it is asked to stop. */
const writing = (deploy: string) => `
services:
  db:
    image: $REGISTRY/busybox:1
    deploy: {${deploy}}
    volumes: ["data:/data"]
    command: [sh, -c, "echo up >>/data/rows; trap 'echo stopped >>/data/rows; exit 0' TERM; while true; do sleep 0.2; done"]
volumes: {data: {}}
`;

const onGone = writing('replicas: 1, placement: {constraints: ["node.hostname == host-2"]}');

describe("a node that is removed while its host is cut off", () => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster({ hosts: 2 });
    await pushBusybox(cluster);
    await cluster.deployText("s", writing("mode: global"));
    await cluster.deployText("d", onGone);
    await cluster.deployText("d", writing("replicas: 1"));
  });
  afterAll(async () => await cluster?.[Symbol.asyncDispose]());

  const gone = "host-2";
  const onHost = async (...command: string[]) => (await cluster.exec(gone, command)).stdout;
  const runs = async (pattern: string) => Number(await onHost("pgrep", "--count", "--full", pattern)) > 0;
  const rows = async (volume = "s_data") => await onHost("cat", `/var/lib/embassy/noded/volumes/${volume}/_data/rows`);
  const overlay = async () => (await onHost("ip", "-brief", "link")) + (await onHost("nft", "list", "tables"));
  const noded = [process.execPath, join(import.meta.dirname, "../../dist/noded.mjs")];

  it("stops its tasks there once it is heard again, keeps their volumes, and joins again", async () => {
    await cluster.untilTrue("the task there has begun", async () => (await rows()) === "up\n");
    await cluster.cut(gone);
    await cluster.untilNodes("its node is down", (nodes) =>
      nodes.some(({ spec, status }) => spec.name === gone && status?.state === "down"),
    );
    await cluster.run(["node", "drain", gone]);
    await cluster.run(["node", "rm", "--force", gone]);
    // Nobody can tell it, and netd finds what it left when it is started.
    expect([await runs("^sh -c echo up"), await runs("/noded.mjs"), await runs("/netd.mjs")]).toEqual([
      true,
      true,
      true,
    ]);
    expect(await overlay()).toMatch(/ev.*emb|emb.*ev/s);

    await cluster.heal(gone);
    await cluster.untilTrue(
      "its daemons have ended",
      async () => !(await runs("/noded.mjs")) && !(await runs("/netd.mjs")),
    );
    expect([await runs("^sh -c echo up"), await runs("/conmon")]).toEqual([false, false]);
    expect(await rows()).toBe("up\nstopped\n");
    expect(await overlay()).not.toMatch(/emb/);
    // Without waiting for anything: a service manager's restart changes nothing.
    expect(await cluster.exec(gone, [...noded, "run"])).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("this host was node host-2") as string,
    });

    const token = (await cluster.run(["token", "create"])).stdout.trim();
    const [manager, host] = cluster.hosts.map(({ address }) => address);
    const flags = ["--manager", manager ?? "", "--token", token, "--name", gone, "--underlay", host ?? ""];
    expect(await cluster.exec(gone, [...noded, "join", ...flags])).toMatchObject({ code: 0 });
    await cluster.start(gone);
    await cluster.untilTrue("the task finds its data", async () => (await rows()) === "up\nstopped\nup\n");
    await cluster.until(
      "it runs on both hosts",
      (tasks) => tasks.filter(({ task, status }) => task.stack === "s" && status?.state === "running").length === 2,
    );
  });

  it("is no home of the volumes that lie on it, until its user has them used there again", async () => {
    expect(await rows("d_data")).toMatch(/^up\n(stopped\nup\n)*stopped\n$/);
    const before = await rows("d_data");
    await cluster.until("its task began anew elsewhere", (tasks) =>
      tasks.some(({ task, nodeName }) => task.stack === "d" && nodeName === "host-1"),
    );
    await cluster.run(["rm", "d"]);
    await cluster.run(["volume", "rm", "d_data", "--node", "host-1"]);
    await cluster.deployText("d", onGone);
    await cluster.untilTrue("the task finds its data", async () => (await rows("d_data")) === `${before}up\n`);
  });
});
