import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { pushBusybox } from "../cluster/busybox.ts";
import { type Cluster, startCluster } from "../cluster/cluster.ts";

describe("a node whose disk is full", () => {
  const tasksDirectory = "/var/lib/embassy/noded/tasks";
  let cluster: Cluster;
  let image: string;
  beforeAll(async () => {
    cluster = await startCluster({ hosts: 2 });
    image = await pushBusybox(cluster);
    // The disk that holds what noded writes down of its tasks, small enough to fill.
    await cluster.kill("host-2", "noded");
    const mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tasksDirectory];
    expect(await cluster.exec("host-2", mount)).toMatchObject({ code: 0 });
    await cluster.start("host-2", "noded");
    await cluster.untilNodes("host-2 is ready", (nodes) => nodes.every(({ status }) => status?.state === "ready"));
  });
  afterAll(async () => await cluster?.[Symbol.asyncDispose]());

  const onHost2 = (name: string) =>
    [
      "services:",
      `  ${name}:`,
      `    image: ${image}`,
      "    command: [sleep, '3600']",
      "    stop_grace_period: 1s",
      "    deploy:",
      "      placement: {constraints: [node.hostname == host-2]}",
    ].join("\n");
  const of = async (name: string) => (await cluster.tasks()).filter(({ task }) => task.serviceName === name);

  it("keeps what runs, says why nothing new starts, still stops what it is asked to, and goes on when there is room", async () => {
    await cluster.deployText("early", onHost2("app"));
    const [before] = await of("app");
    const fill = [
      "sh",
      "-c",
      `dd if=/dev/zero of=${tasksDirectory}/fill bs=4k 2>/dev/null; test -e ${tasksDirectory}/fill`,
    ];
    expect(await cluster.exec("host-2", fill)).toMatchObject({ code: 0 });

    await expect(cluster.deployText("late", onHost2("more"))).rejects.toThrow(
      /host-2: the node cannot write it down: .*no space left on device/,
    );
    const nodes = await cluster.nodes();
    expect(nodes.map(({ status }) => status?.state)).toEqual(["ready", "ready"]);
    const [after] = await of("app");
    expect([after?.task.id, after?.status?.pid]).toEqual([before?.task.id, before?.status?.pid]);

    await cluster.run(["rm", "early"]);
    await cluster.until("app is gone", (tasks) => tasks.every(({ task }) => task.serviceName !== "app"));

    expect(await cluster.exec("host-2", ["rm", `${tasksDirectory}/fill`])).toMatchObject({ code: 0 });
    await cluster.until("what was rejected runs", (tasks) =>
      tasks.some(({ task, status }) => task.serviceName === "more" && status?.state === "running"),
    );
  });
});
