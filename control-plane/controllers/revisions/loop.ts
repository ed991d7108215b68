import { ReconcileLoop } from "../../../lib/reconcile/loop.ts";
import { aborted, type ControllerDeps, commitFenced, isStaleView, staleViewDelayMs } from "../deps.ts";
import { planRevision } from "./plan.ts";

const resyncIntervalMs = 10_000;

/** Notes what became of each stack's newest revision, until the signal is aborted. */
export async function runRevisions(deps: ControllerDeps, signal: AbortSignal): Promise<void> {
  const { index, clock } = deps;
  await using loop: ReconcileLoop = new ReconcileLoop({
    name: "revisions",
    log: deps.log,
    keys: () => index.stackNames(),
    resyncIntervalMs,
    reconcile: async (stack, stopped) => {
      const writes = planRevision(index, stack, clock.nowMs());
      try {
        if (writes.length > 0) await commitFenced(deps, writes, undefined, stopped);
      } catch (error) {
        if (!isStaleView(error)) throw error;
        loop.markAfter(stack, staleViewDelayMs);
      }
    },
  });
  using _ = index.subscribe((changes) => {
    for (const { table, id } of changes) {
      if (table !== "serviceStatuses") continue;
      const service = index.view.services.get(id);
      if (service !== undefined) loop.mark(service.stack);
    }
  });
  loop.markAll();
  await aborted(signal);
}
