import { expect, it } from "vitest";
import { LogChunk } from "../../proto/gen/embassy/v1/api.ts";
import { NodeState, NodeStatus } from "../../proto/gen/embassy/v1/state.ts";
import { TestCluster } from "../domain/testing.ts";
import { Agents } from "./agents.ts";
import { type AnswerLogs, placeAgent, TestAgents } from "./testing.ts";

const here: AnswerLogs = (call) => {
  call.write({ chunks: [LogChunk.create({ line: Buffer.from("here") })] });
  call.end();
};

async function ask(agents: Agents): Promise<string[]> {
  using agent = agents.open("a");
  const lines: string[] = [];
  const call = agent.client.logs({ taskId: "t", follow: false, tail: -1, sinceMs: 0, from: undefined });
  for await (const { chunks } of agent.messages(call)) lines.push(...chunks.map(({ line }) => line.toString()));
  return lines;
}

it("reaches an agent that is back at once, whatever became of the attempts while it was away", async () => {
  using servers = await TestAgents.create();
  const { server, port } = await servers.listen("a", here);
  using cluster = new TestCluster();
  await cluster.addNodes("a");
  await placeAgent(cluster, "a", port);
  using agents = new Agents(cluster.index, () => servers.manager);
  expect(await ask(agents)).toEqual(["here"]);
  server.forceShutdown();
  // The more attempts fail, the longer a channel would wait before its next.
  for (let attempt = 0; attempt < 5; attempt++) {
    await expect(ask(agents)).rejects.toMatchObject({
      code: "unavailable",
      message: `the agent of node a does not answer (127.0.0.1:${port}: connection refused)`,
      hint: expect.stringContaining("noded may be down there") as string,
    });
  }
  await servers.listen("a", here, port);
  expect(await ask(agents)).toEqual(["here"]);
});

it("gives up an agent that takes the call and says nothing", async () => {
  using servers = await TestAgents.create();
  const { port } = await servers.listen("a", () => undefined);
  using cluster = new TestCluster();
  await cluster.addNodes("a");
  await placeAgent(cluster, "a", port);
  using agents = new Agents(cluster.index, () => servers.manager, { firstAnswerMs: 100 });
  await expect(ask(agents)).rejects.toMatchObject({
    code: "unavailable",
    message: `the agent of node a does not answer (127.0.0.1:${port}: silent for 0.1 s)`,
  });
});

it("gives up a silent agent as soon as its node is down", async () => {
  using servers = await TestAgents.create();
  const { promise: called, resolve } = Promise.withResolvers<void>();
  const { port } = await servers.listen("a", () => resolve());
  using cluster = new TestCluster();
  await cluster.addNodes("a");
  await placeAgent(cluster, "a", port);
  using agents = new Agents(cluster.index, () => servers.manager, { firstAnswerMs: 600_000 });
  const asked = ask(agents);
  const refused = expect(asked).rejects.toMatchObject({ message: "node a is not reachable: it is down" });
  await called;
  const status = NodeStatus.create({ ...cluster.index.nodeStatus("a"), state: NodeState.NODE_STATE_DOWN });
  await cluster.store.commit([{ table: "nodeStatuses", id: "a", value: status }]);
  await refused;
});
