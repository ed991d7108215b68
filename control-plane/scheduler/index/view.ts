import { factFilters } from "../filters/index.ts";
import { compareNodes, domainScores, factScores, mostNodePoints, sumOf } from "../scores/index.ts";
import { loadPoints } from "../scores/load.ts";
import type { Score } from "../scores/score.ts";
import type { ClusterState } from "../state/cluster.ts";
import type { DomainSpace } from "../state/domains.ts";
import type { GroupRecord, NodeRecord, SpreadLevel } from "../state/records.ts";
import { KnownFailures } from "./failures.ts";
import { fits, fitsDomain } from "./fits.ts";
import { Thresholds } from "./thresholds.ts";
import { type Judge, Tree } from "./tree.ts";

/** Nodes that are the same in all that `facts` and `domain` rules and terms look at, in a tournament by the rest. */
interface Cell {
  /** Its index in the view's list. */
  readonly number: number;
  /** Sum of the `facts` terms. */
  readonly facts: number;
  /** Domain by space of the view. */
  readonly domains: readonly number[];
  readonly tree: Tree;
  count: number;
  /** Index of some node of the cell, perhaps of one that has left it: see `#sampleOf`. */
  sample: number;
}

/** Room for the tie number below the points in a key: points x 2^32 + tie stays an exact integer. */
const tieRange = 2 ** 32;
const keyShift = mostNodePoints + 4_096;
/** Nodes that a search looks at in vain after it has found one that fits. Above that it takes the best so far. */
const mostVisits = 2_048;

/**
 * The nodes that a set of `facts` rules lets pass, arranged for finding the cheapest that fits.
 *
 * A view serves all groups with the same rules. The terms that vary by node are not in it but for the group that is being
 * decided (`enter`), and only on the nodes where they are not zero; or for good, when it is a group's own view.
 */
export class View implements Judge {
  readonly #state: ClusterState;
  /** Whose facts rules and terms it follows. */
  readonly #rules: GroupRecord;
  readonly #spaces: readonly DomainSpace[];
  /** Whose node terms the keys contain now. */
  #owner: GroupRecord | undefined;
  readonly #own: boolean;
  readonly #cells: Cell[] = [];
  readonly #cellByKey = new Map<string, Cell>();
  /** Number of the node's cell, -1 for none, at twice its index; its leaf there beside it, in the same cache line. */
  #places = new Int32Array(32).fill(-1);
  readonly #thresholds = new Thresholds();
  readonly #failures = new KnownFailures();
  #withBits = false;
  /** Nodes with the owner's terms in their keys. */
  readonly #touched: number[] = [];
  /** By node index: the entering at which it was last put into `#touched`. */
  #touchedAt = new Int32Array(16);
  #entering = 0;
  #floors = new Map<DomainSpace, number>();
  #floorsAt = -1;
  /** Nodes that pass. */
  count = 0;

