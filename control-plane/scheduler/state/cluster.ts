import { ClusterError } from "../../../lib/errors/errors.ts";
import type { SchedulerNode, SchedulerVolume, Strategy, TaskGroup } from "../types.ts";
import { DomainSpace } from "./domains.ts";
import { compileGroup, noFailures } from "./group.ts";
import { claimOf, HeldPorts } from "./ports.ts";
import {
  type GroupRecord,
  ImageRecord,
  type Need,
  NodeRecord,
  ServiceRecord,
  type SpreadLevel,
  type TaskRecord,
  tasksOn,
  type VolumeRecord,
} from "./records.ts";
import { cpuDimension, memoryDimension, NodeTable } from "./table.ts";

/** Told of every change, so that an index can follow. `facts`: what static filters and scores look at has changed. */
export interface StateListener {
  nodeChanged(node: NodeRecord, facts: boolean): void;
  nodeRemoved(node: NodeRecord): void;
}

/** Tells the fewest tasks that any domain usable by the group has; the index keeps it up to date. */
export interface Floors {
  floor(group: GroupRecord, level: SpreadLevel): number;
}

/** Indexes tried in each range for a node. The ranges fill to nine tenths. */
const reach = 64;

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
  readonly #images = new Map<string, ImageRecord>();
  /** Node by index, with holes; its length is a power of two. */
  readonly byIndex: (NodeRecord | undefined)[] = [];
  readonly listeners: StateListener[] = [];
  /** Set by whoever builds the state, before the first group with a `maxSkew` is decided. */
  floors: Floors = { floor: () => 0 };
  /** Resource kinds by column. */
  readonly dimensions: string[] = ["cpu", "memory", "pids"];
  /** Of each node, by index, what placing a task changes. */
  readonly table = new NodeTable();
  /** Counts every change, so that a memo can tell whether it is still valid. */
  version = 0;
  /** Counts changes that may let something fit that did not: a node told, a task gone. */
  gains = 0;
  readonly #spaces = new Map<string, DomainSpace>();
  readonly #needs = new Map<string, readonly Need[]>();
  readonly #failing = new Set<GroupRecord>();
  /** Groups by priority. */
  readonly #priorities = new Map<number, number>();
  /** Lowest priority of any group; Infinity without groups. */
  lowestPriority = Number.POSITIVE_INFINITY;

  constructor(options: { readonly strategy: Strategy; readonly seed: number }) {
    this.strategy = options.strategy;
    this.seed = options.seed;
  }

  upsertNode(spec: SchedulerNode): NodeRecord {
    this.version++;
    this.gains++;
    let node = this.nodes.get(spec.id);
    const heldBefore = node?.spec.images ?? [];
    if (node === undefined) {
      const tie = hash(spec.id, this.seed);
      const index = this.#vacantIndex(tie);
      node = new NodeRecord(index, spec, tie);
      this.byIndex[index] = node;
      this.nodes.set(spec.id, node);
    } else {
      for (const task of tasksOn(node)) this.#countDomains(task, node, -1);
      node.spec = spec;
    }
    this.table.set(node.index, node.tie, spec.capacity.milliCpus, spec.capacity.memoryBytes);
    for (const kind of Object.keys(spec.capacity.generic ?? {})) this.dimension(`generic/${kind}`);
    for (const space of this.#spaces.values()) space.refresh(node);
    for (let d = 0; d < this.dimensions.length; d++) this.table.setFree(node.index, d, this.capacity(node, d));
    for (const task of tasksOn(node)) {
      this.#countDomains(task, node, 1);
      this.table.take(node.index, task.group.needs, 1);
    }
    this.table.weigh(node.index, node.taskCount);
    const held = spec.images ?? [];
    if (held.length !== heldBefore.length || held.some((name, i) => name !== heldBefore[i])) {
      this.#hold(node, heldBefore, false);
      this.#hold(node, held, true);
    }
    for (const listener of this.listeners) listener.nodeChanged(node, true);
    return node;
  }

  /** The node must hold no task: `detach` them first. */
  removeNode(node: NodeRecord): void {
    this.version++;
    this.#hold(node, node.spec.images ?? [], false);
    for (const listener of this.listeners) listener.nodeRemoved(node);
    this.nodes.delete(node.spec.id);
    this.byIndex[node.index] = undefined;
    for (const group of this.#failing) group.failures.delete(node.index);
  }

  /** Counts the node among those that hold the images, or no more. */
  #hold(node: NodeRecord, names: readonly string[], holds: boolean): void {
    for (const name of names) {
      const image = this.#image(name);
      const before = image.drawing;
      if (holds) image.holders.add(node.index);
      else image.holders.delete(node.index);
      // It begins to draw, or ceases to: the other nodes' cost is another too.
      if (image.drawing !== before) {
        for (const index of image.holders) {
          const other = this.byIndex[index];
          if (other !== undefined) for (const listener of this.listeners) listener.nodeChanged(other, false);
        }
      }
      this.#forgetImage(name, image);
    }
  }

  #image(name: string): ImageRecord {
    let image = this.#images.get(name);
    if (image === undefined) {
      image = new ImageRecord();
      this.#images.set(name, image);
    }
    return image;
  }

  #forgetImage(name: string, image: ImageRecord): void {
    if (image.groups === 0 && image.holders.size === 0) this.#images.delete(name);
  }

  /**
   * An index by the tie, roughly in its order. Nodes of equal cost are taken in the order of their ties, so that one
   * placement after the other finds in the cache what is kept by index. From each power of two to the next the indexes are
   * a range with an order of its own; where a node finds no room in any of them, a new one begins.
   */
  #vacantIndex(tie: number): number {
    const { byIndex } = this;
    for (let start = byIndex.length >> 1; start > 0; start >>= 1) {
      const place = Math.floor((tie / 2 ** 32) * start);
      for (let i = 0; i < reach; i++) {
        const index = start + ((place + i) & (start - 1));
        if (byIndex[index] === undefined) return index;
      }
    }
    // Ties that crowd together must not begin ranges without end.
    if (this.nodes.size < byIndex.length / 2) return byIndex.indexOf(undefined);
    for (let more = Math.max(16, byIndex.length); more > 0; more--) byIndex.push(undefined);
    this.table.lengthen(byIndex.length);
    return this.#vacantIndex(tie);
  }

  upsertGroup(spec: TaskGroup): GroupRecord {
    this.version++;
    const group = this.#compile(spec);
    if (spec.image !== undefined && spec.image !== "") {
      group.image = this.#image(spec.image);
      group.image.groups++;
    }
    for (const service of namedBy(group)) service.named++;
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

  #compile(spec: TaskGroup): GroupRecord {
    const looked: ServiceRecord[] = [];
    try {
      return compileGroup(spec, {
        strategy: this.strategy,
        dimension: (kind) => this.dimension(kind),
        space: (path) => this.space(path),
        service: (id) => {
          const service = this.service(id);
          looked.push(service);
          return service;
        },
        shared: (needs) => this.#sharedNeeds(needs),
      });
    } catch (error) {
      for (const service of looked) this.#forgetUnnamed(service);
      throw error;
    }
  }

  /** Services come and go for as long as the cluster lives. One that nobody names has no task: a task's group names it. */
  #forgetUnnamed(service: ServiceRecord): void {
    if (service.named === 0) this.services.delete(service.id);
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
    const { service, image } = group;
    if (image !== undefined) {
      image.groups--;
      this.#forgetImage(group.spec.image ?? "", image);
    }
    service.groups.delete(group);
    service.minAvailable = 0;
    for (const { spec } of service.groups)
      service.minAvailable = Math.max(service.minAvailable, spec.minAvailable ?? 0);
    this.#failing.delete(group);
    for (const named of namedBy(group)) {
      named.named--;
      this.#forgetUnnamed(named);
    }
  }

  /** Counts the task on the node. It must not count anywhere yet. */
  attach(task: TaskRecord, node: NodeRecord): void {
    this.version++;
    const { group } = task;
    const { service } = group;
    node.push(task);
    this.table.take(node.index, group.needs, 1);
    this.table.weigh(node.index, node.taskCount);
    service.counts.add(node.index, 1);
    service.placed++;
    if (task.down) service.down++;
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
    node.remove(task);
    this.table.take(node.index, group.needs, -1);
    this.table.weigh(node.index, node.taskCount);
    service.counts.add(node.index, -1);
    service.placed--;
    if (task.down) service.down--;
    group.placed--;
    if (service.domains !== undefined) this.#countDomains(task, node, -1);
    if (group.ports !== undefined) this.#releasePorts(task, node);
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
    return this.table.free(node.index, dimension);
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
    this.table.widen(this.dimensions.length);
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
      const node = this.byIndex[index] as NodeRecord;
      const leaving = isDrained(node)
        ? tasksOn(node).filter((t) => t.group.service === service && isLeaving(t, node))
        : [];
      const domain = space.of(node);
      counts[domain] = (counts[domain] ?? 0) + count - leaving.length;
    }
    service.domains ??= new Map();
    service.domains.set(space, counts);
  }

  #countDomains(task: TaskRecord, node: NodeRecord, by: 1 | -1): void {
    if (isLeaving(task, node)) return;
    for (const [space, counts] of task.group.service.domains ?? []) {
      const domain = space.of(node);
      counts[domain] = (counts[domain] ?? 0) + by;
    }
  }

  #takePorts(task: TaskRecord, node: NodeRecord): void {
    node.ports ??= new HeldPorts();
    for (const [i, port] of (task.group.ports ?? []).entries()) {
      const number = task.ports[i] ?? port.port;
      if (number !== 0) node.ports.take(claimOf(port, number), task);
    }
  }

  #releasePorts(task: TaskRecord, node: NodeRecord): void {
    for (const [i, port] of (task.group.ports ?? []).entries()) {
      node.ports?.release(claimOf(port, task.ports[i]).key, task);
    }
  }
}

/** Its tasks go elsewhere soon, but for those that may run nowhere else. */
function isLeaving({ onlyNode }: TaskRecord, node: NodeRecord): boolean {
  return isDrained(node) && onlyNode === undefined;
}

function isDrained({ spec }: NodeRecord): boolean {
  return spec.availability === "drain";
}

/** The services that a group names, each as often as it does. */
function namedBy({ service, serviceAffinities, links }: GroupRecord): ServiceRecord[] {
  return [service, ...serviceAffinities.map((term) => term.service), ...links.map((link) => link.service)];
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
