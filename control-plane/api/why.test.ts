import { describe, expect, it } from "vitest";
import { WhyRequest, type WhyResponse } from "../../proto/gen/embassy/v1/api.ts";
import { Placement, Resources, type ServiceSpec } from "../../proto/gen/embassy/v1/stack.ts";
import { Availability, TaskState } from "../../proto/gen/embassy/v1/state.ts";
import { SteppedCluster } from "../controllers/testing.ts";
import { aService, aStack, replicas } from "../domain/testing.ts";
import { why } from "./why.ts";

const reserving = (milliCpus: number) => ({
  resources: Resources.create({ reservations: { milliCpus, memoryBytes: 0, pids: 0, generic: {} } }),
});

async function three(...services: ServiceSpec[]): Promise<SteppedCluster> {
  const cluster = new SteppedCluster();
  await cluster.addNodes("a", "b", "c");
  await cluster.deploy(aStack("s", services));
  await cluster.settle();
  return cluster;
}

async function ask(cluster: SteppedCluster, target: string, node = ""): Promise<WhyResponse> {
  return await why(cluster.index, WhyRequest.create({ target, node }), cluster.nowMs);
}

describe("why", () => {
  it("a task runs where it does: its node is the cheapest with its own place counted as free", async () => {
    using cluster = await three(aService("web", { mode: replicas(3), ...reserving(1_000) }));
    const { revision } = cluster.index.view;
    for (const { slot, nodeId } of cluster.tasks("s", "web")) {
      const answer = await ask(cluster, `s_web.${slot}`, nodeId);
      expect(answer).toMatchObject({ service: "s_web", subject: `s_web.${slot}`, nodes: 3, fitting: 3, why: "" });
      expect(answer.candidates).toHaveLength(3);
      expect(answer.candidates[0]?.nodeName).toBe(nodeId);
      expect(answer.candidates[1]?.terms).toContainEqual({ name: "service", points: 1_000 });
      expect(answer.present?.score).toEqual(answer.candidates[0]);
      expect(answer.asked).toEqual(answer.present);
    }
    expect(cluster.index.view.revision).toBe(revision);
  });

  it("a task waits: counts by reason and class, the nearest miss and what would make it fit, as its record says", async () => {
    using cluster = await three(aService("db", { mode: replicas(2), ...reserving(5_000) }));
    await cluster.drain("c");
    await cluster.settle();
    const answer = await ask(cluster, "db.1");
    expect(answer).toMatchObject({
      subject: "s_db.1",
      nodes: 3,
      fitting: 0,
      candidates: [],
      why: "2 nodes: 5 CPU needed, 4 free; 1: node is drained",
      refusals: [
        { kind: "resources", nodes: 2, classes: [{ name: "linux/amd64 worker", nodes: 2 }] },
        { kind: "availability", nodes: 1 },
      ],
      nearest: { reasons: [{ fix: expect.stringMatching(/^Free 1 CPU on node [ab], or lower the reservation\.$/) }] },
      present: undefined,
    });
    // Of the service: one of those that wait.
    expect(await ask(cluster, "s_db")).toMatchObject({ subject: "s_db.1", why: answer.why, tasks: [{}, {}] });
  });

  it("a task waits although a node would take it: as its record says", async () => {
    using cluster = await three(aService("web", { mode: replicas(1) }));
    const [task] = cluster.tasks("s", "web");
    if (task === undefined) throw new Error("it has a task");
    await cluster.store.commit([
      { table: "tasks", id: task.id, value: { ...task, nodeId: "", unplaced: "network s_default is full" } },
      { table: "taskStatuses", id: task.id, value: undefined },
    ]);
    expect(await ask(cluster, "s_web.1")).toMatchObject({ fitting: 3, why: "network s_default is full" });
  });

  it("a node would do or not, for one task more of a service", async () => {
    const placement = Placement.create({ constraints: ["node.hostname != b"] });
    using cluster = await three(aService("web", { mode: replicas(2), placement }));
    expect(await ask(cluster, "web", "a")).toMatchObject({ subject: "", fitting: 2, asked: { reasons: [] } });
    expect(await ask(cluster, "web", "b")).toMatchObject({
      asked: {
        score: { nodeName: "b" },
        reasons: [{ kind: "constraint", why: "constraint node.hostname != b not met" }],
      },
      refusals: [{ kind: "constraint", nodes: 1 }],
    });
    await cluster.setAvailability("a", Availability.AVAILABILITY_PAUSE);
    const onA = cluster.tasks("s", "web").find(({ nodeId }) => nodeId === "a");
    expect((await ask(cluster, onA?.id ?? "")).present?.reasons).toMatchObject([{ why: "node is paused" }]);
  });

  it("tells of a global service which nodes may run it, its own tasks not counted, and of its task its own node", async () => {
    const global = aService("agent", { mode: { $case: "global", value: {} }, ...reserving(3_000) });
    using cluster = await three(global);
    expect(await ask(cluster, "s_agent", "b")).toMatchObject({
      global: true,
      nodes: 3,
      fitting: 3,
      asked: { reasons: [] },
    });
    expect(await ask(cluster, "s_agent.b")).toMatchObject({ subject: "s_agent.b", nodes: 1, fitting: 1 });
  });

  it("tells of a service without tasks where one would go, and of a slot its newest task", async () => {
    using cluster = await three(aService("web", { mode: replicas(0) }), aService("job", { mode: replicas(1) }));
    expect(await ask(cluster, "web")).toMatchObject({ tasks: [], subject: "", fitting: 3 });
    const [task] = cluster.tasks("s", "job");
    if (task === undefined) throw new Error("it has a task");
    await cluster.report(task, TaskState.TASK_STATE_FAILED);
    const ended = await ask(cluster, "job.1");
    expect(ended).toMatchObject({
      nodes: 0,
      candidates: [],
      tasks: [{ task: { id: task.id }, retryAtMs: expect.any(Number) }],
    });
    cluster.nowMs += 60_000;
    await cluster.settle();
    const next = await ask(cluster, "job.1", task.nodeId);
    expect(next.tasks[0]?.task?.id).not.toBe(task.id);
    // It failed there, and so goes elsewhere.
    expect(next.asked?.score?.terms).toContainEqual({ name: "failures", points: 500 });
    expect(next.candidates[0]?.nodeName).not.toBe(task.nodeId);
    expect((await ask(cluster, task.id)).nodes).toBe(0);
  });

  it.each([
    ["s_nope", "", "there is no service s_nope"],
    ["s_web.9", "", "there is no task s_web.9"],
    ["s", "", "s is a stack, not a service"],
    ["web", "", "web is a service of several stacks"],
    ["s_web", "z", "there is no node z"],
  ])("%s %s: %s", async (target, node, message) => {
    using cluster = await three(aService("web"));
    await cluster.deploy(aStack("t", [aService("web")]));
    await expect(ask(cluster, target, node)).rejects.toThrow(message);
  });
});
