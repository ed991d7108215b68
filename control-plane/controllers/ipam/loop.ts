import { ReconcileLoop } from "../../../lib/reconcile/loop.ts";
import { hasEnded } from "../../domain/tasks.ts";
import type { Change, Write } from "../../store/types.ts";
import { aborted, type ControllerDeps, commitFenced, isStaleView, staleViewDelayMs } from "../deps.ts";
import { blockId, planBlocks } from "./plan.ts";

const resyncIntervalMs = 30_000;
const gatherMs = 1_000;

/** Keeps the blocks of every network as planBlocks wants them, until the signal is aborted. */
export async function runIpam(deps: ControllerDeps, signal: AbortSignal): Promise<void> {
  const { index, clock, settings } = deps;
  // `<network>/<node>`: since when the node has not needed its blocks. A new leader starts the rest anew.
  const since = new Map<string, number>();
  await using loop: ReconcileLoop = new ReconcileLoop({
    name: "ipam",
    log: deps.log,
    keys: () => [...index.view.networks.entries()].map(([id]) => id),
    resyncIntervalMs,
    reconcile: async (networkId, stopped) => {
      const network = index.view.networks.get(networkId);
      if (network === undefined) return;
      const nowMs = clock.monotonicMs();
      const { actions, unneeded, lacking } = planBlocks(
        index,
        network,
        settings.blockPrefix,
        (nodeId) => since.get(`${networkId}/${nodeId}`),
        { nowMs, restMs: settings.blockRestMs },
      );
      for (const key of since.keys()) {
        const [ofNetwork, nodeId] = key.split("/");
        if (ofNetwork === networkId && !unneeded.has(nodeId ?? "")) since.delete(key);
      }
      for (const nodeId of unneeded) {
        const key = `${networkId}/${nodeId}`;
        if (!since.has(key)) since.set(key, nowMs);
        const restedAtMs = (since.get(key) ?? nowMs) + settings.blockRestMs;
        if (restedAtMs > nowMs) loop.markAfter(networkId, restedAtMs - nowMs + 1);
      }
      if (lacking.size > 0) {
        deps.log.warn("network has no block left", { networkId, subnet: network.subnet, nodes: [...lacking] });
      }
      if (actions.length === 0) return;
      const writes = actions.map((action): Write => {
        if (action.kind === "give") {
          return { table: "blocks", id: blockId(action.block), value: action.block, ifRevision: 0 };
        }
        const ifRevision = index.view.blocks.revisionOf(action.blockId);
        return { table: "blocks", id: action.blockId, value: undefined, ifRevision };
      });
      const expect = [
        { table: "networks" as const, id: networkId, revision: index.view.networks.revisionOf(networkId) },
      ];
      try {
        await commitFenced(deps, writes, expect, stopped);
      } catch (error) {
        if (!isStaleView(error)) throw error;
        loop.markAfter(networkId, staleViewDelayMs);
      }
    },
  });
  using _ = index.subscribe((changes) => {
    for (const change of changes) {
      for (const networkId of networksTouched(deps, change)) loop.mark(networkId);
      // The blocks that tasks need come with their placement; what they no longer need may wait, and gather.
      for (const networkId of networksOfTask(deps, change)) loop.markAfter(networkId, gatherMs);
    }
  });
  loop.markAll();
  await aborted(signal);
}

/** Networks whose plan may differ after the change. */
function* networksTouched({ index }: ControllerDeps, change: Change): Iterable<string> {
  switch (change.table) {
    case "networks":
      yield change.id;
      return;
    case "services":
      yield* Object.values((change.after ?? change.before)?.networkIds ?? {});
      return;
    case "nodes":
      if (change.before === undefined || change.after === undefined) {
        for (const [id] of index.view.networks.entries()) yield id;
      }
      return;
    case "nodeStatuses":
      if (change.before?.state !== change.after?.state) for (const [id] of index.view.networks.entries()) yield id;
      return;
    default:
      return;
  }
}

/** Networks of a task that was placed or has ended. */
function* networksOfTask({ index }: ControllerDeps, change: Change): Iterable<string> {
  if (change.table === "tasks" && change.before?.nodeId !== change.after?.nodeId) {
    yield* Object.values((change.after ?? change.before)?.networkIds ?? {});
  }
  if (change.table === "taskStatuses" && change.after !== undefined && hasEnded(change.after.state)) {
    yield* Object.values(index.view.tasks.get(change.id)?.networkIds ?? {});
  }
}
