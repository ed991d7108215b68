import { ClusterError } from "../../../lib/errors/errors.ts";
import type { SchedulerNode, SchedulerVolume, Strategy, TaskGroup } from "../types.ts";
import { DomainSpace } from "./domains.ts";
import { compileGroup, noFailures } from "./group.ts";
import {
  type GroupRecord,
  type Need,
  NodeRecord,
  portKey,
  ServiceRecord,
  type SpreadLevel,
  type TaskRecord,
  type VolumeRecord,
} from "./records.ts";

/** Told of every change, so that an index can follow. `facts`: what static filters and scores look at has changed. */
export interface StateListener {
  nodeChanged(node: NodeRecord, facts: boolean): void;
  nodeRemoved(node: NodeRecord): void;
}

/** Tells the fewest tasks that any domain usable by the group has; the index keeps it up to date. */
export interface Floors {
  floor(group: GroupRecord, level: SpreadLevel): number;
}

export const cpuDimension = 0;
export const memoryDimension = 1;

/**
 * Nodes, groups and placed tasks, and every count that decisions look at. All changes go through the methods here, which
 * keep the counts right: free amounts per node, tasks per service on a node and in a domain, ports, volume writers.
 */
export class ClusterState {
  readonly strategy: Strategy;
  readonly seed: number;
  readonly nodes = new Map<string, NodeRecord>();
  readonly groups = new Map<string, GroupRecord>();
  readonly services = new Map<string, ServiceRecord>();
  readonly volumes = new Map<string, VolumeRecord>();
  /** Node by index; holes where nodes have left. */
  readonly byIndex: (NodeRecord | undefined)[] = [];
  readonly listeners: StateListener[] = [];
  /** Set by whoever builds the state, before the first group with a `maxSkew` is decided. */
  floors: Floors = { floor: () => 0 };
  /** Resource kinds by column. */
  readonly dimensions: string[] = ["cpu", "memory", "pids"];
  /** Free amount at `index * stride + dimension`; may be negative where tasks were put by others than the scheduler. */
  free: Float64Array;
  stride = 3;
  /**
   * How full a node is, by index, 0 to 2,000: a thousand for the share reserved of CPU or memory, whichever is larger, and
   * one for each task up to a thousand.
   */
  fullness: Int32Array;
  /** `NodeRecord.tie` by index. */
  ties: Uint32Array;
  /** CPU and memory of a node at twice its index. */
  #capacities: Float64Array;
  /** Counts every change, so that a memo can tell whether it is still valid. */
  version = 0;
  /** Counts changes that may let something fit that did not: a node told, a task gone. */
  gains = 0;
  readonly #spaces = new Map<string, DomainSpace>();
  readonly #vacant: number[] = [];
  readonly #needs = new Map<string, readonly Need[]>();
  readonly #failing = new Set<GroupRecord>();
  /** Groups by priority. */
  readonly #priorities = new Map<number, number>();
  /** Lowest priority of any group; Infinity without groups. */
  lowestPriority = Number.POSITIVE_INFINITY;

  constructor(options: { readonly strategy: Strategy; readonly seed: number }) {
    this.strategy = options.strategy;
    this.seed = options.seed;
    this.free = new Float64Array(16 * this.stride);
    this.fullness = new Int32Array(16);
    this.ties = new Uint32Array(16);
    this.#capacities = new Float64Array(32);
  }

