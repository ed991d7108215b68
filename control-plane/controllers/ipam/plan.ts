import { blocksOf, formatCidr, parseCidr, sizeOf } from "../../../lib/cidr/cidr.ts";
import { PublishMode } from "../../../proto/gen/embassy/v1/stack.ts";
import type { Block, Network } from "../../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../../domain/index.ts";
import { hasEnded, isNodeUp, observedState } from "../../domain/tasks.ts";

/** Addresses of a block that are not for tasks: its first, the host's own (.1) and its last. */
const reservedInBlock = 3;
/** Addresses that rest after their task has ended, or are wanted by tasks about to be replaced. */
const spareAddresses = 8;

/** Key of the table `blocks`. */
export function blockId(block: Pick<Block, "networkId" | "cidr">): string {
  return `${block.networkId}/${block.cidr.replace("/", "-")}`;
}

/** Blocks that a node needs for so many tasks on one network. */
export function blocksNeeded(tasks: number, blockPrefix: number): number {
  const usable = Math.max(1, 2 ** (32 - blockPrefix) - reservedInBlock);
  return Math.max(1, Math.ceil((tasks + Math.min(spareAddresses, usable - 1)) / usable));
}

/** Tasks by network that a node holds and that have not ended, with those about to be added. */
export function tasksByNetwork(index: ClusterIndex, nodeId: string): Map<string, number> {
  const counts = new Map<string, number>();
  for (const task of index.tasksOfNode(nodeId)) {
    if (hasEnded(observedState(index.view, task))) continue;
    for (const networkId of Object.values(task.networkIds)) {
      counts.set(networkId, (counts.get(networkId) ?? 0) + 1);
    }
  }
  return counts;
}

/** Free blocks of a network in ascending order; `taken` are CIDRs given in the same plan. */
export function* freeBlocks(
  index: ClusterIndex,
  network: Network,
  blockPrefix: number,
  taken: ReadonlySet<string>,
): Iterable<string> {
  const given = new Set(taken);
  for (const id of index.blockIdsOfNetwork(network.id)) given.add(index.view.blocks.get(id)?.cidr ?? "");
  const subnet = parseCidr(network.subnet);
  for (const block of blocksOf(subnet, Math.max(subnet.prefix, blockPrefix))) {
    if (sizeOf(block) <= reservedInBlock) return;
    const cidr = formatCidr(block);
    if (!given.has(cidr)) yield cidr;
  }
}

export type BlockAction =
  | { readonly kind: "give"; readonly block: Block; readonly why: string }
  | { readonly kind: "free"; readonly blockId: string; readonly why: string };

export interface BlockPlan {
  readonly actions: readonly BlockAction[];
  /** Nodes that own blocks which they do not need now; they are freed once they have been here for the rest period. */
  readonly unneeded: ReadonlySet<string>;
  /** Nodes that lack a block because the network has none left. */
  readonly lacking: ReadonlySet<string>;
}

/** Do the service's published ports lead into this network on every host? They use its first network. */
function publishesOnEveryHost(index: ClusterIndex, networkId: string): boolean {
  return index.servicesOfNetwork(networkId).some((service) => {
    if (service.removed || service.spec === undefined) return false;
    if (!service.spec.ports.some(({ mode }) => mode === PublishMode.PUBLISH_MODE_INGRESS)) return false;
    return service.networkIds[service.spec.networks[0]?.network ?? ""] === networkId;
  });
}

/**
 * Which nodes get or give back blocks of one network. A node takes part when it holds a task of the network, or when a
 * service of the network publishes ports on every host. All blocks of a node are freed together, `restedSince` being
 * when it last needed any; those of a node that is not up are kept, since its containers may still use them when it returns.
 * Pure; gives before frees, nodes by id.
 */
export function planBlocks(
  index: ClusterIndex,
  network: Network,
  blockPrefix: number,
  restedSince: (nodeId: string) => number | undefined,
  rest: { readonly nowMs: number; readonly restMs: number },
): BlockPlan {
  const { view } = index;
  const owned = new Map<string, string[]>();
  for (const id of index.blockIdsOfNetwork(network.id)) {
    const nodeId = view.blocks.get(id)?.nodeId ?? "";
    owned.set(nodeId, [...(owned.get(nodeId) ?? []), id]);
  }
  const needed = new Map<string, number>();
  const everywhere = !network.removed && publishesOnEveryHost(index, network.id);
  const nodes = [...view.nodes.values()].sort((a, b) => (a.id < b.id ? -1 : 1));
  for (const { id } of nodes) {
    const tasks = tasksByNetwork(index, id).get(network.id) ?? 0;
    if (tasks > 0 || (everywhere && isNodeUp(view, id))) needed.set(id, blocksNeeded(tasks, blockPrefix));
  }
  const actions: BlockAction[] = [];
  const lacking = new Set<string>();
  const taken = new Set<string>();
  const free = freeBlocks(index, network, blockPrefix, taken)[Symbol.iterator]();
  for (const [nodeId, count] of needed) {
    for (let have = owned.get(nodeId)?.length ?? 0; have < count; have++) {
      const next = free.next();
      if (next.done === true) {
        lacking.add(nodeId);
        break;
      }
      actions.push({
        kind: "give",
        block: { networkId: network.id, cidr: next.value, nodeId },
        why: "the node takes part in the network",
      });
    }
  }
  const unneeded = new Set<string>();
  for (const [nodeId, ids] of owned) {
    const gone = view.nodes.get(nodeId) === undefined;
    if (needed.has(nodeId) || (!gone && !isNodeUp(view, nodeId))) continue;
    unneeded.add(nodeId);
    const since = restedSince(nodeId);
    if (!gone && (since === undefined || rest.nowMs < since + rest.restMs)) continue;
    const why = gone ? "its node was removed" : "its node no longer takes part in the network";
    for (const id of ids) actions.push({ kind: "free", blockId: id, why });
  }
  return { actions, unneeded, lacking };
}
