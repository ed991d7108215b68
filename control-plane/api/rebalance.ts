import { silentLog } from "../../lib/log/log.ts";
import type { PlannedMove, RebalanceRequest } from "../../proto/gen/embassy/v1/api.ts";
import { DesiredState, type Service, type Task } from "../../proto/gen/embassy/v1/state.ts";
import { SchedulerFeed } from "../controllers/scheduling/feed.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { seatsOf } from "../domain/service-tasks.ts";
import { hasEnded, observedState, taskName } from "../domain/tasks.ts";
import { volumesOf } from "../domain/volumes.ts";
import type { Write } from "../store/types.ts";
import { servicesOf } from "./resolve.ts";

/** What a rebalance comes to: the moves for people, and the writes that begin them. */
export interface MovePlan {
  readonly moves: readonly PlannedMove[];
  readonly writes: readonly Write[];
}

/**
 * Plans the fewest moves after which no node has more than one task more of a service than another that could take one, nor a
 * value of a spread preference more than another; nodes are then compared within one value. Pure. Moves that are under way go on
 * and count as made; those that wait for a place are planned anew. Services that are being updated stay, and so do those with
 * volumes, whose data would not come along.
 */
export function planMoves(index: ClusterIndex, request: RebalanceRequest): MovePlan {
  const services = servicesOf(index, request).filter((service) => mayMove(index, service));
  const underWay = new Map(services.map((service) => [service.id, movesUnderWay(index, service)]));
  const { scheduler } = new SchedulerFeed(index, silentLog);
  for (const ids of underWay.values()) for (const id of ids) scheduler.removeTask(id);
  // What is not to be moved stays in the way: a plan that counts on its move would wait for ever.
  for (const told of scheduler.snapshot().tasks) {
    const task = index.view.tasks.get(told.id);
    const moves = task?.desired === DesiredState.DESIRED_STATE_RUNNING && underWay.has(task.serviceId);
    if (!moves && told.node !== undefined) scheduler.addTask({ ...told, pinned: true });
  }
  const planned = scheduler.planRebalance({ goal: { kind: "skew", bound: 1 } }).moves;
  const moves: PlannedMove[] = [];
  const chosen = new Map<string, string[]>();
  const nameOf = (nodeId: string) => index.view.nodes.get(nodeId)?.name ?? nodeId;
  for (const { task: taskId, from, to, why } of planned) {
    const task = index.view.tasks.get(taskId);
    if (task === undefined) continue;
    chosen.set(task.serviceId, [...(chosen.get(task.serviceId) ?? []), taskId]);
    const names = { taskName: taskName(index.view, task), from: nameOf(from), to: nameOf(to) };
    moves.push({ taskId, stack: task.stack, ...names, why });
  }
  const writes = services.flatMap((service): Write[] => {
    const moving = [...(underWay.get(service.id) ?? []), ...(chosen.get(service.id) ?? [])];
    if (moving.join() === service.moving.join()) return [];
    const ifRevision = index.view.services.revisionOf(service.id);
    return [{ table: "services", id: service.id, value: { ...service, moving }, ifRevision }];
  });
  return { moves, writes };
}

function mayMove(index: ClusterIndex, service: Service): boolean {
  if (service.removed) return false;
  if (volumesOf(service.spec?.container).length > 0) return false;
  return index
    .tasksOfService(service.id)
    .every((task) => task.serviceVersion === service.version || !hasNotEnded(index, task));
}

function hasNotEnded(index: ClusterIndex, task: Task): boolean {
  return !hasEnded(observedState(index.view, task));
}

/** Tasks whose successor has a node already. */
function movesUnderWay(index: ClusterIndex, service: Service): string[] {
  const marked = new Set(service.moving);
  return seatsOf(index, service)
    .filter(({ good }) => good.some(({ nodeId }) => nodeId !== ""))
    .flatMap(({ stale }) => stale.filter(({ id }) => marked.has(id)).map(({ id }) => id));
}
