import {
  type Network,
  type NodeSpec,
  NodeState,
  type NodeStatus,
  type Service,
  type StackRecord,
  type Task,
} from "../../proto/gen/embassy/v1/state.ts";
import type { Change, Store, Table, View } from "../store/types.ts";
import { isHeardServing } from "./tasks.ts";

/** So many ids of a group are a list: a fifth of a set's memory, and as quick. */
const mostListed = 32;

/** Ids by key, each in the order of its coming. */
class IdsByKey {
  readonly #groups = new Map<string, string[] | Set<string>>();

  /** `mayBeThere`: a value may name a key twice. */
  join(key: string, id: string, mayBeThere = false): void {
    const group = this.#groups.get(key);
    if (group === undefined) this.#groups.set(key, [id]);
    else if (!Array.isArray(group)) group.add(id);
    else if (group.length >= mostListed) this.#groups.set(key, new Set([...group, id]));
    else if (!mayBeThere || !group.includes(id)) group.push(id);
  }

  leave(key: string, id: string): void {
    const group = this.#groups.get(key);
    if (Array.isArray(group)) {
      const at = group.indexOf(id);
      if (at >= 0) group.splice(at, 1);
      if (group.length === 0) this.#groups.delete(key);
    } else {
      group?.delete(id);
      if (group?.size === 0) this.#groups.delete(key);
    }
  }

  /** Of what belongs to one key at a time; "" is none. */
  move(id: string, from: string, to: string): void {
    if (from === to) return;
    if (from !== "") this.leave(from, id);
    if (to !== "") this.join(to, id);
  }

  keys(): Iterable<string> {
    return this.#groups.keys();
  }

  ids(key: string): Iterable<string> {
    return this.#groups.get(key) ?? nowhere;
  }
}

/** Which ids of a table belong to a key; a value may belong to several. */
class Grouping<T> extends IdsByKey {
  readonly #keysOf: (value: T) => readonly string[];

  constructor(keysOf: (value: T) => readonly string[]) {
    super();
    this.#keysOf = keysOf;
  }

  change(id: string, before: T | undefined, after: T | undefined): void {
    const left = before === undefined ? nowhere : this.#keysOf(before);
    const joined = after === undefined ? nowhere : this.#keysOf(after);
    // Most changes move nothing.
    if (left.length === joined.length && left.every((key, i) => key === joined[i])) return;
    for (const key of left) this.leave(key, id);
    for (const key of joined) this.join(key, id, joined.length > 1);
  }
}
const nowhere: readonly string[] = [];

function drawnTo({ stack, spec, removed }: Service): readonly string[] {
  const affinities = spec?.placement?.affinities;
  if (affinities === undefined || affinities.length === 0 || removed) return nowhere;
  return affinities.flatMap(({ to }) => (to?.$case === "service" ? [`${stack}/${to.value.service}`] : []));
}

function pick<T>(table: Table<T>, ids: Iterable<string>): T[] {
  const found: T[] = [];
  for (const id of ids) {
    const value = table.get(id);
    if (value !== undefined) found.push(value);
  }
  return found;
}

export type ChangeListener = (changes: readonly Change[], revision: number) => void;

/**
 * The view with what is needed to find one's way in it: tasks by service and node, services by stack and network, nodes by
 * name. Kept current by the store's changes; its own subscribers are called after the indexes are.
 */
