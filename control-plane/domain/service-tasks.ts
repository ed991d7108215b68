import { RestartCondition, TaintEffect } from "../../proto/gen/embassy/v1/stack.ts";
import {
  Availability,
  DesiredState,
  type NodeSpec,
  type Service,
  type Task,
  TaskState,
} from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "./index.ts";
import { decideRestart, endedByItself, type RestartDecision } from "./restart.ts";
import { isGlobal } from "./scheduler-facts.ts";
import { type Seat, seatOf, wantedSeats } from "./seats.ts";
import { repels } from "./taints.ts";
import { hasEnded, isUp, isWanted, observedState, observedStatus, serviceFullName } from "./tasks.ts";

/** A seat and the tasks that fill it or did, each list oldest first. */
export interface SeatTasks {
  readonly seat: Seat;
  readonly wanted: boolean;
  /** Wanted by their record and not ended, of the newest version and on a node that keeps its tasks. */
  readonly good: readonly Task[];
  /** Wanted by their record and not ended, but of an older version, on a drained node, or about to move. */
  readonly stale: readonly Task[];
  /** Asked to stop and not ended. */
  readonly going: readonly Task[];
  /** Ended, or lost with their node. */
  readonly ended: readonly Task[];
}

/** Sorts a service's tasks into seats: the wanted ones in order, then those that are no longer wanted. */
export function seatsOf(index: ClusterIndex, service: Service): SeatTasks[] {
  const bySeat = new Map<string, Task[]>();
  for (const task of index.tasksOfService(service.id)) {
    const key = seatOf(task);
    const tasks = bySeat.get(key);
    if (tasks === undefined) bySeat.set(key, [task]);
    else tasks.push(task);
  }
  const seats: SeatTasks[] = [];
  for (const seat of wantedSeats(index, service)) {
    seats.push(sort(index, service, seat, true, bySeat.get(seat.key) ?? []));
    bySeat.delete(seat.key);
  }
  const rest = [...bySeat].sort(([, [a]], [, [b]]) => (a?.slot ?? 0) - (b?.slot ?? 0));
  for (const [key, tasks] of rest) {
    const seat = { key, slot: tasks[0]?.slot ?? 0, onlyNode: tasks[0]?.onlyNode ?? "" };
    seats.push(sort(index, service, seat, false, tasks));
  }
  return seats;
}

function sort(index: ClusterIndex, service: Service, seat: Seat, wanted: boolean, tasks: Task[]): SeatTasks {
  const sorted = { good: [] as Task[], stale: [] as Task[], going: [] as Task[], ended: [] as Task[] };
  for (const task of tasks.sort((a, b) => a.epoch - b.epoch)) {
    if (hasEnded(observedState(index.view, task))) sorted.ended.push(task);
    else if (!isWanted(task)) sorted.going.push(task);
    else if (task.serviceVersion === service.version && !isDrained(index, task) && !service.moving.includes(task.id))
      sorted.good.push(task);
    else sorted.stale.push(task);
  }
  return { seat, wanted, ...sorted };
}

/**
 * The services that changes of nodes may concern: those with tasks there, and the global ones. Those of the first node come first, and of
 * one node by name, so that whoever plans them in this order comes to the same placements.
 */
export function servicesOfNodes(index: ClusterIndex, nodeIds: Iterable<string>): Service[] {
  const found = new Set<Service>();
  let more = [...index.view.services.values()].filter(isGlobal);
  for (const nodeId of nodeIds) {
    for (const id of new Set(index.tasksOfNode(nodeId).map(({ serviceId }) => serviceId))) {
      const service = index.view.services.get(id);
      if (service !== undefined && !isGlobal(service)) more.push(service);
    }
    for (const service of more.filter((one) => !found.has(one)).sort(byName)) found.add(service);
    more = [];
  }
  return [...found];
}

function byName(a: Service, b: Service): number {
  return serviceFullName(a) < serviceFullName(b) ? -1 : 1;
}

/** Is the task on a node that gives it away: one that is drained, or has a taint against running tasks that it does not tolerate? */
export function isDrained(index: ClusterIndex, task: Task): boolean {
  return givesAway(index.view.nodes.get(task.nodeId), task);
}

/** Would the node give the task away, were it there? */
export function givesAway(node: NodeSpec | undefined, task: Task): boolean {
  return (
    node?.availability === Availability.AVAILABILITY_DRAIN ||
    repels(node, TaintEffect.TAINT_EFFECT_NO_EXECUTE, task.spec?.placement)
  );
}

