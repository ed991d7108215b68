import type { Service, StackRecord } from "../../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../../domain/index.ts";
import { runsSince } from "../../domain/service-tasks.ts";
import type { Write } from "../../store/types.ts";

export interface RevisionPlan {
  readonly writes: readonly Write[];
  /** When to plan again although nothing has changed; undefined: no need. */
  readonly wakeAtMs: number | undefined;
}

/** What has just started may end at once. `deploy` waits for as long. */
const settleMs = 1_000;

/**
 * Notes in a stack's newest revision that it ran, the first time that all of it has run for a second: by the condition by which
 * `deploy` says that the stack runs. One of which a service was scaled to fewer tasks than it declares did not run as a whole.
 * No writes when that is not so, or noted. Pure.
 */
export function planRevision(index: ClusterIndex, stack: string, nowMs: number): RevisionPlan {
  const newest = index.stack(stack);
  const nothing: RevisionPlan = { writes: [], wakeAtMs: undefined };
  if (newest === undefined || newest.convergedAtMs > 0) return nothing;
  let sinceMs = 0;
  for (const service of index.servicesOfStack(stack)) {
    const upMs = hasFewer(newest, service) ? undefined : runsSince(index, service);
    if (upMs === undefined) return nothing;
    sinceMs = Math.max(sinceMs, upMs);
  }
  if (nowMs < sinceMs + settleMs) return { writes: [], wakeAtMs: sinceMs + settleMs };
  const id = `${stack}/${newest.revision}`;
  const value = { ...newest, convergedAtMs: nowMs };
  return {
    writes: [{ table: "stacks", id, value, ifRevision: index.view.stacks.revisionOf(id) }],
    wakeAtMs: undefined,
  };
}

/** Is the service to have fewer tasks than the revision declares? */
function hasFewer(record: StackRecord, { spec }: Service): boolean {
  const declared = record.spec?.services.find(({ name }) => name === spec?.name)?.mode;
  return (
    declared?.$case === "replicated" &&
    spec?.mode?.$case === "replicated" &&
    spec.mode.value.replicas < declared.value.replicas
  );
}
