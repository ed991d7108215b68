import { factFilters, filters } from "./filters/index.ts";
import { compareNodes, costOf } from "./scores/index.ts";
import { leastShare, spread } from "./scores/spread.ts";
import type { ClusterState } from "./state/cluster.ts";
import { type GroupRecord, type NodeRecord, type ServiceRecord, type TaskRecord, tasksOn } from "./state/records.ts";
import { cpuDimension, memoryDimension } from "./state/table.ts";

export interface RebalanceOptions {
  /**
   * `skew`: no service has more than `bound` (from 1) tasks more in one domain of a spread preference than in another that could
   * take one, nor on one node than on another of the same domain unless it is to be packed.
   * `fragmentation`: of the nodes in use at most this share (0 to 1) is more than the reservations need.
   */
  readonly goal: { readonly kind: "skew" | "fragmentation"; readonly bound: number };
  /** Default: no limit. */
  readonly mostMoves?: number | undefined;
}

export interface RebalanceMove {
  readonly task: string;
  readonly from: string;
  readonly to: string;
  /** For people: "web has 4 tasks in zone a and 1 in zone b". */
  readonly why: string;
}

export interface RebalancePlan {
  /** To be made in this order, each started on `to` before it is stopped on `from`. */
  readonly moves: readonly RebalanceMove[];
  /** Worst skew of a service, or the fragmentation, before and after. */
  readonly before: number;
  readonly after: number;
  /** Why `after` is still above the bound; absent when it is not. `room`: no move is possible that helps. */
  readonly limitedBy?: "budget" | "moves" | "room" | undefined;
}

/**
 * Plans the fewest moves, as far as taking the greatest relief first finds them. Changes the state that it is given, which
 * therefore is a copy. Leaves alone pinned tasks, tasks bound to a node, gangs and writers of single-writer volumes (which
 * cannot start before they stop), and moves of each service no more than it has above `minAvailable`. Stable: on its own
 * result it plans nothing more, unless budget or `mostMoves` cut it short.
 */
export function planRebalance(state: ClusterState, options: RebalanceOptions): RebalancePlan {
  const plan = new Plan(state, options.mostMoves ?? Number.POSITIVE_INFINITY);
  const { kind, bound } = options.goal;
  const measure = kind === "skew" ? () => worstSkew(state) : () => fragmentation(state);
  const before = measure();
  if (kind === "skew") relieveSkew(state, plan, Math.max(1, bound));
  else emptyNodes(state, plan, bound);
  const after = measure();
  const met = after <= (kind === "skew" ? Math.max(1, bound) : bound);
  return { moves: plan.moves, before, after, limitedBy: met ? undefined : (plan.limit ?? "room") };
}

/** Moves made so far, and what still may be moved. */
class Plan {
  readonly moves: RebalanceMove[] = [];
  /** Of each move, in the same order. */
  readonly #tasks: TaskRecord[] = [];
  limit: "budget" | "moves" | undefined;
  readonly #state: ClusterState;
  readonly #most: number;
  readonly #moved = new Map<ServiceRecord, number>();

  constructor(state: ClusterState, most: number) {
    this.#state = state;
    this.#most = most;
  }

