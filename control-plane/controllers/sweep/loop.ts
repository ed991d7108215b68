import { ReconcileLoop } from "../../../lib/reconcile/loop.ts";
import { aborted, type ControllerDeps, commitFenced, isStaleView } from "../deps.ts";
import { planSweep } from "./plan.ts";

const onlyKey = "cluster";
const sweepIntervalMs = 60_000;
/** A deploy writes a config and the service that names it in one transaction; this only gathers a removal's many changes. */
const settleMs = 200;

/** Deletes what nobody refers to any more, until the signal is aborted. */
export async function runSweep(deps: ControllerDeps, signal: AbortSignal): Promise<void> {
  const { index } = deps;
  await using loop: ReconcileLoop = new ReconcileLoop({
    name: "sweep",
    log: deps.log,
    keys: () => [onlyKey],
    resyncIntervalMs: sweepIntervalMs,
    reconcile: async (_, stopped) => {
      const writes = planSweep(index);
      // Of what is deleted here only blobs can come back into use: the deploy that does so changes the allocation.
      const expect = [
        { table: "allocations" as const, id: "cluster", revision: index.view.allocations.revisionOf("cluster") },
      ];
      try {
        if (writes.length > 0) await commitFenced(deps, writes, expect, stopped);
      } catch (error) {
        if (!isStaleView(error)) throw error;
        loop.markAfter(onlyKey, settleMs);
      }
    },
  });
  using _ = index.subscribe((changes) => {
    for (const change of changes) {
      const { table, after } = change;
      const removal = after === undefined && ["services", "tasks", "nodes", "stacks"].includes(table);
      const settled = table === "services" && change.before?.stable !== undefined && change.after?.stable === undefined;
      if (removal || settled || (table === "networks" && after?.removed)) loop.markAfter(onlyKey, settleMs);
    }
  });
  loop.markAll();
  await aborted(signal);
}
