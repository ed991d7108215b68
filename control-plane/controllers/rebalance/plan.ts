import { NodeState, type Service, type Task, UpdateState } from "../../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../../domain/index.ts";
import { seatOf, wantedSeats } from "../../domain/seats.ts";
import { isDrained, isSatisfied, seatsOf } from "../../domain/service-tasks.ts";
import { hasEnded, isNodeUp, isUp, isWanted, observedState, observedStatus, slotName } from "../../domain/tasks.ts";
import { hasConverged } from "../../domain/updates.ts";
import { volumesOf } from "../../domain/volumes.ts";
import type { View } from "../../store/types.ts";
import { MoveTrial, movesMade } from "./moves.ts";

interface ActionBase {
  readonly serviceId: string;
  readonly taskId: string;
}

export type RebalanceAction =
  /** `to`: node that the plan has for it; the scheduler decides. `left`: moves that may follow in this round. */
  | (ActionBase & {
      readonly kind: "move";
      readonly from: string;
      readonly to: string;
      readonly epoch: number;
      readonly left: number;
      readonly why: string;
    })
  | (ActionBase & { readonly kind: "moved"; readonly from: string; readonly to: string; readonly why: string })
  /** The new task is to go, and the old one stays. */
  | (ActionBase & { readonly kind: "failed"; readonly why: string })
  /** It is no move any more: something else became of the task, its slot or its service. */
  | (ActionBase & { readonly kind: "dropped"; readonly why: string });

export interface RebalanceSettings {
  /** See ControllerSettings. */
  readonly rebalanceSettleMs: number;
  /** See ControllerSettings. */
  readonly rebalanceCooldownMs: number;
  /** See ControllerSettings. */
  readonly rebalanceIntervalMs: number;
  /** See ControllerSettings. */
  readonly rebalancePatienceMs: number;
  /** See ControllerSettings. */
  readonly rebalanceAtOnce: number;
  /** See ControllerSettings. */
  readonly rebalanceSkew: number;
}

/** What one pass leaves for the next. A new leader begins without: it waits for longer, and does nothing else. */
export interface RebalanceMemory {
  /** What is said of the nodes, and since when they are so. */
  readonly nodes: string;
  readonly sinceMs: number;
  /** What the last plan without a move was made of, and when. */
  readonly fruitless: string;
  readonly fruitlessAtMs: number;
}

export const noMemory: RebalanceMemory = { nodes: "", sinceMs: 0, fruitless: "", fruitlessAtMs: 0 };

export interface RebalancePassPlan {
  /** Those that end moves, or else those that begin some, one for each service at most. */
  readonly actions: readonly RebalanceAction[];
  /** When to plan again although nothing has changed. */
  readonly wakeAtMs: number;
  readonly memory: RebalanceMemory;
}

/** After so many failed moves the cooldown of a service grows no more: it is 2^this times as long. */
const mostDoublings = 4;

/**
 * What of moves that are under way has come to an end; and if nothing has, which may begin: of services that ask for it and rest, once
 * the nodes have been as they are for `rebalanceSettleMs`. A service's moves are made one by one, and each is planned on the state
 * as it is then; a round of them is no longer than it was planned at its beginning, and the next one waits for the cooldown. Pure.
 */
export function planRebalancing(
  index: ClusterIndex,
  before: RebalanceMemory,
  nowMs: number,
  settings: RebalanceSettings,
): RebalancePassPlan {
  let wakeAtMs = nowMs + settings.rebalanceIntervalMs;
  const wakeAt = (atMs: number) => {
    wakeAtMs = Math.min(wakeAtMs, atMs);
  };
  const ended: RebalanceAction[] = [];
  const ready: Ready[] = [];
  let underWay = 0;
  let asked = false;
  for (const service of index.view.services.values()) {
    const status = index.view.serviceStatuses.get(service.id);
    if ((status?.rebalance?.taskId ?? "") !== "") {
      const { action, untilMs } = planEnd(index, service, nowMs, settings);
      if (action !== undefined) ended.push(action);
      wakeAt(untilMs);
      underWay++;
    } else if (asksForIt(service)) {
      asked = true;
      const one = readiness(index, service, nowMs, settings);
      if (one.wakeAtMs !== undefined) wakeAt(one.wakeAtMs);
      if (one.ready !== undefined) ready.push(one.ready);
    }
  }
  // Where nobody asks for it a change of a node costs no look at the others.
  if (!asked && underWay === 0) return { actions: [], wakeAtMs, memory: before };
  const nodes = nodesOf(index.view);
  const memory = nodes === before.nodes ? before : { ...before, nodes, sinceMs: nowMs };
  if (ended.length > 0) return { actions: ended, wakeAtMs, memory };
  const restsAtMs = memory.sinceMs + settings.rebalanceSettleMs;
  if (nowMs < restsAtMs) {
    wakeAt(restsAtMs);
    return { actions: [], wakeAtMs, memory };
  }
  const free = settings.rebalanceAtOnce - underWay;
  // Most of the nodes may be out of sight: nothing can be said of where tasks are.
  if (ready.length === 0 || free <= 0 || index.silentNodes.size > 0) return { actions: [], wakeAtMs, memory };
  const made = JSON.stringify([nodes, underWay, ready.map(({ service, movable }) => [service.id, ...movable])]);
  const isOld = nowMs >= memory.fruitlessAtMs + settings.rebalanceIntervalMs;
  if (made === memory.fruitless && !isOld) return { actions: [], wakeAtMs, memory };
  const actions = planBegins(index, ready, free, settings);
  if (actions.length > 0) return { actions, wakeAtMs, memory };
  return { actions, wakeAtMs, memory: { ...memory, fruitless: made, fruitlessAtMs: nowMs } };
}

