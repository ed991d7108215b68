import { randomBytes } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { pushBusybox } from "../cluster/busybox.ts";
import { type Cluster, startCluster } from "../cluster/cluster.ts";
import { busyboxImage } from "../images/busybox.ts";
import { layerOfDirectory } from "../images/image.ts";
import { running } from "./counter.ts";

describe("where tasks run", () => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster({ hosts: 3 });
    await pushBusybox(cluster);
  });
  afterAll(async () => await cluster?.[Symbol.asyncDispose]());

  const napping = (name: string, deploy: string, more = "") =>
    `services: {${name}: {image: "${cluster.registry}/busybox:1", command: [sleep, "1000"], init: true, deploy: ${deploy}${more}}}`;
  const hostsOf = async (service: string) =>
    running(await cluster.tasks(), service)
      .map(({ nodeName }) => nodeName)
      .sort();

  it("is where a large image is already, rather than on a node that is a little emptier", async () => {
    const directory = await mkdtemp(join(tmpdir(), "embassy-large-"));
    try {
      await writeFile(join(directory, "filling"), randomBytes(101_000_000));
      const filling = await layerOfDirectory(directory, { owner: "0:0" });
      await cluster.push("large", "1", await busyboxImage({}, [filling]));
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
    const service = (name: string, more = "") =>
      `${name}: {image: "${cluster.registry}/large:1", command: [sleep, "1000"], init: true${more}}`;
    const onHost2 = ", deploy: {placement: {constraints: [node.hostname == host-2]}}";
    await cluster.deployText("first", `services: {${service("one", onHost2)}}`);
    // It tells when its session begins; that it does later takes a minute.
    await cluster.restartWith("host-2", "noded", []);
    await cluster.untilNodes("host-2 tells of its image", (nodes) =>
      nodes.some(({ spec, status }) => spec.name === "host-2" && status?.images.length === 1),
    );
    await cluster.deployText("more", `services: {${["two", "three", "four"].map((name) => service(name)).join(", ")}}`);
    for (const name of ["two", "three", "four"]) expect(await hostsOf(name)).toEqual(["host-2"]);
    expect((await cluster.run(["why", "more_four", "host-2"])).stdout).toMatch(/host-2 +\d+ +1000 +-5 /);
    await cluster.run(["rm", "first", "more"]);
  });

  it("is where the resources are that a node was started with", async () => {
    const text = napping(
      "train",
      "{replicas: 2, resources: {reservations: {generic_resources: [{discrete_resource_spec: {kind: gpu, value: 2}}]}}}",
    );
    const refused = await cluster
      .deployText("gpus", text, ["--timeout", "1s"])
      .catch((error: unknown) => String(error));
    expect(refused).toContain("3 nodes: 2 gpu needed, none there");

    await cluster.restartWith("host-2", "noded", ["--generic-resource", "gpu=3"]);
    await cluster.until("one runs, and the third gpu is not enough for the other", (tasks) => {
      return tasks.some(({ task }) => task.unplaced !== "") && running(tasks, "train").length === 1;
    });
    expect(await hostsOf("train")).toEqual(["host-2"]);
    const { stdout } = await cluster.run(["inspect", "node/host-2"]);
    expect(JSON.parse(stdout)).toMatchObject({ status: { description: { generic: { gpu: 3 } } } });

    await cluster.restartWith("host-3", "noded", ["--generic-resource", "gpu=2"]);
    await cluster.until("both run", (tasks) => running(tasks, "train").length === 2);
    expect(await hostsOf("train")).toEqual(["host-2", "host-3"]);
    await cluster.run(["rm", "gpus"]);
  });

  it("is not where a taint keeps off who does not tolerate it", async () => {
    const taints = async () => await cluster.run(["nodes"]);
    expect((await cluster.run(["node", "taint", "host-1", "gpu=a100:no-execute"])).stderr).toBe(
      "host-1 has the taint gpu=a100:no-execute\n",
    );
    await cluster.deployText("web", napping("web", "{replicas: 2}"));
    expect(await hostsOf("web")).toEqual(["host-2", "host-3"]);
    const tolerations = ", x-placement: {tolerations: [{key: gpu, value: a100}]}";
    await cluster.deployText("driver", napping("driver", "{mode: global}", tolerations));
    expect(await hostsOf("driver")).toEqual(["host-1", "host-2", "host-3"]);

    // What runs there moves.
    await cluster.run(["node", "taint", "host-2", "mending:no-execute"]);
    await cluster.until(
      "host-2 is empty, and all that it had runs elsewhere",
      (tasks) => !tasks.some(({ nodeName }) => nodeName === "host-2") && running(tasks, "web").length === 2,
    );
    expect(await hostsOf("web")).toEqual(["host-3", "host-3"]);
    expect(await hostsOf("driver")).toEqual(["host-1", "host-3"]);
    expect((await taints()).stdout).toMatch(/host-1 .*gpu=a100:no-execute[\s\S]*host-2 .*mending:no-execute/);

    await cluster.run(["node", "taint", "host-1", "gpu-"]);
    await cluster.run(["node", "taint", "host-2", "mending-"]);
    await cluster.until("the global one is everywhere", (tasks) => running(tasks, "driver").length === 3);
    expect((await taints()).stdout).not.toContain("no-execute");
    await cluster.run(["rm", "web"]);
    await cluster.run(["rm", "driver"]);
  });

  it("can be the managers' hosts, or the others", async () => {
    const only = (role: string) => `{mode: global, placement: {constraints: [node.role == ${role}]}}`;
    await cluster.deployText(
      "roles",
      `${napping("near", only("manager")).slice(0, -1)}, ${napping("far", only("worker")).slice("services: {".length)}`,
    );
    expect(await hostsOf("near")).toEqual(["host-1"]);
    expect(await hostsOf("far")).toEqual(["host-2", "host-3"]);
    await cluster.run(["rm", "roles"]);
  });

  it("is even over zones within max_skew, and beside the service that it wants to be near", async () => {
    for (const [host, zone] of [
      ["host-1", "a"],
      ["host-2", "a"],
      ["host-3", "b"],
    ] as const) {
      await cluster.run(["node", "label", host, `zone=${zone}`]);
    }
    const near = napping(
      "near",
      "{replicas: 2}",
      ", x-placement: {affinity: [{service: even, over: node.labels.zone, weight: 100}]}",
    );
    const even = napping(
      "even",
      "{replicas: 1}",
      ", x-placement: {affinity: [{node: node.labels.zone == b, weight: 100}]}",
    );
    // One after the other: each draws the other to where it is.
    await cluster.deployText("wishes", even);
    expect(await hostsOf("even")).toEqual(["host-3"]);
    await cluster.deployText("wishes", `${near.slice(0, -1)}, ${even.slice("services: {".length)}`);
    expect(await hostsOf("near")).toContain("host-3");
    await cluster.run(["rm", "wishes"]);

    const skew = ", x-placement: {spread: [{over: node.labels.zone, max_skew: 1}]}";
    await cluster.deployText("skewed", napping("skewed", "{replicas: 4, placement: {max_replicas_per_node: 2}}", skew));
    expect((await hostsOf("skewed")).filter((host) => host === "host-3")).toHaveLength(2);
    const waits = await cluster.clusterctl(["scale", "skewed_skewed=6", "--timeout", "1s"]);
    expect(waits.stderr).toContain("node.labels.zone a would have 4 tasks, the emptiest 2: more than maxSkew 1");
    expect(await hostsOf("skewed")).toHaveLength(5);
    await cluster.run(["rm", "skewed"]);
  });

  it("is made free by tasks of lower priority, which end first and come back when there is room", async () => {
    await cluster.restartWith("host-2", "noded", ["--generic-resource", "seat=2"]);
    const seats = (count: number) =>
      `resources: {reservations: {generic_resources: [{discrete_resource_spec: {kind: seat, value: ${count}}}]}}`;
    // It takes its time to stop: who gets its seats starts no earlier.
    const slow = `command: [sh, -c, "trap 'sleep 1; exit 0' TERM; sleep 1000 & wait"]`;
    const batch = `services: {batch: {image: "${cluster.registry}/busybox:1", ${slow}, deploy: {replicas: 2, ${seats(1)}}, x-disruption: {min_available: 1}}}`;
    await cluster.untilNodes("host-2 is ready", (nodes) => nodes.every(({ status }) => status?.state === "ready"));
    await cluster.deployText("batch", batch);
    const vital = (count: number) => napping("vital", `{${seats(count)}}`, ", x-priority: 10");
    const refused = await cluster.deployText("vital", vital(2), ["--timeout", "1s"]).catch(String);
    expect(refused).toContain("2 nodes: 2 seat needed, none there; 1: 2 seat needed, 0 free");
    expect(running(await cluster.tasks(), "batch")).toHaveLength(2);

    await cluster.deployText("vital", vital(1));
    const tasks = await cluster.tasks({ all: true });
    const [won] = running(tasks, "vital");
    const lost = tasks.find(({ task, status }) => task.serviceName === "batch" && status?.state === "shutdown");
    expect(won?.nodeName).toBe("host-2");
    expect(lost?.status?.message).toBe("preempted by vital_vital.1");
    expect(lost?.status?.finishedAtMs).toBeLessThanOrEqual(won?.status?.startedAtMs ?? 0);
    expect((await cluster.run(["ps", "batch"])).stdout).toMatch(
      /pending .*preempted by vital_vital\.1; 2 nodes: 1 seat needed, none there; 1: 1 seat needed, 0 free/,
    );

    await cluster.run(["rm", "vital"]);
    await cluster.until("both are back", (now) => running(now, "batch").length === 2);
    await cluster.run(["rm", "batch"]);
  });
});
