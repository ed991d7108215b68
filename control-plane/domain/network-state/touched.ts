import type { Change } from "../../store/types.ts";
import type { ClusterIndex } from "../index.ts";
import { serviceNamed } from "../links.ts";

export const itemKinds = ["hosts", "networks", "services", "endpoints"] as const;
export type ItemKind = (typeof itemKinds)[number];

/** Items of network states that a batch of changes may have altered, whoever receives them. */
export interface Touched {
  readonly items: { readonly [K in ItemKind]: Set<string> };
  /** Nodes that own other blocks than before, so that they may take part in other networks. */
  readonly members: Set<string>;
}

export function emptyTouched(): Touched {
  return {
    items: { hosts: new Set(), networks: new Set(), services: new Set(), endpoints: new Set() },
    members: new Set(),
  };
}

/**
 * Adds what the changes touch; its cost grows with the changes and with what they name, not with the cluster. To be called for
 * every batch of changes, with the same `silent`.
 */
export function touch(index: ClusterIndex, changes: readonly Change[], touched: Touched, silent: SilentServices): void {
  const { items } = touched;
  // Services of which a task, or the node of one, changed.
  const services = new Set<string>();
  for (const change of changes) {
    switch (change.table) {
      case "tasks":
        items.endpoints.add(change.id);
        services.add((change.after ?? change.before)?.serviceId ?? "");
        break;
      case "taskStatuses":
        items.endpoints.add(change.id);
        services.add(index.view.tasks.get(change.id)?.serviceId ?? "");
        break;
      case "serviceStatuses": {
        items.services.add(change.id);
        const service = index.view.services.get(change.id);
        if (service !== undefined) touchConsumers(index, service.stack, service.spec?.name ?? "", items.services);
        break;
      }
      case "services": {
        items.services.add(change.id);
        for (const service of [change.before, change.after]) {
          if (service !== undefined) touchConsumers(index, service.stack, service.spec?.name ?? "", items.services);
        }
        if (change.before?.removed !== change.after?.removed) touchEndpoints(index, change.id, items.endpoints);
        break;
      }
      case "networks":
        items.networks.add(change.id);
        break;
      case "blocks":
        for (const block of [change.before, change.after]) {
          if (block === undefined) continue;
          items.networks.add(block.networkId);
          items.hosts.add(block.nodeId);
          touched.members.add(block.nodeId);
        }
        break;
      case "nodes":
        touchNode(index, change.id, items, services);
        break;
      case "nodeStatuses":
        if (
          change.before?.state !== change.after?.state ||
          change.before?.description?.underlayAddress !== change.after?.description?.underlayAddress
        ) {
          touchNode(index, change.id, items, services);
        }
        break;
      default:
        break;
    }
  }
  silent.touch(index, services, items.endpoints);
}

/** Whether services with tasks on silent nodes have others, as of the changes before: theirs alone are led to then. */
export class SilentServices {
  readonly #heard = new Map<string, boolean>();

  /** Adds the endpoints on silent nodes of those of the services, of which something changed, that now have others or no longer do. */
  touch(index: ClusterIndex, services: Iterable<string>, endpoints: Set<string>): void {
    if (index.silentNodes.size === 0) {
      this.#heard.clear();
      return;
    }
    for (const serviceId of services) {
      const heard = index.isHeard(serviceId);
      if (this.#heard.get(serviceId) === heard) continue;
      this.#heard.set(serviceId, heard);
      for (const task of index.tasksOfService(serviceId)) {
        if (index.silentNodes.has(task.nodeId)) endpoints.add(task.id);
      }
    }
  }
}

/** Adds everything that belongs to a network, for a host that joins or leaves it. */
export function touchNetwork(index: ClusterIndex, networkId: string, items: Touched["items"]): void {
  items.networks.add(networkId);
  for (const blockId of index.blockIdsOfNetwork(networkId)) {
    const nodeId = index.view.blocks.get(blockId)?.nodeId;
    if (nodeId !== undefined) items.hosts.add(nodeId);
  }
  for (const service of index.servicesOfNetwork(networkId)) {
    items.services.add(service.id);
    touchEndpoints(index, service.id, items.endpoints);
  }
}

function touchNode(index: ClusterIndex, nodeId: string, items: Touched["items"], services: Set<string>): void {
  items.hosts.add(nodeId);
  for (const blockId of index.blockIdsOfNode(nodeId)) {
    const networkId = index.view.blocks.get(blockId)?.networkId;
    if (networkId !== undefined) items.networks.add(networkId);
  }
  for (const task of index.tasksOfNode(nodeId)) {
    items.endpoints.add(task.id);
    services.add(task.serviceId);
  }
}

function touchEndpoints(index: ClusterIndex, serviceId: string, endpoints: Set<string>): void {
  for (const task of index.tasksOfService(serviceId)) endpoints.add(task.id);
}

// A link names its provider; which service that is, and whether it has an address, is part of the consumer's item.
function touchConsumers(index: ClusterIndex, stack: string, provider: string, services: Set<string>): void {
  for (const service of index.servicesOfStack(stack)) {
    if (service.spec?.links.some((link) => link.service === provider)) services.add(service.id);
  }
  const present = serviceNamed(index, stack, provider);
  if (present !== undefined) services.add(present.id);
}
