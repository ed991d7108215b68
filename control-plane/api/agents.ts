import { getSystemErrorMap } from "node:util";
import { type ClientDuplexStream, type ClientReadableStream, connectivityState } from "@grpc/grpc-js";
import { ClusterError } from "../../lib/errors/errors.ts";
import { channelOptions, clientCredentials } from "../../lib/grpc/client.ts";
import { errorOf, unansweredStatus } from "../../lib/grpc/status.ts";
import type { TlsIdentity } from "../../lib/grpc/tls.ts";
import { AgentClient } from "../../proto/gen/embassy/v1/api.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { isNodeSilent, isNodeUp } from "../domain/tasks.ts";

const idleMs = 60_000;
const firstAnswerMs = 5_000;

/** The agent of a node, in use until it is disposed. */
export interface OpenAgent extends Disposable {
  readonly client: AgentClient;
  /**
   * What the agent sends in a call of this client, and the call's end. Throws a ClusterError: the agent's own, or
   * `unavailable` when there is no connection, when the agent has not begun to answer in time, or when its node goes
   * down before it has. To be iterated at once: it is what listens to the call's errors.
   */
  messages<T>(call: ClientReadableStream<T> | ClientDuplexStream<never, T>): AsyncIterable<T>;
}

interface Entry {
  readonly address: string;
  readonly client: AgentClient;
  users: number;
  timer?: NodeJS.Timeout;
}

/** Connections to the nodes' agents, made when needed and closed a while after their last use. */
export class Agents implements Disposable {
  readonly #index: ClusterIndex;
  readonly #identity: () => TlsIdentity;
  readonly #firstAnswerMs: number;
  readonly #clients = new Map<string, Entry>();

  constructor(index: ClusterIndex, identity: () => TlsIdentity, limits: { readonly firstAnswerMs?: number } = {}) {
    this.#index = index;
    this.#identity = identity;
    this.#firstAnswerMs = limits.firstAnswerMs ?? firstAnswerMs;
  }

  /** The agent of a node, until it is disposed. Throws `unavailable` when the node is not up or has not said where its agent is. */
  open(nodeId: string): OpenAgent {
    const address = this.#index.nodeStatus(nodeId)?.description?.agentAddress ?? "";
    if (!isNodeUp(this.#index.view, nodeId) || address === "") throw this.#isDown(nodeId);
    let entry = this.#clients.get(nodeId);
    // A channel that could not connect answers with that old failure until its own time to try again has come. Those who
    // call again have waited already: they get an attempt of their own.
    const failed = entry?.client.getChannel().getConnectivityState(false) === connectivityState.TRANSIENT_FAILURE;
    if (entry === undefined || entry.address !== address || failed) {
      clearTimeout(entry?.timer);
      entry?.client.close();
      const credentials = clientCredentials(this.#identity(), { role: "node", name: nodeId });
      entry = { address, client: new AgentClient(address, credentials, channelOptions), users: 0 };
      this.#clients.set(nodeId, entry);
    }
    const used = entry;
    used.users++;
    clearTimeout(used.timer);
    return {
      client: used.client,
      messages: (call) => this.#messages(nodeId, used, call),
      [Symbol.dispose]: () => {
        if (--used.users > 0 || this.#clients.get(nodeId) !== used) return;
        used.timer = setTimeout(() => {
          used.client.close();
          this.#clients.delete(nodeId);
        }, idleMs);
        used.timer.unref();
      },
    };
  }

  async *#messages<T>(
    nodeId: string,
    entry: Entry,
    call: ClientReadableStream<T> | ClientDuplexStream<never, T>,
  ): AsyncGenerator<T> {
    const name = this.#nameOf(nodeId);
    const silence = `the agent of node ${name} does not answer`;
    let answered = false;
    let gaveUp: ClusterError | undefined;
    const giveUp = (why: ClusterError) => {
      if (answered) return;
      gaveUp ??= why;
      call.cancel();
      // It may hang for as long as TCP has patience: the next call gets a connection of its own.
      if (this.#clients.get(nodeId) !== entry) return;
      this.#clients.delete(nodeId);
      entry.client.close();
    };
    const timer = setTimeout(() => {
      giveUp(lost(name, `${silence} (${entry.address}: silent for ${this.#firstAnswerMs / 1_000} s)`));
    }, this.#firstAnswerMs);
    using subscription = this.#index.subscribe(() => {
      if (!isNodeUp(this.#index.view, nodeId)) giveUp(this.#isDown(nodeId));
    });
    // An agent sends its headers before it looks for anything to send. Once it has, keepalive finds it when it is gone.
    call.once("metadata", () => {
      answered = true;
      clearTimeout(timer);
      subscription[Symbol.dispose]();
    });
    try {
      for await (const message of call) yield message as T;
    } catch (error) {
      if (gaveUp !== undefined) throw gaveUp;
      const why = errorOf(error);
      if (why.code !== "unavailable" || unansweredStatus(why) === undefined) throw why;
      const what = answered ? `the connection to the agent of node ${name} broke off` : silence;
      throw lost(name, `${what} (${entry.address}: ${wordsOf(why.message)})`, why);
    } finally {
      clearTimeout(timer);
      call.cancel();
    }
    if (gaveUp !== undefined) throw gaveUp;
  }

  #nameOf(nodeId: string): string {
    return this.#index.view.nodes.get(nodeId)?.name ?? nodeId;
  }

  #isDown(nodeId: string): ClusterError {
    const name = this.#nameOf(nodeId);
    const state = isNodeSilent(this.#index.view, nodeId) ? "silent" : "down";
    return new ClusterError(`node ${name} is not reachable: it is ${state}`, {
      code: "unavailable",
      subject: `node/${name}`,
    });
  }

  [Symbol.dispose](): void {
    for (const { client, timer } of this.#clients.values()) {
      clearTimeout(timer);
      client.close();
    }
    this.#clients.clear();
  }
}

function lost(name: string, what: string, cause?: ClusterError): ClusterError {
  return new ClusterError(what, {
    code: "unavailable",
    subject: `node/${name}`,
    hint: "noded may be down there: `clusterctl nodes` shows the state of its node.",
    cause,
  });
}

/** Why there is no connection. gRPC says it in a text of its own only, around the name of the system's error. */
function wordsOf(details: string): string {
  const name = /\bE[A-Z]{3,}\b/.exec(details)?.[0];
  for (const [known, words] of getSystemErrorMap().values()) if (known === name) return words;
  return details;
}
