import type { ServerWritableStream } from "@grpc/grpc-js";
import { expect, it } from "vitest";
import { ClusterError } from "../../lib/errors/errors.ts";
import { chunksOf } from "../../lib/logs/batches.ts";
import {
  type AgentClient,
  type AgentLogsRequest,
  type LogBatch,
  LogChunk,
  LogPosition,
  LogReading,
  LogsRequest,
} from "../../proto/gen/embassy/v1/api.ts";
import { NodeState, NodeStatus, TaskState } from "../../proto/gen/embassy/v1/state.ts";
import { SteppedCluster } from "../controllers/testing.ts";
import { aService, aStack, replicas } from "../domain/testing.ts";
import { Agents } from "./agents.ts";
import { linesOf, streamLogs } from "./logs.ts";
import { placeAgent, TestAgents } from "./testing.ts";

const line = (timeUs: number, text: string) => LogChunk.create({ timeUs, line: Buffer.from(text) });

const { LOG_READING_WAITING, LOG_READING_UNDER_WAY, LOG_READING_ENDED } = LogReading;
const at = (offset: number): LogPosition => LogPosition.create({ state: LOG_READING_UNDER_WAY, file: "f", offset });

/** Agents whose every call is answered by the next of these, which also sees what was asked. */
function agentsOf(...answers: ((request: AgentLogsRequest) => AsyncIterable<LogChunk> | Iterable<LogChunk>)[]) {
  const logs = (request: AgentLogsRequest) => Object.assign(answers.shift()?.(request) ?? [], { cancel() {} });
  return {
    open: () => ({
      client: { logs } as unknown as AgentClient,
      // Each chunk in a batch of its own.
      messages: async function* <T>(call: AsyncIterable<LogChunk>) {
        for await (const chunk of call) yield { chunks: [chunk] } as T;
      },
      [Symbol.dispose]() {},
    }),
  };
}

const wordsOf = (chunk: LogChunk) =>
  chunk.mark ? `mark ${chunk.position?.state}` : chunk.warning || Buffer.from(chunk.line).toString();

/** A call of a user; resolves `ended` with all it was sent when there is nothing more, or when `enough` of it is there. */
function callOf(request: Partial<LogsRequest>, enough = Number.POSITIVE_INFINITY) {
  const got: LogChunk[] = [];
  const gone = new AbortController();
  const write = (batch: LogBatch) => {
    if (got.push(...chunksOf(batch)) >= enough) gone.abort();
    return true;
  };
  const call = { request: LogsRequest.create({ tail: -1, ...request }), write };
  return {
    call: call as unknown as ServerWritableStream<LogsRequest, LogBatch>,
    signal: AbortSignal.any([gone.signal, AbortSignal.timeout(20_000)]),
    got,
  };
}

it("a followed log goes on at the last position when its node's agent breaks off, and says when all is read", async () => {
  using cluster = new SteppedCluster();
  await cluster.addNodes("a");
  await cluster.deploy(aStack("s", [aService("web", { mode: replicas(1) })]));
  await cluster.settle();
  const [task] = cluster.tasks("s", "web");
  if (task === undefined) throw new Error("no task");
  const asked: AgentLogsRequest[] = [];
  const agents = agentsOf(
    async function* (request) {
      asked.push(request);
      yield LogChunk.create({ mark: true, position: at(0) });
      yield { ...line(5_000_100, "one"), position: at(10) };
      yield { ...line(5_000_200, "two"), position: at(20) };
      throw await Promise.resolve(new ClusterError("connection lost", { code: "unavailable" }));
    },
    async function* (request) {
      asked.push(request);
      yield { ...line(5_000_200, "three"), position: at(30) };
      await cluster.report(task, TaskState.TASK_STATE_FAILED);
    },
  );
  const request = LogsRequest.create({ target: "s_web", follow: true, tail: 10 });
  const got: string[] = [];
  const signal = AbortSignal.timeout(9e3);
  for await (const chunks of linesOf({ index: cluster.index, agents }, task, request, new Set(), signal))
    got.push(...chunks.map(wordsOf));
  expect(got).toEqual([
    `mark ${LOG_READING_UNDER_WAY}`,
    "one",
    "two",
    "lines are missing for now, trying again: connection lost",
    "three",
    `mark ${LOG_READING_ENDED}`,
  ]);
  expect(asked).toEqual([
    { taskId: task.id, follow: true, tail: 10, sinceMs: 0, from: undefined },
    { taskId: task.id, follow: true, tail: 10, sinceMs: 0, from: at(20) },
  ]);
});