/** The newest of the seat's ended tasks, if it came after every task that has not ended. */
export function lastEnded({ good, stale, going, ended }: SeatTasks): Task | undefined {
  const last = ended.at(-1);
  const newestLive = Math.max(...[...good, ...stale, ...going].map(({ epoch }) => epoch), -1);
  return last !== undefined && last.epoch > newestLive ? last : undefined;
}

/** What follows on a task of a service, which ended by itself; undefined: it did not, or its version counts no longer. */
export function restartOf(index: ClusterIndex, service: Service, task: Task): RestartDecision | undefined {
  if (task.serviceVersion !== service.version || task.desired === DesiredState.DESIRED_STATE_SHUTDOWN) return undefined;
  const status = observedStatus(index.view, task);
  return endedByItself(status.state) ? decideRestart(service.spec?.restart, task, status) : undefined;
}

/**
 * The task that tells how a seat stands which nothing fills, though it is wanted: its newest, when that ended by itself or
 * was lost with its node.
 */
export function leftBehind({ wanted, good, stale, going, ended }: SeatTasks, index: ClusterIndex): Task | undefined {
  const last = ended.at(-1);
  if (!wanted || last === undefined || good.length + stale.length + going.length > 0) return undefined;
  return observedState(index.view, last) === TaskState.TASK_STATE_SHUTDOWN ? undefined : last;
}

/** Did the seat's work end as it should, so that nothing is to be started any more? */
export function isComplete(index: ClusterIndex, service: Service, seat: SeatTasks): boolean {
  const last = lastEnded(seat);
  if (last === undefined || observedState(index.view, last) !== TaskState.TASK_STATE_COMPLETE) return false;
  return mayEnd(service) && restartOf(index, service, last)?.kind === "never";
}

/** Is it done when a task ends with exit code 0? With condition `any` it is to go on for ever, however its tasks end. */
function mayEnd(service: Service | undefined): boolean {
  const condition = service?.spec?.restart?.condition ?? RestartCondition.RESTART_CONDITION_ANY;
  return condition !== RestartCondition.RESTART_CONDITION_ANY;
}

/** Does the seat have what it wants: a task of the newest version that is up, or one that has done its work? */
export function isSatisfied(index: ClusterIndex, service: Service, seat: SeatTasks): boolean {
  return (
    seat.good.some(
      (task) => task.desired === DesiredState.DESIRED_STATE_RUNNING && isUp(index.view.taskStatuses.get(task.id)),
    ) || isComplete(index, service, seat)
  );
}

/** Did the task end by itself without having done its work, as far as its seat goes? */
export function hasFailed(index: ClusterIndex, task: Task): boolean {
  const state = observedState(index.view, task);
  if (state === TaskState.TASK_STATE_COMPLETE) return !mayEnd(index.view.services.get(task.serviceId));
  return endedByItself(state);
}

const none: ReadonlySet<SeatTasks> = new Set();

/**
 * Has each wanted seat that is not excused what it wants, and is nothing else left? If so, since when: since the last of them was up, 0
 * when none had to be. undefined: no.
 */
export function fullSince(
  index: ClusterIndex,
  service: Service,
  seats: readonly SeatTasks[],
  excused: ReadonlySet<SeatTasks> = none,
): number | undefined {
  let sinceMs = 0;
  for (const seat of seats) {
    const more = seat.wanted ? seat.good.slice(1) : seat.good;
    if (seat.stale.length + seat.going.length + more.length > 0) return undefined;
    if (!seat.wanted || excused.has(seat)) continue;
    if (!isSatisfied(index, service, seat)) return undefined;
    const [task] = seat.good;
    if (task !== undefined) sinceMs = Math.max(sinceMs, index.view.taskStatuses.get(task.id)?.upAtMs ?? 0);
  }
  return sinceMs;
}

/**
 * Since when a service runs as it was deployed, as `fullSince`; undefined: it does not, is being removed, or has gone back. A stack of which this
 * holds for every service has converged.
 */
export function runsSince(
  index: ClusterIndex,
  service: Service,
  seats: readonly SeatTasks[] = seatsOf(index, service),
): number | undefined {
  if (service.removed || service.rollback !== undefined) return undefined;
  return fullSince(index, service, seats);
}
