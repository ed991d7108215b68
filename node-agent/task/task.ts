import type { Assignment } from "../../proto/gen/embassy/v1/dispatcher.ts";
import { Health } from "../../proto/gen/embassy/v1/state.ts";
import type { HealthPolicy } from "../health/policy.ts";
import type { ContainerExit } from "../runtime/types.ts";
import { stopGraceMs } from "./container.ts";
import type { Stage } from "./failure.ts";
import type { ContainerFact, Observed, Wanted } from "./next-step.ts";
import type { TaskRecord } from "./record.ts";

/** One task in this process: what is wanted, what is written down, and what is known to be so right now. */
export interface ManagedTask {
  readonly id: string;
  assignment: Assignment;
  /** The content of its secrets is in `assignment`; on disk it never is. */
  secretsKnown: boolean;
  record: TaskRecord;
  /** Facts of this process: after a restart they are found again. */
  imageReady: boolean;
  networkReady: boolean;
  filesReady: boolean;
  rootfs: string | undefined;
  container: ContainerFact;
  exit: ContainerExit | undefined;
  /** Aborted when what is being prepared is not wanted any more. */
  preparing: AbortController | undefined;
  /** Failures in a row, by what was being done. */
  readonly failures: Map<Stage, number>;
  health: { readonly policy: HealthPolicy; readonly stop: AbortController } | undefined;
  /** When it was first wanted running here; monotonic. */
  wantedAtMs: number | undefined;
  /** The write of its record that is under way or waits. */
  writing: Promise<void>;
  /** Aborted once it has an outcome: its log will not grow any more. */
  readonly ended: AbortController;
}

export function newTask(assignment: Assignment, record: TaskRecord, secretsKnown: boolean): ManagedTask {
  const task: ManagedTask = {
    id: assignment.taskId,
    assignment,
    secretsKnown,
    record,
    imageReady: false,
    networkReady: false,
    filesReady: false,
    rootfs: undefined,
    container: { kind: "none" },
    exit: undefined,
    preparing: undefined,
    failures: new Map(),
    health: undefined,
    wantedAtMs: undefined,
    writing: Promise.resolve(),
    ended: new AbortController(),
  };
  if (record.outcome !== undefined) task.ended.abort();
  return task;
}

export function wantedOf(task: ManagedTask): Wanted {
  return { desired: task.assignment.desired, stopGraceMs: stopGraceMs(task.assignment) };
}

/**
 * Do the two hold the same place of a service? By its name: of one that was removed and is deployed again the older task may still write
 * to the volumes of the newer one.
 */
export function sameSlot(a: ManagedTask, b: ManagedTask): boolean {
  const one = a.assignment;
  const other = b.assignment;
  return a !== b && one.stack === other.stack && one.serviceName === other.serviceName && one.slot === other.slot;
}

export function observe(
  task: ManagedTask,
  others: Pick<Observed, "predecessorStops" | "roomIsTaken">,
  nowMs: number,
): Observed {
  const { record } = task;
  return {
    image: task.imageReady,
    network: task.networkReady,
    files: task.filesReady,
    mounted: task.rootfs !== undefined,
    container: task.container,
    started: record.startedAtMs > 0,
    unhealthy: record.health === Health.HEALTH_UNHEALTHY,
    ...others,
    stopSentAtMs: record.stopSentAtMs,
    killedAtMs: record.killedAtMs,
    outcome: record.outcome,
    released: record.released,
    nowMs,
  };
}
