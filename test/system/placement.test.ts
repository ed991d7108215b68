import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { pushBusybox } from "../cluster/busybox.ts";
import { type Cluster, startCluster } from "../cluster/cluster.ts";
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
});
