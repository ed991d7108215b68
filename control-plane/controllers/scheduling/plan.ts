import { PublishMode } from "../../../proto/gen/embassy/v1/stack.ts";
import { type Block, DesiredState, type Task } from "../../../proto/gen/embassy/v1/state.ts";
import { countedOn } from "../../domain/disruption.ts";
import type { ClusterIndex } from "../../domain/index.ts";
import { isWanted, taskName } from "../../domain/tasks.ts";
import { volumesOf } from "../../domain/volumes.ts";
import type { Placement } from "../../scheduler/index.ts";
import type { Row, Write } from "../../store/types.ts";
import { blockId, blocksNeeded, freeBlocks, tasksByNetwork } from "../ipam/plan.ts";
import { HomesOfCommit } from "./homes.ts";

/** What one commit writes. */
export interface CommitPlan {
  readonly writes: Write[];
  /** The tasks that it places, as written and in that order. */
  readonly placed: Task[];
  readonly expect: { readonly table: "blocks" | "tasks"; readonly id: string; readonly revision: number }[];
  /** Task id to reason: placed by the scheduler, but its network has no room. */
  readonly unplaced: Map<string, string>;
  /** Blocks among the writes. */
  readonly blocks: Block[];
  /** The addresses that its tasks will need. */
  readonly addresses: { readonly task: string; readonly networkId: string; readonly nodeId: string }[];
  /** Homes of volumes among the writes: key of the table to node. */
  readonly homes: Map<string, string>;
  /** Tasks whose volume gets a home elsewhere in the same moment: to be decided again once that has happened. */
  readonly later: Set<string>;
  /** Commits under way that have to happen first, since they give blocks or homes that this one counts on. */
  readonly after: Set<CommitPlan>;
  /** Tasks that it stops, to make room. */
  readonly stopped: string[];
}

/**
 * The writes of placements, with the blocks that their nodes need on the tasks' networks, so that a node can give an
 * address as soon as it knows of its task, and the end of those that make room for them. Blocks that exist are expected to: one may be about to be freed. What is under way
 * counts as if it had happened.
 */
