import type { ServerDuplexStream } from "@grpc/grpc-js";
import { ClusterError } from "../../lib/errors/errors.ts";
import { send } from "../../lib/grpc/server.ts";
import type { Log } from "../../lib/log/log.ts";
import { removedNode } from "../../lib/membership/removed.ts";
import type { NetworkAck, NetworkDown, NetworkState, NetworkUp } from "../../proto/gen/embassy/v1/dispatcher.ts";
import type { BusyPort } from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../domain/index.ts";
import {
  emptyTouched,
  type ItemKind,
  itemKinds,
  SilentServices,
  type Touched,
  touch,
} from "../domain/network-state/touched.ts";
import { type NetworkSettings, NetworkStateTracker } from "../domain/network-state/tracker.ts";
import { isNodeLost, isNodeSilent } from "../domain/tasks.ts";
import type { Change } from "../store/types.ts";

/** How far a node's netd is. */
export interface NetworkProgress {
  /** Newest revision that it has applied. */
  readonly acked: number;
  /** Newest that was sent to it. */
  readonly target: number;
}

export interface NetworkDeps {
  readonly index: ClusterIndex;
  readonly log: Log;
  readonly settings: NetworkSettings;
  /** Keeps what a netd says of ports that programs of its host have. Rejects when that cannot be done now. */
  readonly noteBusyPorts: (nodeId: string, ports: readonly BusyPort[]) => Promise<void>;
}

const noteAgainMs = 1_000;

/** The network streams that this member serves: what each host has been told, and what it has applied. */
export class NetworkHub {
  readonly #deps: NetworkDeps;
  readonly #streams = new Map<string, NetworkStream>();
  #silent = new SilentServices();

  constructor(deps: NetworkDeps) {
    this.#deps = deps;
  }

