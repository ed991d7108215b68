import { ReconcileLoop } from "../../../lib/reconcile/loop.ts";
import { NodeState } from "../../../proto/gen/embassy/v1/state.ts";
import type { Change } from "../../store/types.ts";
import { aborted, type ControllerDeps, commitFenced, isStaleView, staleViewDelayMs } from "../deps.ts";
import { planNode } from "./plan.ts";

const resyncIntervalMs = 5_000;

/** Declares nodes down whose session has gone, until the signal is aborted. What follows for their tasks is not decided here. */
export async function runNodes(deps: ControllerDeps, signal: AbortSignal): Promise<void> {
  const { index, clock, log } = deps;
  const { view } = index;
  const missingSince = new Map<string, number>();
  await using loop: ReconcileLoop = new ReconcileLoop({
    name: "nodes",
    log,
    concurrency: 16,
    keys: () => [...view.nodeStatuses.entries()].map(([id]) => id),
    resyncIntervalMs,
    reconcile: async (nodeId, stopped) => {
      if (view.sessions.get(nodeId) !== undefined || view.nodeStatuses.get(nodeId) === undefined) {
        missingSince.delete(nodeId);
        return;
      }
      const nowMs = clock.monotonicMs();
      if (!missingSince.has(nodeId)) missingSince.set(nodeId, nowMs);
      const decision = planNode(view, nodeId, missingSince.get(nodeId), nowMs, deps.settings.reconnectGraceMs);
      if (decision.kind === "wait") loop.markAfter(nodeId, Math.max(1, decision.untilMs - nowMs));
      const status = view.nodeStatuses.get(nodeId);
      if (decision.kind !== "down" || status === undefined) return;
      const value = {
        ...status,
        state: NodeState.NODE_STATE_DOWN,
        changedAtMs: clock.nowMs(),
        message: decision.why,
      };
      const ifRevision = view.nodeStatuses.revisionOf(nodeId);
      try {
        await commitFenced(
          deps,
          [{ table: "nodeStatuses", id: nodeId, value, ifRevision }],
          [{ table: "sessions", id: nodeId, revision: 0 }],
          stopped,
        );
        log.info("node down", { nodeId, node: view.nodes.get(nodeId)?.name, why: decision.why });
      } catch (error) {
        if (!isStaleView(error)) throw error;
        loop.markAfter(nodeId, staleViewDelayMs);
      }
    },
  });
  using _ = index.subscribe((changes) => {
    for (const change of changes) for (const nodeId of nodesTouched(deps, change)) loop.mark(nodeId);
  });
  loop.markAll();
  await aborted(signal);
}

function* nodesTouched({ index }: ControllerDeps, change: Change): Iterable<string> {
  if (change.table === "sessions" || change.table === "nodeStatuses") yield change.id;
  if (change.table !== "memberSessions") return;
  for (const [nodeId, { clusterd }] of index.view.nodeStatuses.entries()) if (clusterd === change.id) yield nodeId;
}
