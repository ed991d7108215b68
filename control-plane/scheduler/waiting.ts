import { compareTexts } from "../../lib/words/compare.ts";
import { boundFactFilters, factFilters } from "./filters/index.ts";
import { maxPerNode } from "./filters/max-per-node.ts";
import { fits, fitsDomain } from "./index/fits.ts";
import { fewestVictims } from "./preempt.ts";
import type { ClusterState, StateListener } from "./state/cluster.ts";
import { type GroupRecord, type NodeRecord, type TaskRecord, Waiting } from "./state/records.ts";
import { cpuDimension } from "./state/table.ts";

/**
 * The tasks that wait, and which of them are worth another look.
 *
 * What was looked at and fits nowhere is blocked. It wakes when a node has got better and would take it now, or, where the
 * answer hangs on more than one node (a skew bound, a single-writer volume, a budget that preemption respects), when what it
 * hangs on has changed (`Filter.hangsOn`). A gang wakes with any of its members. Told of what was really decided or has
 * happened, and not of what was only tried.
 */
export class WaitingRoom implements StateListener {
  readonly #state: ClusterState;
  readonly #awake = new Set<Waiting>();
  readonly #blocked = new Set<Waiting>();
  /** Blocked, by the power of two of the CPU needed, so that a node is tried with what it could hold. */
  readonly #byNeed: Set<Waiting>[] = [];
  /** Of the blocked, those whose answer hangs on more than one node. */
  readonly #hanging = new Set<Waiting>();
  readonly #gangs = new Map<string, Set<Waiting>>();
  /** Nodes that have got better since the last `take`. */
  readonly #better = new Set<NodeRecord>();
  /** Lowest priority of a service of which preemption may take a task again since the last `take`. */
  #loosened = Number.POSITIVE_INFINITY;
  /** Of the blocked, how many may preempt. */
  #preempting = 0;
  /** Counts changes of what nodes are. */
  #facts = 0;
  /** Has something been placed or ended since the last `wake` that may wake something? */
  isStirred = false;

  constructor(state: ClusterState) {
    this.#state = state;
  }

