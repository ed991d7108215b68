import { UpdateFailureAction } from "../../../proto/gen/embassy/v1/stack.ts";
import { DesiredState, type Service, type Task, UpdateState } from "../../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../../domain/index.ts";
import { fullSince, hasFailed, isComplete, isDrained, restartOf, type SeatTasks } from "../../domain/service-tasks.ts";
import { isNodeLost, isUp, observedStatus, slotName } from "../../domain/tasks.ts";
import { goesBack, hasConverged, hasGoneBack, isUpdating, updatePolicyOf } from "../../domain/updates.ts";

export interface UpdateBudget {
  /** Seats that may begin to be replaced now, in order. */
  readonly seats: ReadonlySet<string>;
  /** Seats whose successor is being prepared, and whose old task may be stopped for it now although it is up. */
  readonly stops: ReadonlySet<string>;
  /** When to ask again although nothing has changed; undefined: no need. */
  readonly wakeAtMs: number | undefined;
  readonly state: UpdateState;
  /** The state in words; empty when no update is under way and none has failed. */
  readonly message: string;
  /** The update has failed, and the service is to go back to its stable version, for this. */
  readonly fails: UpdateFailure | undefined;
  /** Seats that the update does not wait for: that have no place through no fault of it, or whose failure is tolerated. */
  readonly excused: ReadonlySet<SeatTasks>;
}

export interface UpdateFailure {
  /** "web.1 failed: exited with code 1" */
  readonly why: string;
  /** Of the task that tells it. */
  readonly taskId: string;
}

/**
 * What dies at its start mostly does so at once. A new task has to be up for this long, or for `monitor_ms` when that is less,
 * before the next is replaced; those of the first batch for the whole of `monitor_ms`: an update that cannot work costs one
 * batch of tasks, and one that works `monitor_ms` and a second a batch.
 */
export const settleMs = 1_000;

/**
 * Which seats of a service may begin to move to its newest version: no more than `parallelism` at once (0: all), each
 * batch `delay_ms` after the one before was up and has settled. Seats that are not up count among those at once, whatever
 * their version, and go first; so a task that is up is replaced only while fewer than `parallelism` seats are not up. The same
 * goes for the stop of one whose successor is prepared, as another may have ended meanwhile. One that had no place before the
 * update either counts for nothing.
 * When more than `max_failure_ratio` of the seats have a new task that failed while it was watched, or that fits nowhere though
 * the one before had a place, no further seat begins; those that failed are tried again as their restart policy says, and once
 * they stay up the update goes on. With `failure_action: rollback` the service is to go back instead, if there is what to go
 * back to. A rollback is an update in this, but for its policy.
 */
