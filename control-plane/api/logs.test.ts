import { expect, it } from "vitest";
import { ClusterError } from "../../lib/errors/errors.ts";
import { type AgentClient, type AgentLogsRequest, LogChunk, LogsRequest } from "../../proto/gen/embassy/v1/api.ts";
import { TaskState } from "../../proto/gen/embassy/v1/state.ts";
import { SteppedCluster } from "../controllers/testing.ts";
import { aService, aStack, replicas } from "../domain/testing.ts";
import { linesOf } from "./logs.ts";

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
  const agents = { open: () => ({ client: { logs } as unknown as AgentClient, [Symbol.dispose]() {} }) };
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