/** What is said of the nodes that moves hang on, without what they hold. */
function nodesOf({ nodes, nodeStatuses }: View): string {
  const byFirst = ([a]: readonly unknown[], [b]: readonly unknown[]) => (String(a) < String(b) ? -1 : 1);
  const facts = [...nodes.values()].map(({ id, availability, labels, taints }) => {
    const { state = NodeState.NODE_STATE_UNKNOWN, description, diskProblem = "" } = nodeStatuses.get(id) ?? {};
    const { milliCpus, memoryBytes, pids, generic } = description ?? {};
    return [
      id,
      availability,
      Object.entries(labels).sort(byFirst),
      taints,
      state,
      diskProblem,
      milliCpus,
      memoryBytes,
      pids,
      generic,
    ];
  });
  return JSON.stringify(facts.sort(byFirst));
}

/**
 * May tasks of the service be moved at all? Those of a global service are where they are to be, a volume's data would not come
 * along, and of one with a name there may never be two.
 */
function asksForIt({ spec, removed }: Service): boolean {
  if (removed || spec?.disruption?.rebalance !== true || spec.mode?.$case !== "replicated") return false;
  return volumesOf(spec.container).length === 0 && spec.containerName === "";
}

interface Ready {
  readonly service: Service;
  /** Ids, ascending. */
  readonly movable: readonly string[];
  /** Moves that may follow the next one; undefined: that begins a round. */
  readonly left: number | undefined;
}

/** May a task of the service begin to move now? If only time is lacking, when. */
function readiness(
  index: ClusterIndex,
  service: Service,
  nowMs: number,
  settings: RebalanceSettings,
): { readonly ready?: Ready; readonly wakeAtMs?: number } {
  const { view } = index;
  const status = view.serviceStatuses.get(service.id);
  const state = status?.updateState ?? UpdateState.UPDATE_STATE_NONE;
  if (state !== UpdateState.UPDATE_STATE_NONE && state !== UpdateState.UPDATE_STATE_ROLLED_BACK) return {};
  if (service.stable !== undefined || !hasConverged(index, service)) return {};
  const moved = status?.rebalance;
  const inRound = moved !== undefined && moved.left > 0;
  if (moved !== undefined && !inRound) {
    const cooldownMs = settings.rebalanceCooldownMs * 2 ** Math.min(moved.failures, mostDoublings);
    if (nowMs < moved.atMs + cooldownMs) return { wakeAtMs: moved.atMs + cooldownMs };
  }
  const movable: string[] = [];
  let settledAtMs = 0;
  for (const seat of seatsOf(index, service)) {
    if (seat.stale.length + seat.going.length > 0) return {};
    if (!seat.wanted && seat.good.length > 0) return {};
    if (!seat.wanted) continue;
    // One that waits, is not up or is not heard of: it is mended first.
    if (!isSatisfied(index, service, seat) || seat.good.length > 1) return {};
    for (const task of seat.good) {
      if (!isNodeUp(view, task.nodeId)) return {};
      const atMs = (view.taskStatuses.get(task.id)?.upAtMs ?? nowMs) + settings.rebalanceSettleMs;
      if (nowMs >= atMs) movable.push(task.id);
      else settledAtMs = Math.max(settledAtMs, atMs);
    }
  }
  return {
    ready: { service, movable: movable.sort(), left: inRound ? moved.left : undefined },
    ...(settledAtMs > 0 && { wakeAtMs: settledAtMs }),
  };
}

