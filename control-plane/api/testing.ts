import { Server, type ServerWritableStream } from "@grpc/grpc-js";
import { serverCredentials } from "../../lib/grpc/server.ts";
import type { TlsIdentity } from "../../lib/grpc/tls.ts";
import { Authority, createAuthority } from "../../lib/pki/authority.ts";
import {
  type AgentLogsRequest,
  type AgentServer,
  AgentService,
  type LogBatch,
} from "../../proto/gen/embassy/v1/api.ts";
import { NodeState, NodeStatus } from "../../proto/gen/embassy/v1/state.ts";
import type { TestCluster } from "../domain/testing.ts";

/** What an agent of a test does with a call for logs. */
export type AnswerLogs = (call: ServerWritableStream<AgentLogsRequest, LogBatch>) => void;

/** Real gRPC servers in the place of the nodes' agents, on loopback. */
export class TestAgents implements Disposable {
  /** What a manager shows to them. */
  readonly manager: TlsIdentity;
  readonly #authority: Authority;
  readonly #servers: Server[] = [];

  private constructor(authority: Authority, manager: TlsIdentity) {
    this.#authority = authority;
    this.manager = manager;
  }

  static async create(): Promise<TestAgents> {
    const pair = await createAuthority("test", Date.now());
    const authority = await Authority.load(pair.certificate, pair.key);
    return new TestAgents(authority, await authority.issue({ commonName: "m", role: "manager", nowMs: Date.now() }));
  }

  /** Starts the agent of a node. Port 0: any that is free. `more`: what else it answers. */
  async listen(
    nodeId: string,
    logs: AnswerLogs,
    port = 0,
    more: Partial<AgentServer> = {},
  ): Promise<{ server: Server; port: number }> {
    const identity = await this.#authority.issue({ commonName: nodeId, role: "node", nowMs: Date.now() });
    const server = new Server();
    this.#servers.push(server);
    server.addService(AgentService, { logs, exec: () => undefined, ...more });
    const bound = await new Promise<number>((resolve, reject) => {
      server.bindAsync(`127.0.0.1:${port}`, serverCredentials(identity), (error, got) =>
        error === null ? resolve(got) : reject(error),
      );
    });
    return { server, port: bound };
  }

  [Symbol.dispose](): void {
    for (const server of this.#servers) server.forceShutdown();
  }
}

/** Has a node say where its agent listens. */
export async function placeAgent(cluster: TestCluster, nodeId: string, port: number): Promise<void> {
  const status =
    cluster.index.nodeStatus(nodeId) ?? NodeStatus.create({ id: nodeId, state: NodeState.NODE_STATE_READY });
  const description =
    status.description === undefined ? undefined : { ...status.description, agentAddress: `127.0.0.1:${port}` };
  await cluster.store.commit([{ table: "nodeStatuses", id: nodeId, value: { ...status, description } }]);
}
