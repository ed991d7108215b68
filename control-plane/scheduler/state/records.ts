import type { Constraint } from "../constraint/parse.ts";
import type { Filter } from "../filters/filter.ts";
import type { Score } from "../scores/score.ts";
import type { SchedulerNode, SchedulerVolume, TaskGroup, Turn } from "../types.ts";
import { NodeCounts } from "./counts.ts";
import type { DomainSpace } from "./domains.ts";
import type { HeldPorts } from "./ports.ts";

/** A node as the state holds it. `index` addresses its row in the typed arrays and is reused after it has left. */
export class NodeRecord {
  readonly index: number;
  readonly id: string;
  spec: SchedulerNode;
  /** Tasks placed here, in no order: a list linked through `TaskRecord.nextOnNode`. */
  firstTask: TaskRecord | undefined = undefined;
  taskCount = 0;
  /** Breaks ties of cost: a hash of id and seed, so equal nodes are taken in an order that favours no class. */
  readonly tie: number;
  /** Taken ports, made when the first is taken. */
  ports: HeldPorts | undefined;

  /** For explanations: what it shares with others, worked out for `classOf`. */
  className = "";
  classOf: SchedulerNode | undefined = undefined;

  constructor(index: number, spec: SchedulerNode, tie: number) {
    this.index = index;
    this.id = spec.id;
    this.spec = spec;
    this.tie = tie;
  }

  push(task: TaskRecord): void {
    const { firstTask } = this;
    task.node = this;
    task.nextOnNode = firstTask;
    if (firstTask !== undefined) firstTask.previousOnNode = task;
    this.firstTask = task;
    this.taskCount++;
  }

  remove(task: TaskRecord): void {
    const { previousOnNode, nextOnNode } = task;
    if (previousOnNode === undefined) this.firstTask = nextOnNode;
    else previousOnNode.nextOnNode = nextOnNode;
    if (nextOnNode !== undefined) nextOnNode.previousOnNode = previousOnNode;
    task.previousOnNode = undefined;
    task.nextOnNode = undefined;
    task.node = undefined;
    this.taskCount--;
  }
}

/** The tasks placed on the node, in no order. */
export function tasksOn(node: NodeRecord): TaskRecord[] {
  const tasks: TaskRecord[] = [];
  for (let task = node.firstTask; task !== undefined; task = task.nextOnNode) tasks.push(task);
  return tasks;
}

export class TaskRecord {
  readonly id: string;
  readonly group: GroupRecord;
  name: string;
  /** Where it counts; undefined while it waits, and while its node is unknown. */
  node: NodeRecord | undefined = undefined;
  /** Its neighbours in the node's list. */
  previousOnNode: TaskRecord | undefined = undefined;
  nextOnNode: TaskRecord | undefined = undefined;
  onlyNode: string | undefined;
  pinned = false;
  /** See `SchedulerTask`. */
  down = false;
  patient = false;
  /** Preempted: counts nowhere, and waits for the caller to report its end. Holds the id of the node it was on. */
  evictedFrom: string | undefined = undefined;
  /** Numbers given for the group's ports; 0 for none yet. */
  ports: readonly number[] = noPorts;
  /** While it waits: the list that it is in, and its neighbours there. */
  waitsIn: Waiting | undefined = undefined;
  previous: TaskRecord | undefined = undefined;
  next: TaskRecord | undefined = undefined;
  /** While it waits, see `SchedulerTask`. */
  turn: Turn | undefined = undefined;
  handle: unknown;
  /** Order of arrival. */
  readonly sequence: number;

  constructor(id: string, group: GroupRecord, name: string, sequence: number) {
    this.id = id;
    this.group = group;
    this.name = name;
    this.sequence = sequence;
  }
}

export const noPorts: readonly number[] = Object.freeze([]);

/** One of the amounts that a task reserves: dimension (column of the resource arrays) and amount above zero. */
export interface Need {
  readonly dimension: number;
  readonly amount: number;
}

