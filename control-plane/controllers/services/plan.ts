import { UpdateOrder } from "../../../proto/gen/embassy/v1/stack.ts";
import { DesiredState, type Service, type Task, TaskState, UpdateState } from "../../../proto/gen/embassy/v1/state.ts";
import { DisruptionBudget, mayOverlap } from "../../domain/disruption.ts";
import type { ClusterIndex } from "../../domain/index.ts";
import { decideRestart } from "../../domain/restart.ts";
import type { Seat } from "../../domain/seats.ts";
import { isDrained, lastEnded, type SeatTasks, seatsOf } from "../../domain/service-tasks.ts";
import { isUp, observedState, observedStatus, slotName } from "../../domain/tasks.ts";
import { updatePolicyOf } from "../../domain/updates.ts";
import { awaitsNode, isShutOut } from "../../domain/volumes.ts";
import { type Gate, optionalWaitMs, planGate } from "../gate/plan.ts";
import { planConvergence, planUpdate, settleMs, type UpdateBudget, type UpdateFailure } from "../update/plan.ts";

export type TaskAction =
  | {
      readonly kind: "create";
      readonly seat: Seat;
      readonly epoch: number;
      readonly desired: DesiredState;
      readonly replaces: string;
      readonly restarts: number;
      readonly failures: number;
      readonly waitsFor: string;
      readonly why: string;
    }
  | { readonly kind: "start"; readonly taskId: string; readonly why: string }
  /** `moved`: its successor runs elsewhere, and why that is better. */
  | { readonly kind: "stop"; readonly taskId: string; readonly why: string; readonly moved?: string }
  | { readonly kind: "forget"; readonly taskId: string; readonly why: string }
  /** The service is to be removed, and nothing of it runs any more. Always the last action. */
  | { readonly kind: "forget-service"; readonly why: string };

export interface ServicePlan {
  readonly actions: readonly TaskAction[];
  /** When to plan again although nothing has changed; undefined: no need. */
  readonly wakeAtMs: number | undefined;
  readonly updateState: UpdateState;
  readonly updateMessage: string;
  /** The service is to go back to its stable version first; there are no actions. */
  readonly fails: UpdateFailure | undefined;
  /** It stops tasks of a service that has to keep others up: see `countedOn`. */
  readonly spends: boolean;
  /** It has converged at its version, which its status does not say yet. */
  readonly converges: boolean;
  /** It has stayed so for `monitor`: it goes back to nothing any more. */
  readonly stays: boolean;
}

/** Ended tasks kept of a slot, and of a slot that is no longer wanted. */
const keptEnded = 5;
const keptUnwanted = 1;

/**
 * Decides what tasks of a service to create, start, stop and forget: replicated and global services alike, which differ
 * only in the seats they want. Pure: same arguments, same actions, in the order of the seats. Empty means converged, or
 * waiting for something that will be a change of the view or for `wakeAtMs`.
 */
export function planService(index: ClusterIndex, service: Service, nowMs: number): ServicePlan {
  const seats = seatsOf(index, service);
  const tasks = index.tasksOfService(service.id);
  const update = planUpdate(index, service, seats, nowMs);
  if (update.fails !== undefined) {
    const { state: updateState, message: updateMessage, fails } = update;
    const nothing = { actions: [], wakeAtMs: undefined, spends: false, converges: false, stays: false };
    return { ...nothing, updateState, updateMessage, fails };
  }
  const gate = planGate(index, service, tasks);
  const mayUpdate = new Set([...update.seats, ...nextMove(service, seats)]);
  const budget = new DisruptionBudget(index, service, seats);
  const planner = new SeatPlanner(index, service, gate, { mayUpdate, mayStop: update.stops, budget }, nowMs);
  planner.wakeAt(update.wakeAtMs);
  for (const seat of seats) planner.plan(seat);
  const running = seats.some(({ good, stale, going }) => good.length + stale.length + going.length > 0);
  if (service.removed && !running) {
    planner.actions.push({ kind: "forget-service", why: "it was removed and its last task has ended" });
  }
  const { converges, stays, wakeAtMs } = planConvergence(index, service, seats, update.excused, nowMs);
  planner.wakeAt(wakeAtMs);
  const told = toldOf(index, update, budget);
  return {
    actions: planner.actions,
    wakeAtMs: planner.wakeAtMs,
    fails: undefined,
    ...told,
    spends: budget.spends,
    converges,
    stays,
  };
}

