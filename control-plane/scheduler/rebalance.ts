import { factFilters, filters } from "./filters/index.ts";
import { compareNodes, costOf } from "./scores/index.ts";
import { type ClusterState, cpuDimension, memoryDimension } from "./state/cluster.ts";
import type { GroupRecord, NodeRecord, ServiceRecord, TaskRecord } from "./state/records.ts";

export interface RebalanceOptions {
  /**
   * `skew`: no service has more than `bound` (from 1) tasks more in one domain of its first spread preference, or on one
   * node when it has none, than in another that could take one.
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
 * therefore is a copy. Leaves alone pinned tasks, tasks bound to a node and gangs, and moves of each service no more than
 * it has above `minAvailable`. Stable: on its own result it plans nothing more, unless budget or `mostMoves` cut it short.
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
    if (task.pinned || task.onlyNode !== undefined || group.spec.gang !== undefined) return false;
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

  /** Moves the task to the cheapest of the nodes that takes it; false, and nothing has changed, when none does. */
  move(task: TaskRecord, nodes: readonly NodeRecord[], why: string): boolean {
    const state = this.#state;
    const from = task.node as NodeRecord;
    state.detach(task);
    let best: NodeRecord | undefined;
    let bestCost = 0;
    for (const node of nodes) {
      if (node === from || !filters.every((filter) => filter.passes(state, task.group, node))) continue;
      const cost = costOf(state, task.group, node);
      if (best !== undefined && compareNodes(cost, node, bestCost, best) >= 0) continue;
      best = node;
      bestCost = cost;
    }
    state.attach(task, best ?? from);
    if (best === undefined) return false;
    const { service } = task.group;
    this.#moved.set(service, (this.#moved.get(service) ?? 0) + 1);
    this.moves.push({ task: task.id, from: from.spec.id, to: best.spec.id, why });
    return true;
  }

  /** Takes back all moves but the first `count`. */
  undo(count: number, tasks: ReadonlyMap<string, TaskRecord>): void {
    for (
      let move = this.moves[this.moves.length - 1];
      this.moves.length > count && move !== undefined;
      move = this.moves.at(-1)
    ) {
      this.moves.pop();
      const task = tasks.get(move.task) as TaskRecord;
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

/** One move from the fullest domain that has a task to spare to the emptiest that takes it. */
function relieveOnce(state: ClusterState, plan: Plan, group: GroupRecord, bound: number): boolean {
  const domains = domainsOf(state, group);
  const fullest = [...domains].sort((a, b) => b.count / b.share - a.count / a.share || (a.name < b.name ? -1 : 1));
  const emptiest = [...domains].sort((a, b) => a.count / a.share - b.count / b.share || (a.name < b.name ? -1 : 1));
  for (const from of fullest) {
    const tasks = from.nodes
      .flatMap((node) => node.tasks.filter((task) => task.group === group))
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
    const values = domainsOf(state, group).map(({ count, share }) => count / share);
    if (values.length > 1) worst = Math.max(worst, Math.max(...values) - Math.min(...values));
  }
  return worst;
}

function domainsOf(state: ClusterState, group: GroupRecord): readonly Domain[] {
  // All versions of a service are measured alike, or they would undo each other's moves.
  const leading = [...group.service.groups].sort((a, b) => (a.spec.id < b.spec.id ? -1 : 1)).at(-1) ?? group;
  const level = leading.spread[0];
  const domains = new Map<string, Domain>();
  for (const node of state.nodes.values()) {
    if (!factFilters.every((filter) => filter.passes(state, group, node))) continue;
    const value = level?.space.value(level.space.of(node));
    const name = level === undefined ? node.spec.hostname : `${level.over} ${value}`;
    const key = level === undefined ? node.spec.id : (value ?? "");
    let domain = domains.get(key);
    if (domain === undefined) {
      domain = { name, nodes: [], share: Math.max(level?.shareOf(value ?? "") ?? 1, 1e-3), count: 0 };
      domains.set(key, domain);
    }
    domain.nodes.push(node);
    domain.count += group.service.countOn(node);
  }
  return [...domains.values()];
}

/** Groups whose tasks may be moved at all, in the order of their ids. */
function groupsOf(state: ClusterState): readonly GroupRecord[] {
  return [...state.groups.values()]
    .filter((group) => group.placed > 0 && group.spec.gang === undefined)
    .sort((a, b) => (a.spec.id < b.spec.id ? -1 : 1));
}

/** Empties nodes, those with the fewest tasks first, each whole or not at all. */
function emptyNodes(state: ClusterState, plan: Plan, bound: number): void {
  for (let emptied = true; emptied && fragmentation(state) > bound; ) {
    emptied = false;
    const used = usedNodes(state).sort((a, b) => a.tasks.length - b.tasks.length || (a.spec.id < b.spec.id ? -1 : 1));
    for (const node of used) {
      if (!emptyNode(plan, node, used)) continue;
      emptied = true;
      break;
    }
  }
}

function emptyNode(plan: Plan, node: NodeRecord, used: readonly NodeRecord[]): boolean {
  const start = plan.moves.length;
  const tasks = [...node.tasks].sort((a, b) => sizeOf(b) - sizeOf(a) || (a.id < b.id ? -1 : 1));
  const byId = new Map(tasks.map((task) => [task.id, task]));
  const others = used.filter((other) => other !== node);
  const why = `node ${node.spec.hostname} can be emptied`;
  for (const task of tasks) {
    if (plan.mayMove(task) && plan.move(task, others, why)) continue;
    plan.undo(start, byId);
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
    (node) => node.tasks.length > 0 && node.spec.ready && node.spec.availability === "active",
  );
}
