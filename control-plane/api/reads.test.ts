import { expect, it } from "vitest";
import { ContainerSpec } from "../../proto/gen/embassy/v1/stack.ts";
import { Health, TaskState } from "../../proto/gen/embassy/v1/state.ts";
import { SteppedCluster } from "../controllers/testing.ts";
import { stackProgress } from "../domain/progress.ts";
import { aService, aStack, replicas } from "../domain/testing.ts";
import { listServices } from "./reads.ts";

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
  expect(stackProgress(cluster.index, "s").services[0]).toMatchObject({ desired: 2, running: 0, old: 2 });
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
