import { UpdateFailureAction, UpdatePolicy } from "../../../proto/gen/embassy/v1/stack.ts";
import { DesiredState, type Service, type Task } from "../../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../../domain/index.ts";
import { hasFailed, isComplete, isDrained, restartOf, type SeatTasks } from "../../domain/service-tasks.ts";
import { isUp, observedStatus, slotName } from "../../domain/tasks.ts";

export interface UpdateBudget {
  /** Seats that may begin to be replaced now, in order. */
  readonly seats: ReadonlySet<string>;
  /** Seats whose successor is being prepared, and whose old task may be stopped for it now although it is up. */
  readonly stops: ReadonlySet<string>;
  /** When to ask again although nothing has changed; undefined: no need. */
  readonly wakeAtMs: number | undefined;
  /** Progress for people; empty when no update is under way. */
  readonly message: string;
}

/**
 * What dies at its start mostly does so at once. A new task has to be up for this long, or for `monitor_ms` when that is less,
 * before the next is replaced; those of the first batch for the whole of `monitor_ms`: an update that cannot work costs one
 * batch of tasks, and one that works `monitor_ms` and a second a batch.
 */
const settleMs = 1_000;

/** Compose's defaults, when a service says nothing. */
const defaults = UpdatePolicy.create({ parallelism: 1, monitorMs: 5_000 });

/**
 * Which seats of a service may begin to move to its newest version: no more than `parallelism` at once (0: all), each
 * batch `delay_ms` after the one before was up and has settled. Seats that are not up count among those at once, whatever
 * their version, and go first; so a task that is up is replaced only while fewer than `parallelism` seats are not up. The same
 * goes for the stop of one whose successor is prepared, as another may have ended meanwhile.
 * When more than `max_failure_ratio` of the seats have a new task that failed while it was watched, no further seat begins;
 * those that failed are tried again as their restart policy says, and once they stay up the update goes on.
 */
export function planUpdate(
  index: ClusterIndex,
  service: Service,
  seats: readonly SeatTasks[],
  nowMs: number,
): UpdateBudget {
  const { version } = service;
  const policy = service.spec?.update ?? defaults;
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
  let busy = 0;
  let doneAtMs = 0;
  let wakeAtMs: number | undefined;
  for (const seat of wanted) {
    const failure = failureOf(index, service, seat, policy.monitorMs);
    if (failure !== undefined && nowMs < failure.untilMs) {
      failing.set(seat, failure.task);
      if (Number.isFinite(failure.untilMs)) wakeAtMs = Math.min(failure.untilMs, wakeAtMs ?? failure.untilMs);
    }
    const newest = seat.good[0];
    if (newest === undefined) {
      if (seat.stale.some(({ serviceVersion }) => serviceVersion !== version)) waiting.push(seat);
      else if (!failing.has(seat) && !seat.stale.some(serves) && !isComplete(index, service, seat)) busy++;
    } else {
      const settledAtMs = upSince(newest) + settlesMs;
      if (failing.has(seat)) continue;
      if (seat.stale.length > 0 || seat.going.length > 0 || !up(newest)) busy++;
      else if (nowMs < settledAtMs) {
        busy++;
        wakeAtMs = Math.min(settledAtMs, wakeAtMs ?? settledAtMs);
      } else doneAtMs = Math.max(doneAtMs, index.view.taskStatuses.get(newest.id)?.observedAtMs ?? 0);
    }
  }
  const paused = !goes && failing.size > policy.maxFailureRatio * wanted.length;
  const atOnce = policy.parallelism === 0 ? wanted.length : policy.parallelism;
  // One that is tried again is up for a moment before it fails again. A seat whose failure is tolerated takes no other's
  // turn, here and below.
  const down = wanted.filter(
    (seat) =>
      (paused || !failing.has(seat)) &&
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
  if (waiting.length === 0 && prepared.length === stops.size) {
    return { seats: new Set(), stops, wakeAtMs: undefined, message: "" };
  }
  // They have begun: whatever else waits, what failed is tried again.
  const again = waiting.filter((seat) => failing.has(seat));
  const fresh = waiting.filter((seat) => !failing.has(seat));
  const left = `${fresh.length + busy + failing.size} of ${wanted.length} to go`;
  if (paused) {
    const names = [...failing.values()].map((task) => `${task.serviceName}.${slotName(index.view, task)}`).join(", ");
    const message = `update paused, ${left}: ${names} failed`;
    return { seats: keysOf(again), stops, wakeAtMs, message };
  }
  const message = `updating: ${left}`;
  if (policy.delayMs > 0 && doneAtMs > 0 && nowMs < doneAtMs + policy.delayMs) {
    wakeAtMs = Math.min(doneAtMs + policy.delayMs, wakeAtMs ?? Infinity);
    return { seats: keysOf(again), stops, wakeAtMs, message };
  }
  const serving = fresh.filter((seat) => seat.stale.some(serves));
  const idle = fresh.filter((seat) => !seat.stale.some(serves));
  // A seat that may not stop its old task waits for those that are not up, so that they must not wait for it.
  const held = prepared.filter((seat) => !failing.has(seat) && !stops.has(seat.seat.key)).length;
  const begin = [
    ...idle.slice(0, Math.max(0, atOnce - busy + held)),
    ...serving.slice(0, Math.max(0, atOnce - busy - idle.length)),
  ];
  return { seats: keysOf([...again, ...begin]), stops, wakeAtMs, message };
}

function keysOf(seats: readonly SeatTasks[]): ReadonlySet<string> {
  return new Set(seats.map(({ seat }) => seat.key));
}

/**
 * The seat's last attempt at the newest version, if it failed while it was watched or was the last, and until when that
 * counts: until a later attempt has been up for as long; for ever when none is up.
 */
function failureOf(
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
