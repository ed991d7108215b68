import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { pushBusybox } from "../cluster/busybox.ts";
import { type Cluster, startCluster, type TaskView } from "../cluster/cluster.ts";

describe("a node whose disk is full", () => {
  const tasksDirectory = "/var/lib/embassy/noded/tasks";
  const imagesDirectory = "/var/lib/embassy/noded/images";
  let cluster: Cluster;
  let image: string;
  beforeAll(async () => {
    cluster = await startCluster({ hosts: 2 });
    image = await pushBusybox(cluster);
    // Disks for what noded writes down of its tasks and for its images, small enough to fill.
    await cluster.kill("host-2", "noded");
    const mount = async (directory: string, size: string) =>
      expect(
        await cluster.exec("host-2", ["mount", "-t", "tmpfs", "-o", `size=${size}`, "tmpfs", directory]),
      ).toMatchObject({ code: 0 });
    await mount(tasksDirectory, "256k");
    await mount(imagesDirectory, "64m");
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

  it("is given no new tasks when it is nearly full, keeps those that run, says so, and is given what waited when there is room", async () => {
    const isRunning = ({ task, status }: TaskView, name: string) =>
      task.serviceName === name && status?.state === "running";
    await cluster.deployText("early", onHost2("app"));
    const [before] = await of("app");
    const fill = ["dd", "if=/dev/zero", `of=${imagesDirectory}/fill`, "bs=1M", "count=59"];
    expect(await cluster.exec("host-2", fill)).toMatchObject({ code: 0 });
    await cluster.untilNodes("host-2 is low on disk", (nodes) =>
      nodes.some(({ spec, status }) => spec.name === "host-2" && status?.diskProblem !== ""),
    );
    expect((await cluster.run(["nodes"])).stdout).toMatch(
      /host-2 .*low disk .*the disk of \/var\/lib\/embassy\/noded\/images is nearly full: no new tasks until 9\.6 MiB of 64\.0 MiB/,
    );
    expect((await cluster.run(["info"])).stdout).toContain("2 of 2 ready, 1 of them low on disk");

    await cluster.deployText("bound", onHost2("waits"), ["--detach"]);
    await cluster.until("what may run there only waits, and says why", (tasks) =>
      tasks.some(({ task }) => task.serviceName === "waits" && task.unplaced.includes("disk is nearly full")),
    );
    const why = await cluster.run(["why", "bound_waits.1", "host-2"]);
    expect(why.stdout).toContain("disk is nearly full. Free disk space on node host-2.");
    await cluster.deployText("free", `services: {any: {image: "${image}", command: [sleep, "3600"], scale: 2}}`);
    expect((await of("any")).map(({ nodeName }) => nodeName)).toEqual(["host-1", "host-1"]);
    const [after] = await of("app");
    expect([after?.task.id, after?.status?.pid]).toEqual([before?.task.id, before?.status?.pid]);

    expect(await cluster.exec("host-2", ["rm", `${imagesDirectory}/fill`])).toMatchObject({ code: 0 });
    await cluster.until("what waited runs", (tasks) => tasks.some((one) => isRunning(one, "waits")));
    expect((await cluster.nodes()).map(({ status }) => status?.diskProblem)).toEqual(["", ""]);
  });
});
