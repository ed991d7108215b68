import type { ServerDuplexStream } from "@grpc/grpc-js";
import type { Clock } from "../../lib/clock/clock.ts";
import { asClusterError, ClusterError, hasCode } from "../../lib/errors/errors.ts";
import { send } from "../../lib/grpc/server.ts";
import { newId } from "../../lib/ids/ids.ts";
import type { Log } from "../../lib/log/log.ts";
import { isRemovedNode, removedNode } from "../../lib/membership/removed.ts";
import type {
  Assignments,
  Heartbeat,
  SessionDown,
  SessionHello,
  SessionUp,
} from "../../proto/gen/embassy/v1/dispatcher.ts";
import { DesiredState, NodeState, type Task, type TaskStatus } from "../../proto/gen/embassy/v1/state.ts";
import { assignmentOf } from "../domain/assignment.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { servedAddresses } from "../pki/join.ts";
import type { Store, Write } from "../store/types.ts";
import type { CutOver } from "./cutover.ts";
import type { Presence } from "./presence.ts";
import type { StatusBatcher } from "./statuses.ts";
import type { Vigils } from "./vigils.ts";

export interface SessionSettings {
  readonly heartbeatIntervalMs: number;
  readonly leaseTtlMs: number;
}

export interface SessionDeps {
  readonly store: Pick<Store, "view" | "commit" | "grantLease" | "keepAlive">;
  readonly index: ClusterIndex;
  readonly clock: Clock;
  readonly log: Log;
  readonly member: string;
  readonly clusterId: string;
  readonly settings: SessionSettings;
  readonly presence: Presence;
  readonly statuses: StatusBatcher;
  readonly cutOver: Pick<CutOver, "isHeld">;
  readonly vigils: Pick<Vigils, "begin" | "heard">;
}

const openAttempts = 5;

/** One node's session on this member: its lease, what it has been told, what it reports. */
export class Session {
  readonly id = newId();
  readonly nodeId: string;
  readonly #deps: SessionDeps;
  readonly #log: Log;
  readonly #call: ServerDuplexStream<SessionUp, SessionDown>;
  readonly #over = Promise.withResolvers<void>();
  readonly #closed = new AbortController();
  readonly #told = new Map<string, DesiredState>();
  readonly #dirty = new Set<string>();
  readonly #sequences = new Map<string, number>();
  #hello: SessionHello | undefined;
  #problems: Heartbeat | undefined;
  #images: readonly number[] | undefined;
  #lease: bigint | undefined;
  #lastHeardMs: number;
  #renewing = false;
  #noting = false;
  #sending = false;
  /** The next message is the complete set. */
  #complete = false;
  /** The welcome and what goes with it were sent. */
  #greeted = false;
  /** The complete set was taken. */
  #welcomed = false;

  constructor(
    deps: SessionDeps,
    nodeId: string,
    call: ServerDuplexStream<SessionUp, SessionDown>,
    signal: AbortSignal,
  ) {
    this.#deps = deps;
    this.nodeId = nodeId;
    this.#call = call;
    this.#log = deps.log.with({ nodeId, sessionId: this.id });
    this.#lastHeardMs = deps.clock.monotonicMs();
    signal.addEventListener("abort", () => this.close(), { once: true });
  }

  /** Resolves when it is closed; rejects with why, when the node should be told. */
  async ended(): Promise<void> {
    await this.#over.promise;
  }