/** A slot whose first task has failed, and its second runs. */
async function twoAttempts(cluster: SteppedCluster) {
  await cluster.addNodes("a");
  await cluster.deploy(aStack("s", [aService("web", { mode: replicas(1) })]));
  await cluster.settle();
  const [first] = cluster.tasks("s", "web");
  if (first === undefined) throw new Error("no task");
  await cluster.report(first, TaskState.TASK_STATE_FAILED);
  await cluster.settle();
  const second = cluster.tasks("s", "web").find(({ id }) => id !== first.id);
  if (second === undefined) throw new Error("no second task");
  return { first, second };
}

it.each([false, true])("a tail counts for the slot, the newest task's lines first (followed: %s)", async (follow) => {
  using cluster = new SteppedCluster();
  const { first, second } = await twoAttempts(cluster);
  const asked: [string, number][] = [];
  const answer = (lines: number, texts: readonly string[]) => (request: AgentLogsRequest) => {
    asked.push([request.taskId, request.tail]);
    return [LogChunk.create({ mark: true, lines }), ...texts.map((text, n) => line(n + 1, text))];
  };
  const { call, signal, got } = callOf({ target: "s_web", follow, tail: 3 }, follow ? 8 : undefined);
  const agents = agentsOf(answer(1, ["newest"]), answer(2, ["older", "old"]));
  await streamLogs({ index: cluster.index, agents }, call, signal).catch(() => undefined);
  expect(asked.slice(0, 2)).toEqual([
    [second.id, 3],
    [first.id, 2],
  ]);
  const lines = got.filter(({ mark }) => !mark).map(wordsOf);
  expect(lines.toSorted()).toEqual(["newest", "old", "older"]);
});

it("a call that goes on reads each task from its position, new ones whole, and tells of one that is forgotten", async () => {
  using cluster = new SteppedCluster();
  const { first, second } = await twoAttempts(cluster);
  const third = { ...second, id: "cccccccccccc", epoch: second.epoch + 1 };
  await cluster.store.commit([{ table: "tasks", id: third.id, value: third }]);
  const asked = new Map<string, readonly [number, number | undefined]>();
  const answer = (request: AgentLogsRequest) => {
    asked.set(request.taskId, [request.tail, request.from?.offset]);
    return [LogChunk.create({ ...line(1, request.taskId), position: at(99) })];
  };
  const tasks = [
    LogPosition.create({ taskId: first.id, state: LOG_READING_ENDED }),
    { ...at(7), taskId: second.id },
    { ...at(8), taskId: "gone" },
  ];
  const { call, signal, got } = callOf({ target: "s_web", follow: true, tail: 5, resume: { tasks } }, 3);
  const agents = agentsOf(answer, answer);
  await streamLogs({ index: cluster.index, agents }, call, signal).catch(() => undefined);
  expect(asked).toEqual(
    new Map<string, readonly [number, number | undefined]>([
      [second.id, [5, 7]],
      [third.id, [-1, undefined]],
    ]),
  );
  expect(got.map(wordsOf).toSorted()).toEqual(
    [second.id, third.id, "the last lines of task gone may be missing: it ended meanwhile and is forgotten"].toSorted(),
  );
});

it("a followed stack goes on with tasks that had no place yet, and with services that come later", async () => {
  using cluster = new SteppedCluster();
  const web = aService("web", { mode: replicas(1) });
  await cluster.deploy(aStack("s", [web]));
  await cluster.plan();
  const { call, signal, got } = callOf({ target: "s", follow: true, tail: 0 }, 2);
  const answer = ({ taskId, tail }: AgentLogsRequest) => {
    const name = cluster.index.view.tasks.get(taskId)?.serviceName;
    return [{ ...line(1, `${name} ${tail}`), position: at(1) }];
  };
  const following = streamLogs({ index: cluster.index, agents: agentsOf(answer, answer) }, call, signal);
  await cluster.addNodes("a");
  await cluster.settle();
  await cluster.deploy(aStack("s", [web, aService("later", { mode: replicas(1) })]));
  await cluster.settle();
  await following.catch(() => undefined);
  expect(got.map(wordsOf).toSorted()).toEqual(["later -1", "web -1"]);
});

