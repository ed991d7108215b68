import type { PlannedMove, RebalanceRequest } from "../../proto/gen/embassy/v1/api.ts";
import { DesiredState, type Service, type Task } from "../../proto/gen/embassy/v1/state.ts";
import { MoveTrial, movesMade } from "../controllers/rebalance/moves.ts";
import type { ClusterIndex } from "../domain/index.ts";
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
  const underWay = new Map(services.map((service) => [service.id, movesMade(index, service)]));
  const mayMoveTask = ({ serviceId, desired }: Task) =>
    desired === DesiredState.DESIRED_STATE_RUNNING && underWay.has(serviceId);
  const planned = new MoveTrial(index, mayMoveTask, [...underWay.values()].flat(), 1).plan();
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