type Told = Pick<ServicePlan, "updateState" | "updateMessage">;

/** What is said of an update, with the tasks that it may not stop yet. */
function toldOf(index: ClusterIndex, { state, message }: UpdateBudget, budget: DisruptionBudget): Told {
  const held = budget.kept.filter((task) => !isDrained(index, task));
  if (held.length === 0) return { updateState: state, updateMessage: message };
  const names = held.map((task) => `${task.serviceName}.${slotName(index.view, task)}`).join(", ");
  const why = `${names} ${held.length === 1 ? "goes" : "go"} on for now: the service ${budget.words}`;
  // The first version of a service may never have converged: nothing counts as an update then.
  if (message === "") return { updateState: UpdateState.UPDATE_STATE_UPDATING, updateMessage: `updating; ${why}` };
  return { updateState: state, updateMessage: `${message}; ${why}` };
}

/** Is it replaced for no reason but to spread its service? */
function isMoving(service: Service, task: Task): boolean {
  return task.serviceVersion === service.version && service.moving.includes(task.id);
}

/** The seat that may begin to move: one at a time, so that a service is never larger than by one task. */
function nextMove(service: Service, seats: readonly SeatTasks[]): string[] {
  const moving = seats.filter(({ wanted, stale }) => wanted && stale.some((task) => isMoving(service, task)));
  if (moving.some(({ good }) => good.length > 0)) return [];
  return moving.slice(0, 1).map(({ seat }) => seat.key);
}

interface SeatLimits {
  /** Seats whose task may be replaced although its node keeps it. */
  readonly mayUpdate: ReadonlySet<string>;
  /** Of those the ones whose task may be stopped although it is up. */
  readonly mayStop: ReadonlySet<string>;
  readonly budget: DisruptionBudget;
}

class SeatPlanner {
  readonly actions: TaskAction[] = [];
  wakeAtMs: number | undefined;
  readonly #index: ClusterIndex;
  readonly #service: Service;
  readonly #gate: Gate;
  readonly #limits: SeatLimits;
  readonly #nowMs: number;

  constructor(index: ClusterIndex, service: Service, gate: Gate, limits: SeatLimits, nowMs: number) {
    this.#index = index;
    this.#service = service;
    this.#gate = gate;
    this.#limits = limits;
    this.#nowMs = nowMs;
  }

  wakeAt(atMs: number | undefined): void {
    if (atMs !== undefined) this.wakeAtMs = Math.min(atMs, this.wakeAtMs ?? atMs);
  }

