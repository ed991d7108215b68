import type { UpdatePolicy } from "../../../proto/gen/embassy/v1/stack.ts";
import type { ClusterIndex } from "../../domain/index.ts";
import type { SeatTasks } from "../../domain/service-tasks.ts";
import { isUp } from "../../domain/tasks.ts";

export interface UpdateBudget {
  /** Seats that may begin to be replaced now, in order. */
  readonly seats: ReadonlySet<string>;
  /** When to ask again although nothing has changed; undefined: no need. */
  readonly wakeAtMs: number | undefined;
  /** Progress for people; empty when no update is under way. */
  readonly message: string;
}

/**
 * Which seats of a service may begin to move to its newest version: no more than `parallelism` at once (0: all), each
 * batch `delay_ms` after the one before was up. Seats whose old task is not up go first: replacing them costs nothing.
 */
export function planUpdate(
  index: ClusterIndex,
  policy: UpdatePolicy | undefined,
  version: number,
  seats: readonly SeatTasks[],
  nowMs: number,
): UpdateBudget {
  const up = (taskId: string) => isUp(index.view.taskStatuses.get(taskId));
  const waiting: SeatTasks[] = [];
  let busy = 0;
  let doneAtMs = 0;
  for (const seat of seats) {
    if (!seat.wanted) continue;
    const newest = seat.good[0];
    if (newest === undefined) {
      if (seat.stale.some(({ serviceVersion }) => serviceVersion !== version)) waiting.push(seat);
    } else if (newest.replaces !== "") {
      if (seat.stale.length > 0 || seat.going.length > 0 || !up(newest.id)) busy++;
      else doneAtMs = Math.max(doneAtMs, index.view.taskStatuses.get(newest.id)?.observedAtMs ?? 0);
    }
  }
  if (waiting.length === 0) return { seats: new Set(), wakeAtMs: undefined, message: "" };
  const message = `updating to version ${version}: ${waiting.length + busy} of ${seats.filter(({ wanted }) => wanted).length} to go`;
  // Swarm's default when a service says nothing.
  const parallelism = policy === undefined ? 1 : policy.parallelism;
  const delayMs = policy?.delayMs ?? 0;
  if (delayMs > 0 && doneAtMs > 0 && nowMs < doneAtMs + delayMs) {
    return { seats: new Set(), wakeAtMs: doneAtMs + delayMs, message };
  }
  const free = parallelism === 0 ? waiting.length : Math.max(0, parallelism - busy);
  const isServing = (seat: SeatTasks) => seat.stale.some(({ id }) => up(id));
  const ordered = [...waiting.filter((seat) => !isServing(seat)), ...waiting.filter(isServing)];
  return { seats: new Set(ordered.slice(0, free).map(({ seat }) => seat.key)), wakeAtMs: undefined, message };
}