  mayMove(task: TaskRecord): boolean {
    const { group } = task;
    if (task.pinned || task.onlyNode !== undefined || !isMovable(this.#state, group)) return false;
    if (this.moves.length >= this.#most) {
      this.limit = "moves";
      return false;
    }
    if ((this.#moved.get(group.service) ?? 0) >= group.service.placed - group.service.minAvailable) {
      this.limit ??= "budget";
      return false;
    }
    return true;
  }

  /**
   * Moves the task to the best of the nodes that takes it, by `compare` and then by cost; false, and nothing has changed, when
   * none does.
   */
  move(
    task: TaskRecord,
    nodes: readonly NodeRecord[],
    why: string,
    compare?: (a: NodeRecord, b: NodeRecord) => number,
  ): boolean {
    const state = this.#state;
    const from = task.node as NodeRecord;
    state.detach(task);
    let best: NodeRecord | undefined;
    let bestCost = 0;
    for (const node of nodes) {
      if (node === from || !filters.every((filter) => filter.passes(state, task.group, node))) continue;
      const cost = costOf(state, task.group, node);
      if (best !== undefined && (compare?.(node, best) || compareNodes(cost, node, bestCost, best)) >= 0) continue;
      best = node;
      bestCost = cost;
    }
    state.attach(task, best ?? from);
    if (best === undefined) return false;
    const { service } = task.group;
    this.#moved.set(service, (this.#moved.get(service) ?? 0) + 1);
    this.#tasks.push(task);
    this.moves.push({ task: task.id, from: from.spec.id, to: best.spec.id, why });
    return true;
  }

  /** Takes back all moves but the first `count`. */
  undo(count: number): void {
    while (this.moves.length > count) {
      const move = this.moves.pop() as RebalanceMove;
      const task = this.#tasks.pop() as TaskRecord;
      this.#state.detach(task);
      this.#state.attach(task, this.#state.nodes.get(move.from) as NodeRecord);
      this.#moved.set(task.group.service, (this.#moved.get(task.group.service) ?? 1) - 1);
    }
  }
}

/** A part of the cluster over which a service is spread, as far as one of its groups may use it. */
interface Domain {
  readonly name: string;
  readonly nodes: NodeRecord[];
  readonly share: number;
  count: number;
}

function relieveSkew(state: ClusterState, plan: Plan, bound: number): void {
  for (let before = -1; before !== plan.moves.length; ) {
    before = plan.moves.length;
    for (const group of groupsOf(state)) while (relieveOnce(state, plan, group, bound));
  }
}

/** One move within the outermost siblings that need one: a move further in would be undone by one further out. */
function relieveOnce(state: ClusterState, plan: Plan, group: GroupRecord, bound: number): boolean {
  for (const siblings of siblingsOf(state, group)) if (relieveSiblings(plan, group, siblings, bound)) return true;
  return false;
}

/** One move from the fullest domain that has a task to spare to the emptiest that takes it. */
function relieveSiblings(plan: Plan, group: GroupRecord, domains: readonly Domain[], bound: number): boolean {
  const fullest = [...domains].sort((a, b) => b.count / b.share - a.count / a.share || (a.name < b.name ? -1 : 1));
  const emptiest = [...domains].sort((a, b) => a.count / a.share - b.count / b.share || (a.name < b.name ? -1 : 1));
  const [least] = emptiest;
  for (const from of fullest) {
    if (least === undefined || from.count / from.share - least.count / least.share <= bound) return false;
    const tasks = from.nodes
      .flatMap((node) => tasksOn(node).filter((task) => task.group === group))
      .sort((a, b) => countOn(b) - countOn(a) || (a.id < b.id ? -1 : 1));
    for (const to of emptiest) {
      if (from.count / from.share - to.count / to.share <= bound) break;
      // Each move lowers the sum of count² / share, so that moves come to an end.
      if ((2 * to.count + 1) / to.share >= (2 * from.count - 1) / from.share) continue;
      const why = `${group.spec.name} has ${from.count} tasks in ${from.name} and ${to.count} in ${to.name}`;
      for (const task of tasks) if (plan.mayMove(task) && plan.move(task, to.nodes, why)) return true;
    }
  }
  return false;
}

function countOn(task: TaskRecord): number {
  return task.group.service.countOn(task.node as NodeRecord);
}

/** Worst difference between two domains that a group with movable tasks may use. */
function worstSkew(state: ClusterState): number {
  let worst = 0;
  for (const group of groupsOf(state)) {
    for (const siblings of siblingsOf(state, group)) {
      const values = siblings.map(({ count, share }) => count / share);
      if (values.length > 1) worst = Math.max(worst, Math.max(...values) - Math.min(...values));
    }
  }
  return worst;
}

/** The domains of each spread preference, outermost first, and then the nodes: those within one domain further out together. */
function siblingsOf(state: ClusterState, group: GroupRecord): readonly (readonly Domain[])[] {
  // All versions of a service are measured alike, or they would undo each other's moves.
  const leading = [...group.service.groups].sort((a, b) => (a.spec.id < b.spec.id ? -1 : 1)).at(-1) ?? group;
  const usable = [...state.nodes.values()].filter((node) =>
    factFilters.every((filter) => filter.passes(state, group, node)),
  );
  const all: Domain[][] = [];
  let parentOf = (_node: NodeRecord): number => 0;
  const level = (
    domainOf: (node: NodeRecord) => number,
    nameOf: (node: NodeRecord) => string,
    shareOf: (node: NodeRecord) => number,
  ): void => {
    const byParent = new Map<number, Map<number, Domain>>();
    for (const node of usable) {
      const siblings = byParent.get(parentOf(node)) ?? new Map<number, Domain>();
      byParent.set(parentOf(node), siblings);
      const domain = siblings.get(domainOf(node)) ?? { name: nameOf(node), nodes: [], share: shareOf(node), count: 0 };
      siblings.set(domainOf(node), domain);
      domain.nodes.push(node);
      domain.count += group.service.countOn(node);
    }
    for (const siblings of byParent.values()) all.push([...siblings.values()]);
    parentOf = domainOf;
  };
  for (const { space, over, shareOf } of leading.spread) {
    const name = (node: NodeRecord): string => space.value(space.of(node));
    level(
      (node) => space.of(node),
      (node) => `${over} ${name(node)}`,
      (node) => Math.max(shareOf(name(node)), leastShare),
    );
  }
  if (!leading.binpack) {
    level(
      (node) => node.index,
      (node) => node.spec.hostname,
      () => 1,
    );
  }
  return all;
}

/** May tasks of the group be moved at all? */
function isMovable(state: ClusterState, { gang, volumes = [] }: GroupRecord): boolean {
  if (gang !== undefined) return false;
  return volumes.every(
    ({ volume, readOnly }) => readOnly === true || state.volumes.get(volume)?.spec?.access !== "single-writer",
  );
}

/** Groups whose tasks may be moved at all, in the order of their ids. */
function groupsOf(state: ClusterState): readonly GroupRecord[] {
  return [...state.groups.values()]
    .filter((group) => group.placed > 0 && isMovable(state, group))
    .sort((a, b) => (a.spec.id < b.spec.id ? -1 : 1));
}

/** Nodes in use up to which sets of nodes are tried, and how many sets. */
const mostInSets = 16;
const mostSets = 200;

/**
 * Empties nodes, each whole or not at all: of few, the set with the fewest tasks that is enough; of many, those with the fewest
 * tasks first, until it is enough.
 */
function emptyNodes(state: ClusterState, plan: Plan, bound: number): void {
  if (fragmentation(state) <= bound) return;
  const used = leastUsedFirst(state);
  if (used.length <= mostInSets) {
    for (const set of setsOf(used, mostSets)) {
      if (!emptySet(state, plan, set, used)) continue;
      if (fragmentation(state) <= bound) return;
      plan.undo(0);
    }
  }
  for (let emptied = true; emptied && fragmentation(state) > bound; ) {
    const left = leastUsedFirst(state);
    emptied = left.some((node) => emptySet(state, plan, [node], left));
  }
}

function leastUsedFirst(state: ClusterState): readonly NodeRecord[] {
  return usedNodes(state).sort((a, b) => a.taskCount - b.taskCount || (a.spec.id < b.spec.id ? -1 : 1));
}

/** The first `most` sets of the nodes, which come with the fewest tasks first: those with the fewest tasks together first. */
function* setsOf(nodes: readonly NodeRecord[], most: number): Generator<readonly NodeRecord[]> {
  const tasksOf = (set: readonly number[]): number =>
    set.reduce((sum, i) => sum + (nodes[i] as NodeRecord).taskCount, 0);
  let coming = nodes.length === 0 ? [] : [{ set: [0], tasks: tasksOf([0]) }];
  for (let n = 0; n < most; n++) {
    const next = coming.reduce((a, b) => (b.tasks < a.tasks ? b : a), coming[0] ?? { set: [], tasks: 0 });
    const last = next.set.at(-1);
    if (last === undefined) return;
    yield next.set.map((i) => nodes[i] as NodeRecord);
    coming = coming.filter((one) => one !== next);
    if (last + 1 === nodes.length) continue;
    // Every set follows from exactly one with no more tasks: its last node put off, or one more added.
    for (const set of [
      [...next.set.slice(0, -1), last + 1],
      [...next.set, last + 1],
    ])
      coming.push({ set, tasks: tasksOf(set) });
  }
}

/** Moves all that is on the nodes of the set to others in use; false, and nothing has changed, when that cannot be done. */
function emptySet(state: ClusterState, plan: Plan, set: readonly NodeRecord[], used: readonly NodeRecord[]): boolean {
  const start = plan.moves.length;
  const others = used.filter((node) => !set.includes(node));
  const choices = ({ group }: TaskRecord): number =>
    others.filter((node) => factFilters.every((filter) => filter.passes(state, group, node))).length;
  const tasks = set
    .flatMap(tasksOn)
    .map((task) => ({ task, size: sizeOf(task), choices: choices(task) }))
    .sort((a, b) => b.size - a.size || a.choices - b.choices || (a.task.id < b.task.id ? -1 : 1));
  for (const { task } of tasks) {
    const why = `node ${task.node?.spec.hostname} can be emptied`;
    // To the node that would be emptied last, so that no task moves twice, if a spread preference has nothing against it.
    const compare = (a: NodeRecord, b: NodeRecord): number =>
      spread.points(state, task.group, a) - spread.points(state, task.group, b) || b.taskCount - a.taskCount;
    if (plan.mayMove(task) && plan.move(task, others, why, compare)) continue;
    plan.undo(start);
    return false;
  }
  return true;
}

function sizeOf({ group }: TaskRecord): number {
  return group.needs.reduce(
    (sum, { dimension, amount }) => sum + (dimension === memoryDimension ? amount / 2 ** 22 : amount),
    0,
  );
}

/** Share of the nodes in use that the reservations do not need: 0 when not one could be spared. */
function fragmentation(state: ClusterState): number {
  const used = usedNodes(state);
  if (used.length === 0) return 0;
  let needed = 1;
  for (const dimension of [cpuDimension, memoryDimension]) {
    const capacities = used.map((node) => state.capacity(node, dimension)).sort((a, b) => b - a);
    let left = used.reduce((sum, node) => sum + state.capacity(node, dimension) - state.freeOf(node, dimension), 0);
    let count = 0;
    while (left > 0 && count < capacities.length) left -= capacities[count++] as number;
    needed = Math.max(needed, count);
  }
  return 1 - needed / used.length;
}

function usedNodes(state: ClusterState): NodeRecord[] {
  return [...state.nodes.values()].filter(
    (node) => node.taskCount > 0 && node.spec.ready && node.spec.availability === "active",
  );
}
