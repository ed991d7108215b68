import { RestartCondition, type RestartPolicy } from "../../proto/gen/embassy/v1/stack.ts";
import { type Task, TaskState, type TaskStatus } from "../../proto/gen/embassy/v1/state.ts";

/** Tasks that ran for this long have not failed quickly: the delay starts anew. */
const settledMs = 60_000;
/** Delay after the second quick failure in a row when the policy names none; doubles from there. */
const defaultDelayMs = 500;
const longestDelayMs = 60_000;

export type RestartDecision =
  | { readonly kind: "never"; readonly why: string }
  | {
      readonly kind: "restart";
      /** When the next task may be made, by the clock that `observedAtMs` goes by. */
      readonly atMs: number;
      /** For the next task's record. */
      readonly restarts: number;
      readonly failures: number;
      readonly why: string;
    };

/** Did the task end by itself, so that its restart policy decides what comes next? */
export function endedByItself(state: TaskState): boolean {
  return (
    state === TaskState.TASK_STATE_COMPLETE ||
    state === TaskState.TASK_STATE_FAILED ||
    state === TaskState.TASK_STATE_REJECTED
  );
}

/**
 * What comes after a task that ended by itself. The first restart waits `delay_ms`; each further quick failure in a row
 * doubles that, up to a minute. A task that ran as long as the window counts as a success for `max_attempts`.
 */
export function decideRestart(policy: RestartPolicy | undefined, task: Task, status: TaskStatus): RestartDecision {
  const condition = policy?.condition ?? RestartCondition.RESTART_CONDITION_ANY;
  if (condition === RestartCondition.RESTART_CONDITION_NONE) {
    return { kind: "never", why: "its restart condition is none" };
  }
  const completed = status.state === TaskState.TASK_STATE_COMPLETE;
  if (condition === RestartCondition.RESTART_CONDITION_ON_FAILURE && completed) {
    return { kind: "never", why: "it has completed" };
  }
  const ranMs = status.startedAtMs > 0 ? Math.max(0, status.finishedAtMs - status.startedAtMs) : 0;
  const windowMs = policy?.windowMs ?? 0;
  const restarts = (windowMs > 0 && ranMs >= windowMs ? 0 : task.restarts) + 1;
  const maxAttempts = policy?.maxAttempts ?? 0;
  if (maxAttempts > 0 && restarts > maxAttempts) {
    return {
      kind: "never",
      why: `it was restarted ${maxAttempts === 1 ? "once" : `${maxAttempts} times`}, as often as max_attempts allows`,
    };
  }
  const failures = (ranMs >= settledMs ? 0 : task.failures) + 1;
  const firstMs = policy?.delayMs ?? 0;
  const laterMs = (firstMs > 0 ? firstMs * 2 : defaultDelayMs) * 2 ** Math.min(failures - 2, 20);
  const delayMs = failures === 1 ? firstMs : Math.max(firstMs, Math.min(laterMs, longestDelayMs));
  return {
    kind: "restart",
    atMs: status.observedAtMs + delayMs,
    restarts,
    failures,
    why: `${completed ? "completed" : "failed"}, attempt ${restarts} after ${delayMs} ms`,
  };
}