  /** Serves one netd until its stream ends or it opens another. */
  async serve(call: ServerDuplexStream<NetworkUp, NetworkDown>, nodeId: string, signal: AbortSignal): Promise<void> {
    const replaced = new AbortController();
    const stream = new NetworkStream(this.#deps, nodeId, call, AbortSignal.any([signal, replaced.signal]), () =>
      replaced.abort(new ClusterError("the node opened another network stream", { code: "unavailable" })),
    );
    call.on("data", (message: NetworkUp) => {
      if (message.message?.$case === "hello") {
        this.#streams.get(nodeId)?.replace();
        this.#streams.set(nodeId, stream);
        stream.start();
      } else if (message.message?.$case === "ack") {
        stream.acked(message.message.value);
      } else if (message.message?.$case === "busy") {
        stream.busy(message.message.value.ports);
      }
    });
    call.on("end", () => stream.end());
    try {
      await stream.ended();
    } finally {
      if (this.#streams.get(nodeId) === stream) this.#streams.delete(nodeId);
    }
  }

  /** Tells every host what the changes mean for it. Nodes that were removed are told so. */
  apply(changes: readonly Change[]): void {
    for (const { table, id, after } of changes) {
      if (table === "nodes" && after === undefined) this.#streams.get(id)?.end(removedNode(id));
    }
    for (const { table, id } of changes)
      if (table === "nodeStatuses" && !this.#counts(id)) this.#streams.get(id)?.release();
    if (this.#streams.size === 0) {
      this.#silent = new SilentServices();
      return;
    }
    const touched = emptyTouched();
    touch(this.#deps.index, changes, touched, this.#silent);
    if (touched.members.size === 0 && itemKinds.every((kind) => touched.items[kind].size === 0)) return;
    for (const stream of this.#streams.values()) stream.touched(touched);
  }

  /** undefined: this member does not serve its netd. */
  progress(nodeId: string): NetworkProgress | undefined {
    return this.#streams.get(nodeId)?.progress;
  }

  /** Resolves once every netd served here that leads to the task has applied this revision, or is gone or lost. */
  async released(taskId: string, revision: number, isLost: (nodeId: string) => boolean): Promise<void> {
    const knowing = [...this.#streams.values()].filter(
      (stream) => stream.knowsEndpoint(taskId) && !isLost(stream.nodeId),
    );
    await Promise.all(knowing.map(async (stream) => await stream.reached(revision)));
  }

  /** Does any netd served here lead to the task? */
  knowsEndpoint(taskId: string): boolean {
    for (const stream of this.#streams.values()) if (stream.knowsEndpoint(taskId)) return true;
    return false;
  }

  /** Resolves once every netd served here has applied what it was sent so far, or is gone, lost or silent. */
  async settled(): Promise<void> {
    const counted = [...this.#streams.values()].filter(({ nodeId }) => this.#counts(nodeId));
    await Promise.all(counted.map(async (stream) => await stream.settled()));
  }

  /** A host that was cut off says nothing, and its stream ends only when keepalive has given it up. */
  #counts(nodeId: string): boolean {
    const { view } = this.#deps.index;
    return !isNodeLost(view, nodeId) && !isNodeSilent(view, nodeId);
  }
}

class NetworkStream {
  readonly nodeId: string;
  readonly replace: () => void;
  readonly #log: Log;
  readonly #call: ServerDuplexStream<NetworkUp, NetworkDown>;
  readonly #signal: AbortSignal;
  readonly #noteBusyPorts: NetworkDeps["noteBusyPorts"];
  readonly #tracker: NetworkStateTracker;
  readonly #over = Promise.withResolvers<void>();
  readonly #waiters = new Set<{ readonly revision: number; readonly wake: () => void }>();
  #isOver = false;
  #started = false;
  #sending = false;
  #pending: Touched | undefined;
  #target = 0;
  #acked = 0;
  /** What the host says of its ports, until it is kept. */
  #busy: readonly BusyPort[] | undefined;
  /** The first attempt to keep it. */
  #noting: Promise<void> | undefined;
  #noteAgain: NodeJS.Timeout | undefined;

  constructor(
    { index, log, settings, noteBusyPorts }: NetworkDeps,
    nodeId: string,
    call: ServerDuplexStream<NetworkUp, NetworkDown>,
    signal: AbortSignal,
    replace: () => void,
  ) {
    this.nodeId = nodeId;
    this.replace = replace;
    this.#log = log.with({ nodeId });
    this.#call = call;
    this.#signal = signal;
    this.#noteBusyPorts = noteBusyPorts;
    this.#tracker = new NetworkStateTracker(index, nodeId, settings);
    signal.addEventListener("abort", () => this.end(), { once: true });
  }

  get progress(): NetworkProgress {
    return { acked: this.#acked, target: this.#target };
  }

  knowsEndpoint(taskId: string): boolean {
    return this.#tracker.knowsEndpoint(taskId);
  }

  start(): void {
    if (this.#started) return;
    this.#started = true;
    this.#log.info("network stream open");
    void this.#pump(this.#tracker.complete());
  }

  /** Nobody is to wait for it any longer; who comes later may. */
  release(): void {
    for (const { wake } of this.#waiters) wake();
    this.#waiters.clear();
  }

  /** With why, the host is told. */
  end(why?: ClusterError): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.release();
    clearTimeout(this.#noteAgain);
    if (why === undefined) this.#over.resolve();
    else this.#over.reject(why);
  }

  async ended(): Promise<void> {
    await this.#over.promise;
  }

  /** Takes it once what the host said before is kept, so that who waits for the acknowledgement finds it. */
  acked(ack: NetworkAck): void {
    if (this.#noting === undefined) this.#ack(ack);
    else void this.#noting.then(() => this.#ack(ack));
  }

  /** Kept at once, and if that cannot be, as soon as it can. */
  busy(ports: readonly BusyPort[]): void {
    this.#busy = ports;
    clearTimeout(this.#noteAgain);
    const noting = (this.#noting ?? Promise.resolve()).then(async () => await this.#note());
    this.#noting = noting;
    void noting.then(() => {
      if (this.#noting === noting) this.#noting = undefined;
    });
  }

  async #note(): Promise<void> {
    const ports = this.#busy;
    if (ports === undefined || this.#isOver) return;
    try {
      await this.#noteBusyPorts(this.nodeId, ports);
      if (this.#busy === ports) this.#busy = undefined;
    } catch (error) {
      this.#log.debug("cannot note the node's busy ports now", { error });
      this.#noteAgain = setTimeout(() => void this.#note(), noteAgainMs);
    }
  }

  #ack({ revision, error }: NetworkAck): void {
    // The host logs why, and `networkProgress` shows that it lags.
    if (error !== "") this.#log.debug("network state not applied yet", { revision, cause: error });
    this.#acked = Math.max(this.#acked, revision);
    for (const waiter of this.#waiters) {
      if (waiter.revision > this.#acked) continue;
      this.#waiters.delete(waiter);
      waiter.wake();
    }
  }

  async settled(): Promise<void> {
    await this.reached(this.#target);
  }

  async reached(revision: number): Promise<void> {
    if (this.#isOver || this.#acked >= revision) return;
    await new Promise<void>((wake) => this.#waiters.add({ revision, wake }));
  }

  touched(touched: Touched): void {
    if (!this.#started || this.#isOver) return;
    this.#pending = this.#pending === undefined ? touched : merge(this.#pending, touched);
    if (!this.#sending) void this.#pump(undefined);
  }

  /** Sends until nothing is left; while the host reads slowly, changes gather into one. */
  async #pump(first: NetworkState | undefined): Promise<void> {
    this.#sending = true;
    try {
      let state = first;
      for (;;) {
        if (state !== undefined) {
          this.#target = state.revision;
          await send(this.#call, { state }, this.#signal);
        }
        const pending = this.#pending;
        if (pending === undefined || this.#isOver) return;
        this.#pending = undefined;
        state = this.#tracker.delta(pending);
      }
    } catch (error) {
      this.#log.debug("network stream broke", { error });
      this.end();
    } finally {
      this.#sending = false;
    }
  }
}

function merge(a: Touched, b: Touched): Touched {
  const both = (kind: ItemKind) => new Set([...a.items[kind], ...b.items[kind]]);
  return {
    items: {
      hosts: both("hosts"),
      networks: both("networks"),
      services: both("services"),
      endpoints: both("endpoints"),
    },
    members: new Set([...a.members, ...b.members]),
  };
}
