import { type ClientDuplexStream, Server, ServerCredentials } from "@grpc/grpc-js";
import { systemClock } from "../../lib/clock/clock.ts";
import { channelOptions, clientCredentials } from "../../lib/grpc/client.ts";
import { serverCredentials } from "../../lib/grpc/server.ts";
import { errorOf } from "../../lib/grpc/status.ts";
import type { Role } from "../../lib/grpc/tls.ts";
import { silentLog } from "../../lib/log/log.ts";
import { Authority, createAuthority } from "../../lib/pki/authority.ts";
import { createCsr } from "../../lib/pki/csr.ts";
import {
  type Assignment,
  DispatcherClient,
  DispatcherService,
  Heartbeat,
  type NetworkDown,
  type NetworkState,
  type NetworkUp,
  type SessionDown,
  type SessionUp,
} from "../../proto/gen/embassy/v1/dispatcher.ts";
import {
  type BusyPort,
  DesiredState,
  NodeDescription,
  TaskState,
  TaskStatus,
} from "../../proto/gen/embassy/v1/state.ts";
import type { TestCluster } from "../domain/testing.ts";
import { createDispatcher, type Dispatcher, type DispatcherDeps } from "./index.ts";

export const testSettings = {
  heartbeatIntervalMs: 1_500,
  leaseTtlMs: 5_000,
  clusterId: "cluster",
  vipPool: "10.112.0.0/16",
  addressPools: ["10.96.0.0/12"],
};

/** A dispatcher on loopback, with mutual TLS, and clients for it. */
export class DispatcherServer implements AsyncDisposable {
  readonly dispatcher: Dispatcher;
  readonly #authority: Authority;
  readonly #server: Server;
  readonly #port: number;
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;
  readonly #clients: DispatcherClient[] = [];

  private constructor(dispatcher: Dispatcher, authority: Authority, server: Server, port: number) {
    this.dispatcher = dispatcher;
    this.#authority = authority;
    this.#server = server;
    this.#port = port;
    this.#running = dispatcher.run(this.#stop.signal);
  }

  static async start(
    cluster: TestCluster,
    member = "m",
    peers: Partial<DispatcherDeps["peers"]> = {},
    settings: Partial<typeof testSettings> = {},
  ): Promise<DispatcherServer> {
    const { store, index } = cluster;
    const pair = await createAuthority("test", Date.now());
    const authority = await Authority.load(pair.certificate, pair.key);
    const dispatcher = createDispatcher({
      store,
      index,
      log: silentLog,
      clock: systemClock,
      member,
      peers: {
        released: async () => await Promise.resolve(true),
        settled: async () => await Promise.resolve(true),
        ...peers,
      },
      settings: { ...testSettings, ...settings },
      renew: async (nodeId, csrDer) => ({
        certificatePem: await authority.sign(csrDer, { commonName: nodeId, role: "node", nowMs: Date.now() }),
        caPem: authority.certificate,
      }),
    });
    const server = new Server();
    server.addService(DispatcherService, dispatcher.service);
    const credentials = serverCredentials(await identity(authority, "m", "manager"));
    const port = await new Promise<number>((resolve, reject) => {
      server.bindAsync("127.0.0.1:0", credentials ?? ServerCredentials.createInsecure(), (error, bound) =>
        error === null ? resolve(bound) : reject(error),
      );
    });
    return new DispatcherServer(dispatcher, authority, server, port);
  }