export interface SpreadLevel {
  /** Domains of this level: values of this and all outer attributes together. */
  readonly space: DomainSpace;
  /** Relative share of a domain, 1 for equal shares; by the innermost value. */
  readonly shareOf: (value: string) => number;
  /** Points that one task per equal share costs. */
  readonly weight: number;
  readonly maxSkew: number;
  readonly over: string;
}

export interface NodeAffinityTerm {
  readonly matches: Constraint["matches"];
  readonly weight: number;
}

export interface ServiceAffinityTerm {
  readonly service: ServiceRecord;
  /** Undefined: together means on the same node. */
  readonly space: DomainSpace | undefined;
  readonly weight: number;
}

/** A group with everything parsed and looked up once. */
export interface GroupRecord {
  readonly spec: TaskGroup;
  readonly service: ServiceRecord;
  /** Groups of equal needs share the list, so that decisions find it in the cache. */
  readonly needs: readonly Need[];
  /** Of `spec`, at hand for every decision. */
  readonly ports: TaskGroup["ports"];
  readonly volumes: TaskGroup["volumes"];
  readonly gang: string | undefined;
  readonly constraints: readonly Constraint[];
  readonly spread: readonly SpreadLevel[];
  readonly nodeAffinities: readonly NodeAffinityTerm[];
  readonly serviceAffinities: readonly ServiceAffinityTerm[];
  readonly links: readonly { readonly service: ServiceRecord; readonly bytesPerSecond: number }[];
  /** Absent: not told. */
  image: ImageRecord | undefined;
  readonly binpack: boolean;
  readonly priority: number;
  /** Recent failures of this version by node index. */
  failures: Map<number, number>;
  /** Placed tasks. */
  placed: number;
  /** Tasks of any state. */
  tasks: number;
  /** Its own view, once it has had one. */
  ownView: ViewSlot | undefined;
  /** What waits to be placed: tasks that may go anywhere, and tasks that may go to one node only, by its id. */
  waiting: Waiting | undefined;
  waitingOn: Map<string, Waiting> | undefined;
  /** What of the rules and terms concerns the group: worked out when it is told and when its failures change. */
  rules: GroupRules;
  /** Which bits of a view's trees the group needs, as last worked out by `owner`. */
  readonly memo: { owner: unknown; epoch: number; bits: number };
}

/** Where the index keeps the view of one group, or of all groups that share one; without a look-up in every decision. */
export interface ViewSlot {
  /** The index's own record, absent while there is no view. */
  entry: object | undefined;
  /** Rules of the groups that share it. */
  readonly rules: GroupRules[];
}

/** The filters and scores that apply to a group, by what they look at. */
export interface GroupRules {
  readonly domainFilters: readonly Filter[];
  /** Without resources, which always apply. */
  readonly nodeFilters: readonly Filter[];
  readonly domainScores: readonly Score[];
  readonly nodeScores: readonly Score[];
  /** One object for all groups that can share a view. */
  readonly view: ViewSlot;
}

/** Whose turn it is first, of two tasks of one list: negative for `a`. */
function compareTurns(a: TaskRecord, b: TaskRecord): number {
  if (a.turn === undefined || b.turn === undefined) {
    return Number(a.turn !== undefined) - Number(b.turn !== undefined) || a.sequence - b.sequence;
  }
  return a.turn.sinceMs - b.turn.sinceMs || a.turn.slot - b.turn.slot || a.sequence - b.sequence;
}

/** Tasks of one group that wait under the same conditions: a list in the order of turns, linked through `TaskRecord.next`. */
export class Waiting {
  readonly group: GroupRecord;
  readonly onlyNode: string | undefined;
  first: TaskRecord | undefined = undefined;
  last: TaskRecord | undefined = undefined;
  /** Of the group, and of the first task: at hand for ordering, which looks at everything that waits. */
  readonly priority: number;
  readonly gang: string | undefined;
  turn: Turn | undefined = undefined;
  order = Number.POSITIVE_INFINITY;
  #arranged = true;
  /** While it is blocked: those that need as much, and a count of what its domain rules hang on as it was then. */
  blockedIn: Set<Waiting> | undefined = undefined;
  blockedAt = 0;
  /** While it is blocked: `ClusterState.version` when its reasons were last counted; -1: they were not. */
  explainedAt = -1;
  /** While it is blocked: is there anything less important? */
  mayPreempt = false;

