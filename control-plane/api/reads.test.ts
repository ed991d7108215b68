import { expect, it } from "vitest";
import { ListTasksRequest } from "../../proto/gen/embassy/v1/api.ts";
import {
  ContainerSpec,
  Protocol,
  PublishedPort,
  PublishMode,
  RestartCondition,
  RestartPolicy,
} from "../../proto/gen/embassy/v1/stack.ts";
import { BusyPort, Health, NodeState, NodeStatus, TaskState } from "../../proto/gen/embassy/v1/state.ts";
import { SteppedCluster } from "../controllers/testing.ts";
import { stackProgress } from "../domain/progress.ts";
import { aService, aStack, replicas } from "../domain/testing.ts";
import { listServices, listTasks } from "./reads.ts";

const web = (image: string) =>
  aService("web", { mode: replicas(2), container: ContainerSpec.create({ image: `registry/${image}` }) });

it("a service's running tasks are those that serve, of any version; a stack's progress is of the newest", async () => {
  using cluster = new SteppedCluster();
  await cluster.addNodes("a");
  await cluster.deploy(aStack("s", [web("web:1")]));
  await cluster.settle();
  const listed = () => listServices(cluster.index, "s").services[0];
  expect(listed()).toMatchObject({ desired: 2, running: 2 });
  await cluster.deploy(aStack("s", [web("web:2")]));
  expect(listed()).toMatchObject({ desired: 2, running: 2 });
  expect(stackProgress(cluster.index, "s").services[0]).toMatchObject({
    desired: 2,
    running: 0,
    old: 2,
    oldRunning: 2,
  });
});

it("an unhealthy task does not count as running, and is told as what keeps its service back", async () => {
  using cluster = new SteppedCluster();
  await cluster.addNodes("a");
  await cluster.deploy(aStack("s", [web("web:1")]));
  await cluster.settle();
  const [task] = cluster.tasks("s", "web");
  if (task === undefined) throw new Error("no task");
  const health = { health: Health.HEALTH_UNHEALTHY, message: "unhealthy: no answer" };
  await cluster.report(task, TaskState.TASK_STATE_RUNNING, health);
  expect(listServices(cluster.index, "s").services[0]).toMatchObject({ desired: 2, running: 1 });
  expect(stackProgress(cluster.index, "s").services[0]).toMatchObject({
    running: 1,
    problems: [{ task: { id: task.id }, status: { message: "unhealthy: no answer" } }],
  });
});

const listed = (cluster: SteppedCluster, request: Partial<ListTasksRequest> = {}) =>
  listTasks(cluster.index, ListTasksRequest.create(request), cluster.nowMs).tasks;

it("a slot that waits for its next attempt shows its last one and when that begins; one that gave up, why", async () => {
  using cluster = new SteppedCluster();
  await cluster.addNodes("a");
  const restart = RestartPolicy.create({
    condition: RestartCondition.RESTART_CONDITION_ON_FAILURE,
    maxAttempts: 1,
    delayMs: 5_000,
  });
  cluster.crashing.add("web");
  await cluster.deploy(aStack("s", [aService("web", { mode: replicas(1), restart })]));
  await cluster.settle();
  expect(listed(cluster)).toMatchObject([
    { status: { state: TaskState.TASK_STATE_FAILED }, retryAtMs: cluster.nowMs + 5_000, gaveUp: "" },
  ]);
  cluster.nowMs += 5_000;
  await cluster.settle();
  expect(listed(cluster)).toMatchObject([
    {
      task: { restarts: 1 },
      status: { state: TaskState.TASK_STATE_FAILED },
      retryAtMs: 0,
      gaveUp: "it was restarted once, as often as max_attempts allows",
    },
  ]);
  expect(listed(cluster, { node: "a" })).toHaveLength(1);
  // Of all tasks only the newest says what comes next, and it comes first.
  expect(listed(cluster, { all: true })).toMatchObject([
    { task: { epoch: 2 }, gaveUp: expect.stringContaining("restarted") },
    { task: { epoch: 1 }, gaveUp: "", retryAtMs: 0 },
  ]);
  expect(stackProgress(cluster.index, "s").services[0]?.problems).toMatchObject([
    { gaveUp: expect.stringContaining("restarted") },
  ]);
});

