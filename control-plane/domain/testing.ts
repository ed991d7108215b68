import { createHmac } from "node:crypto";
import { newId } from "../../lib/ids/ids.ts";
import {
  ContainerSpec,
  Mount,
  MountType,
  NetworkSpec,
  type OnNodeLoss,
  ServiceNetwork,
  ServiceSpec,
  StackSpec,
} from "../../proto/gen/embassy/v1/stack.ts";
import {
  Availability,
  NodeDescription,
  NodeSession,
  NodeSpec,
  NodeState,
  NodeStatus,
  type Service,
  type Task,
  TaskState,
  TaskStatus,
} from "../../proto/gen/embassy/v1/state.ts";
import { planDeploy } from "../api/plan-deploy.ts";
import { createMemoryStore, type MemoryStore } from "../store/memory.ts";
import { ClusterIndex } from "./index.ts";
import { serviceNamed } from "./links.ts";

// Builders for unit tests of the control plane: one default, overrides.

/** Stands for the keyed digest of a secret. */
export const testSecretDigest = (content: Uint8Array): string =>
  createHmac("sha256", "test").update(content).digest("hex");
export const testPools = {
  networkPool: "10.96.0.0/12",
  networkPrefix: 20,
  vipPool: "10.112.0.0/16",
  listenedPorts: [],
};

/** A service with three replicas on the network "default". */
export function aService(name: string, over: Partial<ServiceSpec> = {}): ServiceSpec {
  return ServiceSpec.create({
    name,
    container: ContainerSpec.create({ image: `registry/${name}:1` }),
    mode: { $case: "replicated", value: { replicas: 3 } },
    networks: [ServiceNetwork.create({ network: "default" })],
    ...over,
  });
}

/** A container that mounts these volumes: the names of the cluster. */
export function mounting(
  volumes: readonly string[],
  over: Partial<ContainerSpec> = {},
  onNodeLoss?: OnNodeLoss,
): ContainerSpec {
  const mounts = volumes.map((source) =>
    Mount.create({
      type: MountType.MOUNT_TYPE_VOLUME,
      source,
      target: `/${source}`,
      ...(onNodeLoss && { onNodeLoss }),
    }),
  );
  return ContainerSpec.create({ image: "registry/db:1", mounts, ...over });
}

/** A stack of these services; its networks are those that they name. */
export function aStack(name: string, services: ServiceSpec[], over: Partial<StackSpec> = {}): StackSpec {
  const networks = new Set(services.flatMap((service) => service.networks.map(({ network }) => network)));
  return StackSpec.create({
    name,
    services,
    networks: [...networks].sort().map((network) => NetworkSpec.create({ name: network })),
    ...over,
  });
}

export const replicas = (count: number): ServiceSpec["mode"] => ({ $case: "replicated", value: { replicas: count } });

/** A store in memory with indexes, and shortcuts for what tests do to it. */
export class TestCluster implements Disposable {
  readonly store: MemoryStore = createMemoryStore();
  readonly index = new ClusterIndex(this.store);
  nowMs = 1_000_000;
  /** Gives ids to what is made. */
  mintId = newId;
  readonly #sequences = new Map<string, number>();

  [Symbol.dispose](): void {
    this.index[Symbol.dispose]();
  }

  /** Adds nodes that are up, with 4 cores and 8 GiB; their id is their name. */
  async addNodes(...names: string[]): Promise<void> {
    for (const [n, name] of names.entries()) {
      const known = this.index.view.nodes.size + n;
      await this.store.commit([
        { table: "nodes", id: name, value: NodeSpec.create({ id: name, name, createdAtMs: this.nowMs }) },
        { table: "sessions", id: name, value: NodeSession.create({ nodeId: name, sessionId: "s", clusterd: "m" }) },
        {
          table: "nodeStatuses",
          id: name,
          value: NodeStatus.create({
            id: name,
            state: NodeState.NODE_STATE_READY,
            description: NodeDescription.create({
              os: "linux",
              arch: "amd64",
              milliCpus: 4_000,
              memoryBytes: 8 * 2 ** 30,
              underlayAddress: `192.0.2.${known + 1}`,
              agentAddress: `192.0.2.${known + 1}:7410`,
            }),
          }),
        },
      ]);
    }
  }

