import type { ServerWritableStream } from "@grpc/grpc-js";
import { expect, it } from "vitest";
import { ClusterError } from "../../lib/errors/errors.ts";
import { type AgentClient, type AgentLogsRequest, LogChunk, LogsRequest } from "../../proto/gen/embassy/v1/api.ts";
import { NodeState, NodeStatus, TaskState } from "../../proto/gen/embassy/v1/state.ts";
import { SteppedCluster } from "../controllers/testing.ts";
import { aService, aStack, replicas } from "../domain/testing.ts";
import { Agents } from "./agents.ts";
import { linesOf, streamLogs } from "./logs.ts";
import { placeAgent, TestAgents } from "./testing.ts";

const line = (timeUs: number, text: string) => LogChunk.create({ timeUs, line: Buffer.from(text) });

it("a followed log goes on after the last line seen when its node's agent breaks off", async () => {
  using cluster = new SteppedCluster();
  await cluster.addNodes("a");
  await cluster.deploy(aStack("s", [aService("web", { mode: replicas(1) })]));
  await cluster.settle();
  const [task] = cluster.tasks("s", "web");
  if (task === undefined) throw new Error("no task");
  const asked: Omit<AgentLogsRequest, "taskId">[] = [];
  const streams = [
    async function* () {
      yield line(5_000_100, "one");
      yield line(5_000_200, "two");
      throw await Promise.resolve(new ClusterError("connection lost", { code: "unavailable" }));
    },
    async function* () {
      // From the start of the millisecond; a second line has the time of the last one seen.
      yield* [line(5_000_100, "one"), line(5_000_200, "two"), line(5_000_200, "three"), line(5_000_300, "four")];
      await cluster.report(task, TaskState.TASK_STATE_FAILED);
    },
  ];
  const logs = ({ follow, tail, sinceMs }: AgentLogsRequest) => {
    asked.push({ follow, tail, sinceMs });
    return Object.assign(streams.shift()?.() ?? [], { cancel() {} });
  };
  const agents = {
    open: () => ({
      client: { logs } as unknown as AgentClient,
      messages: <T>(call: AsyncIterable<unknown>) => call as AsyncIterable<T>,
      [Symbol.dispose]() {},
    }),
  };
  const request = LogsRequest.create({ target: "s_web", follow: true, tail: 10 });
  const got: string[] = [];
  for await (const chunk of linesOf(
    { index: cluster.index, agents },
    task,
    request,
    new Set(),
    AbortSignal.timeout(9e3),
  ))
    got.push(chunk.warning || Buffer.from(chunk.line).toString());
  expect(got).toEqual(["one", "two", "no lines from node a for now, trying again: connection lost", "three", "four"]);
  expect(asked).toEqual([
    { follow: true, tail: 10, sinceMs: 0 },
    { follow: true, tail: -1, sinceMs: 5_000 },
  ]);
});

it("the lines of the others come when a node that was asked says nothing and goes down, and a warning", async () => {
  using servers = await TestAgents.create();
  using cluster = new SteppedCluster();
  await cluster.addNodes("a", "b");
  await cluster.deploy(aStack("s", [aService("web", { mode: replicas(2) })]));
  await cluster.settle();
  const speaking = await servers.listen("a", (call) => {
    call.write(line(1, "here"));
    call.end();
  });
  const { promise: called, resolve } = Promise.withResolvers<void>();
  const silent = await servers.listen("b", () => resolve());
  await placeAgent(cluster, "a", speaking.port);
  await placeAgent(cluster, "b", silent.port);
  using agents = new Agents(cluster.index, () => servers.manager, { firstAnswerMs: 600_000 });
  const got: string[] = [];
  const write = (chunk: LogChunk) => got.push(chunk.warning || Buffer.from(chunk.line).toString()) > 0;
  const call = { request: LogsRequest.create({ target: "s_web", tail: -1 }), write };
  const read = streamLogs(
    { index: cluster.index, agents },
    call as unknown as ServerWritableStream<LogsRequest, LogChunk>,
    AbortSignal.timeout(60_000),
  );
  await called;
  const status = NodeStatus.create({ ...cluster.index.nodeStatus("b"), state: NodeState.NODE_STATE_DOWN });
  await cluster.store.commit([{ table: "nodeStatuses", id: "b", value: status }]);
  await read;
  expect(got.toSorted()).toEqual(["here", "no lines from node b: node b is not reachable: it is down"]);
});
