import { expect, it } from "vitest";
import { Dependency, DependencyCondition, RestartCondition, RestartPolicy } from "../../proto/gen/embassy/v1/stack.ts";
import { TaskState } from "../../proto/gen/embassy/v1/state.ts";
import { SteppedCluster } from "../controllers/testing.ts";
import { aService, aStack, replicas } from "../domain/testing.ts";
import { targetOf } from "./exec.ts";

it("runs in the one task that runs, and says which there are when there are several", async () => {
  using cluster = new SteppedCluster();
  await cluster.addNodes("a");
  await cluster.deploy(aStack("s", [aService("web", { mode: replicas(2) }), aService("db", { mode: replicas(1) })]));
  await cluster.settle();
  const target = (word: string) => targetOf(cluster.index, word, cluster.nowMs);
  expect(target("db").slot).toBe(1);
  expect(target("s_web.2").slot).toBe(2);
  expect(() => target("web")).toThrow("web has 2 running tasks");
  expect(() => target("web.3")).toThrow("there is no task web.3");
});

it("says of a slot in which nothing runs what became of its task, and what it waits for", async () => {
  using cluster = new SteppedCluster();
  await cluster.addNodes("a");
  const restart = RestartPolicy.create({
    condition: RestartCondition.RESTART_CONDITION_ON_FAILURE,
    maxAttempts: 1,
    delayMs: 5_000,
  });
  cluster.crashing.add("bad");
  const condition = DependencyCondition.DEPENDENCY_CONDITION_COMPLETED;
  const dependencies = [Dependency.create({ service: "steady", condition })];
  await cluster.deploy(
    aStack("s", [
      aService("bad", { mode: replicas(1), restart }),
      aService("job", { mode: replicas(1), restart }),
      aService("later", { mode: replicas(1), dependsOn: dependencies }),
      aService("steady", { mode: replicas(1) }),
      aService("none", { mode: replicas(0) }),
    ]),
  );
  await cluster.settle();
  const [job] = cluster.tasks("s", "job");
  if (job !== undefined) await cluster.report(job, TaskState.TASK_STATE_COMPLETE);
  const why = (word: string) => () => targetOf(cluster.index, word, cluster.nowMs);
  expect(why("bad.1")).toThrow(/^s_bad\.1 is not running: it ended with exit code -?\d+, and is tried again in 5 s$/);
  expect(why("job")).toThrow("s_job.1 is not running: it has done its work");
  expect(why("later")).toThrow("s_later.1 is not running: it waits for steady to complete");
  expect(why("none")).toThrow(/^no task of none is running$/);
  await cluster.settleFor(6);
  expect(why("s_bad")).toThrow("and is not tried again: it was restarted once, as often as max_attempts allows");
});
