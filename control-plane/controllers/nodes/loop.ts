import { ReconcileLoop } from "../../../lib/reconcile/loop.ts";
import { NodeState } from "../../../proto/gen/embassy/v1/state.ts";
import type { View } from "../../store/types.ts";
import { aborted, type ControllerDeps, commitFenced, isStaleView, staleViewDelayMs } from "../deps.ts";
import { type NodeAction, type NodeTimes, planNodes } from "./plan.ts";

const onlyKey = "cluster";
const resyncIntervalMs = 5_000;
/** Commits under way at once: each node has its own, so that one that returns meanwhile holds up no other. */
const mostUnderWay = 16;

/** Declares nodes silent or down whose session has gone, until the signal is aborted. What follows for their tasks is not decided here. */
export async function runNodes(deps: ControllerDeps, signal: AbortSignal): Promise<void> {
  const { index, clock, log, settings } = deps;
  let times: NodeTimes = { missing: new Map(), lost: new Map(), heardMs: undefined };
  await using loop: ReconcileLoop = new ReconcileLoop({
    name: "nodes",
    log,
    keys: () => [onlyKey],
    resyncIntervalMs,
    reconcile: async (_, stopped) => {
      const nowMs = clock.monotonicMs();
      times = noteTimes(index.view, times, nowMs, clock.nowMs());
      const { actions, wakeAtMs, together } = planNodes(index.view, times, nowMs, settings);
      times = { ...times, heardMs: together ? undefined : (times.heardMs ?? nowMs) };
      if (wakeAtMs !== undefined) loop.markAfter(onlyKey, Math.max(1, wakeAtMs - nowMs));
      for (let start = 0; start < actions.length; start += mostUnderWay) {
        const some = actions.slice(start, start + mostUnderWay);
        const done = await Promise.all(some.map(async (action) => await carryOut(deps, action, stopped)));
        if (done.includes(false)) loop.markAfter(onlyKey, staleViewDelayMs);
      }
    },
  });
  using _ = index.subscribe((changes) => {
    if (changes.some(({ table }) => tables.has(table))) loop.mark(onlyKey);
  });
  loop.markAll();
  await aborted(signal);
}

/** What the plan reads. */
const tables: ReadonlySet<string> = new Set(["nodes", "nodeStatuses", "sessions", "memberSessions"]);

/** False: it met a newer state. */
async function carryOut(deps: ControllerDeps, action: NodeAction, signal: AbortSignal): Promise<boolean> {
  const { index, clock, log } = deps;
  const { nodeId, kind, why } = action;
  const status = index.view.nodeStatuses.get(nodeId);
  if (status === undefined) return true;
  const state = kind === "down" ? NodeState.NODE_STATE_DOWN : NodeState.NODE_STATE_SILENT;
  const value = { ...status, state, changedAtMs: clock.nowMs(), message: why };
  const ifRevision = index.view.nodeStatuses.revisionOf(nodeId);
  try {
    const unheard = { table: "sessions" as const, id: nodeId, revision: 0 };
    await commitFenced(deps, [{ table: "nodeStatuses", id: nodeId, value, ifRevision }], [unheard], signal);
  } catch (error) {
    if (!isStaleView(error)) throw error;
    return false;
  }
  const fields = { nodeId, node: index.view.nodes.get(nodeId)?.name, why };
  if (kind === "down") log.info("node down", fields);
  else log.warn("node silent", fields);
  return true;
}

/** Since when nodes are as they are: since this leader sees it, or for as long as their record says by the clocks of others. */
function noteTimes(view: View, before: NodeTimes, nowMs: number, wallMs: number): NodeTimes {
  const missing = new Map<string, number>();
  const lost = new Map<string, number>();
  for (const [id, { state, changedAtMs }] of view.nodeStatuses.entries()) {
    if (view.sessions.get(id) !== undefined) continue;
    missing.set(id, before.missing.get(id) ?? nowMs);
    if (state === NodeState.NODE_STATE_READY) continue;
    lost.set(id, before.lost.get(id) ?? nowMs - Math.max(0, wallMs - changedAtMs));
  }
  return { missing, lost, heardMs: before.heardMs };
}