  async setNode(id: string, state: NodeState): Promise<void> {
    const status = this.index.view.nodeStatuses.get(id) ?? NodeStatus.create({ id });
    await this.store.commit([{ table: "nodeStatuses", id, value: { ...status, state } }]);
  }

  async setAvailability(id: string, availability: Availability): Promise<void> {
    const node = this.index.view.nodes.get(id) ?? NodeSpec.create({ id, name: id });
    await this.store.commit([{ table: "nodes", id, value: { ...node, availability } }]);
  }

  async drain(id: string): Promise<void> {
    await this.setAvailability(id, Availability.AVAILABILITY_DRAIN);
  }

  async deploy(spec: StackSpec): Promise<void> {
    const facts = {
      by: "test",
      nowMs: this.nowMs,
      mintId: this.mintId,
      settings: testPools,
      secretDigest: testSecretDigest,
    };
    const { writes, expect } = planDeploy(this.index, spec, facts);
    await this.store.commit(writes, { expect });
  }

  async removeStack(name: string): Promise<void> {
    await this.store.commit([
      ...this.index.stackRevisions(name).map(({ revision }) => ({
        table: "stacks" as const,
        id: `${name}/${revision}`,
        value: undefined,
      })),
      ...this.index.servicesOfStack(name).map((service) => ({
        table: "services" as const,
        id: service.id,
        value: { ...service, removed: true },
      })),
      ...this.index.networksOfStack(name).map((network) => ({
        table: "networks" as const,
        id: network.id,
        value: { ...network, removed: true },
      })),
    ]);
  }

  /** The service, which must exist. */
  service(stack: string, name: string): Service {
    const service = serviceNamed(this.index, stack, name);
    if (service === undefined) throw new Error(`no service ${name} in stack ${stack}`);
    return service;
  }

  /** Its tasks by slot, oldest first. */
  tasks(stack: string, name: string): Task[] {
    return this.index.tasksOfService(this.service(stack, name).id).sort((a, b) => a.slot - b.slot || a.epoch - b.epoch);
  }

  /** What the task's node would report, with an address on each network. */
  async report(task: Task, state: TaskState, over: Partial<TaskStatus> = {}): Promise<void> {
    const known = this.index.view.taskStatuses.get(task.id);
    const sequence = (this.#sequences.get(task.id) ?? 0) + 1;
    this.#sequences.set(task.id, sequence);
    const ended = state >= TaskState.TASK_STATE_COMPLETE;
    const addresses = Object.values(task.networkIds).map((networkId) => ({
      networkId,
      address: this.#address(networkId, task),
    }));
    const value = TaskStatus.create({
      ...known,
      taskId: task.id,
      state,
      sequence,
      observedAtMs: known?.state === state ? known.observedAtMs : this.nowMs,
      startedAtMs:
        state >= TaskState.TASK_STATE_RUNNING && !known?.startedAtMs ? this.nowMs : (known?.startedAtMs ?? 0),
      finishedAtMs: ended ? this.nowMs : 0,
      upAtMs: known?.upAtMs || (state === TaskState.TASK_STATE_RUNNING ? this.nowMs : 0),
      addresses: state >= TaskState.TASK_STATE_STARTING ? addresses : [],
      ...over,
    });
    await this.store.commit([{ table: "taskStatuses", id: task.id, value }]);
  }

  #address(networkId: string, task: Task): string {
    for (const id of this.index.blockIdsOfNetwork(networkId)) {
      const block = this.index.view.blocks.get(id);
      if (block?.nodeId === task.nodeId) return `${block.cidr.split("/")[0]?.replace(/\d+$/, "")}${10 + task.slot}`;
    }
    return "0.0.0.0";
  }
}
