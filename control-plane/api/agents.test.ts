import { Server } from "@grpc/grpc-js";
import { expect, it } from "vitest";
import { serverCredentials } from "../../lib/grpc/server.ts";
import { Authority, createAuthority } from "../../lib/pki/authority.ts";
import { AgentService, LogChunk } from "../../proto/gen/embassy/v1/api.ts";
import { NodeState, NodeStatus } from "../../proto/gen/embassy/v1/state.ts";
import { TestCluster } from "../domain/testing.ts";
import { Agents } from "./agents.ts";

it("reaches an agent that is back at once, whatever became of the attempts while it was away", async () => {
  const pair = await createAuthority("test", Date.now());
  const authority = await Authority.load(pair.certificate, pair.key);
  const identity = await authority.issue({ commonName: "m", role: "manager", nowMs: Date.now() });
  const credentials = serverCredentials(await authority.issue({ commonName: "a", role: "node", nowMs: Date.now() }));
  const listen = async (port: number): Promise<{ server: Server; port: number }> => {
    const server = new Server();
    server.addService(AgentService, {
      logs: (call: { write(chunk: LogChunk): void; end(): void }) => {
        call.write(LogChunk.create({ line: Buffer.from("here") }));
        call.end();
      },
      exec: () => undefined,
    });
    const bound = await new Promise<number>((resolve, reject) => {
      server.bindAsync(`127.0.0.1:${port}`, credentials, (error, got) =>
        error === null ? resolve(got) : reject(error),
      );
    });
    return { server, port: bound };
  };
  const first = await listen(0);
  using cluster = new TestCluster();
  await cluster.addNodes("a");
  const agentAddress = `127.0.0.1:${first.port}`;
  const status = cluster.index.nodeStatus("a") ?? NodeStatus.create({ id: "a", state: NodeState.NODE_STATE_READY });
  const description = status.description === undefined ? undefined : { ...status.description, agentAddress };
  await cluster.store.commit([{ table: "nodeStatuses", id: "a", value: { ...status, description } }]);
  using agents = new Agents(cluster.index, () => identity);
  const ask = async () => {
    using agent = agents.open("a");
    const lines: string[] = [];
    for await (const piece of agent.client.logs({ taskId: "t", follow: false, tail: -1, sinceMs: 0 })) {
      lines.push((piece as LogChunk).line.toString());
    }
    return lines;
  };
  expect(await ask()).toEqual(["here"]);
  first.server.forceShutdown();
  // The more attempts fail, the longer a channel would wait before its next.
  for (let attempt = 0; attempt < 5; attempt++) await expect(ask()).rejects.toThrow();
  const second = await listen(first.port);
  expect(await ask()).toEqual(["here"]);
  second.server.forceShutdown();
});
