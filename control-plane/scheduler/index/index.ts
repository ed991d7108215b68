import { ClusterError } from "../../../lib/errors/errors.ts";
import type { Filter } from "../filters/filter.ts";
import { domainFilters, factFilters, nodeFilters } from "../filters/index.ts";
import { resources } from "../filters/resources.ts";
import { domainScores, factScores, nodeScores } from "../scores/index.ts";
import type { Score } from "../scores/score.ts";
import type { ClusterState, Floors, StateListener } from "../state/cluster.ts";
import type { GroupRecord, GroupRules, NodeRecord, SpreadLevel, ViewSlot } from "../state/records.ts";
import { spacesOf, View } from "./view.ts";

/** Nodes with terms of its own above which a group gets a view of its own. */
const ownViewAt = 256;
/** Leaves that all views may have together; beyond it the least recently used are dropped. */
const mostLeaves = 4_000_000;

interface Entry {
  readonly view: View;
  /** Position in the log up to which it has followed. */
  cursor: number;
  /** Counts uses of all views, so the least is the one longest unused. */
  usedAt: number;
  readonly slot: ViewSlot;
}

/**
 * The views, and the log of changed nodes by which each catches up when it is next used. A change costs one log entry,
 * whatever the number of views and nodes; catching up costs (changed nodes) x log(nodes) in the view that is used.
 */
export class PlacementIndex implements StateListener, Floors {
  readonly #state: ClusterState;
  readonly #entries = new Set<Entry>();
  /** By what the facts rules look at. */
  readonly #views = new Map<string, ViewSlot>();
  /** Node indexes, as -1 - index where facts have changed. The first has position `#logStart`. */
  #log: number[] = [];
  #logStart = 0;

  #current: Entry | undefined;
  #deciding: GroupRecord | undefined;
  #uses = 0;

  constructor(state: ClusterState) {
    this.#state = state;
  }

