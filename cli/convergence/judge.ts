import type { ServiceProgress, TaskView } from "../../proto/gen/embassy/v1/api.ts";
import { Health, TaskState } from "../../proto/gen/embassy/v1/state.ts";
import { gaveUpAfter } from "../attempts.ts";

/** How long a service may make no headway before `deploy` gives up on it. Longer for what often mends itself. */
export const patience = {
  /** No node fits: changes only when the cluster or the stack does. */
  unplacedMs: 5_000,
  /** While old tasks still hold the places. */
  unplacedBehindOldMs: 30_000,
  /** Never started: an image or a mount is wrong, or the registry hiccups. */
  rejectedMs: 8_000,
  /** Started and ended: usual for a while when a service waits for another that starts with it. */
  failedMs: 20_000,
  failedAttempts: 3,
  /** For what goes back by itself when it fails: on top of the time that it is watched. */
  revertsMs: 5_000,
} as const;

/** A service that will not get where it should, with the cause in the component's own words. */
export interface Failure {
  readonly service: string;
  /** The task that tells it best: "web.2", or "web" when it has no slot. */
  readonly task: string;
  readonly taskId: string;
  readonly kind: "unplaced" | "rejected" | "failed";
  readonly why: string;
  /** The cluster goes on trying; otherwise nothing happens until the service changes. */
  readonly triedAgain: boolean;
}

/** How the problem of a task reads; undefined when it has none. */
export function problemOf(
  view: TaskView,
): { readonly kind: "unplaced" | "rejected" | "failed"; readonly why: string } | undefined {
  const { task, status } = view;
  const on = view.nodeName === "" ? "" : ` on ${view.nodeName}`;
  const gaveUp = gaveUpAfter(view);
  const end = gaveUp === undefined ? "" : `; ${gaveUp}`;
  switch (status?.state) {
    case TaskState.TASK_STATE_REJECTED:
      return { kind: "rejected", why: `cannot be started${on}: ${status.message || "no cause was given"}${end}` };
    case TaskState.TASK_STATE_FAILED: {
      const words = status.oomKilled ? "out of memory" : `exit code ${status.exitCode}`;
      // The node says the code in words of its own when it knows no more.
      const more = /^exited with code -?\d+$/.test(status.message) ? "" : status.message;
      return { kind: "failed", why: `ended${on} (${words})${more === "" ? "" : `: ${more}`}${end}` };
    }
    case TaskState.TASK_STATE_COMPLETE:
      return { kind: "failed", why: `ended${on} (exit code 0), and is to go on for ever${end}` };
    default:
      return task?.unplaced ? { kind: "unplaced", why: `has no place: ${task.unplaced}` } : undefined;
  }
}

/** What a task that has not failed is still short of; undefined: nothing that it says. */
export function waitOf({ task, status }: TaskView): string | undefined {
  if (status?.state === TaskState.TASK_STATE_RUNNING) {
    if (status.health !== Health.HEALTH_STARTING && status.health !== Health.HEALTH_UNHEALTHY) return undefined;
    const told = status.message.replace(/^unhealthy: /, "");
    const words = told === "" ? "" : ` (${told})`;
    return status.health === Health.HEALTH_STARTING ? `is not healthy yet${words}` : `is unhealthy${words}`;
  }
  return task?.waitsFor ? `waits for ${task.waitsFor}` : undefined;
}

/** The task as it is called within its stack. */
export function shortName(view: TaskView): string {
  const { task } = view;
  if (task === undefined) return "?";
  return task.slot > 0 ? `${task.serviceName}.${task.slot}` : task.serviceName;
}

/**
 * Decides whether a service that has made no headway for `stuckMs` has failed; undefined: it may still come. Pure.
 * `known` holds ids of tasks that had failed before this deploy and say nothing about it; `attempts` is how many have
 * failed since, as the cluster shows only the latest. A task that gave up has failed at once, and whenever that was: nothing
 * comes after it.
 */
export function judge(
  progress: ServiceProgress,
  stuckMs: number,
  known: ReadonlySet<string>,
  attempts: number,
): Failure | undefined {
  // Until then the control plane may take it back by itself, which is another end than this.
  const { revertsAfterMs } = progress;
  if (revertsAfterMs > 0 && stuckMs < revertsAfterMs + patience.revertsMs) return undefined;
  const isNews = ({ task, gaveUp }: TaskView) => task !== undefined && (gaveUp !== "" || !known.has(task.id));
  const fresh = progress.problems.filter(isNews);
  const found = fresh.flatMap((view) => {
    const problem = problemOf(view);
    return problem === undefined ? [] : [{ view, ...problem }];
  });
  const first = (kind: string) => found.find((problem) => problem.kind === kind);
  const give = (problem: (typeof found)[number]): Failure => ({
    service: progress.name,
    task: shortName(problem.view),
    taskId: problem.view.task?.id ?? "",
    kind: problem.kind,
    why: problem.why,
    triedAgain: problem.view.gaveUp === "",
  });
  const gaveUp = found.find(({ view }) => view.gaveUp !== "");
  if (gaveUp !== undefined) return give(gaveUp);
  const unplaced = first("unplaced");
  if (unplaced !== undefined && stuckMs >= (progress.old > 0 ? patience.unplacedBehindOldMs : patience.unplacedMs)) {
    return give(unplaced);
  }
  const rejected = first("rejected");
  if (rejected !== undefined && stuckMs >= patience.rejectedMs) return give(rejected);
  const failed = first("failed");
  if (failed !== undefined && attempts >= patience.failedAttempts && stuckMs >= patience.failedMs) return give(failed);
  return undefined;
}

/** Of the services those that cannot start since one that they wait for, of themselves or through others, has failed. */
export function heldBy(services: readonly ServiceProgress[], failed: ReadonlySet<string>): ReadonlySet<string> {
  const held = new Set<string>();
  const isStuck = (name: string) => failed.has(name) || held.has(name);
  // Each turn adds one at least, or is the last.
  for (let before = -1; before < held.size; ) {
    before = held.size;
    for (const { name, waitsOn } of services) if (waitsOn.some(isStuck)) held.add(name);
  }
  return held;
}

/** Has the service what it wants, and nothing old? Unhealthy tasks do not count as running. */
export function isSettled(progress: ServiceProgress): boolean {
  return progress.running >= progress.desired && progress.old === 0;
}
