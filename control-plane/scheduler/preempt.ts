import { compareTexts } from "../../lib/words/compare.ts";
import { givePorts } from "./filters/host-port.ts";
import { maxPerNode } from "./filters/max-per-node.ts";
import { fitsDomain } from "./index/fits.ts";
import { compareNodes } from "./scores/index.ts";
import type { ClusterState } from "./state/cluster.ts";
import {
  type GroupRecord,
  type Need,
  type NodeRecord,
  type ServiceRecord,
  type TaskRecord,
  tasksOn,
} from "./state/records.ts";

export interface Preemption {
  readonly node: NodeRecord;
  /** Tasks to stop, lowest priority first. */
  readonly victims: readonly TaskRecord[];
}

/**
 * Where the group fits if tasks of lower priority make room: the node whose most important victim matters least, then
 * with the fewest victims, then the cheapest. Leaves each service its `minAvailable`, and takes none of the group's own
 * service or gang. What hangs on other nodes too (skew, single-writer volumes) is not made room for. Tell it every node that
 * the facts rules let pass, in any order, then ask for `best`.
 */
export class PreemptionSearch {
  best: Preemption | undefined;
  #bestCost = 0;
  readonly #state: ClusterState;
  readonly #group: GroupRecord;

  constructor(state: ClusterState, group: GroupRecord) {
    this.#state = state;
    this.#group = group;
  }

