import { ReconcileLoop } from "../../../lib/reconcile/loop.ts";
import { ServiceRebalance } from "../../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../../domain/index.ts";
import { serviceFullName } from "../../domain/tasks.ts";
import type { Change, CommitOptions, View, Write } from "../../store/types.ts";
import { aborted, type ControllerDeps, commitFenced, isStaleView, staleViewDelayMs } from "../deps.ts";
import { noMemory, planRebalancing, type RebalanceAction, shortName } from "./plan.ts";

const onlyKey = "cluster";
/** Changes of so long are one pass, as it looks at every service that asks for it. */
const gatherMs = 5_000;
/** The same while a task of the service moves: the next one waits for it. */
const movingGatherMs = 200;

/** Moves tasks of services that ask for it, so that they are spread evenly, until the signal is aborted. */
export async function runRebalance(deps: ControllerDeps, signal: AbortSignal): Promise<void> {
  const { index, clock, log, settings } = deps;
  let memory = noMemory;
  await using loop: ReconcileLoop = new ReconcileLoop({
    name: "rebalance",
    log,
    keys: () => [onlyKey],
    resyncIntervalMs: settings.rebalanceIntervalMs,
    reconcile: async (_, stopped) => {
      const nowMs = clock.nowMs();
      const plan = planRebalancing(index, memory, nowMs, settings);
      memory = plan.memory;
      loop.markAfter(onlyKey, Math.min(settings.rebalanceIntervalMs, Math.max(1, plan.wakeAtMs - nowMs)));
      for (const action of plan.actions) {
        const { writes, expect } = moveWrites(index, action, nowMs);
        if (writes.length === 0) continue;
        try {
          await commitFenced(deps, writes, expect, stopped);
          tell(deps, action);
        } catch (error) {
          if (!isStaleView(error)) throw error;
          loop.markAfter(onlyKey, staleViewDelayMs);
        }
      }
    },
  });
  using _ = index.subscribe((changes) => {
    const afterMs = Math.min(...changes.map((change) => noticedAfterMs(index, change)));
    if (Number.isFinite(afterMs)) loop.markAfter(onlyKey, afterMs);
  });
  loop.markAll();
  await aborted(signal);
}

/** How soon the change is to be looked at. Infinity: the plan is the same after it. */
function noticedAfterMs(index: ClusterIndex, change: Change): number {
  const { view } = index;
  switch (change.table) {
    case "nodes":
    case "nodeStatuses":
      return movingGatherMs;
    case "services":
    case "serviceStatuses":
      return ofService(view, change.id);
    case "tasks":
      return ofService(view, (change.after ?? change.before)?.serviceId);
    case "taskStatuses":
      if (change.before?.state === change.after?.state && change.before?.health === change.after?.health) break;
      return ofService(view, view.tasks.get(change.id)?.serviceId);
    default:
      break;
  }
  return Number.POSITIVE_INFINITY;
}

function ofService(view: View, serviceId = ""): number {
  if ((view.serviceStatuses.get(serviceId)?.rebalance?.taskId ?? "") !== "") return movingGatherMs;
  return view.services.get(serviceId)?.spec?.disruption?.rebalance === true ? gatherMs : Number.POSITIVE_INFINITY;
}

/** The transaction that carries out an action; it compares what the plan read of the service. None when that is gone. Pure. */
export function moveWrites(
  index: ClusterIndex,
  action: RebalanceAction,
  nowMs: number,
): { readonly writes: readonly Write[]; readonly expect: CommitOptions["expect"] } {
  const { view } = index;
  const { serviceId, taskId } = action;
  const service = view.services.get(serviceId);
  const status = view.serviceStatuses.get(serviceId);
  if (service === undefined || status === undefined) return { writes: [], expect: [] };
  const before = status.rebalance ?? ServiceRebalance.create();
  const value = { ...status, rebalance: { ...before, ...outcomeOf(index, action, before), atMs: nowMs } };
  const writes: Write[] = [
    { table: "serviceStatuses", id: serviceId, value, ifRevision: view.serviceStatuses.revisionOf(serviceId) },
  ];
  // Marks of tasks that ended say nothing any more.
  const marked = service.moving.filter((id) => id !== taskId && view.tasks.get(id) !== undefined);
  const moving = action.kind === "move" ? [...marked, taskId] : marked;
  const ifRevision = view.services.revisionOf(serviceId);
  if (moving.join() !== service.moving.join()) {
    writes.push({ table: "services", id: serviceId, value: { ...service, moving }, ifRevision });
  }
  // A successor may have taken over in this moment.
  return { writes, expect: [{ table: "tasks", id: taskId, revision: view.tasks.revisionOf(taskId) }] };
}

function outcomeOf(
  { view }: ClusterIndex,
  action: RebalanceAction,
  before: ServiceRebalance,
): Partial<ServiceRebalance> {
  const name = shortName(view, view.tasks.get(action.taskId));
  const nodeName = (id: string) => view.nodes.get(id)?.name ?? id;
  switch (action.kind) {
    case "move": {
      const { taskId, epoch, left, why } = action;
      return { taskId, epoch, left, why, message: `${name} moves from ${nodeName(action.from)}: ${why}` };
    }
    case "moved": {
      const message = `${name} was moved from ${nodeName(action.from)} to ${nodeName(action.to)}: ${action.why}`;
      return { taskId: "", failures: 0, message };
    }
    case "failed":
      return { taskId: "", left: 0, failures: before.failures + 1, message: `${name} was not moved: ${action.why}` };
    case "dropped":
      return { taskId: "", left: 0, message: `${name} was not moved: ${action.why}` };
    default:
      return action satisfies never;
  }
}

function tell({ index, log }: ControllerDeps, action: RebalanceAction): void {
  const { view } = index;
  const { serviceId, taskId, kind, why } = action;
  const service = view.services.get(serviceId);
  const nodeName = (id: string) => view.nodes.get(id)?.name ?? id;
  const name = service === undefined ? serviceId : serviceFullName(service);
  const fields = { service: name, taskId, why };
  if (kind === "move") log.info("task moves", { ...fields, from: nodeName(action.from), planned: nodeName(action.to) });
  else if (kind === "moved")
    log.info("task moved", { ...fields, from: nodeName(action.from), to: nodeName(action.to) });
  else if (kind === "failed") log.warn("task not moved", fields);
  else log.info("move dropped", fields);
}
