import { describe, expect, it } from "vitest";
import { ServiceProgress, type TaskView, TaskView as TaskViews } from "../../proto/gen/embassy/v1/api.ts";
import { Health, TaskState } from "../../proto/gen/embassy/v1/state.ts";
import { describe as describeService } from "./follow.ts";
import { heldBy, isSettled, judge, patience } from "./judge.ts";

function task(
  id: string,
  more: { unplaced?: string; state?: TaskState; message?: string; exitCode?: number },
): TaskView {
  return TaskViews.fromPartial({
    task: { id, serviceName: "web", slot: 2, unplaced: more.unplaced ?? "" },
    status: {
      taskId: id,
      state: more.state ?? TaskState.TASK_STATE_PENDING,
      message: more.message ?? "",
      exitCode: more.exitCode ?? 0,
    },
    nodeName: more.unplaced ? "" : "host-1",
  });
}

function service(problems: readonly TaskView[], old = 0): ServiceProgress {
  return ServiceProgress.fromPartial({ name: "web", desired: 2, running: 1, old, problems: [...problems] });
}

const unplaced = task("a", { unplaced: "no node fits: 3 are short of memory" });
const rejected = task("b", { state: TaskState.TASK_STATE_REJECTED, message: "manifest unknown" });
const failed = (id: string) => task(id, { state: TaskState.TASK_STATE_FAILED, exitCode: 1 });

const none: ReadonlySet<string> = new Set();

describe("judge", () => {
  it("gives up on a task that fits nowhere, with the reason", () => {
    expect(judge(service([unplaced]), patience.unplacedMs - 1, none, 0)).toBeUndefined();
    expect(judge(service([unplaced]), patience.unplacedMs, none, 0)).toEqual({
      service: "web",
      task: "web.2",
      taskId: "a",
      kind: "unplaced",
      why: "has no place: no node fits: 3 are short of memory",
      triedAgain: true,
    });
  });

  it("gives a task that fits nowhere longer while old ones hold the places", () => {
    expect(judge(service([unplaced], 1), patience.unplacedMs, none, 0)).toBeUndefined();
    expect(judge(service([unplaced], 1), patience.unplacedBehindOldMs, none, 0)).toBeDefined();
  });

  it("gives up on a task that cannot be started, in the node's words", () => {
    expect(judge(service([rejected]), patience.rejectedMs - 1, none, 0)).toBeUndefined();
    expect(judge(service([rejected]), patience.rejectedMs, none, 0)?.why).toBe(
      "cannot be started on host-1: manifest unknown",
    );
  });

  it("bears with a service that crashes a few times while others start", () => {
    const crashing = service([failed("c")]);
    expect(judge(crashing, patience.failedMs, none, 2)).toBeUndefined();
    expect(judge(crashing, patience.failedMs - 1, none, 3)).toBeUndefined();
    expect(judge(crashing, patience.failedMs, none, 3)?.why).toBe("ended on host-1 (exit code 1)");
    const words = task("f", { state: TaskState.TASK_STATE_FAILED, exitCode: 1, message: "exited with code 1" });
    expect(judge(service([words]), patience.failedMs, none, 3)?.why).toBe("ended on host-1 (exit code 1)");
  });

  it("gives up at once on a task that gave up, whenever that was", () => {
    const task = { ...failed("g"), gaveUp: "it was restarted 2 times, as often as max_attempts allows" };
    const last = { ...task, task: task.task && { ...task.task, restarts: 2 } };
    expect(judge(service([last]), 0, new Set(["g"]), 0)).toMatchObject({
      why: "ended on host-1 (exit code 1); gave up after 3 attempts",
      triedAgain: false,
    });
  });

  it("leaves what goes back by itself to that, for as long as it is watched and a little more", () => {
    const gaveUp = { ...failed("g"), gaveUp: "its restart condition is none" };
    const watched = { ...service([gaveUp]), revertsAfterMs: 60_000 };
    expect(judge(watched, 60_000 + patience.revertsMs - 1, none, 9)).toBeUndefined();
    expect(judge(watched, 60_000 + patience.revertsMs, none, 0)).toBeDefined();
  });

  it("counts an end with exit code 0 of what is to go on for ever", () => {
    const ended = service([task("c", { state: TaskState.TASK_STATE_COMPLETE })]);
    expect(judge(ended, patience.failedMs, none, 3)?.why).toBe(
      "ended on host-1 (exit code 0), and is to go on for ever",
    );
  });

  it("does not count failures from before the deploy", () => {
    expect(judge(service([rejected]), patience.rejectedMs, new Set(["b"]), 0)).toBeUndefined();
  });
});

describe("heldBy", () => {
  it("is what waits for what has failed, through others too, and not what waits for others", () => {
    const one = (name: string, ...waitsOn: string[]) => ServiceProgress.fromPartial({ name, waitsOn });
    const services = [one("proxy", "web"), one("web", "db", "job"), one("job"), one("cache", "db"), one("db", "cache")];
    expect([...heldBy(services, new Set(["job"]))].sort()).toEqual(["proxy", "web"]);
    expect(heldBy(services, none).size).toBe(0);
  });
});

describe("what a service is still short of", () => {
  const base = { task: { id: "w", serviceName: "web", slot: 2 }, nodeName: "host-1" };
  const running = TaskState.TASK_STATE_RUNNING;
  it.each([
    [
      { ...base, status: { state: running, health: Health.HEALTH_UNHEALTHY, message: "exit code 1" } },
      "web.2 is unhealthy (exit code 1)",
    ],
    [{ ...base, status: { state: running, health: Health.HEALTH_STARTING } }, "web.2 is not healthy yet"],
    [{ ...base, task: { ...base.task, waitsFor: "db to be healthy" } }, "web.2 waits for db to be healthy"],
  ])("is told, and is no failure: %o", (view, words) => {
    const progress = service([TaskViews.fromPartial(view)]);
    expect(describeService(progress)).toBe(`web  1/2 running; ${words}`);
    expect(judge(progress, 1e9, none, 9)).toBeUndefined();
  });
});

describe("an update", () => {
  const update = { name: "web", desired: 3, running: 0, old: 3, oldRunning: 3 };

  it("is told by what still serves, until the old ones are asked to stop", () => {
    const told = (more: object) => describeService(ServiceProgress.fromPartial({ ...update, ...more }));
    expect(told({})).toBe("web  0/3 updated, 3 from before");
    expect(told({ running: 1, oldRunning: 1 })).toBe("web  1/3 updated, 1 from before, 2 to stop");
    expect(told({ running: 3, old: 1, oldRunning: 0 })).toBe("web  3/3 running, 1 to stop");
  });
});

describe("isSettled", () => {
  it("counts work that is done, and the line says so", () => {
    const done = ServiceProgress.fromPartial({ name: "job", desired: 1, running: 1, completed: 1 });
    expect(describeService(done)).toBe("job  1/1 completed");
    expect(isSettled(done)).toBe(true);
    expect(describeService({ ...done, desired: 3, running: 2 })).toBe("job  2/3 running, 1 of them completed");
  });

  it("means enough running and nothing old", () => {
    expect(isSettled(ServiceProgress.fromPartial({ desired: 2, running: 2 }))).toBe(true);
    expect(isSettled(ServiceProgress.fromPartial({ desired: 2, running: 1 }))).toBe(false);
    expect(isSettled(ServiceProgress.fromPartial({ desired: 2, running: 2, old: 1 }))).toBe(false);
  });
});