  constructor(group: GroupRecord, onlyNode: string | undefined) {
    this.group = group;
    this.priority = group.priority;
    this.gang = group.gang;
    this.onlyNode = onlyNode;
  }

  /** At the end; `arrange` before the order counts: a place for each that comes out of turn would cost a look at all, for each. */
  push(task: TaskRecord): void {
    const { last } = this;
    task.waitsIn = this;
    task.previous = last;
    this.last = task;
    if (last === undefined) {
      this.#arranged = true;
      this.#lead(task);
      return;
    }
    last.next = task;
    if (compareTurns(last, task) > 0) this.#arranged = false;
  }

  remove(task: TaskRecord): void {
    const { previous, next } = task;
    if (previous === undefined) this.#lead(next);
    else previous.next = next;
    if (next === undefined) this.last = previous;
    else next.previous = previous;
    task.previous = undefined;
    task.next = undefined;
    task.waitsIn = undefined;
    task.turn = undefined;
  }

  /** Brings the tasks into the order of turns. */
  arrange(): void {
    if (this.#arranged) return;
    this.#arranged = true;
    const tasks: TaskRecord[] = [];
    for (let task = this.first; task !== undefined; task = task.next) tasks.push(task);
    let previous: TaskRecord | undefined;
    for (const task of tasks.sort(compareTurns)) {
      task.previous = previous;
      task.next = undefined;
      if (previous === undefined) this.#lead(task);
      else previous.next = task;
      previous = task;
    }
    this.last = previous;
  }

  #lead(first: TaskRecord | undefined): void {
    this.first = first;
    this.turn = first?.turn;
    this.order = first?.sequence ?? Number.POSITIVE_INFINITY;
  }

  ids(): readonly string[] {
    const ids: string[] = [];
    for (let task = this.first; task !== undefined; task = task.next) ids.push(task.id);
    return ids;
  }
}

export class ServiceRecord {
  readonly id: string;
  /** Placed tasks by node index. */
  readonly counts = new NodeCounts();
  /** Placed tasks by domain, for each domain space that a group asks for; without those that a drained node is about to lose. */
  domains: Map<DomainSpace, number[]> | undefined = undefined;
  placed = 0;
  /** How many of the placed do not serve. */
  down = 0;
  readonly groups = new Set<GroupRecord>();
  /** Highest `minAvailable` of its groups. */
  minAvailable = 0;
  /** Counts tasks placed and ended, for what waits for either. */
  changes = 0;
  /** Blocked entries of its groups that hang on more than one node. */
  hanging = 0;
  /** How often groups name it: as their own, in an affinity or a link. None: nothing knows it any more. */
  named = 0;

  constructor(id: string) {
    this.id = id;
  }

  countOn(node: NodeRecord): number {
    return this.counts.get(node.index);
  }

  /** Placed tasks in the node's domain that stay there; the space must have been asked for with `ClusterState.countDomains`. */
  countIn(space: DomainSpace, node: NodeRecord): number {
    return this.domains?.get(space)?.[space.of(node)] ?? 0;
  }
}

/** Nodes up to which an image draws: one that most nodes hold is hardly ever far, and each decision would look at all of them. */
const mostHolders = 64;
const nobody: ReadonlySet<number> = new Set();

/** An image that nodes hold, or that groups run. */
export class ImageRecord {
  /** Indexes of the nodes that hold it. */
  readonly holders = new Set<number>();
  /** Groups that run it. */
  groups = 0;

  /** Indexes of the nodes that it draws to. */
  get drawing(): ReadonlySet<number> {
    return this.holders.size <= mostHolders ? this.holders : nobody;
  }
}

export interface VolumeRecord {
  spec: SchedulerVolume | undefined;
  /** Placed tasks that write to it. */
  readonly writers: Set<TaskRecord>;
  /** Counts writers that have ended. */
  endings: number;
}