  consider(node: NodeRecord, cost: number): void {
    const { best } = this;
    const fewest = fewestVictims(this.#state, this.#group, node);
    if (fewest === Number.POSITIVE_INFINITY) return;
    let most = Number.POSITIVE_INFINITY;
    // Victims of the lowest priority can be beaten only by fewer of them, or on a cheaper node.
    if (best !== undefined && highest(best.victims) === this.#state.lowestPriority) {
      most = best.victims.length;
      if (fewest > most || (fewest === most && compareNodes(cost, node, this.#bestCost, best.node) > 0)) return;
    }
    const victims = victimsOn(this.#state, this.#group, node, fewest, most);
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

/** May the task be stopped for the group, budgets aside? */
function mayGo(group: GroupRecord, { group: other }: TaskRecord): boolean {
  return (
    other.priority < group.priority &&
    other.service !== group.service &&
    (group.gang === undefined || other.gang !== group.gang)
  );
}

/**
 * The fewest that must go (at least `bound`, see `fewestVictims`), none more important than it has to be, lowest priority
 * first. Exact unless very many combinations would have to be tried, or more than `most` have to go: then as few as one pass
 * finds.
 */
function victimsOn(
  state: ClusterState,
  group: GroupRecord,
  node: NodeRecord,
  bound: number,
  most: number,
): readonly TaskRecord[] | undefined {
  if (!maxPerNode.passes(state, group, node)) return undefined;
  if (!fitsDomain(state, group, node)) return undefined;

  const room = new Room(state, group, node);
  const candidates = tasksOn(node)
    .filter((task) => mayGo(group, task) && room.helps(task))
    .sort(
      (a, b) =>
        a.group.priority - b.group.priority ||
        Number(b.down) - Number(a.down) ||
        compareTexts(a.name, b.name) ||
        compareTexts(a.id, b.id),
    );
  // The least important first: the first priority up to which enough can go is the lowest that has to.
  for (let end = 0; end < candidates.length; ) {
    const { priority } = (candidates[end] as TaskRecord).group;
    while (candidates[end]?.group.priority === priority) end++;
    const pool = candidates.slice(0, end);
    if (!room.wouldDo(pool)) continue;
    const inOnePass = spareMost(room, pool);
    const below = Math.min(inOnePass?.length ?? end + 1, most + 1);
    const found = fewestOf(room, pool, bound, below) ?? inOnePass;
    if (found !== undefined) return found;
  }
  return undefined;
}

/** All go, as far as budgets let them, then each comes back, the most important first, while the group still fits. */
function spareMost(room: Room, pool: readonly TaskRecord[]): readonly TaskRecord[] | undefined {
  const going = pool.filter((task) => room.take(task));
  const enough = room.fits();
  const victims: TaskRecord[] = [];
  for (const task of [...going].reverse()) {
    room.giveBack(task);
    if (!enough || room.fits()) continue;
    room.take(task);
    victims.push(task);
  }
  for (const task of victims) room.giveBack(task);
  return enough ? victims.reverse() : undefined;
}

/** Tasks that one search may think gone, over all that it tries. */
const mostTries = 500;

/** Fewer than `below` of the tasks, the least important that do; undefined when none do or too many were tried. */
function fewestOf(
  room: Room,
  pool: readonly TaskRecord[],
  bound: number,
  below: number,
): readonly TaskRecord[] | undefined {
  let tries = mostTries;
  const chosen: TaskRecord[] = [];
  const largest = room.largestOf(pool);
  const choose = (start: number, more: number): boolean => {
    if (more === 0) return room.fits();
    if (room.isOutOfReach(more, largest)) return false;
    const alike = new Set<GroupRecord>();
    for (let i = start; i + more <= pool.length && tries > 0; i++) {
      const task = pool[i] as TaskRecord;
      if (alike.has(task.group) || !room.take(task)) continue;
      tries--;
      chosen.push(task);
      if (choose(i + 1, more - 1)) return true;
      chosen.pop();
      room.giveBack(task);
      if (task.group.ports === undefined) alike.add(task.group);
    }
    return false;
  };
  for (let size = Math.max(1, bound); size < below && tries > 0; size++) if (choose(0, size)) return chosen;
  return undefined;
}

/** What the group finds on a node while some of its tasks are thought gone. */
class Room {
  readonly #group: GroupRecord;
  readonly #node: NodeRecord;
  /** By need of the group. */
  readonly #free: number[];
  readonly #lacks: readonly boolean[];
  readonly #gone = new Set<TaskRecord>();
  readonly #taken = new Map<ServiceRecord, number>();

  constructor(state: ClusterState, group: GroupRecord, node: NodeRecord) {
    this.#group = group;
    this.#node = node;
    this.#free = group.needs.map(({ dimension }) => state.freeOf(node, dimension));
    this.#lacks = group.needs.map(({ amount }, i) => amount > (this.#free[i] as number));
  }

  /** Does the task hold anything that the group lacks? */
  helps(task: TaskRecord): boolean {
    if (this.#group.ports !== undefined && task.group.ports !== undefined) return true;
    return this.#group.needs.some(({ dimension }, i) => this.#lacks[i] === true && amountOf(task.group, dimension) > 0);
  }

  /** Thinks the task gone; false when its service's budget forbids it. */
  take(task: TaskRecord): boolean {
    const { service } = task.group;
    if (!task.down) {
      const already = this.#taken.get(service) ?? 0;
      if (service.placed - service.down - already - 1 < service.minAvailable) return false;
      this.#taken.set(service, already + 1);
    }
    this.#count(task, 1);
    return true;
  }

  giveBack(task: TaskRecord): void {
    const { service } = task.group;
    if (!task.down) this.#taken.set(service, (this.#taken.get(service) ?? 0) - 1);
    this.#count(task, -1);
  }

  /** The most that any of the tasks would free, by need. */
  largestOf(tasks: readonly TaskRecord[]): readonly number[] {
    return this.#group.needs.map(({ dimension }) =>
      tasks.reduce((most, { group }) => Math.max(most, amountOf(group, dimension)), 0),
    );
  }

  /** Is more lacking than so many tasks can free? */
  isOutOfReach(more: number, largest: readonly number[]): boolean {
    const { needs } = this.#group;
    for (let i = 0; i < needs.length; i++) {
      const { amount } = needs[i] as Need;
      if (amount - (this.#free[i] as number) > more * (largest[i] as number)) return true;
    }
    return false;
  }

  fits(): boolean {
    const { needs, ports } = this.#group;
    if (!needs.every(({ amount }, i) => (this.#free[i] as number) >= amount)) return false;
    return ports === undefined || givePorts(ports, this.#node, this.#gone) !== undefined;
  }

  /** Would the group fit with all of them gone, whatever their budgets? */
  wouldDo(tasks: readonly TaskRecord[]): boolean {
    for (const task of tasks) this.#count(task, 1);
    const fits = this.fits();
    for (const task of tasks) this.#count(task, -1);
    return fits;
  }

  #count(task: TaskRecord, sign: 1 | -1): void {
    if (this.#group.ports !== undefined) {
      if (sign > 0) this.#gone.add(task);
      else this.#gone.delete(task);
    }
    const { needs } = this.#group;
    for (let i = 0; i < needs.length; i++) {
      const { dimension } = needs[i] as Need;
      this.#free[i] = (this.#free[i] as number) + sign * amountOf(task.group, dimension);
    }
  }
}

function amountOf({ needs }: GroupRecord, dimension: number): number {
  for (let i = 0; i < needs.length; i++) {
    const need = needs[i] as Need;
    if (need.dimension === dimension) return need.amount;
  }
  return 0;
}

/**
 * No fewer tasks than this must go, going by the largest of lower priority; Infinity when all of them do not suffice.
 * Cheap, and rules out most nodes.
 */
export function fewestVictims(state: ClusterState, group: GroupRecord, node: NodeRecord): number {
  let fewest = 0;
  for (const { dimension, amount } of group.needs) {
    const lacking = amount - state.freeOf(node, dimension);
    if (lacking <= 0) continue;
    let all = 0;
    let largest = 0;
    for (let task = node.firstTask; task !== undefined; task = task.nextOnNode) {
      if (!mayGo(group, task)) continue;
      const held = amountOf(task.group, dimension);
      all += held;
      largest = Math.max(largest, held);
    }
    if (all < lacking) return Number.POSITIVE_INFINITY;
    fewest = Math.max(fewest, Math.ceil(lacking / largest));
  }
  return fewest;
}