  async client(name: string, role: Role = "node"): Promise<DispatcherClient> {
    const credentials = clientCredentials(await identity(this.#authority, name, role));
    const client = new DispatcherClient(`127.0.0.1:${this.#port}`, credentials, channelOptions);
    this.#clients.push(client);
    return client;
  }

  async node(name: string): Promise<TestNode> {
    return new TestNode(name, await this.client(name));
  }

  async netd(name: string): Promise<TestNetd> {
    return new TestNetd(await this.client(name));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#running;
    for (const client of this.#clients) client.close();
    this.#server.forceShutdown();
  }
}

async function identity(authority: Authority, commonName: string, role: Role) {
  const { csrDer, key } = await createCsr();
  const certificate = await authority.sign(csrDer, { commonName, role, nowMs: Date.now() });
  return { ca: authority.certificate, certificate, key };
}

/** Waits for conditions that change with each message of a stream. */
class Waiting {
  readonly #checks = new Set<() => void>();
  #failed: Error | undefined;

  changed(): void {
    for (const check of this.#checks) check();
  }

  fail(error: Error): void {
    this.#failed = error;
    this.changed();
  }

  async until<T>(look: () => T | undefined): Promise<T> {
    return await new Promise<T>((resolve, reject) => {
      const check = () => {
        const found = look();
        if (found === undefined && this.#failed === undefined) return;
        this.#checks.delete(check);
        if (found === undefined) reject(this.#failed);
        else resolve(found);
      };
      this.#checks.add(check);
      check();
    });
  }
}

/** A noded: holds what it is assigned and, unless `idle`, runs it. */
export class TestNode {
  readonly assignments = new Map<string, Assignment>();
  readonly received: SessionDown[] = [];
  readonly waiting = new Waiting();
  idle = false;
  readonly #name: string;
  readonly #stream: ClientDuplexStream<SessionUp, SessionDown>;
  readonly #states = new Map<string, TaskState>();
  #sequence = 0;

  constructor(name: string, client: DispatcherClient) {
    this.#name = name;
    this.#stream = client.session();
    this.#stream.on("data", (message: SessionDown) => {
      this.received.push(message);
      if (message.message?.$case === "assignments") {
        const { complete, set, remove } = message.message.value;
        if (complete) this.assignments.clear();
        for (const id of remove) this.assignments.delete(id);
        for (const assignment of set) this.assignments.set(assignment.taskId, assignment);
        if (!this.idle) this.work();
      }
      this.waiting.changed();
    });
    this.#stream.on("error", (error) => this.waiting.fail(errorOf(error)));
    this.#stream.on("end", () => this.waiting.fail(new Error("the stream ended")));
  }

  hello(tasks: readonly TaskStatus[] = []): this {
    const description = NodeDescription.create({
      hostname: this.#name,
      os: "linux",
      arch: "amd64",
      milliCpus: 64_000,
      memoryBytes: 64 * 2 ** 30,
      underlayAddress: `192.0.2.${1 + (this.#name.charCodeAt(0) % 200)}`,
    });
    this.#stream.write({ message: { $case: "hello", value: { description, tasks: [...tasks] } } });
    return this;
  }

  heartbeat(problems: Partial<Heartbeat> = {}): void {
    this.#stream.write({ message: { $case: "heartbeat", value: Heartbeat.create(problems) } });
  }

  holds(images: number[]): void {
    this.#stream.write({ message: { $case: "images", value: { images } } });
  }

  /** Gives signs of life until it is disposed. */
  beat(everyMs: number): Disposable {
    const timer = setInterval(() => this.heartbeat(), everyMs);
    return { [Symbol.dispose]: () => clearInterval(timer) };
  }

  /** Reports as given, with the next sequence number unless there is one. */
  report(...statuses: TaskStatus[]): void {
    const value = { statuses: statuses.map((one) => ({ ...one, sequence: one.sequence || ++this.#sequence })) };
    this.#stream.write({ message: { $case: "statuses", value } });
  }

  /** Takes every task to where it should be, in one report a state. */
  work(): void {
    for (const step of [TaskState.TASK_STATE_PREPARING, TaskState.TASK_STATE_READY, TaskState.TASK_STATE_RUNNING]) {
      const statuses: TaskStatus[] = [];
      for (const { taskId, desired, networks } of this.assignments.values()) {
        const stop = desired === DesiredState.DESIRED_STATE_SHUTDOWN;
        const goal = stop
          ? TaskState.TASK_STATE_SHUTDOWN
          : desired === DesiredState.DESIRED_STATE_READY
            ? TaskState.TASK_STATE_READY
            : TaskState.TASK_STATE_RUNNING;
        const state = stop ? goal : (Math.min(step, goal) as TaskState);
        if ((this.#states.get(taskId) ?? 0) >= state) continue;
        this.#states.set(taskId, state);
        const addresses = networks.map(({ networkId }) => ({ networkId, address: "10.96.0.9" }));
        statuses.push(TaskStatus.create({ taskId, state, startedAtMs: stop ? 0 : Date.now(), addresses }));
      }
      if (statuses.length > 0) this.report(...statuses);
    }
  }

  async until<T>(look: () => T | undefined): Promise<T> {
    return await this.waiting.until(look);
  }

  /** Resolves once it was sent a complete set. */
  async open(): Promise<this> {
    await this.until(() => this.received.find(({ message }) => message?.$case === "assignments"));
    return this;
  }

  close(): void {
    this.#stream.cancel();
  }
}

/** A netd: takes network states, and acknowledges them unless `silent`. */
export class TestNetd {
  readonly states: NetworkState[] = [];
  readonly waiting = new Waiting();
  silent = false;
  readonly #stream: ClientDuplexStream<NetworkUp, NetworkDown>;

  constructor(client: DispatcherClient) {
    this.#stream = client.network();
    this.#stream.on("data", ({ state }: NetworkDown) => {
      if (state === undefined) return;
      this.states.push(state);
      if (!this.silent) this.ack(state.revision);
      this.waiting.changed();
    });
    this.#stream.on("error", (error) => this.waiting.fail(errorOf(error)));
    this.#stream.write({ message: { $case: "hello", value: { version: "test" } } });
  }

  busy(...ports: readonly BusyPort[]): void {
    this.#stream.write({ message: { $case: "busy", value: { ports: [...ports] } } });
  }

  ack(revision: number): void {
    this.#stream.write({ message: { $case: "ack", value: { revision, error: "" } } });
  }

  close(): void {
    this.#stream.cancel();
  }
}