it("a job that has done its work is completed and does not run; a slot that is to be empty shows nothing", async () => {
  using cluster = new SteppedCluster();
  await cluster.addNodes("a");
  const restart = RestartPolicy.create({ condition: RestartCondition.RESTART_CONDITION_NONE });
  const job = (count: number) => aStack("s", [aService("job", { mode: replicas(count), restart })]);
  await cluster.deploy(job(2));
  await cluster.settle();
  const [first] = cluster.tasks("s", "job");
  if (first === undefined) throw new Error("no task");
  await cluster.report(first, TaskState.TASK_STATE_COMPLETE);
  await cluster.settle();
  expect(listServices(cluster.index, "s").services[0]).toMatchObject({ desired: 2, running: 1, completed: 1 });
  expect(stackProgress(cluster.index, "s").services[0]).toMatchObject({ desired: 2, running: 2, completed: 1 });
  expect(listed(cluster)).toMatchObject([
    { status: { state: TaskState.TASK_STATE_COMPLETE }, gaveUp: "", retryAtMs: 0 },
    { status: { state: TaskState.TASK_STATE_RUNNING } },
  ]);
  await cluster.deploy(job(0));
  await cluster.settle();
  expect(listed(cluster)).toEqual([]);
  expect(listServices(cluster.index, "s").services[0]).toMatchObject({ desired: 0, running: 0, completed: 0 });
});

it("tasks are in the order of their slots, as numbers, and of one slot the newest is first", async () => {
  using cluster = new SteppedCluster();
  await cluster.addNodes("a", "b");
  await cluster.deploy(aStack("s", [aService("web", { mode: replicas(11) })]));
  await cluster.settle();
  await cluster.deploy(
    aStack("s", [
      aService("web", { mode: replicas(11), container: ContainerSpec.create({ image: "registry/web:2" }) }),
    ]),
  );
  await cluster.settleFor(15);
  const order = listed(cluster, { all: true }).map(({ task }) => `${task?.slot}/${task?.epoch}`);
  expect(order).toEqual(Array.from({ length: 11 }, (_, n) => [`${n + 1}/2`, `${n + 1}/1`]).flat());
});

it("tasks on a drained node have to go, and are of no version before", async () => {
  using cluster = new SteppedCluster();
  await cluster.addNodes("a");
  await cluster.deploy(aStack("s", [web("web:1")]));
  await cluster.settle();
  await cluster.drain("a");
  expect(stackProgress(cluster.index, "s").services[0]).toMatchObject({ running: 0, old: 2, oldRunning: 0 });
});

it("a stack that runs is told which hosts do not publish its ports, and a task that must have one is placed elsewhere", async () => {
  using cluster = new SteppedCluster();
  await cluster.addNodes("a", "b", "c");
  const port = (published: number, more: Partial<PublishedPort> = {}) =>
    PublishedPort.create({ target: 80, published, mode: PublishMode.PUBLISH_MODE_INGRESS, ...more });
  const ports = [port(22), port(80, { hostIp: "0.0.0.0" }), port(53, { protocol: Protocol.PROTOCOL_UDP })];
  const busy = (id: string, ...busyPorts: Partial<BusyPort>[]) => {
    const status = NodeStatus.create(cluster.index.view.nodeStatuses.get(id));
    const value = { ...status, busyPorts: busyPorts.map((one) => BusyPort.create(one)) };
    return cluster.store.commit([{ table: "nodeStatuses", id, value }]);
  };
  const warnings = () => stackProgress(cluster.index, "s").warnings;
  await cluster.deploy(aStack("s", [aService("web", { mode: replicas(1), ports })]));
  await busy("a", { port: 22, by: "sshd (pid 7)" }, { port: 53 });
  expect(warnings()).toEqual([]);
  await cluster.settle();
  expect(warnings()).toEqual(["a does not publish port 22 of web: sshd (pid 7) listens there"]);
  // At another address, another protocol, or of nobody's: not this stack's.
  await busy("a", { port: 80, hostIp: "127.0.0.1", by: "x" }, { port: 53, by: "x" }, { port: 9, by: "x" });
  expect(warnings()).toEqual([]);
  await busy("b", { port: 80, by: "nginx" }, { port: 53, protocol: Protocol.PROTOCOL_UDP });
  expect(warnings()).toEqual([
    "b does not publish port 53/udp of web: a program of the host listens there",
    "b does not publish port 80 of web: nginx listens there",
  ]);
  await cluster.setNode("b", NodeState.NODE_STATE_DOWN);
  expect(warnings()).toEqual([]);

  await busy("a", { port: 90, by: "squid" });
  const held = [port(90, { mode: PublishMode.PUBLISH_MODE_HOST })];
  await cluster.deploy(aStack("h", [aService("web", { mode: replicas(2), ports: held })]));
  await cluster.settle();
  const tasks = cluster.tasks("h", "web");
  expect(tasks.map(({ nodeId }) => nodeId).sort()).toEqual(["", "c"]);
  expect(tasks.find(({ nodeId }) => nodeId === "")?.unplaced).toContain("port 90 held by squid");
});