export function planUpdate(
  index: ClusterIndex,
  service: Service,
  seats: readonly SeatTasks[],
  nowMs: number,
): UpdateBudget {
  const { version } = service;
  const policy = updatePolicyOf(service);
  const up = (task: Task) => isUp(index.view.taskStatuses.get(task.id));
  /** It is up, and goes on unless the update takes it. */
  const serves = (task: Task) => up(task) && !isDrained(index, task);
  const wanted = seats.filter((seat) => seat.wanted);
  const goes = policy.failureAction === UpdateFailureAction.UPDATE_FAILURE_ACTION_CONTINUE;
  const upSince = (task: Task) => index.view.taskStatuses.get(task.id)?.upAtMs ?? 0;
  const isUpFor = (task: Task, ms: number) => up(task) && nowMs >= upSince(task) + ms;
  const proven = wanted.some(({ good }) => good.some((task) => isUpFor(task, policy.monitorMs)));
  const settlesMs = goes || proven ? Math.min(settleMs, policy.monitorMs) : policy.monitorMs;
  const waiting: SeatTasks[] = [];
  const failing = new Map<SeatTasks, Task>();
  const { displaced, homeless } = unplacedSeats(index, service, wanted);
  /** Of those that are under way, the first that waits for something but its node. */
  let held: Task | undefined;
  let busy = 0;
  /** Of those that are under way, those that have no new task that is up yet. */
  let lacking = 0;
  let doneAtMs = 0;
  let wakeAtMs: number | undefined;
  const wakeAt = (atMs: number) => {
    if (Number.isFinite(atMs)) wakeAtMs = Math.min(atMs, wakeAtMs ?? atMs);
  };
  for (const seat of wanted) {
    const failure = watchedFailure(index, service, seat, policy.monitorMs);
    if (failure !== undefined && nowMs < failure.untilMs) {
      failing.set(seat, failure.task);
      wakeAt(failure.untilMs);
    }
    const newest = seat.good[0];
    if (newest === undefined) {
      if (seat.stale.some(({ serviceVersion }) => serviceVersion !== version)) waiting.push(seat);
      else if (!failing.has(seat) && !seat.stale.some(serves) && !isComplete(index, service, seat)) {
        busy++;
        lacking++;
      }
      continue;
    }
    if (isUnplaced(newest)) {
      const untilMs = (displaced.get(seat) ?? Number.POSITIVE_INFINITY) + policy.monitorMs;
      if (nowMs >= untilMs) failing.set(seat, newest);
      else wakeAt(untilMs);
    }
    if (failing.has(seat) || homeless.has(seat)) continue;
    const settledAtMs = upSince(newest) + settlesMs;
    if (seat.stale.length > 0 || seat.going.length > 0 || !up(newest)) {
      busy++;
      lacking++;
      if (newest.unplaced !== "" || newest.waitsFor !== "") held ??= newest;
    } else if (nowMs < settledAtMs) {
      busy++;
      wakeAt(settledAtMs);
    } else doneAtMs = Math.max(doneAtMs, index.view.taskStatuses.get(newest.id)?.observedAtMs ?? 0);
  }
  const failed = failing.size > policy.maxFailureRatio * wanted.length;
  const fails = failed && goesBack(service) ? failureOf(index, [...failing.values()]) : undefined;
  const paused = !goes && failed;
  const atOnce = policy.parallelism === 0 ? wanted.length : policy.parallelism;
  // One that is tried again is up for a moment before it fails again. A seat whose failure is tolerated takes no other's
  // turn, here and below.
  const down = wanted.filter(
    (seat) =>
      (paused || !failing.has(seat)) &&
      !homeless.has(seat) &&
      !seat.good.some((task) => isUpFor(task, settlesMs)) &&
      !seat.stale.some(serves) &&
      !isComplete(index, service, seat),
  );
  const prepared = wanted.filter(
    ({ good, stale }) => good[0]?.desired === DesiredState.DESIRED_STATE_READY && stale.some(serves),
  );
  const mayStop = [
    ...prepared.filter((seat) => !paused && !failing.has(seat)),
    ...prepared.filter((seat) => failing.has(seat)),
  ];
  const stops = keysOf(mayStop.slice(0, Math.max(0, atOnce - down.length)));
  // They have begun: whatever else waits, what failed is tried again.
  const again = waiting.filter((seat) => failing.has(seat));
  const fresh = waiting.filter((seat) => !failing.has(seat));
  const isHeld = prepared.length > stops.size;
  const isUnderWay = waiting.length > 0 || isHeld || (isUpdating(index, service) && busy + failing.size > 0);
  const toGo = fresh.length + lacking + failing.size;
  const left = toGo === 0 ? "the last are watched" : `${toGo} of ${wanted.length} to go`;
  const told = isUnderWay
    ? stateOf(service, paused, left, troubleOf(index, [...failing.values(), ...(held === undefined ? [] : [held])]))
    : restOf(service);
  const excused = failed && !goes ? homeless : new Set([...homeless, ...failing.keys()]);
  const rest = { stops, ...told, fails, excused };
  if (waiting.length === 0 && !isHeld) return { seats: none, wakeAtMs: isUnderWay ? wakeAtMs : undefined, ...rest };
  if (paused) return { seats: keysOf(again), wakeAtMs, ...rest };
  if (policy.delayMs > 0 && doneAtMs > 0 && nowMs < doneAtMs + policy.delayMs) {
    wakeAt(doneAtMs + policy.delayMs);
    return { seats: keysOf(again), wakeAtMs, ...rest };
  }
  const serving = fresh.filter((seat) => seat.stale.some(serves));
  const idle = fresh.filter((seat) => !seat.stale.some(serves));
  // A seat that may not stop its old task waits for those that are not up, so that they must not wait for it.
  const waits = prepared.filter((seat) => !failing.has(seat) && !stops.has(seat.seat.key)).length;
  const begin = [
    ...idle.slice(0, Math.max(0, atOnce - busy + waits)),
    ...serving.slice(0, Math.max(0, atOnce - busy - idle.length)),
  ];
  return { seats: keysOf([...again, ...begin]), wakeAtMs, ...rest };
}

const none: ReadonlySet<string> = new Set();

function keysOf(seats: readonly SeatTasks[]): ReadonlySet<string> {
  return new Set(seats.map(({ seat }) => seat.key));
}

