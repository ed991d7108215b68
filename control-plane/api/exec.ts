import type { ServerDuplexStream } from "@grpc/grpc-js";
import type { Clock } from "../../lib/clock/clock.ts";
import { ClusterError } from "../../lib/errors/errors.ts";
import { send } from "../../lib/grpc/server.ts";
import type { ExecInput, ExecOutput } from "../../proto/gen/embassy/v1/api.ts";
import { type Task, TaskState } from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { taskView } from "../domain/progress.ts";
import { hasEnded, observedState, observedStatus, taskName } from "../domain/tasks.ts";
import type { Agents } from "./agents.ts";
import { resolveTasks } from "./resolve.ts";

const mostTold = 3;

/** The task that a command is to run in: the one running task that the target names. Throws what the others wait for. */
export function targetOf(index: ClusterIndex, target: string, nowMs: number): Task {
  const tasks = resolveTasks(index, target);
  const running = tasks.filter((task) => observedState(index.view, task) === TaskState.TASK_STATE_RUNNING);
  const [only] = running;
  if (only !== undefined && running.length === 1) return only;
  const names = running.map((task) => taskName(index.view, task));
  if (names.length > 1) {
    throw new ClusterError(`${target} has ${names.length} running tasks`, {
      code: "invalid",
      subject: target,
      hint: `Say which: ${names.slice(0, 8).join(", ")}.`,
    });
  }
  const slots = [...Map.groupBy(tasks, (task) => taskName(index.view, task))];
  const told = slots.slice(0, mostTold).flatMap(([name, ofSlot]) => {
    const newest = ofSlot.toSorted((a, b) => b.epoch - a.epoch)[0];
    return newest === undefined ? [] : { name, why: whyNotRunning(index, newest, nowMs) };
  });
  const [first] = told;
  const more = slots.length > told.length ? `; and ${slots.length - told.length} more` : "";
  const each = told.map(({ name, why }) => `${name} ${why}`).join("; ");
  const several = `no task of ${target} is running${each === "" ? "" : `: ${each}${more}`}`;
  throw new ClusterError(told.length === 1 ? `${first?.name} is not running: it ${first?.why}` : several, {
    code: "not-found",
    subject: target,
    hint: "`clusterctl ps --all` shows its tasks and what became of them.",
  });
}

/** What became of a task, and what its slot waits for: "ended with exit code 3, and is tried again in 5 s". */
function whyNotRunning(index: ClusterIndex, task: Task, nowMs: number): string {
  const { state, message, exitCode, oomKilled } = observedStatus(index.view, task);
  if (!hasEnded(state)) {
    if (task.unplaced !== "") return `has no place: ${task.unplaced}`;
    if (task.waitsFor !== "") return `waits for ${task.waitsFor}`;
    return `has not started yet${message === "" ? "" : `: ${message}`}`;
  }
  const { retryAtMs, gaveUp } = taskView(index, task, isNewest(index, task));
  const next =
    gaveUp !== ""
      ? `, and is not tried again: ${gaveUp}`
      : retryAtMs > 0
        ? `, and is tried again in ${Math.max(1, Math.ceil((retryAtMs - nowMs) / 1_000))} s`
        : "";
  switch (state) {
    case TaskState.TASK_STATE_COMPLETE:
      return `has done its work${next}`;
    case TaskState.TASK_STATE_FAILED:
      return `ended ${oomKilled ? "out of memory" : `with exit code ${exitCode}`}${next}`;
    case TaskState.TASK_STATE_REJECTED:
      return `could not be started (${message})${next}`;
    case TaskState.TASK_STATE_ORPHANED:
      return "was on a node that is gone";
    default:
      return "was stopped";
  }
}

function isNewest(index: ClusterIndex, task: Task): boolean {
  const name = taskName(index.view, task);
  return index
    .tasksOfService(task.serviceId)
    .every((other) => other.epoch <= task.epoch || taskName(index.view, other) !== name);
}

/** Carries one exec between the caller and the node's agent, both ways at the speed of the slower. */
export async function proxyExec(
  { index, agents, clock }: { readonly index: ClusterIndex; readonly agents: Agents; readonly clock: Clock },
  call: ServerDuplexStream<ExecInput, ExecOutput>,
  signal: AbortSignal,
): Promise<void> {
  const input = call[Symbol.asyncIterator]() as AsyncIterator<ExecInput>;
  const first = await input.next();
  const message = first.done === true ? undefined : first.value.message;
  if (message?.$case !== "start") {
    throw new ClusterError("the first message of an exec says what to run", { code: "invalid" });
  }
  const task = targetOf(index, message.value.target, clock.nowMs());
  using agent = agents.open(task.nodeId);
  const upstream = agent.client.exec();
  const cancel = () => upstream.cancel();
  signal.addEventListener("abort", cancel, { once: true });
  const forward = async () => {
    await send(upstream, { message: { $case: "start", value: { ...message.value, target: task.id } } }, signal);
    for (;;) {
      const next = await input.next();
      if (next.done === true) break;
      await send(upstream, next.value, signal);
    }
    upstream.end();
  };
  // The end of the command is the end of the call; input that comes later has nobody to read it.
  forward().catch(() => upstream.cancel());
  try {
    for await (const output of agent.messages<ExecOutput>(upstream)) await send(call, output, signal);
  } catch (error) {
    signal.throwIfAborted();
    throw error;
  } finally {
    signal.removeEventListener("abort", cancel);
  }
}
