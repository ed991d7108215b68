import { connectivityState } from "@grpc/grpc-js";
import { ClusterError } from "../../lib/errors/errors.ts";
import { channelOptions, clientCredentials } from "../../lib/grpc/client.ts";
import type { TlsIdentity } from "../../lib/grpc/tls.ts";
import { AgentClient } from "../../proto/gen/embassy/v1/api.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { isNodeUp } from "../domain/tasks.ts";

const idleMs = 60_000;

/** Connections to the nodes' agents, made when needed and closed a while after their last use. */
export class Agents implements Disposable {
  readonly #index: ClusterIndex;
  readonly #identity: () => TlsIdentity;
  readonly #clients = new Map<
    string,
    { readonly address: string; readonly client: AgentClient; users: number; timer?: NodeJS.Timeout }
  >();

  constructor(index: ClusterIndex, identity: () => TlsIdentity) {
    this.#index = index;
    this.#identity = identity;
  }

  /** The agent of a node, until it is disposed. Throws `unavailable` when the node is down or has not said where its agent is. */
  open(nodeId: string): { readonly client: AgentClient } & Disposable {
    const name = this.#index.view.nodes.get(nodeId)?.name ?? nodeId;
    const address = this.#index.nodeStatus(nodeId)?.description?.agentAddress ?? "";
    if (!isNodeUp(this.#index.view, nodeId) || address === "") {
      throw new ClusterError(`node ${name} is not reachable: it is down`, {
        code: "unavailable",
        subject: `node/${name}`,
      });
    }
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

  [Symbol.dispose](): void {
    for (const { client, timer } of this.#clients.values()) {
      clearTimeout(timer);
      client.close();
    }
    this.#clients.clear();
  }
}