it("a followed task whose node has not heard of it yet is asked for again", async () => {
  using cluster = new SteppedCluster();
  const { second } = await twoAttempts(cluster);
  const agents = agentsOf(
    () => {
      throw new ClusterError("no task", { code: "not-found" });
    },
    () => [{ ...line(1, "here"), position: at(9) }],
  );
  const { call, signal, got } = callOf({ target: second.id, follow: true }, 2);
  await streamLogs({ index: cluster.index, agents }, call, signal).catch(() => undefined);
  expect(got.map(wordsOf)).toEqual([`mark ${LOG_READING_WAITING}`, "here"]);
});

it("the lines of the others come when a node that was asked says nothing and goes down, and a warning", async () => {
  using servers = await TestAgents.create();
  using cluster = new SteppedCluster();
  await cluster.addNodes("a", "b");
  await cluster.deploy(aStack("s", [aService("web", { mode: replicas(2) })]));
  await cluster.settle();
  const speaking = await servers.listen("a", (call) => {
    call.write({ chunks: [line(1, "here")] });
    call.end();
  });
  const { promise: called, resolve } = Promise.withResolvers<void>();
  const silent = await servers.listen("b", () => resolve());
  await placeAgent(cluster, "a", speaking.port);
  await placeAgent(cluster, "b", silent.port);
  using agents = new Agents(cluster.index, () => servers.manager, { firstAnswerMs: 600_000 });
  const got: string[] = [];
  const write = ({ chunks }: LogBatch) => got.push(...chunks.map(wordsOf)) > 0;
  const call = { request: LogsRequest.create({ target: "s_web", tail: -1 }), write };
  const read = streamLogs(
    { index: cluster.index, agents },
    call as unknown as ServerWritableStream<LogsRequest, LogBatch>,
    AbortSignal.timeout(60_000),
  );
  await called;
  const status = NodeStatus.create({ ...cluster.index.nodeStatus("b"), state: NodeState.NODE_STATE_DOWN });
  await cluster.store.commit([{ table: "nodeStatuses", id: "b", value: status }]);
  await read;
  expect(got.toSorted()).toEqual(["here", "lines are missing: node b is not reachable: it is down"]);
});

it("lines of several tasks come merged by time, each named right however the batches are cut", async () => {
  using cluster = new SteppedCluster();
  await cluster.addNodes("a");
  await cluster.deploy(aStack("s", [aService("web", { mode: replicas(3) })]));
  await cluster.settle();
  const answers = [0, 1, 2].map((n) => (request: AgentLogsRequest) => {
    // As an agent sends them: the first of a batch has the names, and one batch has a mark alone.
    const batch = (from: number) =>
      Array.from({ length: 40 }, (_, at) => ({
        ...line((from + at) * 3 + n, `${request.taskId} `.repeat(300)),
        taskId: "",
      }));
    return [[LogChunk.create({ mark: true })], batch(0), batch(40)];
  });
  const agents = {
    open: () => ({
      client: {
        logs: (request: AgentLogsRequest) => Object.assign(answers.shift()?.(request) ?? [], { cancel() {} }),
      } as unknown as AgentClient,
      messages: async function* <T>(call: AsyncIterable<LogChunk[]>) {
        for await (const chunks of call) yield { chunks } as T;
      },
      [Symbol.dispose]() {},
    }),
  };
  const sizes: number[] = [];
  const { call, signal, got } = callOf({ target: "s_web" });
  const write = call.write.bind(call);
  call.write = ((batch: LogBatch) => {
    sizes.push(batch.chunks.reduce((sum, chunk) => sum + chunk.line.length, 0));
    return write(batch);
  }) as typeof write;
  await streamLogs({ index: cluster.index, agents }, call, signal);
  expect(got.map(({ timeUs }) => timeUs)).toEqual(Array.from({ length: 240 }, (_, at) => at));
  for (const { taskId, line: text, nodeName } of got) {
    expect(Buffer.from(text).toString().split(" ")[0]).toBe(taskId);
    expect(nodeName).toBe("a");
  }
  expect(Math.max(...sizes)).toBeLessThan(70_000);
  expect(sizes.length).toBeLessThan(30);
});