  plan(seat: SeatTasks): void {
    this.#abandonLost(seat);
    if (!seat.wanted) {
      const why = this.#service.removed ? "its service is removed" : "its slot is no longer wanted";
      for (const task of [...seat.good, ...seat.stale]) {
        // Of a global service the slot goes with its node, if that may be emptied.
        if (task.onlyNode === "" || !isDrained(this.#index, task) || this.#limits.budget.take(seat, task)) {
          this.#stop(task, why);
        }
      }
    } else if (seat.good.length > 0) {
      this.#advance(seat);
    } else {
      this.#fill(seat);
    }
    this.#forgetOld(seat);
  }

  /** Lost with the node that has its volumes: nothing else can take its place. */
  #awaited(seat: SeatTasks): Task | undefined {
    const last = lastEnded(seat);
    const counts = seat.wanted && last?.serviceVersion === this.#service.version;
    return counts && awaitsNode(this.#index, last) !== undefined ? last : undefined;
  }

  /** A node that returns must not go on with what was given to others. */
  #abandonLost(seat: SeatTasks): void {
    const awaited = this.#awaited(seat);
    for (const task of seat.ended) {
      if (task === awaited) continue;
      const lost = observedState(this.#index.view, task) === TaskState.TASK_STATE_ORPHANED;
      if (lost && task.desired !== DesiredState.DESIRED_STATE_SHUTDOWN) this.#stop(task, "its node is gone");
    }
  }

  /** The seat has a task that should stay: takes it, and what it replaces, one step on. */
  #advance(seat: SeatTasks): void {
    const { view } = this.#index;
    const isTaskUp = (task: Task) => isUp(view.taskStatuses.get(task.id));
    const keep = seat.good.find(isTaskUp) ?? seat.good[0];
    if (keep === undefined) return;
    const { budget, mayStop } = this.#limits;
    for (const task of seat.good) {
      if (task !== keep && budget.take(seat, task, keep)) this.#stop(task, `${keep.id} fills its slot`);
    }
    const state = observedState(view, keep);
    if (keep.desired === DesiredState.DESIRED_STATE_RUNNING) {
      for (const task of seat.stale) {
        const over = isTaskUp(keep);
        if (over && this.#settles(task, keep)) continue;
        const lacks = keep.unplaced !== "" && isDrained(this.#index, task);
        if ((!over && !lacks) || !budget.take(seat, task, keep)) continue;
        if (over) this.#stop(task, `${keep.id} has taken over`, this.#movedTo(task, keep));
        else this.#stop(task, "its node gives it away, and its successor fits nowhere");
      }
      return;
    }
    // Stop-first: prepared beside its predecessor, so that the slot is empty for as long as a stop and a start take.
    let kept = false;
    for (const task of seat.stale) {
      if (isTaskUp(task) && !isDrained(this.#index, task) && !mayStop.has(seat.seat.key)) continue;
      const ready = state >= TaskState.TASK_STATE_READY;
      const makesRoom = keep.unplaced !== "" && (isDrained(this.#index, task) || !isShutOut(this.#index, keep));
      if (!ready && !makesRoom) continue;
      if (!budget.take(seat, task)) kept = true;
      else this.#stop(task, ready ? `${keep.id} is ready to take over` : `${keep.id} may fit once it is gone`);
    }
    const isElsewhere = keep.nodeId !== "" && seat.stale.every(({ nodeId }) => nodeId !== keep.nodeId);
    const beside = kept && budget.sparesNone && (isElsewhere || mayOverlap(this.#service));
    if (!beside && seat.stale.length + seat.going.length > 0) return;
    const waiting = this.#gateHolds(keep);
    if (waiting) return;
    this.actions.push({
      kind: "start",
      taskId: keep.id,
      why: beside
        ? `its service ${budget.words}`
        : keep.waitsFor === ""
          ? "its predecessor has ended"
          : "what it waited for is there",
    });
  }

  #gateHolds(task: Task): boolean {
    if (this.#gate.waitsFor === "" || task.waitsFor === "") return false;
    if (!this.#gate.bounded) return true;
    const untilMs = task.createdAtMs + optionalWaitMs;
    if (this.#nowMs >= untilMs) return false;
    this.wakeAt(untilMs);
    return true;
  }

  /** The seat has no task that should stay. */
  #fill(seat: SeatTasks): void {
    if (this.#awaited(seat) !== undefined) return;
    const last = lastEnded(seat);
    const counters = { restarts: 0, failures: 0 };
    let why = "its slot is empty";
    const stale = seat.stale[0];
    if (stale !== undefined) {
      const drained = isDrained(this.#index, stale);
      if (!drained && !this.#limits.mayUpdate.has(seat.seat.key)) return;
      if (drained) why = "its node gives it away";
      else if (isMoving(this.#service, stale)) why = "its service is spread unevenly";
      else why = `version ${this.#service.version} replaces version ${stale.serviceVersion}`;
    }
    if (last !== undefined && last.serviceVersion === this.#service.version) {
      const status = observedStatus(this.#index.view, last);
      counters.restarts = last.restarts;
      counters.failures = last.failures;
      const lost = status.state === TaskState.TASK_STATE_ORPHANED;
      if (lost) why = "the node of its predecessor is gone";
      if (!lost && last.desired !== DesiredState.DESIRED_STATE_SHUTDOWN) {
        const decision = decideRestart(this.#service.spec?.restart, last, status);
        if (decision.kind === "never") return;
        if (this.#nowMs < decision.atMs) {
          this.wakeAt(decision.atMs);
          return;
        }
        counters.restarts = decision.restarts;
        counters.failures = decision.failures;
        why = decision.why;
      }
    }
    const predecessor = stale ?? seat.going.at(-1);
    const startFirst =
      updatePolicyOf(this.#service).order === UpdateOrder.UPDATE_ORDER_START_FIRST ||
      (this.#limits.budget.sparesNone && mayOverlap(this.#service)) ||
      (stale !== undefined && isMoving(this.#service, stale) && !isDrained(this.#index, stale));
    const waits = predecessor !== undefined && !(startFirst && stale !== undefined);
    const gated = this.#gate.waitsFor !== "";
    const everyEpoch = [...seat.stale, ...seat.going, ...seat.ended].map(({ epoch }) => epoch);
    this.actions.push({
      kind: "create",
      seat: seat.seat,
      epoch: Math.max(0, ...everyEpoch) + 1,
      desired: waits || gated ? DesiredState.DESIRED_STATE_READY : DesiredState.DESIRED_STATE_RUNNING,
      // Of one that was preempted the successor says so, for as long as it has no other place.
      replaces: predecessor?.id ?? (last !== undefined && last.preemptedBy !== "" ? last.id : ""),
      ...counters,
      waitsFor: this.#gate.waitsFor,
      why,
    });
  }

  #forgetOld(seat: SeatTasks): void {
    const kept = this.#service.removed ? Number.POSITIVE_INFINITY : seat.wanted ? keptEnded : keptUnwanted;
    for (const task of seat.ended.slice(0, Math.max(0, seat.ended.length - kept))) {
      this.actions.push({ kind: "forget", taskId: task.id, why: `only the last ${kept} of a slot are kept` });
    }
  }

  #stop(task: Task, why: string, moved?: string): void {
    this.actions.push({ kind: "stop", taskId: task.id, why, ...(moved !== undefined && { moved }) });
  }

  /** Is the task only moved, and its successor up for so short a time that it may yet turn out not to run there? */
  #settles(task: Task, successor: Task): boolean {
    if (!isMoving(this.#service, task) || isDrained(this.#index, task)) return false;
    const settledAtMs = (this.#index.view.taskStatuses.get(successor.id)?.upAtMs ?? 0) + settleMs;
    if (this.#nowMs >= settledAtMs) return false;
    this.wakeAt(settledAtMs);
    return true;
  }

  /** "to host-3: shop_web has 3 tasks in host-1 and 0 in host-3"; undefined: it is stopped for another reason. */
  #movedTo(task: Task, successor: Task): string | undefined {
    if (!isMoving(this.#service, task) || isDrained(this.#index, task)) return undefined;
    const { nodes, serviceStatuses } = this.#index.view;
    const rebalance = serviceStatuses.get(this.#service.id)?.rebalance;
    const why = rebalance?.taskId === task.id ? rebalance.why : "its service was spread unevenly";
    return `to ${nodes.get(successor.nodeId)?.name ?? successor.nodeId}: ${why}`;
  }
}