  upsertNode(spec: SchedulerNode): NodeRecord {
    this.version++;
    this.gains++;
    let node = this.nodes.get(spec.id);
    if (node === undefined) {
      const index = this.#vacant.pop() ?? this.byIndex.length;
      node = new NodeRecord(index, spec, hash(spec.id, this.seed));
      this.byIndex[index] = node;
      this.nodes.set(spec.id, node);
      if ((index + 1) * this.stride > this.free.length) this.#resize(Math.max(16, index * 2), this.stride);
      this.ties[index] = node.tie;
    } else {
      for (const task of node.tasks) this.#countDomains(task, node, -1);
      node.spec = spec;
    }
    for (const kind of Object.keys(spec.capacity.generic ?? {})) this.dimension(`generic/${kind}`);
    for (const space of this.#spaces.values()) space.refresh(node);
    for (let d = 0; d < this.stride; d++) this.free[node.index * this.stride + d] = this.capacity(node, d);
    for (const task of node.tasks) {
      this.#countDomains(task, node, 1);
      this.#countNeeds(task.group, node, -1);
    }
    this.#capacities[2 * node.index] = spec.capacity.milliCpus;
    this.#capacities[2 * node.index + 1] = spec.capacity.memoryBytes;
    this.#weigh(node);
    for (const listener of this.listeners) listener.nodeChanged(node, true);
    return node;
  }

  /** The node must hold no task: `detach` them first. */
  removeNode(node: NodeRecord): void {
    this.version++;
    for (const listener of this.listeners) listener.nodeRemoved(node);
    this.nodes.delete(node.spec.id);
    this.byIndex[node.index] = undefined;
    this.#vacant.push(node.index);
    for (const group of this.#failing) group.failures.delete(node.index);
  }

  upsertGroup(spec: TaskGroup): GroupRecord {
    this.version++;
    const group = compileGroup(spec, {
      strategy: this.strategy,
      dimension: (kind) => this.dimension(kind),
      space: (path) => this.space(path),
      service: (id) => this.service(id),
      shared: (needs) => this.#sharedNeeds(needs),
    });
    for (const level of group.spread) this.countDomains(group.service, level.space);
    for (const { service, space } of group.serviceAffinities)
      if (space !== undefined) this.countDomains(service, space);
    const old = this.groups.get(spec.id);
    if (old !== undefined) this.#disband(old);
    this.groups.set(spec.id, group);
    this.#countPriority(group, 1);
    group.service.groups.add(group);
    group.service.minAvailable = Math.max(group.service.minAvailable, spec.minAvailable ?? 0);
    return group;
  }

  /** The group must have no task. */
  removeGroup(group: GroupRecord): void {
    this.version++;
    this.groups.delete(group.spec.id);
    this.#disband(group);
  }

  #sharedNeeds(needs: readonly Need[]): readonly Need[] {
    // Sizes at random would fill it; sharing is only for speed.
    if (this.#needs.size > 4_096) this.#needs.clear();
    let key = "";
    for (const { dimension, amount } of needs) key += `${dimension}:${amount},`;
    const known = this.#needs.get(key);
    if (known !== undefined) return known;
    this.#needs.set(key, needs);
    return needs;
  }

  #countPriority({ priority }: GroupRecord, by: 1 | -1): void {
    const count = (this.#priorities.get(priority) ?? 0) + by;
    if (count > 0) {
      this.#priorities.set(priority, count);
      this.lowestPriority = Math.min(this.lowestPriority, priority);
      return;
    }
    this.#priorities.delete(priority);
    if (priority === this.lowestPriority) this.lowestPriority = Math.min(...this.#priorities.keys());
  }

  #disband(group: GroupRecord): void {
    this.#countPriority(group, -1);
    const { service } = group;
    service.groups.delete(group);
    service.minAvailable = 0;
    for (const { spec } of service.groups)
      service.minAvailable = Math.max(service.minAvailable, spec.minAvailable ?? 0);
    this.#failing.delete(group);
  }

  /** Counts the task on the node. It must not count anywhere yet. */
  attach(task: TaskRecord, node: NodeRecord): void {
    this.version++;
    const { group } = task;
    const { service } = group;
    task.node = node;
    // The first push to an empty array makes room for 17, more than most nodes of a large cluster need at once.
    if (node.tasks.length === 0) node.tasks = [task];
    else node.tasks.push(task);
    task.position = node.tasks.length - 1;
    this.#countNeeds(group, node, -1);
    this.#weigh(node);
    service.counts.add(node.index, 1);
    service.placed++;
    group.placed++;
    if (service.domains !== undefined) this.#countDomains(task, node, 1);
    if (group.ports !== undefined) this.#takePorts(task, node);
    if (group.volumes !== undefined) {
      for (const use of group.volumes) if (use.readOnly !== true) this.volume(use.volume).writers.add(task);
    }
    for (const listener of this.listeners) listener.nodeChanged(node, false);
  }

  /** Undoes `attach`. */
  detach(task: TaskRecord): void {
    const { node, group } = task;
    if (node === undefined) return;
    this.version++;
    this.gains++;
    const { service } = group;
    const last = node.tasks.pop() as TaskRecord;
    if (last !== task) {
      node.tasks[task.position] = last;
      last.position = task.position;
    }
    task.node = undefined;
    task.position = -1;
    this.#countNeeds(group, node, 1);
    this.#weigh(node);
    service.counts.add(node.index, -1);
    service.placed--;
    group.placed--;
    if (service.domains !== undefined) this.#countDomains(task, node, -1);
    if (group.ports !== undefined) {
      for (const [key, holder] of node.ports ?? []) if (holder === task) node.ports?.delete(key);
    }
    if (group.volumes !== undefined) for (const use of group.volumes) this.volume(use.volume).writers.delete(task);
    for (const listener of this.listeners) listener.nodeChanged(node, false);
  }

  setFailures(group: GroupRecord, node: NodeRecord, count: number): void {
    this.version++;
    if (group.failures === noFailures) group.failures = new Map();
    if (count > 0) group.failures.set(node.index, count);
    else group.failures.delete(node.index);
    if (group.failures.size > 0) this.#failing.add(group);
    else this.#failing.delete(group);
    for (const listener of this.listeners) listener.nodeChanged(node, false);
  }

  upsertVolume(spec: SchedulerVolume): void {
    this.version++;
    this.volume(spec.id).spec = spec;
  }

  /** Free amount of a resource on a node. */
  freeOf(node: NodeRecord, dimension: number): number {
    return this.free[node.index * this.stride + dimension] as number;
  }

  /** What a node announces of a resource; Infinity where it sets no limit. */
  capacity(node: NodeRecord, dimension: number): number {
    const { capacity } = node.spec;
    if (dimension === cpuDimension) return capacity.milliCpus;
    if (dimension === memoryDimension) return capacity.memoryBytes;
    if (dimension === 2) return capacity.pids ?? Number.POSITIVE_INFINITY;
    return capacity.generic?.[(this.dimensions[dimension] as string).slice("generic/".length)] ?? 0;
  }

  dimension(kind: string): number {
    const known = this.dimensions.indexOf(kind);
    if (known >= 0) return known;
    const added = this.dimensions.push(kind) - 1;
    this.#resize(this.free.length / this.stride, this.dimensions.length);
    return added;
  }

  service(id: string): ServiceRecord {
    let service = this.services.get(id);
    if (service === undefined) {
      service = new ServiceRecord(id);
      this.services.set(id, service);
    }
    return service;
  }

  volume(id: string): VolumeRecord {
    let volume = this.volumes.get(id);
    if (volume === undefined) {
      volume = { spec: undefined, writers: new Set(), endings: 0 };
      this.volumes.set(id, volume);
    }
    return volume;
  }

  space(path: readonly string[]): DomainSpace {
    const key = JSON.stringify(path);
    let space = this.#spaces.get(key);
    if (space === undefined) {
      space = new DomainSpace(path);
      for (const node of this.nodes.values()) space.refresh(node);
      this.#spaces.set(key, space);
    }
    return space;
  }

  /** From now on counts the service's tasks by domain of this space. */
  countDomains(service: ServiceRecord, space: DomainSpace): void {
    if (service.domains?.has(space) === true) return;
    const counts: number[] = [];
    for (const [index, count] of service.counts) {
      const domain = space.of(this.byIndex[index] as NodeRecord);
      counts[domain] = (counts[domain] ?? 0) + count;
    }
    service.domains ??= new Map();
    service.domains.set(space, counts);
  }

  #countDomains(task: TaskRecord, node: NodeRecord, by: 1 | -1): void {
    for (const [space, counts] of task.group.service.domains ?? []) {
      const domain = space.of(node);
      counts[domain] = (counts[domain] ?? 0) + by;
    }
  }

  #countNeeds(group: GroupRecord, node: NodeRecord, sign: 1 | -1): void {
    const base = node.index * this.stride;
    for (const need of group.needs) {
      this.free[base + need.dimension] = (this.free[base + need.dimension] as number) + sign * need.amount;
    }
  }

