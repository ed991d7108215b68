import type { ClusterError } from "../../lib/errors/errors.ts";
import { Health, TaskState, type TaskStatus } from "../../proto/gen/embassy/v1/state.ts";
import type { Outcome } from "./next-step.ts";
import type { TaskRecord } from "./record.ts";

/** The record of a task that was accepted just now. */
export function newRecord(): TaskRecord {
  return {
    format: 1,
    state: TaskState.TASK_STATE_ASSIGNED,
    message: "",
    sequence: 0,
    observedAtMs: 0,
    image: undefined,
    network: undefined,
    pid: 0,
    startedAtMs: 0,
    health: Health.HEALTH_NONE,
    stopSentAtMs: undefined,
    killedAtMs: undefined,
    outcome: undefined,
    exitCode: 0,
    oomKilled: false,
    finishedAtMs: 0,
    released: false,
  };
}

/** Of a task that was never begun, for that reason: nothing of it is on the host. */
export function rejectedRecord(record: TaskRecord, reason: ClusterError): TaskRecord {
  const { observedAtMs: finishedAtMs } = record;
  const state = TaskState.TASK_STATE_REJECTED;
  const message = `the node cannot write it down: ${reason.message}`;
  return { ...record, state, message, outcome: "rejected", released: true, finishedAtMs };
}

/** What the control plane is told of a task. */
export function statusOf(taskId: string, record: TaskRecord): TaskStatus {
  return {
    taskId,
    state: record.state,
    message: record.message,
    exitCode: record.exitCode,
    oomKilled: record.oomKilled,
    health: record.health,
    addresses: [...(record.network?.addresses ?? [])],
    pid: record.pid,
    startedAtMs: record.startedAtMs,
    finishedAtMs: record.finishedAtMs,
    upAtMs: record.upAtMs ?? 0,
    observedAtMs: record.observedAtMs,
    imageDigest: record.image?.manifestDigest ?? "",
    sequence: record.sequence,
  };
}

export const outcomeStates: Record<Outcome, TaskState> = {
  complete: TaskState.TASK_STATE_COMPLETE,
  failed: TaskState.TASK_STATE_FAILED,
  shutdown: TaskState.TASK_STATE_SHUTDOWN,
  rejected: TaskState.TASK_STATE_REJECTED,
};

/** How an exit code reads: "exited with code 3", "killed by signal 9". */
export function describeExit(exitCode: number, oomKilled: boolean): string {
  if (oomKilled) return "killed: out of memory";
  if (exitCode < 0) return "ended; its exit code is not known";
  return exitCode > 128 ? `killed by signal ${exitCode - 128}` : `exited with code ${exitCode}`;
}
