import {
  DesiredState,
  Health,
  NodeState,
  type Service,
  type Task,
  TaskState,
  type TaskStatus,
} from "../../proto/gen/embassy/v1/state.ts";
import type { View } from "../store/types.ts";

/** A task that has ended never runs again. */
export function hasEnded(state: TaskState): boolean {
  return state >= TaskState.TASK_STATE_COMPLETE;
}

/**
 * May a task's observed state change so? Only forward; the same state may be reported with other details until the task
 * has ended, and after that nothing changes.
 */
export function mayAdvance(from: TaskState, to: TaskState): boolean {
  return hasEnded(from) ? false : to >= from;
}

/** Is the node known, and did its session not end? */
export function isNodeUp(view: View, nodeId: string): boolean {
  return view.nodes.get(nodeId) !== undefined && view.nodeStatuses.get(nodeId)?.state === NodeState.NODE_STATE_READY;
}

/** Is the node down or forgotten, so that what it held counts as lost? A node that has never had a session is not lost. */
export function isNodeLost(view: View, nodeId: string): boolean {
  return view.nodes.get(nodeId) === undefined || view.nodeStatuses.get(nodeId)?.state === NodeState.NODE_STATE_DOWN;
}

/** Did the node's session end together with most, so that it keeps its tasks for a while? It is neither up nor lost. */
export function isNodeSilent(view: View, nodeId: string): boolean {
  return view.nodes.get(nodeId) !== undefined && view.nodeStatuses.get(nodeId)?.state === NodeState.NODE_STATE_SILENT;
}

/** What is known of a task: its node's last word, or what follows from its record, or that its node is gone. */
export function observedState(view: View, task: Task): TaskState {
  const reported = view.taskStatuses.get(task.id)?.state ?? TaskState.TASK_STATE_PENDING;
  if (hasEnded(reported) || task.nodeId === "") return reported;
  if (isNodeLost(view, task.nodeId)) return TaskState.TASK_STATE_ORPHANED;
  return Math.max(reported, TaskState.TASK_STATE_ASSIGNED) as TaskState;
}

/** The task's status as a reader sees it: reported, with the state that follows from its record and node. */
export function observedStatus(view: View, task: Task): TaskStatus {
  const reported = view.taskStatuses.get(task.id);
  const state = observedState(view, task);
  const base: TaskStatus = reported ?? emptyStatus(task.id);
  if (task.preemptedBy !== "" && (!hasEnded(state) || state === TaskState.TASK_STATE_SHUTDOWN)) {
    return { ...base, state, message: `preempted by ${task.preemptedBy}` };
  }
  if (task.moved !== "" && (!hasEnded(state) || state === TaskState.TASK_STATE_SHUTDOWN)) {
    return { ...base, state, message: `moved ${task.moved}` };
  }
  if (base.state === state) {
    const unheard = !hasEnded(state) && task.nodeId !== "" && isNodeSilent(view, task.nodeId);
    return unheard ? { ...base, message: "its node is silent" } : base;
  }
  const message = state === TaskState.TASK_STATE_ORPHANED ? "its node is gone" : base.message;
  return { ...base, state, message };
}

function emptyStatus(taskId: string): TaskStatus {
  return {
    taskId,
    state: TaskState.TASK_STATE_PENDING,
    message: "",
    exitCode: 0,
    oomKilled: false,
    health: Health.HEALTH_NONE,
    addresses: [],
    pid: 0,
    startedAtMs: 0,
    upAtMs: 0,
    finishedAtMs: 0,
    observedAtMs: 0,
    imageDigest: "",
    sequence: 0,
  };
}

/** Wanted by its record: its node should hold it prepared or running. */
export function isWanted(task: Task): boolean {
  return task.desired === DesiredState.DESIRED_STATE_READY || task.desired === DesiredState.DESIRED_STATE_RUNNING;
}

/** Wanted by its record, and it has not ended. */
export function isLive(view: View, task: Task): boolean {
  return isWanted(task) && !hasEnded(observedState(view, task));
}

/** Running, and its health check (if it has one) has passed: counts as up, and takes new connections. */
export function isUp(status: TaskStatus | undefined): boolean {
  return (
    status?.state === TaskState.TASK_STATE_RUNNING &&
    (status.health === Health.HEALTH_NONE || status.health === Health.HEALTH_HEALTHY)
  );
}

/** Is it meant to run, does it, and is its node heard? Such a task is led to before those on silent nodes. */
export function isHeardServing(view: View, task: Task): boolean {
  const wanted = task.desired === DesiredState.DESIRED_STATE_RUNNING;
  return wanted && isUp(view.taskStatuses.get(task.id)) && isNodeUp(view, task.nodeId);
}

/** `<stack>_<service>.<slot>`; of a global service `<stack>_<service>.<node name>`. */
export function taskName(view: View, task: Task): string {
  return `${task.stack}_${task.serviceName}.${slotName(view, task)}`;
}

/** What tells a service's tasks apart for people: the slot, or the node's name. */
export function slotName(view: View, task: Task): string {
  if (task.slot > 0) return String(task.slot);
  const nodeId = task.onlyNode || task.nodeId;
  return view.nodes.get(nodeId)?.name ?? nodeId;
}

/** `<stack>_<service>`. */
export function serviceFullName(service: Service): string {
  return `${service.stack}_${service.spec?.name ?? ""}`;
}