type Told = Pick<UpdateBudget, "state" | "message">;

/** An update or a rollback that is under way. */
function stateOf(service: Service, paused: boolean, left: string, trouble: string): Told {
  const why = trouble === "" ? "" : `: ${trouble}`;
  if (!hasGoneBack(service)) {
    if (paused) return { state: UpdateState.UPDATE_STATE_PAUSED, message: `update paused, ${left}${why}` };
    return { state: UpdateState.UPDATE_STATE_UPDATING, message: `updating, ${left}${why}` };
  }
  if (paused) return { state: UpdateState.UPDATE_STATE_ROLLBACK_PAUSED, message: `rollback paused, ${left}${why}` };
  const because = why === "" ? `: ${service.rollback?.why}` : why;
  return { state: UpdateState.UPDATE_STATE_ROLLING_BACK, message: `rolling back, ${left}${because}` };
}

/** Nothing is under way. */
function restOf({ rollback }: Service): Told {
  if (rollback === undefined) return { state: UpdateState.UPDATE_STATE_NONE, message: "" };
  return { state: UpdateState.UPDATE_STATE_ROLLED_BACK, message: `rolled back: ${rollback.why}` };
}

/**
 * "web.1, web.2 failed (web.2: exit code 1); web.3 has no place: no node fits". Of those that failed the newest says why, of
 * those without a place the first.
 */
function troubleOf(index: ClusterIndex, tasks: readonly Task[]): string {
  const namesOf = (some: readonly Task[]) => some.map((task) => nameOf(index, task)).join(", ");
  const unplaced = tasks.filter(isUnplaced);
  const waiting = tasks.filter((task) => !isUnplaced(task) && task.waitsFor !== "" && !hasFailed(index, task));
  const failed = tasks.filter((task) => !unplaced.includes(task) && !waiting.includes(task));
  return [
    ...(failed.length > 0 ? [`${namesOf(failed)} ${failedWords(index, failed)}`] : []),
    ...(unplaced.length > 0
      ? [`${namesOf(unplaced)} ${unplaced.length === 1 ? "has" : "have"} no place: ${unplaced[0]?.unplaced}`]
      : []),
    ...waiting.slice(0, 1).map((task) => `${nameOf(index, task)} waits for ${task.waitsFor}`),
  ].join("; ");
}

/** Why an update is given up: the newest failure, in the words of its node. */
function failureOf(index: ClusterIndex, tasks: readonly Task[]): UpdateFailure | undefined {
  const task = newestOf(tasks);
  if (task === undefined) return undefined;
  const why = isUnplaced(task) ? `has no place: ${task.unplaced}` : `failed: ${endOf(index, task)}`;
  return { why: `${nameOf(index, task)} ${why}`, taskId: task.id };
}

/** "failed: exit code 1", of several "failed (web.2: exit code 1)". */
function failedWords(index: ClusterIndex, failed: readonly Task[]): string {
  const newest = newestOf(failed);
  if (newest === undefined) return "failed";
  const why = endOf(index, newest);
  return failed.length === 1 ? `failed: ${why}` : `failed (${nameOf(index, newest)}: ${why})`;
}

function newestOf(tasks: readonly Task[]): Task | undefined {
  return tasks.toSorted((a, b) => b.createdAtMs - a.createdAtMs || a.slot - b.slot)[0];
}

/** How a task failed, in the words of its node. */
function endOf(index: ClusterIndex, task: Task): string {
  const { message, exitCode } = observedStatus(index.view, task);
  return message === "" ? `exit code ${exitCode}` : message;
}

function nameOf(index: ClusterIndex, task: Task): string {
  return `${task.serviceName}.${slotName(index.view, task)}`;
}

/** The scheduler has looked for a place, and found none. */
function isUnplaced({ nodeId, unplaced }: Task): boolean {
  return nodeId === "" && unplaced !== "";
}

/**
 * Of the seats whose newest task has no place those that the update has taken it from, and since when: since the old task has
 * ended, or, where that goes on until the new one is up, since the new one was made. Infinity: the old one has yet to make
 * room. `homeless` are the others: that never had one, that have lost it otherwise, and as many more as had none before the update,
 * since those may have come to the places of these.
 */