  /** With `own`, keys contain the group's node terms for good. */
  constructor(state: ClusterState, rules: GroupRecord, own: boolean) {
    this.#state = state;
    this.#rules = rules;
    this.#spaces = spacesOf(rules);
    this.#own = own;
    this.#owner = own ? rules : undefined;
    this.#touchedAt = new Int32Array(Math.max(16, state.byIndex.length));
    this.#places = new Int32Array(2 * this.#touchedAt.length).fill(-1);
    // Records lie in memory in the order of joining, and leaves are to lie in that of the indexes. In one pass for both,
    // a view of 100k nodes would take three times as long.
    for (const node of state.nodes.values()) this.#admit(node);
    for (let index = 0; index < this.#touchedAt.length; index++) {
      const cell = this.#cellOf(index);
      if (cell !== undefined) this.#setLater(cell.tree, this.#takeLeaf(cell, index), index);
    }
    for (const { tree } of this.#cells) tree.rebuild();
  }

  /** Leaves allocated: what the view costs in memory. */
  get size(): number {
    return this.#touchedAt.length;
  }

  /** Follows a change of the node at this index. `facts`: it may pass other rules or be another node now. */
  refresh(index: number, facts: boolean): void {
    if (facts) {
      this.#dismiss(index);
      const node = this.#state.byIndex[index];
      const cell = node === undefined ? undefined : this.#admit(node);
      if (cell === undefined) return;
      this.#takeLeaf(cell, index);
    }
    const number = index < this.#touchedAt.length ? (this.#places[2 * index] as number) : -1;
    if (number < 0) return;
    const { tree } = this.#cells[number] as Cell;
    const leaf = this.#places[2 * index + 1] as number;
    if (this.#owner === undefined && !this.#withBits) {
      tree.set(leaf, this.#keyOf(index, 0), 0);
      return;
    }
    const node = this.#state.byIndex[index];
    // A node that has left since: its own entry comes later in the log.
    if (node === undefined) return;
    if (this.#owner !== undefined && !this.#own && this.#touchedAt[index] !== this.#entering) {
      this.#touchedAt[index] = this.#entering;
      this.#touched.push(index);
    }
    const bits = this.#withBits ? this.#thresholds.bitsOf(this.#state, node) : 0;
    tree.set(leaf, this.#keyOf(index, bits), bits);
  }

  /** As `refresh` without `facts` for each; many together cost less than one by one. */
  refreshAll(indexes: readonly number[]): void {
    if (indexes.length * 4 < this.count) {
      for (let i = 0; i < indexes.length; i++) this.refresh(indexes[i] as number, false);
      return;
    }
    for (let i = 0; i < indexes.length; i++) this.#refreshLater(indexes[i] as number);
    for (const { tree } of this.#cells) tree.rebuild();
  }

  #refreshLater(index: number): void {
    const cell = this.#cellOf(index);
    if (cell === undefined || this.#state.byIndex[index] === undefined) return;
    this.#setLater(cell.tree, this.#places[2 * index + 1] as number, index);
  }

  #cellOf(index: number): Cell | undefined {
    const number = index < this.#touchedAt.length ? (this.#places[2 * index] as number) : -1;
    return number < 0 ? undefined : this.#cells[number];
  }

  /** Puts the group's node terms into the keys, until `leave`. */
  enter(group: GroupRecord): void {
    this.#offsetsAt = -1;
    this.#floorsAt = -1;
    if (this.#own) return;
    this.#owner = group;
    this.#entering++;
    const scores = group.rules.nodeScores;
    // As a rule a service has only the term of its own tasks, and most decisions are of services that have none yet.
    if (scores.length === 1 && group.service.placed === 0) return;
    for (const score of scores) {
      for (const index of score.nodes?.(group) ?? []) this.refresh(index, false);
    }
  }

  leave(): void {
    if (this.#own || this.#owner === undefined) return;
    this.#owner = undefined;
    // Mostly of a service's first task; emptying the list would cost as much as all the rest of this.
    if (this.#touched.length === 0) return;
    this.refreshAll(this.#touched);
    this.#touched.length = 0;
  }

  /** The cheapest node that the group fits on; the group must have entered. */
  best(group: GroupRecord): NodeRecord | undefined {
    let bestNode = -1;
    let bestCost = Number.POSITIVE_INFINITY;
    let bestTie = 0;
    let visits = 0;
    if (this.#failures.covers(group, this.#state.gains)) return undefined;
    const required = this.#thresholds.required(group);
    // Needs less than any bit stands for: nodes without bits count too, and they are not in the race.
    if (required === 0 && this.#withBits) return this.#scan(group);
    this.#searching = group;
    const offsets = this.#currentOffsets(group);
    for (let i = 0; i < this.#cells.length; i++) {
      const cell = this.#cells[i] as Cell;
      const { tree } = cell;
      const { least } = tree;
      if (least === Number.POSITIVE_INFINITY || (tree.union & required) !== required) continue;
      const offset = offsets[i] as number;
      if (offset === Number.POSITIVE_INFINITY) continue;
      // Keys are points x 2^32 + tie; a cell's offset is whole points, so costs compare before ties do.
      if (bestNode >= 0) {
        const leastPoints = pointsOf(least);
        if (offset + leastPoints > bestCost || (offset + leastPoints === bestCost && tieOf(least) >= bestTie)) continue;
      }
      const limit = bestNode < 0 ? Number.POSITIVE_INFINITY : (bestCost - offset + keyShift) * tieRange + bestTie;
      const found = tree.search(this, required, limit, mostVisits);
      visits += tree.vain;
      if (found >= 0) {
        bestNode = found;
        bestCost = offset + pointsOf(tree.foundKey);
        bestTie = tieOf(tree.foundKey);
      }
    }
    if (visits > 0 && this.#thresholds.wasted(group, visits, this.count)) this.#rechoose();
    if (bestNode < 0) {
      const { domainFilters, nodeFilters } = group.rules;
      if (domainFilters.length === 0 && nodeFilters.length === 0) this.#failures.add(group);
      return undefined;
    }
    this.#chosen = this.#cellOf(bestNode);
    return this.#state.byIndex[bestNode] as NodeRecord;
  }

  /** What each cell adds to the cost, Infinity where a domain rule refuses it. */
  #offsets: number[] = [];
  /** State of which the offsets are, and the cell chosen then. */
  #offsetsAt = -1;
  #chosen: Cell | undefined;

  /**
   * The offsets as of now. When all that has happened since the last call is that the group got a task in the chosen cell,
   * only cells that share a domain with it are worked out again.
   */
  #currentOffsets(group: GroupRecord): readonly number[] {
    const { version } = this.#state;
    const cells = this.#cells;
    const chosen = this.#chosen;
    const step = version === this.#offsetsAt + 1 && chosen !== undefined && group.rules.domainFilters.length === 0;
    if (version === this.#offsetsAt && this.#offsets.length === cells.length) return this.#offsets;
    for (let i = 0; i < cells.length; i++) {
      const cell = cells[i] as Cell;
      if (step && (group.rules.domainScores.length === 0 || !share(cell.domains, chosen.domains))) continue;
      this.#offsets[i] = cell.count === 0 ? Number.POSITIVE_INFINITY : this.#offsetOf(group, cell);
    }
    this.#offsetsAt = version;
    this.#chosen = undefined;
    return this.#offsets;
  }

  /** As `best`, by looking at every node. */
  #scan(group: GroupRecord): NodeRecord | undefined {
    let best: NodeRecord | undefined;
    let bestCost = 0;
    this.visit(group, (node, cost) => {
      if (!fits(this.#state, group, node.index)) return;
      if (best !== undefined && compareNodes(cost, node, bestCost, best) >= 0) return;
      best = node;
      bestCost = cost;
    });
    if (this.#thresholds.wasted(group, this.count, this.count)) this.#rechoose();
    return best;
  }

  /** Calls with every node that passes the facts and domain rules, and its cost for the group, in no order. */
  visit(group: GroupRecord, see: (node: NodeRecord, cost: number) => void): void {
    for (const cell of this.#cells) {
      const offset = cell.count === 0 ? Number.POSITIVE_INFINITY : this.#offsetOf(group, cell);
      if (offset === Number.POSITIVE_INFINITY) continue;
      const { nodes, used } = cell.tree;
      for (let leaf = 0; leaf < used; leaf++) {
        const node = this.#state.byIndex[nodes[leaf] as number];
        if (node === undefined) continue;
        see(
          node,
          offset + (loadPoints(this.#state, node.index, this.#rules.binpack) + pointsFor(this.#state, group, node)),
        );
      }
    }
  }

  /** As `scanFloor`, from the cells. */
  floor(group: GroupRecord, level: SpreadLevel): number {
    if (this.#floorsAt !== this.#state.version) {
      this.#floors.clear();
      this.#floorsAt = this.#state.version;
    }
    // Groups of one view may be of different services, so the memo holds for the group being decided only.
    const memo = this.#owner === group ? this.#floors.get(level.space) : undefined;
    if (memo !== undefined) return memo;
    const at = this.#spaces.indexOf(level.space);
    const counts = group.service.domains?.get(level.space);
    let floor = Number.POSITIVE_INFINITY;
    for (const { count, domains } of this.#cells) {
      const domain = domains[at] as number;
      if (count > 0 && level.space.present(domain)) floor = Math.min(floor, counts?.[domain] ?? 0);
    }
    if (floor === Number.POSITIVE_INFINITY) floor = 0;
    if (this.#owner === group) this.#floors.set(level.space, floor);
    return floor;
  }

  /** The group whose nodes are being searched. */
  #searching: GroupRecord | undefined;

  /** Does the group that is being searched for fit on the node? */
  accepts(node: number): boolean {
    return fits(this.#state, this.#searching as GroupRecord, node);
  }

  /** What the cell adds to the cost; undefined when a domain rule refuses it. */
  #offsetOf(group: GroupRecord, cell: Cell): number {
    if (group.rules.domainFilters.length > 0 && !fitsDomain(this.#state, group, this.#sampleOf(cell)))
      return Number.POSITIVE_INFINITY;
    return group.rules.domainScores.length === 0
      ? cell.facts
      : cell.facts + sumOf(domainScores, this.#state, group, this.#sampleOf(cell));
  }

  /** A node of the cell, which must have one. */
  #sampleOf(cell: Cell): NodeRecord {
    for (let leaf = 0; this.#cellOf(cell.sample) !== cell; leaf++)
      cell.sample = Math.max(0, cell.tree.nodes[leaf] as number);
    return this.#state.byIndex[cell.sample] as NodeRecord;
  }

  #setLater(tree: Tree, leaf: number, index: number): void {
    const bits = this.#withBits ? this.#thresholds.bitsOf(this.#state, this.#state.byIndex[index] as NodeRecord) : 0;
    tree.setLater(leaf, this.#keyOf(index, bits), bits);
  }

  /** Infinity for a node that is out of the race: without bits it holds none of those whose searches need bits. */
  #keyOf(index: number, bits: number): number {
    if (bits === 0 && this.#withBits) return Number.POSITIVE_INFINITY;
    let points = loadPoints(this.#state, index, this.#rules.binpack);
    const owner = this.#owner;
    if (owner !== undefined) {
      const node = this.#state.byIndex[index] as NodeRecord;
      const most = owner.spec.maxPerNode;
      if (most !== undefined && most > 0 && owner.service.countOn(node) >= most) return Number.POSITIVE_INFINITY;
      points += pointsFor(this.#state, owner, node);
    }
    return (points + keyShift) * tieRange + this.#state.table.tie(index);
  }

  /** Counts the node in its cell, if it passes. It has no leaf there yet. */
  #admit(node: NodeRecord): Cell | undefined {
    const state = this.#state;
    if (node.index >= this.#touchedAt.length) {
      const length = Math.max(node.index + 1, this.#touchedAt.length * 2);
      const places = new Int32Array(2 * length).fill(-1);
      places.set(this.#places);
      this.#places = places;
      const stamps = new Int32Array(length);
      stamps.set(this.#touchedAt);
      this.#touchedAt = stamps;
    }
    this.#places[2 * node.index] = -1;
    if (!factFilters.every((filter) => filter.passes(state, this.#rules, node))) return undefined;
    const facts = sumOf(factScores, state, this.#rules, node);
    let key = `${facts}`;
    for (const space of this.#spaces) key += `,${space.of(node)}`;
    let cell = this.#cellByKey.get(key);
    if (cell === undefined) {
      cell = {
        number: this.#cells.length,
        facts,
        domains: this.#spaces.map((space) => space.of(node)),
        tree: new Tree(),
        count: 0,
        sample: node.index,
      };
      this.#cellByKey.set(key, cell);
      if (this.#withBits) cell.tree.useBits();
      this.#cells.push(cell);
    }
    cell.count++;
    this.count++;
    this.#places[2 * node.index] = cell.number;
    return cell;
  }

  #takeLeaf(cell: Cell, index: number): number {
    const leaf = cell.tree.add(index);
    this.#places[2 * index + 1] = leaf;
    return leaf;
  }

  #dismiss(index: number): void {
    const cell = this.#cellOf(index);
    if (cell === undefined) return;
    this.#places[2 * index] = -1;
    cell.tree.remove(this.#places[2 * index + 1] as number);
    cell.count--;
    this.count--;
  }

  #rechoose(): void {
    this.#thresholds.choose();
    this.#withBits = true;
    for (const { tree } of this.#cells) {
      tree.useBits();
      for (let leaf = 0; leaf < tree.used; leaf++) {
        const index = tree.nodes[leaf] as number;
        if (index >= 0) this.#setLater(tree, leaf, index);
      }
      tree.rebuild();
    }
  }
}

/** As `nodePoints`, by the rules already worked out. */
function pointsFor(state: ClusterState, group: GroupRecord, node: NodeRecord): number {
  const terms = group.rules.nodeScores;
  let points = 0;
  for (let i = 0; i < terms.length; i++) points += (terms[i] as Score).points(state, group, node);
  return Math.max(-mostNodePoints, Math.min(mostNodePoints, points));
}

/** Do two cells have a domain in common? Both lists are by space. */
function share(a: readonly number[], b: readonly number[]): boolean {
  for (let i = 0; i < a.length; i++) if (a[i] === b[i]) return true;
  return false;
}

function pointsOf(key: number): number {
  return Math.floor(key / tieRange) - keyShift;
}

function tieOf(key: number): number {
  return key - Math.floor(key / tieRange) * tieRange;
}

/** The spaces that divide a view of the group into cells. */
export function spacesOf(group: GroupRecord): readonly DomainSpace[] {
  const spaces = new Set<DomainSpace>();
  for (const { space } of group.spread) spaces.add(space);
  for (const { space } of group.serviceAffinities) if (space !== undefined) spaces.add(space);
  return [...spaces];
}
