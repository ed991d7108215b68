import { UpdateFailureAction, UpdatePolicy } from "../../proto/gen/embassy/v1/stack.ts";
import type { Service } from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "./index.ts";
import { seatOf, wantedSeats } from "./seats.ts";
import { isLive } from "./tasks.ts";

/** Compose's defaults, when a service says nothing. */
const defaults = UpdatePolicy.create({ parallelism: 1, monitorMs: 5_000 });

/** How the service's tasks are replaced now: as its updates are, or as its rollbacks are once it has gone back. */
export function updatePolicyOf(service: Service): UpdatePolicy {
  return (hasGoneBack(service) ? service.rollback?.policy : service.spec?.update) ?? defaults;
}

/** Is it of the version that it went back to when an update failed? */
export function hasGoneBack({ rollback, version }: Service): boolean {
  return rollback?.version === version;
}

/** Has it been of another version that had converged, and has not stayed converged at this one yet? */
export function isUpdating(index: ClusterIndex, service: Service): boolean {
  return service.stable !== undefined || (hasGoneBack(service) && !hasConverged(index, service));
}

/** Had each of its slots what it wants at its version, but those that an update does not wait for, and was nothing old left, at some time? */
export function hasConverged(index: ClusterIndex, { id, version }: Service): boolean {
  return index.view.serviceStatuses.get(id)?.convergedVersion === version;
}

/** Does it go back when its update fails? What has gone back has nothing to go back to. */
export function goesBack({ spec, stable }: Service): boolean {
  return spec?.update?.failureAction === UpdateFailureAction.UPDATE_FAILURE_ACTION_ROLLBACK && stable !== undefined;
}

/**
 * How many of the seats that the service is to have have no place now: an update that begins does not wait for so many.
 * While an earlier update has not converged, as many as before that, or each update that fits nowhere would cost one more.
 */
export function unplacedNow(index: ClusterIndex, known: Service, wanted: Service): number {
  const isFirst = known.version === 1;
  const seats = new Set(wantedSeats(index, wanted).map(({ key }) => key));
  const more = seats.size - wantedSeats(index, known).length;
  if (!hasConverged(index, known) && !isFirst) return Math.max(0, known.unplacedBefore + more);
  for (const task of index.tasksOfService(known.id)) {
    if (task.nodeId !== "" && isLive(index.view, task)) seats.delete(seatOf(task));
  }
  return seats.size;
}

/** A version that neither the service nor a task of it has had, as far as is on record: all its tasks are replaced. */
export function nextVersion(index: ClusterIndex, { id, version, stable, rollback }: Service): number {
  const known = [version, stable?.version ?? 0, rollback?.version ?? 0, rollback?.failedVersion ?? 0];
  return Math.max(...known, ...index.tasksOfService(id).map(({ serviceVersion }) => serviceVersion)) + 1;
}