export function planCommit(
  index: ClusterIndex,
  placements: readonly Placement[],
  blockPrefix: number,
  underWay: readonly CommitPlan[] = [],
): CommitPlan {
  const { view } = index;
  const plan: CommitPlan = {
    writes: [],
    placed: [],
    expect: [],
    unplaced: new Map(),
    blocks: [],
    addresses: [],
    homes: new Map(),
    later: new Set(),
    after: new Set(),
    stopped: [],
  };
  const homes = new HomesOfCommit(index, plan, underWay);
  const counts = new Map<string, Map<string, number>>();
  const owned = new Map<string, string[]>();
  const taken = new Set<string>();
  const free = new Map<string, Iterator<string>>();
  const coming = comingOf(index, underWay, taken);

  const blocksOf = (networkId: string, nodeId: string): string[] => {
    const blocks: string[] = [];
    for (const id of index.blockIdsOfNode(nodeId)) {
      if (view.blocks.get(id)?.networkId !== networkId) continue;
      blocks.push(id);
      plan.expect.push({ table: "blocks", id, revision: view.blocks.revisionOf(id) });
    }
    for (const { block, from } of coming.get(`${networkId} ${nodeId}`)?.blocks ?? []) {
      blocks.push(blockId(block));
      plan.after.add(from);
    }
    return blocks;
  };

  const room = (task: string, networkId: string, nodeId: string): string | undefined => {
    const network = view.networks.get(networkId);
    if (network === undefined) return "its network is gone";
    const ofNode = counts.get(nodeId) ?? tasksByNetwork(index, nodeId);
    counts.set(nodeId, ofNode);
    const count = (ofNode.get(networkId) ?? 0) + 1;
    const key = `${networkId} ${nodeId}`;
    const blocks = owned.get(key) ?? blocksOf(networkId, nodeId);
    owned.set(key, blocks);
    while (blocks.length < blocksNeeded(count + (coming.get(key)?.addresses ?? 0), blockPrefix)) {
      const left = free.get(networkId) ?? freeBlocks(index, network, blockPrefix, taken)[Symbol.iterator]();
      free.set(networkId, left);
      const next = left.next();
      if (next.done === true) {
        // Its spare addresses may do; without any block there is nothing to give.
        if (blocks.length > 0) break;
        return `network ${network.stack}_${network.spec?.name ?? ""} is full: every block of ${network.subnet} is given to a node`;
      }
      const block = { networkId, cidr: next.value, nodeId };
      blocks.push(blockId(block));
      plan.blocks.push(block);
      plan.writes.push({ table: "blocks", id: blockId(block), value: block, ifRevision: 0 });
    }
    ofNode.set(networkId, count);
    plan.addresses.push({ task, networkId, nodeId });
    return undefined;
  };

  const losing = new Set<string>();
  const stop = (victims: readonly string[], by: Task): void => {
    for (const id of victims) {
      const victim = view.tasks.get(id);
      // Placed in this very moment it is only put off.
      if (victim === undefined || victim.nodeId === "" || !isWanted(victim)) continue;
      const value = { ...victim, desired: DesiredState.DESIRED_STATE_SHUTDOWN, preemptedBy: taskName(view, by) };
      plan.writes.push({ table: "tasks", id, value, ifRevision: view.tasks.revisionOf(id) });
      plan.stopped.push(id);
      losing.add(victim.serviceId);
    }
  };

  const stopped = new Set<string>();
  for (const { preempts } of placements) if (preempts.length > 0) for (const id of preempts) stopped.add(id);
  // Nodes where somebody is not stopped after all, so that those who came later may have nothing there.
  const crowded = new Set<string>();
  for (const placement of placements) {
    const row = (placement.handle as Row<Task> | undefined) ?? view.tasks.row(placement.task);
    if (row === undefined || row.revision < 0) {
      if (placement.preempts.length > 0) plan.unplaced.set(placement.task, "it is gone");
      continue;
    }
    const { value: task, revision: ifRevision } = row;
    const volumes = volumesOf(task.spec?.container);
    if (volumes.length > 0 && !homes.admits(task, volumes, placement.node)) {
      plan.later.add(task.id);
      if (placement.preempts.length > 0) crowded.add(placement.node);
      continue;
    }
    let lacking: string | undefined;
    if (stopped.size > 0) {
      if (stopped.has(task.id)) lacking = "a task of higher priority took its place";
      else if (crowded.has(placement.node)) lacking = "there is no room for it yet";
    }
    for (const alias in task.networkIds) lacking ??= room(task.id, task.networkIds[alias] as string, placement.node);
    if (lacking !== undefined) {
      plan.unplaced.set(task.id, lacking);
      if (placement.preempts.length > 0) crowded.add(placement.node);
      continue;
    }
    let { preempts } = task;
    if (placement.preempts.length > 0) {
      preempts = [...placement.preempts];
      stop(preempts, task);
    }
    const ports = hostPorts(task, placement.ports);
    const value: Task = { ...task, nodeId: placement.node, unplaced: "", hostPorts: ports, preempts };
    plan.placed.push(value);
    plan.writes.push({ table: "tasks", id: placement.task, value, ifRevision, row });
    if (volumes.length > 0) homes.give(task, volumes, placement.node);
  }
  for (const serviceId of losing) plan.expect.push(...countedOn(index, serviceId, new Set(plan.stopped)));
  return plan;
}

interface Coming {
  readonly blocks: { readonly block: Block; readonly from: CommitPlan }[];
  addresses: number;
}

/** What commits under way give and need that the view does not show yet, by network and node; their CIDRs are added to `taken`. */
function comingOf({ view }: ClusterIndex, underWay: Iterable<CommitPlan>, taken: Set<string>): Map<string, Coming> {
  const coming = new Map<string, Coming>();
  const at = (networkId: string, nodeId: string): Coming => {
    const key = `${networkId} ${nodeId}`;
    const known = coming.get(key) ?? { blocks: [], addresses: 0 };
    coming.set(key, known);
    return known;
  };
  for (const from of underWay) {
    for (const block of from.blocks) {
      if (view.blocks.get(blockId(block)) !== undefined) continue;
      taken.add(block.cidr);
      at(block.networkId, block.nodeId).blocks.push({ block, from });
    }
    for (const { task, networkId, nodeId } of from.addresses) {
      if (view.tasks.get(task)?.nodeId === "") at(networkId, nodeId).addresses++;
    }
  }
  return coming;
}

const noPorts: Task["hostPorts"] = [];

function hostPorts(task: Task, given: readonly number[]): Task["hostPorts"] {
  if (task.spec === undefined || task.spec.ports.length === 0) return noPorts;
  const ports = task.spec.ports.filter(({ mode }) => mode === PublishMode.PUBLISH_MODE_HOST);
  return ports.map((port, position) => ({ ...port, published: given[position] ?? port.published }));
}