function unplacedSeats(
  index: ClusterIndex,
  service: Service,
  wanted: readonly SeatTasks[],
): { readonly displaced: ReadonlyMap<SeatTasks, number>; readonly homeless: ReadonlySet<SeatTasks> } {
  const displaced = new Map<SeatTasks, number>();
  const homeless = new Set<SeatTasks>();
  let others = service.unplacedBefore;
  for (const seat of wanted) {
    const [newest] = seat.good;
    if (newest === undefined || !isUnplaced(newest)) continue;
    const last = lastPlaced(seat);
    if (last === undefined) others--;
    if (last === undefined || !isTakenByUpdate(index, service, last)) homeless.add(seat);
    else displaced.set(seat, lacksSince(index, seat, newest, last));
  }
  for (const [seat, sinceMs] of displaced) {
    if (others <= 0) break;
    if (!Number.isFinite(sinceMs) || seat.stale.length > 0) continue;
    displaced.delete(seat);
    homeless.add(seat);
    others--;
  }
  return { displaced, homeless };
}

/** Did the seat's last task that had a place make room for another version? Else its node has, or a task that goes before. */
function isTakenByUpdate(index: ClusterIndex, service: Service, last: Task): boolean {
  if (isDrained(index, last) || isNodeLost(index.view, last.nodeId)) return false;
  return last.serviceVersion !== service.version || hasGoneBack(service);
}

/** The seat's newest task that has had a place. */
function lastPlaced({ stale, going, ended }: SeatTasks): Task | undefined {
  const placed = [...stale, ...going, ...ended].filter(({ nodeId }) => nodeId !== "");
  return placed.toSorted((a, b) => b.epoch - a.epoch)[0];
}

function lacksSince(index: ClusterIndex, seat: SeatTasks, newest: Task, last: Task): number {
  const isBeside = newest.desired === DesiredState.DESIRED_STATE_RUNNING && seat.stale.length > 0;
  if (isBeside) return newest.createdAtMs;
  if (seat.stale.length + seat.going.length > 0) return Number.POSITIVE_INFINITY;
  return Math.max(newest.createdAtMs, observedStatus(index.view, last).finishedAtMs);
}

/**
 * The seat's last attempt at the newest version, if it failed while it was watched or was the last, and until when that
 * counts: until a later attempt has been up for as long; for ever when none is up.
 */
function watchedFailure(
  index: ClusterIndex,
  service: Service,
  { good, ended }: SeatTasks,
  monitorMs: number,
): { readonly task: Task; readonly untilMs: number } | undefined {
  const task = ended.findLast(({ serviceVersion }) => serviceVersion === service.version);
  if (task === undefined || !hasFailed(index, task)) return undefined;
  const { upAtMs, finishedAtMs } = observedStatus(index.view, task);
  const watched = upAtMs === 0 || finishedAtMs - upAtMs < monitorMs;
  // A slot that gave up is never up again: only a failure that counts can be tolerated, or say why nothing goes on.
  if (!watched && restartOf(index, service, task)?.kind !== "never") return undefined;
  const next = good.map(({ id }) => index.view.taskStatuses.get(id)).find(isUp);
  return { task, untilMs: next === undefined ? Number.POSITIVE_INFINITY : next.upAtMs + monitorMs };
}

/**
 * Has the service converged, which its status does not say yet, and has it stayed so for `monitor` after an update? What has just
 * started may end at once, so that it has to be there for a moment to have converged; after a rollback for all of `monitor`, as that
 * is over then.
 */
export function planConvergence(
  index: ClusterIndex,
  service: Service,
  seats: readonly SeatTasks[],
  excused: ReadonlySet<SeatTasks>,
  nowMs: number,
): { readonly converges: boolean; readonly stays: boolean; readonly wakeAtMs: number | undefined } {
  const isNew = !hasConverged(index, service);
  const isAny = seats.some((seat) => seat.wanted && !excused.has(seat));
  const mayBe = isAny && (isNew || service.stable !== undefined);
  const sinceMs = mayBe ? fullSince(index, service, seats, excused) : undefined;
  if (sinceMs === undefined) return { converges: false, stays: false, wakeAtMs: undefined };
  const { monitorMs } = updatePolicyOf(service);
  const convergesAtMs = sinceMs + (hasGoneBack(service) ? monitorMs : Math.min(settleMs, monitorMs));
  const staysAtMs = sinceMs + monitorMs;
  const open = [...(isNew ? [convergesAtMs] : []), ...(service.stable === undefined ? [] : [staysAtMs])];
  const next = open.filter((atMs) => nowMs < atMs);
  return {
    converges: isNew && nowMs >= convergesAtMs,
    stays: service.stable !== undefined && nowMs >= staysAtMs,
    wakeAtMs: next.length === 0 ? undefined : Math.min(...next),
  };
}