  #weigh(node: NodeRecord): void {
    const { index } = node;
    const base = index * this.stride;
    const cpus = this.#capacities[2 * index] as number;
    const memory = this.#capacities[2 * index + 1] as number;
    const cpuShare = cpus > 0 ? 1 - (this.free[base + cpuDimension] as number) / cpus : 1;
    const memoryShare = memory > 0 ? 1 - (this.free[base + memoryDimension] as number) / memory : 1;
    const share = Math.min(1, Math.max(cpuShare, memoryShare));
    this.fullness[index] = Math.round(1_000 * share) + Math.min(node.tasks.length, 1_000);
  }

  #takePorts(task: TaskRecord, node: NodeRecord): void {
    node.ports ??= new Map();
    for (const [i, port] of (task.group.ports ?? []).entries()) {
      const number = task.ports[i] ?? port.port;
      if (number !== 0 && !node.ports.has(portKey(number, port.protocol)))
        node.ports.set(portKey(number, port.protocol), task);
    }
  }

  #resize(rows: number, stride: number): void {
    const old = this.free;
    const oldStride = this.stride;
    this.free = new Float64Array(rows * stride);
    this.stride = stride;
    if (rows !== this.fullness.length) {
      const { fullness, ties } = this;
      const capacities = this.#capacities;
      this.fullness = new Int32Array(rows);
      this.ties = new Uint32Array(rows);
      this.#capacities = new Float64Array(2 * rows);
      this.fullness.set(fullness.subarray(0, rows));
      this.ties.set(ties.subarray(0, rows));
      this.#capacities.set(capacities.subarray(0, 2 * rows));
    }
    for (let row = 0; row * oldStride < old.length && row < rows; row++) {
      for (let d = 0; d < Math.min(stride, oldStride); d++)
        this.free[row * stride + d] = old[row * oldStride + d] as number;
    }
  }
}

/** FNV-1a of the text, mixed with the seed: 32 bits, unsigned. */
export function hash(text: string, seed: number): number {
  let value = 0x811c9dc5 ^ seed;
  for (let i = 0; i < text.length; i++) value = Math.imul(value ^ text.charCodeAt(i), 0x01000193);
  value = Math.imul(value ^ (value >>> 16), 0x45d9f3b);
  return (value ^ (value >>> 15)) >>> 0;
}

export function unknown(kind: string, id: string): ClusterError {
  return new ClusterError(`the scheduler knows no ${kind} ${id}`, { code: "not-found", subject: `${kind}/${id}` });
}