export class ClusterIndex implements Disposable {
  readonly view: View;
  readonly #tasksByService = new IdsByKey();
  readonly #tasksByNode = new IdsByKey();
  readonly #servicesByStack = new Grouping<Service>((service) => [service.stack]);
  readonly #servicesByNetwork = new Grouping<Service>(({ networkIds, stable }) => [
    ...new Set([...Object.values(networkIds), ...Object.values(stable?.networkIds ?? {})]),
  ]);
  /** By those that they have an affinity to: rare, so that most cost nothing here. */
  readonly #servicesDrawnTo = new Grouping<Service>(drawnTo);
  readonly #networksByStack = new Grouping<Network>((network) => [network.stack]);
  readonly #blocksByNetwork = new Grouping<{ networkId: string }>((block) => [block.networkId]);
  readonly #blocksByNode = new Grouping<{ nodeId: string }>((block) => [block.nodeId]);
  readonly #nodesByName = new Grouping<NodeSpec>((node) => [node.name]);
  readonly #silentNodes = new Set<string>();
  /** Of this revision. */
  readonly #heard = new Map<string, boolean>();
  readonly #stacksByName = new Grouping<StackRecord>((stack) => [stack.spec?.name ?? ""]);
  readonly #listeners = new Set<ChangeListener>();
  readonly #subscription: Disposable;

  constructor(store: Pick<Store, "view" | "subscribe">) {
    this.view = store.view;
    for (const [id, after] of store.view.tasks.entries()) this.#index({ table: "tasks", id, before: undefined, after });
    for (const [id, after] of store.view.services.entries()) {
      this.#index({ table: "services", id, before: undefined, after });
    }
    for (const [id, after] of store.view.networks.entries()) {
      this.#index({ table: "networks", id, before: undefined, after });
    }
    for (const [id, after] of store.view.blocks.entries()) {
      this.#index({ table: "blocks", id, before: undefined, after });
    }
    for (const [id, after] of store.view.nodes.entries()) this.#index({ table: "nodes", id, before: undefined, after });
    for (const [id, after] of store.view.nodeStatuses.entries()) {
      this.#index({ table: "nodeStatuses", id, before: undefined, after });
    }
    for (const [id, after] of store.view.stacks.entries()) {
      this.#index({ table: "stacks", id, before: undefined, after });
    }
    this.#subscription = store.subscribe((changes, revision) => {
      for (const change of changes) this.#index(change);
      this.#heard.clear();
      for (const listener of this.#listeners) listener(changes, revision);
    });
  }

  [Symbol.dispose](): void {
    this.#subscription[Symbol.dispose]();
    this.#listeners.clear();
  }

  /** Calls back after each revision, when view and indexes hold it. Callbacks must not throw. */
  subscribe(listener: ChangeListener): Disposable {
    this.#listeners.add(listener);
    return { [Symbol.dispose]: () => void this.#listeners.delete(listener) };
  }

  tasksOfService(serviceId: string): Task[] {
    return pick(this.view.tasks, this.#tasksByService.ids(serviceId));
  }

  tasksOfNode(nodeId: string): Task[] {
    return pick(this.view.tasks, this.#tasksByNode.ids(nodeId));
  }

  /** With those that are being removed. */
  servicesOfStack(stack: string): Service[] {
    return pick(this.view.services, this.#servicesByStack.ids(stack));
  }

  /** Services of the stack that have an affinity to the one of this name, positive or negative; not those that are being removed. */
  servicesDrawnTo(stack: string, name: string): Service[] {
    return pick(this.view.services, this.#servicesDrawnTo.ids(`${stack}/${name}`));
  }

  /** With those that are being removed, and those that may go back to it. */
  servicesOfNetwork(networkId: string): Service[] {
    return pick(this.view.services, this.#servicesByNetwork.ids(networkId));
  }

  /** With those that are being removed. */
  networksOfStack(stack: string): Network[] {
    return pick(this.view.networks, this.#networksByStack.ids(stack));
  }

  /** Keys of the table `blocks`. */
  blockIdsOfNetwork(networkId: string): Iterable<string> {
    return this.#blocksByNetwork.ids(networkId);
  }

  /** Keys of the table `blocks`. */
  blockIdsOfNode(nodeId: string): Iterable<string> {
    return this.#blocksByNode.ids(nodeId);
  }

  nodeByName(name: string): NodeSpec | undefined {
    return pick(this.view.nodes, this.#nodesByName.ids(name))[0];
  }

  nodeStatus(nodeId: string): NodeStatus | undefined {
    return this.view.nodeStatuses.get(nodeId);
  }

  /** Nodes whose status is silent, in no order. */
  get silentNodes(): ReadonlySet<string> {
    return this.#silentNodes;
  }

  /** Has the service a task that is well and on a node that is up? */
  isHeard(serviceId: string): boolean {
    let heard = this.#heard.get(serviceId);
    if (heard === undefined) {
      heard = this.tasksOfService(serviceId).some((task) => isHeardServing(this.view, task));
      this.#heard.set(serviceId, heard);
    }
    return heard;
  }

  stackNames(): string[] {
    return [...this.#stacksByName.keys()].sort();
  }

  /** Every revision that is kept, oldest first. */
  stackRevisions(name: string): StackRecord[] {
    return pick(this.view.stacks, this.#stacksByName.ids(name)).sort((a, b) => a.revision - b.revision);
  }

  /** The newest revision. */
  stack(name: string): StackRecord | undefined {
    return this.stackRevisions(name).at(-1);
  }

  #index(change: Change): void {
    switch (change.table) {
      case "tasks": {
        const { id, before, after } = change;
        // Most of what changes is a task, and most of a task's changes move it in neither.
        this.#tasksByService.move(id, before?.serviceId ?? "", after?.serviceId ?? "");
        this.#tasksByNode.move(id, before?.nodeId ?? "", after?.nodeId ?? "");
        return;
      }
      case "services":
        this.#servicesByStack.change(change.id, change.before, change.after);
        this.#servicesByNetwork.change(change.id, change.before, change.after);
        this.#servicesDrawnTo.change(change.id, change.before, change.after);
        return;
      case "networks":
        this.#networksByStack.change(change.id, change.before, change.after);
        return;
      case "blocks":
        this.#blocksByNetwork.change(change.id, change.before, change.after);
        this.#blocksByNode.change(change.id, change.before, change.after);
        return;
      case "nodes":
        this.#nodesByName.change(change.id, change.before, change.after);
        return;
      case "nodeStatuses":
        if (change.after?.state === NodeState.NODE_STATE_SILENT) this.#silentNodes.add(change.id);
        else this.#silentNodes.delete(change.id);
        return;
      case "stacks":
        this.#stacksByName.change(change.id, change.before, change.after);
        return;
      default:
        return;
    }
  }
}
