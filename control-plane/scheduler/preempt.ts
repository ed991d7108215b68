import { givePorts } from "./filters/host-port.ts";
import { maxPerNode } from "./filters/max-per-node.ts";
import { fitsDomain } from "./index/fits.ts";
import { compareNodes } from "./scores/index.ts";
import type { ClusterState } from "./state/cluster.ts";
import { type GroupRecord, type NodeRecord, portKey, type ServiceRecord, type TaskRecord } from "./state/records.ts";

export interface Preemption {
  readonly node: NodeRecord;
  /** Tasks to stop, lowest priority first. */
  readonly victims: readonly TaskRecord[];
}

/**
 * Where the group fits if tasks of lower priority make room: the node whose most important victim matters least, then
 * with the fewest victims, then the cheapest. Leaves each service its `minAvailable`, and takes none of the group's own
 * service. Tell it every node that the facts rules let pass, in any order, then ask for `best`.
 */
export class PreemptionSearch {
  best: Preemption | undefined;
  #bestCost = 0;
  readonly #state: ClusterState;
  readonly #group: GroupRecord;
  readonly #lowest: number;

  constructor(state: ClusterState, group: GroupRecord) {
    this.#state = state;
    this.#group = group;
    let lowest = Number.POSITIVE_INFINITY;
    for (const { priority } of state.groups.values()) lowest = Math.min(lowest, priority);
    this.#lowest = lowest;
  }

  consider(node: NodeRecord, cost: number): void {
    const { best } = this;
    const fewest = fewestVictims(this.#state, this.#group, node);
    if (fewest === Number.POSITIVE_INFINITY) return;
    // Victims of the lowest priority can be beaten only by fewer of them, or on a cheaper node.
    if (best !== undefined && highest(best.victims) === this.#lowest) {
      const count = best.victims.length;
      if (fewest > count || (fewest === count && compareNodes(cost, node, this.#bestCost, best.node) > 0)) return;
    }
    const victims = victimsOn(this.#state, this.#group, node);
    if (victims === undefined) return;
    if (best !== undefined && compare(victims, cost, node, best, this.#bestCost) >= 0) return;
    this.best = { node, victims };
    this.#bestCost = cost;
  }
}

function compare(
  victims: readonly TaskRecord[],
  cost: number,
  node: NodeRecord,
  best: Preemption,
  bestCost: number,
): number {
  return (
    highest(victims) - highest(best.victims) ||
    victims.length - best.victims.length ||
    compareNodes(cost, node, bestCost, best.node)
  );
}

function highest(victims: readonly TaskRecord[]): number {
  return victims.at(-1)?.group.priority ?? Number.NEGATIVE_INFINITY;
}

/**
 * The fewest that must go, as far as that can be had in one pass: all of lower priority go, then each comes back, the
 * highest priority first, while the group still fits.
 */
function victimsOn(state: ClusterState, group: GroupRecord, node: NodeRecord): readonly TaskRecord[] | undefined {
  if (!maxPerNode.passes(state, group, node)) return undefined;
  if (!fitsDomain(state, group, node)) return undefined;

  const holders = fixedHolders(group, node);
  const candidates = node.tasks
    .filter((task) => task.group.priority < group.priority && task.group.service !== group.service)
    .sort(
      (a, b) =>
        Number(holders.has(b)) - Number(holders.has(a)) ||
        a.group.priority - b.group.priority ||
        (a.id < b.id ? -1 : 1),
    );
  const taken = new Map<ServiceRecord, number>();
  const free = group.needs.map(({ dimension }) => state.freeOf(node, dimension));
  const going = new Set<TaskRecord>();
  for (const task of candidates) {
    const { service } = task.group;
    const already = taken.get(service) ?? 0;
    if (service.placed - already - 1 < service.minAvailable) continue;
    taken.set(service, already + 1);
    going.add(task);
    give(group, task, free, 1);
  }
  if (!covers(group, node, free, going)) return undefined;
  for (const task of [...going].reverse()) {
    give(group, task, free, -1);
    going.delete(task);
    if (covers(group, node, free, going)) continue;
    give(group, task, free, 1);
    going.add(task);
  }
  return [...going].sort((a, b) => a.group.priority - b.group.priority || (a.id < b.id ? -1 : 1));
}

/** Who holds the group's fixed ports: they are looked at first, so that a service's budget goes to them. */
function fixedHolders(group: GroupRecord, node: NodeRecord): ReadonlySet<TaskRecord> {
  const holders = new Set<TaskRecord>();
  for (const { port, protocol } of group.spec.ports ?? []) {
    const holder = port === 0 ? undefined : node.ports?.get(portKey(port, protocol));
    if (holder !== undefined) holders.add(holder);
  }
  return holders;
}

/**
 * No fewer tasks than this must go, going by the largest of lower priority; Infinity when all of them do not suffice.
 * Cheap, and rules out most nodes.
 */
function fewestVictims(state: ClusterState, group: GroupRecord, node: NodeRecord): number {
  let fewest = 0;
  for (const { dimension, amount } of group.needs) {
    const lacking = amount - state.freeOf(node, dimension);
    if (lacking <= 0) continue;
    let all = 0;
    let largest = 0;
    for (const { group: other } of node.tasks) {
      if (other.priority >= group.priority || other.service === group.service) continue;
      for (const need of other.needs) {
        if (need.dimension !== dimension) continue;
        all += need.amount;
        largest = Math.max(largest, need.amount);
      }
    }
    if (all < lacking) return Number.POSITIVE_INFINITY;
    fewest = Math.max(fewest, Math.ceil(lacking / largest));
  }
  return fewest;
}

function give(group: GroupRecord, task: TaskRecord, free: number[], sign: 1 | -1): void {
  for (const [i, { dimension }] of group.needs.entries()) {
    for (const need of task.group.needs)
      if (need.dimension === dimension) free[i] = (free[i] as number) + sign * need.amount;
  }
}

function covers(
  group: GroupRecord,
  node: NodeRecord,
  free: readonly number[],
  going: ReadonlySet<TaskRecord>,
): boolean {
  if (!group.needs.every(({ amount }, i) => (free[i] as number) >= amount)) return false;
  return group.spec.ports === undefined || givePorts(group.spec.ports, node, going) !== undefined;
}
