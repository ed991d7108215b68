import type { ClusterIndex } from "../../domain/index.ts";
import type { Write } from "../../store/types.ts";

/**
 * What nobody refers to any more: networks that were removed and have no service, with their blocks; blocks without a
 * network; configs and secrets that no service, no task and no revision that is kept names; statuses without what they are of. In that order.
 */
export function planSweep(index: ClusterIndex): Write[] {
  const { view } = index;
  const writes: Write[] = [];
  const gone = new Set<string>();
  for (const [id, network] of view.networks.entries()) {
    if (!network.removed || index.servicesOfNetwork(id).length > 0) continue;
    gone.add(id);
    writes.push({ table: "networks", id, value: undefined, ifRevision: view.networks.revisionOf(id) });
  }
  for (const [id, block] of view.blocks.entries()) {
    if (gone.has(block.networkId) || view.networks.get(block.networkId) === undefined) {
      writes.push({ table: "blocks", id, value: undefined, ifRevision: view.blocks.revisionOf(id) });
    }
  }
  const named = new Set<string>();
  const name = (digests: Readonly<Record<string, string>>) => {
    for (const [key, digest] of Object.entries(digests)) named.add(`${key.split("/")[0]}/${digest}`);
  };
  for (const service of view.services.values()) name(service.blobDigests);
  for (const task of view.tasks.values()) name(task.blobDigests);
  // A revision that is kept can be brought back, and a service goes back to what is stable.
  for (const service of view.services.values()) name(service.stable?.blobDigests ?? {});
  for (const { spec } of view.stacks.values()) {
    for (const { content } of spec?.configs ?? []) named.add(`config/${Buffer.from(content).toString("hex")}`);
    for (const { content } of spec?.secrets ?? []) named.add(`secret/${Buffer.from(content).toString("hex")}`);
  }
  for (const [id] of view.blobs.entries()) {
    if (!named.has(id)) writes.push({ table: "blobs", id, value: undefined, ifRevision: view.blobs.revisionOf(id) });
  }
  for (const [id] of view.taskStatuses.entries()) {
    if (view.tasks.get(id) === undefined) writes.push({ table: "taskStatuses", id, value: undefined });
  }
  for (const [id] of view.serviceStatuses.entries()) {
    if (view.services.get(id) === undefined) writes.push({ table: "serviceStatuses", id, value: undefined });
  }
  for (const [id] of view.nodeStatuses.entries()) {
    if (view.nodes.get(id) === undefined) writes.push({ table: "nodeStatuses", id, value: undefined });
  }
  return writes;
}
