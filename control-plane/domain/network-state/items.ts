import type { NetEndpoint, NetHost, NetNetwork, NetService } from "../../../proto/gen/embassy/v1/dispatcher.ts";
import { EndpointMode, PublishMode } from "../../../proto/gen/embassy/v1/stack.ts";
import { DesiredState, TaskState } from "../../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../index.ts";
import { openedPorts, resolvedLinks } from "../links.ts";
import { isNodeLost, isNodeSilent, isUp } from "../tasks.ts";

/** Networks that a node takes part in: those that it owns a block of. */
export function networksOfNode(index: ClusterIndex, nodeId: string): Set<string> {
  const networks = new Set<string>();
  for (const blockId of index.blockIdsOfNode(nodeId)) {
    const networkId = index.view.blocks.get(blockId)?.networkId ?? "";
    if (index.view.networks.get(networkId) !== undefined) networks.add(networkId);
  }
  return networks;
}

// Each item below is what one host is told of one thing: a function of the view and of the networks that the host takes
// part in. undefined: the host is told nothing of it.

/** The host itself, and every host that owns a block of its networks unless it is lost. */
export function hostItem(
  index: ClusterIndex,
  receiver: string,
  networks: ReadonlySet<string>,
  id: string,
): NetHost | undefined {
  const underlayAddress = index.nodeStatus(id)?.description?.underlayAddress ?? "";
  const name = index.view.nodes.get(id)?.name;
  if (name === undefined || underlayAddress === "") return undefined;
  if (id !== receiver) {
    if (isNodeLost(index.view, id)) return undefined;
    let shared = false;
    for (const blockId of index.blockIdsOfNode(id)) {
      if (networks.has(index.view.blocks.get(blockId)?.networkId ?? "")) shared = true;
    }
    if (!shared) return undefined;
  }
  return { id, name, underlayAddress };
}

export function networkItem(
  index: ClusterIndex,
  receiver: string,
  networks: ReadonlySet<string>,
  id: string,
): NetNetwork | undefined {
  const network = index.view.networks.get(id);
  if (network === undefined || !networks.has(id)) return undefined;
  const blocks: NetNetwork["blocks"] = [];
  for (const blockId of index.blockIdsOfNetwork(id)) {
    const block = index.view.blocks.get(blockId);
    if (block === undefined) continue;
    if (block.nodeId === receiver || !isNodeLost(index.view, block.nodeId)) {
      blocks.push({ cidr: block.cidr, nodeId: block.nodeId });
    }
  }
  blocks.sort((a, b) => (a.cidr < b.cidr ? -1 : 1));
  return {
    id,
    stack: network.stack,
    name: network.spec?.name ?? "",
    vni: network.vni,
    subnet: network.subnet,
    mtu: network.mtu,
    internal: network.spec?.internal ?? false,
    isolated: network.spec?.isolated ?? false,
    blocks,
  };
}

export function serviceItem(
  index: ClusterIndex,
  _receiver: string,
  networks: ReadonlySet<string>,
  id: string,
): NetService | undefined {
  const service = index.view.services.get(id);
  if (service?.spec === undefined || service.removed) return undefined;
  const status = index.view.serviceStatuses.get(id);
  const joined: NetService["networks"] = [];
  for (const { network, aliases } of service.spec.networks) {
    const networkId = service.networkIds[network] ?? "";
    const vip = status?.vips[networkId];
    if (vip !== undefined && networks.has(networkId)) joined.push({ networkId, vip, aliases });
  }
  if (joined.length === 0) return undefined;
  return {
    id,
    stack: service.stack,
    name: service.spec.name,
    networks: joined,
    exposed: openedPorts(service),
    ports: (status?.ports ?? []).filter(({ mode }) => mode === PublishMode.PUBLISH_MODE_INGRESS),
    links: resolvedLinks(index, service.stack, service).map(({ alias, provider }) => ({
      serviceId: provider.id,
      alias,
    })),
    endpointMode: service.spec.endpointMode ?? EndpointMode.ENDPOINT_MODE_VIP,
  };
}

/**
 * A task that runs, is meant to, and whose node is not lost. One on a silent node is led to only where its service has no
 * other that is well: nobody knows whether it is there.
 */
export function endpointItem(
  index: ClusterIndex,
  _receiver: string,
  networks: ReadonlySet<string>,
  id: string,
): NetEndpoint | undefined {
  const task = index.view.tasks.get(id);
  const status = index.view.taskStatuses.get(id);
  if (task === undefined || status === undefined) return undefined;
  if (task.desired !== DesiredState.DESIRED_STATE_RUNNING || status.state !== TaskState.TASK_STATE_RUNNING) {
    return undefined;
  }
  const service = index.view.services.get(task.serviceId);
  if (service === undefined || service.removed || isNodeLost(index.view, task.nodeId)) return undefined;
  const addresses = status.addresses.filter(({ networkId }) => networks.has(networkId));
  if (addresses.length === 0) return undefined;
  return {
    taskId: id,
    serviceId: task.serviceId,
    slot: task.slot,
    nodeId: task.nodeId,
    addresses,
    ready: isUp(status) && !(isNodeSilent(index.view, task.nodeId) && index.isHeard(task.serviceId)),
  };
}