/** The first move of each service that the scheduler would make as planned, as many as may begin. */
function planBegins(
  index: ClusterIndex,
  ready: readonly Ready[],
  free: number,
  settings: RebalanceSettings,
): RebalanceAction[] {
  const readyById = new Map(ready.map((one) => [one.service.id, one]));
  const movable = new Set(ready.flatMap((one) => one.movable));
  const made = [...index.view.services.values()].flatMap((service) => movesMade(index, service));
  const trial = new MoveTrial(index, ({ id }) => movable.has(id), made, settings.rebalanceSkew);
  const moves = trial.plan().flatMap((move) => {
    const task = index.view.tasks.get(move.task);
    return task === undefined ? [] : [{ ...move, planned: task }];
  });
  const actions: RebalanceAction[] = [];
  for (const [serviceId, own] of Map.groupBy(moves, ({ planned }) => planned.serviceId)) {
    if (actions.length >= free) break;
    const move = own.find((one) => trial.try(one, own.length));
    const one = readyById.get(serviceId);
    if (move === undefined || one === undefined) continue;
    const { task: taskId, from, to, why, planned } = move;
    const left = Math.min(own.length - 1, (one.left ?? own.length) - 1);
    actions.push({ kind: "move", serviceId, taskId, from, to, epoch: newestEpoch(index, planned), left, why });
  }
  return actions;
}

function newestEpoch(index: ClusterIndex, task: Task): number {
  return Math.max(...tasksOfSeat(index, task).map(({ epoch }) => epoch));
}

function tasksOfSeat(index: ClusterIndex, task: Pick<Task, "serviceId" | "slot" | "onlyNode">): Task[] {
  const key = seatOf(task);
  return index.tasksOfService(task.serviceId).filter((one) => seatOf(one) === key);
}

/** How the move of the service that is under way has ended, or until when it may last. */
function planEnd(
  index: ClusterIndex,
  service: Service,
  nowMs: number,
  settings: RebalanceSettings,
): { readonly action?: RebalanceAction; readonly untilMs: number } {
  const { view } = index;
  const { taskId, epoch, atMs, why } = view.serviceStatuses.get(service.id)?.rebalance ?? noRebalance;
  const untilMs = atMs + settings.rebalancePatienceMs;
  const base = { serviceId: service.id, taskId };
  const dropped = (because: string) => ({ action: { kind: "dropped", ...base, why: because } as const, untilMs });
  const failed = (because: string) => ({ action: { kind: "failed", ...base, why: because } as const, untilMs });
  const task = view.tasks.get(taskId);
  if (task === undefined) return dropped("the task is gone");
  const successors = tasksOfSeat(index, task).filter((one) => one.epoch > epoch);
  if (hasEnded(observedState(view, task))) {
    const up = successors.find((one) => isUp(view.taskStatuses.get(one.id)));
    if (up === undefined) return dropped("the task has ended by itself");
    return { action: { kind: "moved", ...base, from: task.nodeId, to: up.nodeId, why }, untilMs };
  }
  // It is asked to stop: its successor has taken over, or something else is going on that ends.
  if (!isWanted(task)) return { untilMs: Number.POSITIVE_INFINITY };
  if (service.removed) return dropped("its service is removed");
  if (task.serviceVersion !== service.version) return dropped("its service is updated");
  if (!wantedSeats(index, service).some(({ key }) => key === seatOf(task)))
    return dropped("its slot is no longer wanted");
  if (!service.moving.includes(taskId)) return dropped("the move was taken back");
  if (isDrained(index, task)) return dropped("its node gives it away");
  const ended = successors.find((one) => hasEnded(observedState(view, one)));
  if (ended !== undefined) {
    const { message, exitCode } = observedStatus(view, ended);
    const where = view.nodes.get(ended.nodeId)?.name ?? ended.nodeId;
    return failed(`its successor on ${where} ended: ${message === "" ? `exit code ${exitCode}` : message}`);
  }
  const unplaced = successors.find((one) => one.nodeId === "" && one.unplaced !== "");
  if (unplaced !== undefined) return failed(`its successor has no place: ${unplaced.unplaced}`);
  if (successors.some(({ nodeId }) => nodeId === task.nodeId)) return failed("its successor would be on the same node");
  if (nowMs < untilMs) return { untilMs };
  return failed(`its successor was not up after ${Math.round(settings.rebalancePatienceMs / 1_000)} s`);
}

const noRebalance = { taskId: "", epoch: 0, atMs: 0, why: "" };

/** "web.3": as people know it, without its stack. */
export function shortName(view: View, task: Task | undefined): string {
  return task === undefined ? "a task" : `${task.serviceName}.${slotName(view, task)}`;
}
