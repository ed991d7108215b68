import { shareAddress } from "../../../lib/net/host-ip.ts";
import { type PublishedPort, PublishMode } from "../../../proto/gen/embassy/v1/stack.ts";
import { type Service, type ServiceStatus, UpdateState } from "../../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../../domain/index.ts";
import { nextVersion } from "../../domain/updates.ts";
import type { Write } from "../../store/types.ts";
import type { UpdateFailure } from "./plan.ts";

const allocationId = "cluster";

/**
 * One transaction that puts a service back to what it was when it last had converged: what its tasks are made of, its networks,
 * and its ports but for those that another service of its stack has now. The stack's record stays as it was declared, and
 * says that the service went back. None when there is nothing to go back to. Pure.
 */
export function rollbackWrites(index: ClusterIndex, service: Service, failure: UpdateFailure, nowMs: number): Write[] {
  const { view } = index;
  const { id, stable, stack } = service;
  const status = view.serviceStatuses.get(id);
  if (stable === undefined || status === undefined) return [];
  const networkIds = { ...stable.networkIds };
  const writes: Write[] = [];
  for (const [name, networkId] of Object.entries(networkIds)) {
    const network = view.networks.get(networkId);
    if (network?.removed !== true) continue;
    const successor = index
      .networksOfStack(network.stack)
      .find((other) => !other.removed && other.spec?.name === network.spec?.name);
    if (successor === undefined) {
      const ifRevision = view.networks.revisionOf(networkId);
      writes.push({ table: "networks", id: networkId, value: { ...network, removed: false }, ifRevision });
    } else networkIds[name] = successor.id;
  }
  // Tasks on another network are others than those of that version.
  const isSame = Object.entries(networkIds).every(([name, networkId]) => stable.networkIds[name] === networkId);
  const version = isSame ? stable.version : nextVersion(index, service);
  const newest = index.stack(stack);
  const rollback = {
    version,
    failedVersion: service.version,
    revision: newest?.revision ?? 0,
    why: failure.why,
    taskId: failure.taskId,
    atMs: nowMs,
    policy: service.spec?.rollback,
  };
  const { spec, blobDigests } = stable;
  const value: Service = { ...service, spec, version, networkIds, blobDigests, stable: undefined, rollback };
  writes.push({ table: "services", id, value, ifRevision: view.services.revisionOf(id) });
  const ports = stable.ports.filter((port) => !isTaken(index, id, port));
  const told = {
    updateState: UpdateState.UPDATE_STATE_ROLLING_BACK,
    updateMessage: `rolling back: ${failure.why}`,
  };
  writes.push({
    table: "serviceStatuses",
    id,
    value: { ...status, vips: vipsOf(value, status), ports, ...told, convergedVersion: 0 },
    ifRevision: view.serviceStatuses.revisionOf(id),
  });
  if (newest !== undefined) {
    const key = `${stack}/${newest.revision}`;
    const rolledBack = [...new Set([...newest.rolledBack, spec?.name ?? ""])].sort();
    writes.push({
      table: "stacks",
      id: key,
      value: { ...newest, rolledBack },
      ifRevision: view.stacks.revisionOf(key),
    });
  }
  const allocation = view.allocations.get(allocationId);
  if (ports.length > 0 && allocation !== undefined) {
    // No deploy that read the ports as they were can give one of them to somebody else.
    writes.push({
      table: "allocations",
      id: allocationId,
      value: { ...allocation, generation: allocation.generation + 1 },
      ifRevision: view.allocations.revisionOf(allocationId),
    });
  }
  return writes;
}

/** Its addresses on the networks that it is on, and not those on networks that it might have gone back to. */
export function vipsOf({ networkIds }: Service, { vips }: ServiceStatus): Record<string, string> {
  const own = new Set(Object.values(networkIds));
  return Object.fromEntries(Object.entries(vips).filter(([networkId]) => own.has(networkId)));
}

/** Does another service publish it on every host? */
function isTaken(index: ClusterIndex, serviceId: string, port: PublishedPort): boolean {
  for (const [id, { ports }] of index.view.serviceStatuses.entries()) {
    if (id === serviceId || index.view.services.get(id)?.removed !== false) continue;
    const isSame = (other: PublishedPort) =>
      other.published === port.published &&
      other.protocol === port.protocol &&
      shareAddress(other.hostIp, port.hostIp) &&
      !(other.mode === PublishMode.PUBLISH_MODE_HOST && port.mode === PublishMode.PUBLISH_MODE_HOST);
    if (port.published !== 0 && ports.some(isSame)) return true;
  }
  return false;
}