  nodeChanged(node: NodeRecord, facts: boolean): void {
    if (this.#entries.size > 0) this.#append(node.index, facts);
  }

  nodeRemoved(node: NodeRecord): void {
    if (this.#entries.size > 0) this.#append(node.index, true);
  }

  /** Forgets every view: what the rules look at has changed (a volume's home). */
  clear(): void {
    for (const entry of this.#entries) this.#drop(entry);
  }

  /** Drops the group's own view. */
  forget(group: GroupRecord): void {
    const entry = group.ownView?.entry as Entry | undefined;
    if (entry !== undefined) this.#drop(entry);
  }

  /** Begins deciding the group; `leave` ends it, and comes before any other group's `enter`. */
  enter(group: GroupRecord): void {
    const entry = this.#entry(group);
    this.#catchUp(entry);
    entry.view.enter(group);
    this.#current = entry;
    this.#deciding = group;
  }

  leave(): void {
    this.#current?.view.leave();
    this.#current = undefined;
    this.#deciding = undefined;
  }

  /** The cheapest node for the group that has entered, all placements so far counted; undefined when none fits. */
  best(): NodeRecord | undefined {
    const entry = this.#entered();
    this.#catchUp(entry);
    return entry.view.best(this.#deciding as GroupRecord);
  }

  /** Calls with every node that the facts and domain rules let pass for the group that has entered, and its cost. */
  visit(see: (node: NodeRecord, cost: number) => void): void {
    const entry = this.#entered();
    this.#catchUp(entry);
    entry.view.visit(this.#deciding as GroupRecord, see);
  }

  floor(group: GroupRecord, level: SpreadLevel): number {
    const entry = this.#deciding === group ? this.#entered() : this.#entry(group);
    this.#catchUp(entry);
    return entry.view.floor(group, level);
  }

  #entered(): Entry {
    if (this.#current === undefined) throw new ClusterError("no group has entered the index", { code: "internal" });
    return this.#current;
  }

  /** The group's view, now the most recently used. */
  #entry(group: GroupRecord): Entry {
    let slot: ViewSlot = group.rules.view;
    if (group.ownView?.entry !== undefined) slot = group.ownView;
    else if (specials(group) > ownViewAt) {
      group.ownView ??= { entry: undefined, rules: [] };
      slot = group.ownView;
    }
    const known = slot.entry as Entry | undefined;
    if (known === undefined) return this.#create(slot, group);
    known.usedAt = ++this.#uses;
    return known;
  }

  #create(slot: ViewSlot, group: GroupRecord): Entry {
    const own = slot === group.ownView;
    const cursor = this.#logStart + this.#log.length;
    const entry: Entry = { view: new View(this.#state, group, own), cursor, usedAt: ++this.#uses, slot };
    this.#entries.add(entry);
    slot.entry = entry;
    this.#makeRoom(entry);
    return entry;
  }

  /** Drops the views longest unused until the rest, `kept` among it, is small enough. */
  #makeRoom(kept: Entry): void {
    let leaves = 0;
    for (const { view } of this.#entries) leaves += view.size;
    if (leaves <= mostLeaves) return;
    for (const entry of [...this.#entries].sort((a, b) => a.usedAt - b.usedAt)) {
      if (leaves <= mostLeaves || entry === kept || entry === this.#current) return;
      leaves -= entry.view.size;
      this.#drop(entry);
    }
  }

  #drop(entry: Entry): void {
    this.#entries.delete(entry);
    entry.slot.entry = undefined;
  }

  #catchUp(entry: Entry): void {
    const end = this.#logStart + this.#log.length;
    if (entry.cursor === end) return;
    const { view } = entry;
    for (let at = entry.cursor - this.#logStart; at < this.#log.length; at++) {
      const index = this.#log[at] as number;
      if (index < 0) view.refresh(-1 - index, true);
      else view.refresh(index, false);
    }
    entry.cursor = end;
  }

  #append(index: number, facts: boolean): void {
    this.#log.push(facts ? -1 - index : index);
    if (this.#log.length > 2 * this.#state.byIndex.length + 4_096) this.#trim();
  }

  /** Drops the older half of the log, and the views that had not read it: building anew is cheaper for them. */
  #trim(): void {
    const cut = this.#log.length >> 1;
    this.#log = this.#log.slice(cut);
    this.#logStart += cut;
    for (const entry of this.#entries) if (entry.cursor < this.#logStart) this.#drop(entry);
  }

  /** Works out what of the rules and terms concerns the group: when it is told, and when its failures change. */
  prepare(group: GroupRecord): void {
    const key = JSON.stringify([
      group.binpack,
      factFilters.map((filter) => filter.key?.(group) ?? null),
      factScores.map((score) => score.key?.(group) ?? null),
      spacesOf(group).map(({ path }) => path),
    ]);
    let view = this.#views.get(key);
    if (view === undefined) {
      view = { entry: undefined, rules: [] };
      this.#views.set(key, view);
    }
    const applies = (rule: Filter | Score): boolean => rule.applies?.(group) !== false;
    const rules = {
      domainFilters: domainFilters.filter(applies),
      nodeFilters: nodeFilters.filter((filter) => filter !== resources && applies(filter)),
      domainScores: domainScores.filter(applies),
      nodeScores: nodeScores.filter(applies),
      view,
    };
    // Equal rules are one object: a decision then finds them in the cache.
    const same = view.rules.find((known) => sameRules(known, rules));
    if (same === undefined) view.rules.push(rules);
    group.rules = same ?? rules;
  }
}

function sameRules(a: GroupRules, b: GroupRules): boolean {
  return (
    sameList(a.domainFilters, b.domainFilters) &&
    sameList(a.nodeFilters, b.nodeFilters) &&
    sameList(a.domainScores, b.domainScores) &&
    sameList(a.nodeScores, b.nodeScores)
  );
}

function sameList(a: readonly unknown[], b: readonly unknown[]): boolean {
  return a.length === b.length && a.every((item, i) => item === b[i]);
}

/** Nodes on which the group's own terms are not zero, at most. */
function specials(group: GroupRecord): number {
  let count = group.service.placed > ownViewAt ? group.service.counts.size : group.service.placed;
  if (count > ownViewAt || group.rules.nodeScores.length <= 1) return count;
  for (const { service } of group.links) count += service.counts.size;
  for (const { service, space } of group.serviceAffinities) if (space === undefined) count += service.counts.size;
  return count + group.failures.size + (group.image?.drawing.size ?? 0);
}