  nodeChanged(node: NodeRecord, facts: boolean): void {
    if (!facts) return;
    this.#facts++;
    if (this.#blocked.size > 0) this.#better.add(node);
  }

  nodeRemoved(node: NodeRecord): void {
    this.#facts++;
    this.#better.delete(node);
  }

  /** A task of the group has left the node. */
  freed(group: GroupRecord, node: NodeRecord): void {
    group.service.changes++;
    for (const { volume, readOnly } of group.volumes ?? []) {
      if (readOnly !== true) this.#state.volume(volume).endings++;
    }
    if (this.#blocked.size === 0) return;
    this.#better.add(node);
    this.isStirred = true;
  }

  /** A task of the group was placed, or serves from now on, which may let preemption take another of the same service. */
  placed({ service }: GroupRecord): void {
    service.changes++;
    if (service.hanging > 0) this.isStirred = true;
    if (this.#preempting === 0 || service.minAvailable === 0 || service.placed - service.down <= service.minAvailable)
      return;
    for (const { priority } of service.groups) this.#loosened = Math.min(this.#loosened, priority);
    this.isStirred = true;
  }

  /** Everything is worth another look: a volume, a budget or what may be stopped has changed. */
  wakeAll(): void {
    for (const waiting of this.#blocked) this.#wake(waiting);
  }

  /** What was looked at and fits nowhere. */
  get blocked(): ReadonlySet<Waiting> {
    return this.#blocked;
  }

  /** Awake and blocked, by priority, then by the turn of the first task. */
  all(): readonly Waiting[] {
    const all = [...this.#awake, ...this.#blocked];
    for (const waiting of all) waiting.arrange();
    return all.sort(compare);
  }

  add(task: TaskRecord): void {
    const waiting = this.#entryFor(task);
    waiting.push(task);
    if (!this.#blocked.has(waiting)) this.#awake.add(waiting);
    else this.#wake(waiting);
  }

  delete(task: TaskRecord): void {
    const { group, waitsIn: waiting } = task;
    if (waiting === undefined) return;
    waiting.remove(task);
    if (waiting.first === undefined) this.#drop(waiting);
    // A gang that lacks one task less may fit.
    else if (group.gang !== undefined && this.#blocked.has(waiting)) this.#wake(waiting);
    if (group.gang !== undefined) for (const other of this.#gangs.get(group.gang) ?? []) this.#wake(other);
  }

  /**
   * What to look at now: by priority, then by the turn of the first task; the members of a gang together, where the first
   * of them would be. Each is then `done`, `block`ed, or given back by `restore`.
   */
  take(): readonly (Waiting | Waiting[])[] {
    this.wake();
    const units: (Waiting | Waiting[])[] = [];
    const gangs = new Map<string, Waiting[]>();
    let sorted = true;
    let before: Waiting | undefined;
    for (const waiting of this.#awake) {
      waiting.arrange();
      const { gang } = waiting;
      const members = gang === undefined ? undefined : gangs.get(gang);
      if (members !== undefined) {
        members.push(waiting);
        sorted = false;
        continue;
      }
      if (gang === undefined) units.push(waiting);
      else {
        const unit = [waiting];
        units.push(unit);
        gangs.set(gang, unit);
      }
      if (before !== undefined && compare(before, waiting) > 0) sorted = false;
      before = waiting;
    }
    if (!sorted) {
      for (const members of gangs.values()) members.sort(compare);
      units.sort((a, b) => compare(leaderOf(a), leaderOf(b)));
    }
    this.#awake.clear();
    return units;
  }

  /** Gives back what was taken and not looked at. */
  restore(units: readonly (Waiting | Waiting[])[]): void {
    for (const unit of units) {
      if (!Array.isArray(unit)) this.#awake.add(unit);
      else for (const waiting of unit) this.#awake.add(waiting);
    }
  }

  /** All its tasks are placed. */
  done(waiting: Waiting): void {
    this.#drop(waiting);
  }

  /** What is left of it fits nowhere. */
  block(waiting: Waiting): void {
    this.#awake.delete(waiting);
    this.#blocked.add(waiting);
    const { group } = waiting;
    waiting.mayPreempt = group.priority > this.#state.lowestPriority;
    if (waiting.mayPreempt) this.#preempting++;
    waiting.blockedIn = this.#ofNeed(waiting);
    waiting.blockedIn.add(waiting);
    if (group.rules.domainFilters.length === 0) return;
    this.#hanging.add(waiting);
    group.service.hanging++;
    waiting.blockedAt = this.#countOf(group);
  }

  /** Wakes what may fit after the changes so far; true when there was any. */
  wake(): boolean {
    const before = this.#awake.size;
    if (this.#blocked.size > 0) {
      for (const waiting of this.#hanging) if (this.#countOf(waiting.group) !== waiting.blockedAt) this.#wake(waiting);
      if (this.#loosened < Number.POSITIVE_INFINITY) {
        for (const waiting of this.#blocked) if (waiting.group.priority > this.#loosened) this.#wake(waiting);
      }
      for (const node of this.#better) {
        const most = powerOf(this.#state.freeOf(node, cpuDimension));
        for (let power = 0; power <= most && power < this.#byNeed.length; power++) {
          for (const waiting of this.#byNeed[power] ?? []) if (this.#mayFit(waiting, node)) this.#wake(waiting);
        }
      }
    }
    this.#better.clear();
    this.#loosened = Number.POSITIVE_INFINITY;
    this.isStirred = false;
    return this.#awake.size > before;
  }

  #mayFit({ group, onlyNode }: Waiting, node: NodeRecord): boolean {
    if (onlyNode !== undefined && node.spec.id !== onlyNode) return false;
    const state = this.#state;
    if (!fits(state, group, node.index) && !this.#mayPreempt(group, node)) return false;
    const rules = onlyNode === undefined ? factFilters : boundFactFilters;
    return rules.every((filter) => filter.passes(state, group, node)) && fitsDomain(state, group, node);
  }

  /** Budgets and ports aside, could those of lower priority make room? */
  #mayPreempt(group: GroupRecord, node: NodeRecord): boolean {
    const state = this.#state;
    if (group.priority <= state.lowestPriority || !maxPerNode.passes(state, group, node)) return false;
    return fewestVictims(state, group, node) < Number.POSITIVE_INFINITY;
  }

  /** Those that need as much to be free on a node; with preemption that may be anything. */
  #ofNeed({ group, mayPreempt }: Waiting): Set<Waiting> {
    const cpu = group.needs.find(({ dimension }) => dimension === cpuDimension)?.amount ?? 0;
    const power = mayPreempt ? 0 : powerOf(cpu);
    for (let i = this.#byNeed.length; i <= power; i++) this.#byNeed.push(new Set());
    return this.#byNeed[power] as Set<Waiting>;
  }

  /** Grows with each change of what the group's domain rules hang on. */
  #countOf(group: GroupRecord): number {
    let count = 0;
    for (const { hangsOn } of group.rules.domainFilters) {
      for (const what of hangsOn ?? []) {
        if (what === "facts") count += this.#facts;
        else if (what === "service") count += group.service.changes;
        else for (const { volume } of group.volumes ?? []) count += this.#state.volume(volume).endings;
      }
    }
    return count;
  }

  #unblock(waiting: Waiting): boolean {
    if (!this.#blocked.delete(waiting)) return false;
    if (this.#hanging.delete(waiting)) waiting.group.service.hanging--;
    waiting.blockedIn?.delete(waiting);
    waiting.blockedIn = undefined;
    if (waiting.mayPreempt) this.#preempting--;
    return true;
  }

  #wake(waiting: Waiting): void {
    if (!this.#unblock(waiting)) return;
    this.#awake.add(waiting);
    const { gang } = waiting;
    if (gang === undefined) return;
    for (const other of this.#gangs.get(gang) ?? []) if (this.#unblock(other)) this.#awake.add(other);
  }

  #entryFor({ group, onlyNode }: TaskRecord): Waiting {
    const known = onlyNode === undefined ? group.waiting : group.waitingOn?.get(onlyNode);
    if (known !== undefined) return known;
    const waiting = new Waiting(group, onlyNode);
    if (onlyNode === undefined) group.waiting = waiting;
    else {
      group.waitingOn ??= new Map();
      group.waitingOn.set(onlyNode, waiting);
    }
    const { gang } = group.spec;
    if (gang !== undefined) {
      const members = this.#gangs.get(gang);
      if (members === undefined) this.#gangs.set(gang, new Set([waiting]));
      else {
        members.add(waiting);
        for (const other of members) this.#wake(other);
      }
    }
    return waiting;
  }

  #drop(waiting: Waiting): void {
    this.#awake.delete(waiting);
    this.#unblock(waiting);
    const { group, onlyNode, gang } = waiting;
    if (onlyNode === undefined) group.waiting = undefined;
    else group.waitingOn?.delete(onlyNode);
    const members = gang === undefined ? undefined : this.#gangs.get(gang);
    if (gang === undefined || members === undefined) return;
    members.delete(waiting);
    if (members.size === 0) this.#gangs.delete(gang);
  }
}

/** 0 for none, else one more than the power of two at or below the amount. */
function powerOf(amount: number): number {
  return amount >= 1 ? 32 - Math.clz32(Math.min(amount, 0xffff_ffff)) : 0;
}

/** See `Turn`: the same for every scheduler that was told of the same tasks, whatever their ids and the order in which it was told. */
function compare(a: Waiting, b: Waiting): number {
  if (a.priority !== b.priority) return b.priority - a.priority;
  if (a.turn === undefined || b.turn === undefined) {
    return Number(a.turn !== undefined) - Number(b.turn !== undefined) || a.order - b.order;
  }
  return (
    a.turn.sinceMs - b.turn.sinceMs ||
    compareTexts(a.group.spec.name, b.group.spec.name) ||
    compareTexts(a.group.spec.id, b.group.spec.id) ||
    a.turn.slot - b.turn.slot ||
    compareTexts(a.onlyNode ?? "", b.onlyNode ?? "")
  );
}

function leaderOf(unit: Waiting | Waiting[]): Waiting {
  return Array.isArray(unit) ? (unit[0] as Waiting) : unit;
}
