import { candidatesOf, explainGroup, unexplained, verdictOf } from "./explain/explain.ts";
import { givePorts } from "./filters/host-port.ts";
import { boundFactFilters } from "./filters/index.ts";
import { fits, fitsDomain } from "./index/fits.ts";
import { PlacementIndex } from "./index/index.ts";
import { PreemptionSearch } from "./preempt.ts";
import { planRebalance, type RebalanceOptions, type RebalancePlan } from "./rebalance.ts";
import { ClusterState, unknown } from "./state/cluster.ts";
import { type GroupRecord, type NodeRecord, noPorts, TaskRecord, Waiting } from "./state/records.ts";
import type {
  Explanation,
  NodeVerdict,
  Placement,
  ScheduleResult,
  SchedulerNode,
  SchedulerTask,
  SchedulerVolume,
  Strategy,
  TaskExplanation,
  TaskGroup,
  Unplaced,
} from "./types.ts";
import { WaitingRoom } from "./waiting.ts";

export interface SchedulerOptions {
  /** For groups that do not choose; default "spread". */
  readonly strategy?: Strategy | undefined;
  /** Changes the order in which nodes of equal cost are taken; default 0. */
  readonly seed?: number | undefined;
  /** Candidates that `explain` lists; default 5. */
  readonly candidates?: number | undefined;
  /**
   * Groups that one `schedule` explains by counting nodes, default 100; each costs a look at every node. The explanations
   * of the others say so and have no counts: `explain` gives them.
   */
  readonly explainLimit?: number | undefined;
}

/**
 * Decides where tasks go. Holds the nodes, groups and tasks that it is told of, and decides from them alone: no clock, no
 * randomness, no I/O; the same calls give the same answers.
 *
 * The caller tells it every change (any order; a task may name a node that comes later) and commits what `schedule`
 * answers. Placements count at once; a commit that fails is taken back by telling the task again without its node.
 */
export class Scheduler {
  readonly #options: SchedulerOptions;
  readonly #state: ClusterState;
  readonly #index: PlacementIndex;
  readonly #waiting: WaitingRoom;
  readonly #tasks = new Map<string, TaskRecord>();
  /** Placed tasks whose node is not known, by its id. */
  readonly #homeless = new Map<string, Set<TaskRecord>>();
  #sequence = 0;

  constructor(options: SchedulerOptions = {}) {
    this.#options = options;
    this.#state = new ClusterState({ strategy: options.strategy ?? "spread", seed: options.seed ?? 0 });
    this.#index = new PlacementIndex(this.#state);
    this.#waiting = new WaitingRoom(this.#state);
    this.#state.floors = this.#index;
    this.#state.listeners.push(this.#index, this.#waiting);
  }