  /** Ends the stream; the lease goes on for its time, so that the node may come back. */
  close(why?: ClusterError): void {
    if (this.#closed.signal.aborted) return;
    this.#closed.abort(why ?? new ClusterError("the session is closed", { code: "unavailable" }));
    if (why === undefined) this.#over.resolve();
    else this.#over.reject(why);
  }

  /** Writes the session into the store, and sends the node everything it should hold. Throws `not-found` for a node that was removed. */
  async open(hello: SessionHello): Promise<void> {
    const { presence, index, settings, clusterId, statuses } = this.#deps;
    if (hello.description === undefined) {
      throw new ClusterError("a session opens with a description of the node", { code: "invalid" });
    }
    this.#hello = hello;
    await presence.ready();
    await this.#register();
    statuses.submit(this.nodeId, this.#newest(hello.tasks));
    const welcome = {
      sessionId: this.id,
      heartbeatIntervalMs: settings.heartbeatIntervalMs,
      leaseTtlMs: settings.leaseTtlMs,
      clusterId,
      nodeName: index.view.nodes.get(this.nodeId)?.name ?? "",
    };
    await this.#send({ message: { $case: "welcome", value: welcome } });
    await this.#sendManagers();
    this.#greeted = true;
    this.#log.info("session open", { tasks: hello.tasks.length });
    this.#complete = true;
    for (const task of index.tasksOfNode(this.nodeId)) this.#dirty.add(task.id);
    await this.#pump();
  }

  /** The node's sign of life, and what is wrong with its network and its disk. */
  heartbeat(problems: Heartbeat): void {
    this.#heard();
    void this.#renew();
    this.#problems = problems;
    void this.#note();
  }

  /** Which images the node holds. */
  holds(images: readonly number[]): void {
    this.#heard();
    this.#images = images;
    void this.#note();
  }

  /** Writes what the node has said of itself and is not kept like that. What fails, or is overtaken, the next heartbeat brings again. */
  async #note(): Promise<void> {
    const { store, index } = this.#deps;
    const status = index.view.nodeStatuses.get(this.nodeId);
    if (this.#lease === undefined || this.#noting || status === undefined) return;
    const { networkProblem, diskProblem } = this.#problems ?? status;
    const images = this.#images ?? status.images;
    const differs = networkProblem !== status.networkProblem || diskProblem !== status.diskProblem;
    if (!differs && sameNumbers(images, status.images)) return;
    this.#noting = true;
    try {
      const ifRevision = index.view.nodeStatuses.revisionOf(this.nodeId);
      const value = { ...status, networkProblem, diskProblem, images: [...images] };
      await store.commit([{ table: "nodeStatuses", id: this.nodeId, value, ifRevision }]);
      if (differs)
        this.#log.info("node's problems", { network: networkProblem || "none", disk: diskProblem || "none" });
    } catch (error) {
      this.#log.debug("cannot note what the node says of itself now", { error });
    } finally {
      this.#noting = false;
    }
  }

  report(statuses: readonly TaskStatus[]): void {
    this.#heard();
    this.#deps.statuses.submit(this.nodeId, this.#newest(statuses));
  }

  /** A task of this node, or one that was, has changed. */
  touch(taskId: string): void {
    this.#dirty.add(taskId);
    void this.#pump();
  }

  /** The session's record in the store is gone or another's. */
  recordChanged(sessionId: string | undefined): void {
    if (sessionId === this.id || this.#closed.signal.aborted || this.#lease === undefined) return;
    if (sessionId !== undefined) {
      this.close(new ClusterError("the node opened another session", { code: "unavailable" }));
      return;
    }
    // The lease ended while the node was heard: the store was away, and not the node.
    const silentMs = this.#deps.clock.monotonicMs() - this.#lastHeardMs;
    if (silentMs < this.#deps.settings.leaseTtlMs) void this.#registerAgain();
    else this.close(new ClusterError("the node's lease has ended", { code: "unavailable" }));
  }

  /** This member has another incarnation: the node's record must name it. */
  holderChanged(): void {
    if (this.#lease !== undefined) void this.#registerAgain();
  }

  /** The control plane has other members than before. */
  managersChanged(): void {
    if (this.#greeted) void this.#sendManagers().catch(() => this.close());
  }

  #heard(): void {
    this.#lastHeardMs = this.#deps.clock.monotonicMs();
    this.#deps.vigils.heard(this.nodeId, this.id);
  }

  async #sendManagers(): Promise<void> {
    const addresses = servedAddresses(this.#deps.index.view);
    if (addresses.length > 0) await this.#send({ message: { $case: "managers", value: { addresses } } });
  }

  async #renew(): Promise<void> {
    if (this.#renewing || this.#lease === undefined || this.#closed.signal.aborted) return;
    this.#renewing = true;
    try {
      if (!(await this.#deps.store.keepAlive(this.#lease))) await this.#register();
    } catch (error) {
      this.#log.debug("cannot renew the lease now", { error });
    } finally {
      this.#renewing = false;
    }
  }

  async #registerAgain(): Promise<void> {
    if (this.#renewing || this.#closed.signal.aborted) return;
    this.#renewing = true;
    try {
      await this.#register();
    } catch (error) {
      if (isRemovedNode(error, this.nodeId)) this.close(asClusterError(error));
      else this.#log.warn("cannot register the session again", { error });
    } finally {
      this.#renewing = false;
    }
  }

  async #register(): Promise<void> {
    const { store, index, clock, member, settings, presence, vigils } = this.#deps;
    const { view } = index;
    for (let attempt = 1; ; attempt++) {
      if (view.nodes.get(this.nodeId) === undefined) throw await unknownNode(store, this.nodeId);
      const lease = await store.grantLease(settings.leaseTtlMs);
      const nowMs = clock.nowMs();
      const known = view.nodeStatuses.get(this.nodeId);
      const wasReady = known?.state === NodeState.NODE_STATE_READY;
      const writes: Write[] = [
        {
          table: "sessions",
          id: this.nodeId,
          value: { nodeId: this.nodeId, sessionId: this.id, clusterd: member, openedAtMs: nowMs, quiet: false },
          lease,
        },
        {
          table: "nodeStatuses",
          id: this.nodeId,
          value: {
            id: this.nodeId,
            description: this.#hello?.description,
            state: NodeState.NODE_STATE_READY,
            changedAtMs: wasReady ? known.changedAtMs : nowMs,
            message: "",
            clusterd: member,
            incarnation: presence.incarnation,
            networkProblem: known?.networkProblem ?? "",
            busyPorts: known?.busyPorts ?? [],
            diskProblem: known?.diskProblem ?? "",
            images: known?.images ?? [],
          },
          // What is kept of it, others may be changing.
          ifRevision: view.nodeStatuses.revisionOf(this.nodeId),
        },
      ];
      const expect = [{ table: "nodes" as const, id: this.nodeId, revision: view.nodes.revisionOf(this.nodeId) }];
      try {
        await store.commit(writes, { expect });
        this.#lease = lease;
        vigils.begin(this.nodeId, this.id, lease);
        return;
      } catch (error) {
        if (!hasCode(error, "conflict") || attempt === openAttempts) throw error;
        await clock.sleep(10);
      }
    }
  }

  /** Statuses that are newer than those this session has had before. A node counts anew in each session. */
  #newest(statuses: readonly TaskStatus[]): TaskStatus[] {
    return statuses.filter(({ taskId, sequence }) => {
      if (sequence < (this.#sequences.get(taskId) ?? 0)) return false;
      this.#sequences.set(taskId, sequence);
      return true;
    });
  }

  /** Sends what has changed until nothing is left; while the node reads slowly, changes gather into one message. */
  async #pump(): Promise<void> {
    if (this.#sending || !(this.#welcomed || this.#complete)) return;
    this.#sending = true;
    try {
      while ((this.#dirty.size > 0 || this.#complete) && !this.#closed.signal.aborted) {
        const value = this.#take();
        if (value !== undefined) await this.#send({ message: { $case: "assignments", value } });
      }
    } catch (error) {
      this.#log.debug("session stream broke", { error });
      this.close();
    } finally {
      this.#sending = false;
    }
  }

  #take(): Assignments | undefined {
    const { index, cutOver } = this.#deps;
    const complete = this.#complete;
    const value: Assignments = { revision: index.view.revision, complete, set: [], remove: [] };
    for (const taskId of this.#dirty) {
      const task: Task | undefined = index.view.tasks.get(taskId);
      if (task?.nodeId !== this.nodeId) {
        if (this.#told.delete(taskId)) value.remove.push(taskId);
        continue;
      }
      const desired = cutOver.isHeld(taskId) ? DesiredState.DESIRED_STATE_RUNNING : task.desired;
      if (this.#told.get(taskId) === desired) continue;
      this.#told.set(taskId, desired);
      value.set.push(assignmentOf(index, task, desired));
    }
    this.#dirty.clear();
    this.#complete = false;
    this.#welcomed = true;
    return complete || value.set.length > 0 || value.remove.length > 0 ? value : undefined;
  }

  async #send(message: SessionDown): Promise<void> {
    await send(this.#call, message, this.#closed.signal);
  }
}

function sameNumbers(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((one, i) => one === b[i]);
}

/**
 * Why a node that the view does not know is turned away. The view may be behind, and the node have joined by another member
 * just now: etcd is asked. Resolves with `removedNode`, or with `unavailable` when the node is known there or etcd does not answer.
 */
export async function unknownNode(store: Pick<Store, "commit">, nodeId: string): Promise<ClusterError> {
  const subject = `node/${nodeId}`;
  try {
    await store.commit([], { expect: [{ table: "nodes", id: nodeId, revision: 0 }] });
    return removedNode(nodeId);
  } catch (cause) {
    if (!hasCode(cause, "conflict")) return asClusterError(cause);
    return new ClusterError(`this manager has not heard of node ${nodeId} yet`, {
      code: "unavailable",
      subject,
      cause,
    });
  }
}
