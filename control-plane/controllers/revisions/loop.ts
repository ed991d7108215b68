import { ReconcileLoop } from "../../../lib/reconcile/loop.ts";
import type { ClusterIndex } from "../../domain/index.ts";
import type { Change } from "../../store/types.ts";
import { aborted, type ControllerDeps, commitFenced, isStaleView, staleViewDelayMs } from "../deps.ts";
import { planRevision } from "./plan.ts";

const resyncIntervalMs = 10_000;
/** The changes of a large stack come in hundreds, and each pass looks at all of its tasks: well below the second that it has to run. */
const gatherMs = 200;

/** Notes what became of each stack's newest revision, until the signal is aborted. */
export async function runRevisions(deps: ControllerDeps, signal: AbortSignal): Promise<void> {
  const { index, clock } = deps;
  await using loop: ReconcileLoop = new ReconcileLoop({
    name: "revisions",
    log: deps.log,
    keys: () => index.stackNames(),
    resyncIntervalMs,
    reconcile: async (stack, stopped) => {
      const nowMs = clock.nowMs();
      const { writes, wakeAtMs } = planRevision(index, stack, nowMs);
      if (wakeAtMs !== undefined) loop.markAfter(stack, Math.max(1, wakeAtMs - nowMs));
      try {
        if (writes.length > 0) await commitFenced(deps, writes, undefined, stopped);
      } catch (error) {
        if (!isStaleView(error)) throw error;
        loop.markAfter(stack, staleViewDelayMs);
      }
    },
  });
  using _ = index.subscribe((changes) => {
    for (const change of changes) for (const stack of stacksTouched(index, change)) loop.markAfter(stack, gatherMs);
  });
  loop.markAll();
  await aborted(signal);
}

/** Stacks that may all run after the change, and did not before. */
function* stacksTouched(index: ClusterIndex, change: Change): Iterable<string> {
  switch (change.table) {
    case "stacks":
      yield change.id.slice(0, change.id.lastIndexOf("/"));
      return;
    case "services":
    case "tasks": {
      const stack = (change.after ?? change.before)?.stack;
      if (stack !== undefined) yield stack;
      return;
    }
    case "taskStatuses": {
      const stack = index.view.tasks.get(change.id)?.stack;
      if (stack !== undefined) yield stack;
      return;
    }
    case "nodes":
      // A global service has a task less without it.
      yield* index.stackNames();
      return;
    default:
      return;
  }
}