  /** Adds a node or replaces what is known of it. Its tasks stay. Telling the same again changes nothing. */
  upsertNode(spec: SchedulerNode): void {
    const known = this.#state.nodes.get(spec.id);
    // In another order it counts as a change, which costs time and nothing else.
    if (known !== undefined && JSON.stringify(known.spec) === JSON.stringify(spec)) return;
    const node = this.#state.upsertNode(spec);
    if (known !== undefined) return;
    for (const task of this.#homeless.get(spec.id) ?? []) this.#attach(task, node);
    this.#homeless.delete(spec.id);
  }

  /** Forgets a node. Its tasks count nowhere until they are removed or the node returns. Unknown ids are ignored. */
  removeNode(id: string): void {
    const node = this.#state.nodes.get(id);
    if (node === undefined) return;
    for (let task = node.firstTask; task !== undefined; task = node.firstTask) {
      this.#detach(task);
      this.#homeTo(id, task);
    }
    this.#state.removeNode(node);
  }

  /**
   * Adds a version of a service. Telling it again with other contents replaces it, and its tasks count by the new contents.
   * @throws ClusterError `invalid`: a constraint, attribute or amount is wrong; nothing has changed then.
   */
  upsertGroup(spec: TaskGroup): void {
    const old = this.#state.groups.get(spec.id);
    const budget = old?.service.minAvailable ?? 0;
    const { lowestPriority } = this.#state;
    const group = this.#state.upsertGroup(spec);
    this.#index.prepare(group);
    // More groups may preempt from now on.
    if (this.#state.lowestPriority < lowestPriority) this.#waiting.wakeAll();
    if (old === undefined) return;
    for (const [index, count] of old.failures)
      this.#state.setFailures(group, this.#state.byIndex[index] as NodeRecord, count);
    if (old.failures.size > 0) this.#index.prepare(group);
    for (const task of this.#tasksOf(old)) {
      const told = this.#told(task);
      this.removeTask(task.id);
      this.#add(told, group, task.sequence, task.evictedFrom);
    }
    this.#index.forget(old);
    if (old.service.minAvailable < budget) this.#waiting.wakeAll();
  }

  /** Forgets a group and its tasks. Unknown ids are ignored. */
  removeGroup(id: string): void {
    const group = this.#state.groups.get(id);
    if (group === undefined) return;
    for (const task of this.#tasksOf(group)) this.removeTask(task.id);
    this.#index.forget(group);
    const budget = group.service.minAvailable;
    this.#state.removeGroup(group);
    if (group.service.minAvailable < budget) this.#waiting.wakeAll();
  }

  /** A volume that groups use. One that is used and was never told is shared and reachable everywhere. */
  upsertVolume(spec: SchedulerVolume): void {
    if (JSON.stringify(this.#state.volumes.get(spec.id)?.spec) === JSON.stringify(spec)) return;
    this.#state.upsertVolume(spec);
    this.#index.clear();
    this.#waiting.wakeAll();
  }

  /** Recent failures of a group on a node, as the caller counts them; 0 forgets them. Unknown ids are ignored. */
  setFailures(groupId: string, nodeId: string, count: number): void {
    const group = this.#state.groups.get(groupId);
    const node = this.#state.nodes.get(nodeId);
    if (group === undefined || node === undefined) return;
    this.#state.setFailures(group, node, count);
    this.#index.prepare(group);
  }

  /**
   * Adds a task, or replaces what is known of it: with `node` it counts there, without it waits for `schedule`. One that waits
   * already keeps its place in the order of arrival. A task that was preempted stays gone while it is told with the node that it was on.
   * @throws ClusterError `not-found`: its group was not told.
   */
  addTask(spec: SchedulerTask): void {
    const group = this.#state.groups.get(spec.group);
    if (group === undefined) throw unknown("group", spec.group);
    const known = this.#tasks.get(spec.id);
    let sequence: number | undefined;
    if (known !== undefined) {
      if (known.group === group && spec.node === undefined && known.waitsIn !== undefined) {
        sequence = known.sequence;
        // One that may stop others from now on is worth another look.
        if (known.onlyNode === spec.onlyNode && (spec.patient === true || !known.patient) && sameTurn(known, spec)) {
          known.pinned = spec.pinned ?? false;
          known.patient = spec.patient ?? false;
          known.down = spec.down ?? false;
          known.name = spec.name ?? spec.id;
          known.handle = spec.handle;
          return;
        }
      } else if (known.group === group && spec.node !== undefined) {
        if (known.evictedFrom === spec.node) return;
        if (known.node?.spec.id === spec.node && known.onlyNode === spec.onlyNode && samePorts(known, spec)) {
          known.pinned = spec.pinned ?? false;
          known.name = spec.name ?? spec.id;
          this.#setDown(known, spec.down ?? false);
          return;
        }
      }
      this.removeTask(spec.id);
    }
    this.#add(spec, group, sequence ?? this.#sequence++);
  }

  #setDown(task: TaskRecord, down: boolean): void {
    if (task.down === down) return;
    task.down = down;
    if (task.node === undefined) return;
    task.group.service.down += down ? 1 : -1;
    if (!down) this.#waiting.placed(task.group);
  }

  /** The task has ended or is no longer wanted: frees what it held. Unknown ids are ignored. */
  removeTask(id: string): void {
    const task = this.#tasks.get(id);
    if (task === undefined) return;
    this.#tasks.delete(id);
    task.group.tasks--;
    if (task.node !== undefined) this.#detach(task);
    else {
      this.#waiting.delete(task);
      if (this.#homeless.size > 0) for (const tasks of this.#homeless.values()) tasks.delete(task);
    }
  }

  /**
   * Adds the tasks and decides every task that waits and could fit: by priority, then group by group in the order of turns (see `Turn`).
   * With `mostPlacements` it stops after so many (a gang is not split), and the next call goes on from there.
   * @throws ClusterError `not-found`: the group of one of the tasks was not told; the tasks before it are added.
   */
  schedule(
    pending: readonly SchedulerTask[] = [],
    options: { readonly mostPlacements?: number | undefined } = {},
  ): ScheduleResult {
    const limit = options.mostPlacements ?? Number.POSITIVE_INFINITY;
    for (const task of pending) this.addTask(task);
    const placements: Placement[] = [];
    const unplaced = new Map<Waiting, Unplaced>();
    let units = this.#waiting.take();
    for (let i = 0; i < units.length; i++) {
      if (placements.length >= limit) {
        this.#waiting.restore(units.slice(i));
        break;
      }
      const unit = units[i] as Waiting | Waiting[];
      if (unit instanceof Waiting) this.#decide(unit, placements, unplaced, limit);
      else this.#decideGang(unit, placements, unplaced);
      // Stopping a victim may free more than was needed, and a placement may loosen a skew or a budget, for what was given up before.
      if (this.#waiting.isStirred && this.#waiting.wake()) {
        this.#waiting.restore(units.slice(i + 1));
        units = this.#waiting.take();
        i = -1;
      }
    }
    return { placements, unplaced: [...unplaced.values()] };
  }

  /** Everything that waits, by priority and turn, with the reasons as of now. Costs a look at every node per group. */
  unplaced(): readonly Unplaced[] {
    return this.#waiting.all().map((waiting) => {
      const { group, onlyNode } = waiting;
      const { fitting } = candidatesOf(this.#state, group, 0, onlyNode);
      const explanation = this.#explanationOf(group, onlyNode, fitting > 0);
      return { group: group.spec.id, tasks: waiting.ids(), explanation };
    });
  }

  /** Does anything wait that was looked at and fits nowhere? */
  get hasUnplaced(): boolean {
    return this.#waiting.blocked.size > 0;
  }

  /**
   * The reasons as of now of what was looked at and fits nowhere, of those first that were counted longest ago; none where nothing has
   * changed since. Stops after looking at so many nodes, or after so many tasks; one group is counted in any case. `more`: there are
   * others. Leaves out gangs, whose members wait for each other.
   */
  recount(limits: { readonly nodes: number; readonly tasks: number }): {
    readonly unplaced: readonly Unplaced[];
    readonly more: boolean;
  } {
    const { version, nodes } = this.#state;
    const stale = [...this.#waiting.blocked].filter(
      ({ explainedAt, gang }) => explainedAt !== version && gang === undefined,
    );
    stale.sort((a, b) => a.explainedAt - b.explainedAt);
    const unplaced: Unplaced[] = [];
    let counted = 0;
    let tasks = 0;
    for (const waiting of stale) {
      if (counted > 0 && ((counted + 1) * nodes.size > limits.nodes || tasks >= limits.tasks)) break;
      counted++;
      waiting.explainedAt = version;
      const { group, onlyNode } = waiting;
      const explanation = explainGroup(this.#state, group, onlyNode);
      // Where a node would take it by now, the next pass tells.
      if (explanation.reasons.reduce((sum, { count }) => sum + count, 0) < explanation.nodes) continue;
      const ids = waiting.ids();
      tasks += ids.length;
      unplaced.push({ group: group.spec.id, tasks: ids, explanation });
    }
    return { unplaced, more: counted < stale.length };
  }

  /**
   * Why a task is where it is, or nowhere.
   * @throws ClusterError `not-found`.
   */
  explain(taskId: string): TaskExplanation {
    const task = this.#tasks.get(taskId);
    if (task === undefined) throw unknown("task", taskId);
    const { node, group, onlyNode } = task;
    if (node !== undefined) this.#state.detach(task);
    const { fitting, candidates } = candidatesOf(this.#state, group, this.#options.candidates ?? 5, onlyNode);
    const explanation = this.#explanationOf(group, onlyNode, node === undefined && fitting > 0);
    if (node !== undefined) this.#state.attach(task, node);
    return { task: taskId, node: node?.spec.id, fitting, candidates, explanation };
  }

  /**
   * Would the node take another task of the group, `bound`: one that may run there only, and at what cost.
   * @throws ClusterError `not-found`.
   */
  whyNot(groupId: string, nodeId: string, bound = false): NodeVerdict {
    const group = this.#state.groups.get(groupId);
    if (group === undefined) throw unknown("group", groupId);
    const node = this.#state.nodes.get(nodeId);
    if (node === undefined) throw unknown("node", nodeId);
    return verdictOf(this.#state, group, node, bound ? nodeId : undefined);
  }

  /** Is the task known, and placed on a known node? */
  isPlaced(taskId: string): boolean {
    return this.#tasks.get(taskId)?.node !== undefined;
  }

  /** Everything it was told and has decided: telling it to another scheduler makes that one decide alike. */
  snapshot(): SchedulerSnapshot {
    return {
      nodes: [...this.#state.nodes.values()].map(({ spec }) => spec),
      groups: [...this.#state.groups.values()].map(({ spec }) => spec),
      volumes: [...this.#state.volumes.values()].flatMap(({ spec }) => (spec === undefined ? [] : [spec])),
      tasks: [...this.#tasks.values()]
        .filter(({ evictedFrom }) => evictedFrom === undefined)
        .sort((a, b) => a.sequence - b.sequence)
        .map((task) => this.#told(task)),
      failures: [...this.#state.groups.values()].flatMap((group) =>
        [...group.failures].map(([index, count]) => ({
          group: group.spec.id,
          node: (this.#state.byIndex[index] as NodeRecord).spec.id,
          count,
        })),
      ),
    };
  }

  /** A scheduler that was told a snapshot. */
  static restore(snapshot: SchedulerSnapshot, options: SchedulerOptions = {}): Scheduler {
    const scheduler = new Scheduler(options);
    for (const node of snapshot.nodes) scheduler.upsertNode(node);
    for (const volume of snapshot.volumes) scheduler.upsertVolume(volume);
    for (const group of snapshot.groups) scheduler.upsertGroup(group);
    for (const { group, node, count } of snapshot.failures) scheduler.setFailures(group, node, count);
    for (const task of snapshot.tasks) scheduler.addTask(task);
    return scheduler;
  }

  /** An independent scheduler in the same state, to try things on. Costs a copy of everything. */
  fork(): Scheduler {
    return Scheduler.restore(this.snapshot(), this.#options);
  }

  /** Which tasks to move where, and why. Changes nothing. */
  planRebalance(options: RebalanceOptions): RebalancePlan {
    return planRebalance(this.fork().#state, options);
  }

  #decide(waiting: Waiting, placements: Placement[], unplaced: Map<Waiting, Unplaced>, limit: number): void {
    const { group, onlyNode } = waiting;
    unplaced.delete(waiting);
    this.#index.enter(group);
    let hasRoom = true;
    for (let task = waiting.first, next: TaskRecord | undefined; task !== undefined; task = next) {
      next = task.next;
      if (placements.length >= limit) {
        this.#index.leave();
        this.#waiting.restore([waiting]);
        return;
      }
      // They are alike but for this: one that stops nobody is not in the way of one that may.
      if (task.patient && !hasRoom) continue;
      const placement = this.#placeOne(task, group, onlyNode, true);
      if (placement === undefined) {
        if (!task.patient) break;
        hasRoom = false;
        continue;
      }
      waiting.remove(task);
      placements.push(placement);
      this.#announce(task, placement);
    }
    if (waiting.first === undefined) {
      this.#index.leave();
      this.#waiting.done(waiting);
      return;
    }
    const explanation = this.#explain(group, onlyNode, unplaced.size);
    waiting.explainedAt = explanation.nodes > 0 ? this.#state.version : -1;
    unplaced.set(waiting, { group: group.spec.id, tasks: waiting.ids(), explanation });
    this.#index.leave();
    this.#waiting.block(waiting);
  }

  /** All of the unit's tasks, or none; none of others are stopped as long as it fits without. */
  #decideGang(unit: readonly Waiting[], placements: Placement[], unplaced: Map<Waiting, Unplaced>): void {
    for (const waiting of unit) unplaced.delete(waiting);
    const { lowestPriority } = this.#state;
    let result = this.#placeWhole(unit, false, unplaced.size);
    if (!Array.isArray(result) && unit.some(({ priority }) => priority > lowestPriority))
      result = this.#placeWhole(unit, true, unplaced.size);
    if (Array.isArray(result)) {
      for (const { task, placement } of result) {
        placements.push(placement);
        task.waitsIn?.remove(task);
        this.#announce(task, placement);
      }
      for (const waiting of unit) this.#waiting.done(waiting);
      return;
    }
    const failed = result;
    const gang = unit[0]?.group.spec.gang;
    for (const waiting of unit) {
      const { group } = waiting;
      const explanation =
        group.spec.id === failed.group
          ? failed
          : { ...failed, group: group.spec.id, summary: `gang ${gang} waits for ${failed.group}: ${failed.summary}` };
      unplaced.set(waiting, { group: group.spec.id, tasks: waiting.ids(), explanation });
      this.#waiting.block(waiting);
    }
  }

  /**
   * Places all of the unit, or nothing and says why. One service may take the only node that another can use: what did not fit goes
   * first in the next attempt.
   */
  #placeWhole(unit: readonly Waiting[], mayPreempt: boolean, explained: number): Placed[] | Explanation {
    let order = unit;
    for (let attempt = 1; ; attempt++) {
      const placed: Placed[] = [];
      const stuck = this.#placeInOrder(order, mayPreempt, placed);
      if (stuck === undefined) return placed;
      const isLast = stuck === order[0] || attempt >= Math.min(unit.length, mostAttempts);
      const failed = isLast ? this.#explain(stuck.group, stuck.onlyNode, explained) : undefined;
      this.#takeBack(placed);
      if (failed !== undefined) return failed;
      order = [stuck, ...order.filter((waiting) => waiting !== stuck)];
    }
  }

  /** Places the tasks in this order; the first that fits nowhere, with what was `placed` before it. */
  #placeInOrder(order: readonly Waiting[], mayPreempt: boolean, placed: Placed[]): Waiting | undefined {
    for (const waiting of order) {
      const { group, onlyNode } = waiting;
      this.#index.enter(group);
      let task = waiting.first;
      for (; task !== undefined; task = task.next) {
        const placement = this.#placeOne(task, group, onlyNode, mayPreempt);
        if (placement === undefined) break;
        placed.push({ task, placement });
      }
      this.#index.leave();
      if (task !== undefined) return waiting;
    }
    return undefined;
  }

  /** Undoes placements, and the preemptions that made room for them. */
  #takeBack(placed: readonly Placed[]): void {
    for (const { task, placement } of [...placed].reverse()) {
      this.#state.detach(task);
      task.ports = noPorts;
      for (const victimId of placement.preempts) {
        const victim = this.#tasks.get(victimId) as TaskRecord;
        victim.evictedFrom = undefined;
        this.#state.attach(victim, this.#state.nodes.get(placement.node) as NodeRecord);
      }
    }
  }

  /** Finds a node for the task of the group that has entered, counts the task there and says so. */
  #placeOne(
    task: TaskRecord,
    group: GroupRecord,
    onlyNode: string | undefined,
    mayPreempt: boolean,
  ): Placement | undefined {
    const node = onlyNode === undefined ? this.#index.best() : this.#only(group, onlyNode);
    if (node !== undefined) return this.#place(task, group, node, noVictims);
    if (!mayPreempt || task.patient || group.priority <= this.#state.lowestPriority) return undefined;
    const search = new PreemptionSearch(this.#state, group);
    if (onlyNode === undefined) this.#index.visit((seen, cost) => search.consider(seen, cost));
    else for (const seen of this.#passing(group, onlyNode)) search.consider(seen, 0);
    const plan = search.best;
    if (plan === undefined) return undefined;
    for (const victim of plan.victims) {
      victim.evictedFrom = plan.node.spec.id;
      this.#state.detach(victim);
    }
    return this.#place(
      task,
      group,
      plan.node,
      plan.victims.map(({ id }) => id),
    );
  }

  #place(task: TaskRecord, group: GroupRecord, node: NodeRecord, preempts: readonly string[]): Placement {
    const { ports } = group;
    task.ports = ports === undefined ? noPorts : (givePorts(ports, node) ?? noPorts);
    this.#state.attach(task, node);
    return { task: task.id, handle: task.handle, node: node.id, ports: task.ports, preempts };
  }

  /** Lets what is blocked know of a placement that stands. */
  #announce(task: TaskRecord, { preempts }: Placement): void {
    this.#waiting.placed(task.group);
    if (preempts.length === 0) return;
    const node = task.node as NodeRecord;
    for (const id of preempts) this.#waiting.freed((this.#tasks.get(id) as TaskRecord).group, node);
  }

  #only(group: GroupRecord, id: string): NodeRecord | undefined {
    const state = this.#state;
    return this.#passing(group, id).find((node) => fitsDomain(state, group, node) && fits(state, group, node.index));
  }

  /** The node of this id as a list, empty when it is unknown or the facts rules refuse it. */
  #passing(group: GroupRecord, id: string): readonly NodeRecord[] {
    const node = this.#state.nodes.get(id);
    return node !== undefined && boundFactFilters.every((filter) => filter.passes(this.#state, group, node))
      ? [node]
      : [];
  }

  /** Why nodes refuse it; `waits`: although one would take it, and the summary says why. */
  #explanationOf(group: GroupRecord, onlyNode: string | undefined, waits: boolean): Explanation {
    const explanation = explainGroup(this.#state, group, onlyNode);
    if (!waits) return explanation;
    const summary =
      group.gang === undefined ? "it has not been looked at yet" : `gang ${group.gang} does not fit as a whole`;
    return { ...explanation, summary };
  }

  #explain(group: GroupRecord, onlyNode: string | undefined, already: number): Explanation {
    return already < (this.#options.explainLimit ?? 100)
      ? explainGroup(this.#state, group, onlyNode)
      : unexplained(group);
  }

  #add(spec: SchedulerTask, group: GroupRecord, sequence: number, evictedFrom?: string): void {
    const task = new TaskRecord(spec.id, group, spec.name ?? spec.id, sequence);
    task.onlyNode = spec.onlyNode;
    task.pinned = spec.pinned ?? false;
    task.down = spec.down ?? false;
    task.patient = spec.patient ?? false;
    task.handle = spec.handle;
    this.#tasks.set(spec.id, task);
    group.tasks++;
    if (spec.node === undefined) {
      task.turn = spec.turn;
      this.#waiting.add(task);
      return;
    }
    task.ports = spec.ports ?? noPorts;
    task.evictedFrom = evictedFrom;
    if (evictedFrom !== undefined) return;
    const node = this.#state.nodes.get(spec.node);
    if (node === undefined) this.#homeTo(spec.node, task);
    else this.#attach(task, node);
  }

  #attach(task: TaskRecord, node: NodeRecord): void {
    this.#state.attach(task, node);
    this.#waiting.placed(task.group);
  }

  #detach(task: TaskRecord): void {
    const { node } = task;
    if (node === undefined) return;
    this.#state.detach(task);
    this.#waiting.freed(task.group, node);
  }

  #homeTo(nodeId: string, task: TaskRecord): void {
    const tasks = this.#homeless.get(nodeId);
    if (tasks === undefined) this.#homeless.set(nodeId, new Set([task]));
    else tasks.add(task);
  }

  /** The group's tasks by arrival. */
  #tasksOf(group: GroupRecord): readonly TaskRecord[] {
    if (group.tasks === 0) return [];
    return [...this.#tasks.values()].filter((task) => task.group === group).sort((a, b) => a.sequence - b.sequence);
  }

  #told(task: TaskRecord): SchedulerTask {
    const away = task.node === undefined ? [...this.#homeless].find(([, tasks]) => tasks.has(task))?.[0] : undefined;
    return {
      id: task.id,
      group: task.group.spec.id,
      name: task.name,
      node: task.node?.spec.id ?? task.evictedFrom ?? away,
      onlyNode: task.onlyNode,
      pinned: task.pinned,
      down: task.down,
      patient: task.patient,
      turn: task.turn,
      handle: task.handle,
      ports: task.ports,
    };
  }
}

/** See `Scheduler.snapshot`. Tasks are in order of arrival. */
export interface SchedulerSnapshot {
  readonly nodes: readonly SchedulerNode[];
  readonly groups: readonly TaskGroup[];
  readonly volumes: readonly SchedulerVolume[];
  readonly tasks: readonly SchedulerTask[];
  readonly failures: readonly { readonly group: string; readonly node: string; readonly count: number }[];
}

interface Placed {
  readonly task: TaskRecord;
  readonly placement: Placement;
}

/** Orders in which the services of a gang are tried, of as many as it has. */
const mostAttempts = 8;

const noVictims: readonly string[] = Object.freeze([]);

function sameTurn({ turn }: TaskRecord, { turn: told }: SchedulerTask): boolean {
  return turn?.sinceMs === told?.sinceMs && turn?.slot === told?.slot;
}

function samePorts(known: TaskRecord, spec: SchedulerTask): boolean {
  return (
    spec.ports === undefined ||
    (spec.ports.length === known.ports.length && spec.ports.every((port, i) => port === known.ports[i]))
  );
}
