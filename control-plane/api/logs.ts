import { setTimeout as delay } from "node:timers/promises";
import type { ServerWritableStream } from "@grpc/grpc-js";
import { ClusterError, messageOf } from "../../lib/errors/errors.ts";
import { send } from "../../lib/grpc/server.ts";
import { errorOf } from "../../lib/grpc/status.ts";
import { chunksOf, mergedByTime } from "../../lib/logs/batches.ts";
import { type LogBatch, LogChunk, LogPosition, LogReading, type LogsRequest } from "../../proto/gen/embassy/v1/api.ts";
import { type Task, TaskState } from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { hasEnded, taskName } from "../domain/tasks.ts";
import type { Agents } from "./agents.ts";
import { resolveTasks } from "./resolve.ts";

const firstRetryMs = 250;
const longestRetryMs = 5_000;

/** Of whose lines a call is, and from where. */
type Request = Pick<LogsRequest, "follow" | "tail" | "sinceMs">;

interface LogsDeps {
  readonly index: ClusterIndex;
  readonly agents: Pick<Agents, "open">;
}

/**
 * Lines of the tasks that the target names: by time when they are read to their end, as they come when they are followed.
 * A node that cannot be reached is one warning. Following goes on when the node is back, and with tasks that come later; each
 * chunk says where its task's log stands, so that another call can go on there.
 */
export async function streamLogs(
  deps: LogsDeps,
  call: ServerWritableStream<LogsRequest, LogBatch>,
  signal: AbortSignal,
): Promise<void> {
  const { index } = deps;
  const { request } = call;
  const silent = new Set<string>();
  const tasks = resolveTasks(index, request.target).filter(({ nodeId }) => nodeId !== "");
  if (request.follow) {
    await followLogs(deps, tasks, call, silent, signal);
    return;
  }
  const slots = bySlot(index, tasks);
  const streams = await Promise.all(slots.map((slot) => tailsOf(deps, slot, request, silent, signal)));
  for await (const chunks of byTime(streams.flat())) await send(call, { chunks }, signal);
}

async function followLogs(
  deps: LogsDeps,
  tasks: readonly Task[],
  call: ServerWritableStream<LogsRequest, LogBatch>,
  silent: Set<string>,
  signal: AbortSignal,
): Promise<void> {
  const { index } = deps;
  const { request } = call;
  const followed = new Set<string>();
  const running = new Set<Promise<void>>();
  const { promise: failed, reject } = Promise.withResolvers<never>();
  const pump = async (batches: AsyncGenerator<LogChunk[]>) => {
    for await (const chunks of batches) await send(call, { chunks }, signal);
  };
  const run = (work: Promise<void>) => {
    running.add(work);
    work.catch(reject).finally(() => running.delete(work));
  };
  const follow = (task: Task, from: Request, position?: LogPosition) => {
    if (followed.has(task.id)) return;
    followed.add(task.id);
    run(pump(linesOf(deps, task, from, silent, signal, position)));
  };
  // One that comes later is read from its beginning, however few lines were asked of those that were there.
  const whole: Request = { follow: true, tail: -1, sinceMs: request.sinceMs };
  const onlyOne = index.view.tasks.get(request.target) !== undefined;
  using _ = index.subscribe((changes) => {
    if (onlyOne) return;
    for (const { table, id } of changes) {
      const task = table === "tasks" || table === "taskStatuses" ? index.view.tasks.get(id) : undefined;
      if (task === undefined || task.nodeId === "" || followed.has(id) || !mayName(request.target, task)) continue;
      // Its log is there once the node has said something of it.
      if (index.view.taskStatuses.get(id) !== undefined && named(index, request.target, task)) follow(task, whole);
    }
  });
  if (request.resume === undefined) {
    for (const { id: taskId } of tasks) {
      followed.add(taskId);
      // The caller knows of it from now on, though its node may be away for long.
      const chunk = LogChunk.create({ taskId, mark: true, position: LogPosition.create({ taskId }) });
      await send(call, { chunks: [chunk] }, signal);
    }
    for (const slot of bySlot(index, tasks)) {
      run(
        (async () => {
          const streams = await tailsOf(deps, slot, request, silent, signal);
          await Promise.all(streams.map(pump));
        })(),
      );
    }
  } else {
    const positions = new Map(request.resume.tasks.map((position) => [position.taskId, position]));
    for (const { id } of tasks) if (hasBeenRead(positions.get(id))) followed.add(id);
    for (const task of tasks) {
      const position = positions.get(task.id);
      follow(task, position === undefined ? whole : request, position);
    }
    for (const [taskId, position] of positions) {
      if (hasBeenRead(position) || index.view.tasks.get(taskId) !== undefined) continue;
      const warning = `the last lines of task ${taskId} may be missing: it ended meanwhile and is forgotten`;
      const chunk = LogChunk.create({ taskId, warning, position: endOf(taskId) });
      await send(call, { chunks: [chunk] }, signal);
    }
  }
  const { promise: gone, resolve } = Promise.withResolvers<void>();
  signal.addEventListener("abort", () => resolve(), { once: true });
  if (onlyOne) await Promise.race([Promise.all(running), gone, failed]);
  else await Promise.race([gone, failed]);
}

const hasBeenRead = (position: LogPosition | undefined) => position?.state === LogReading.LOG_READING_ENDED;
const endOf = (taskId: string) => LogPosition.create({ taskId, state: LogReading.LOG_READING_ENDED });

/** The tasks of each slot, the newest first. */
function bySlot(index: ClusterIndex, tasks: readonly Task[]): Task[][] {
  const groups = Map.groupBy(tasks, (task) => `${task.serviceId} ${taskName(index.view, task)}`);
  return [...groups.values()].map((slot) => slot.toSorted((a, b) => b.epoch - a.epoch));
}

/**
 * The lines of a slot's tasks, of each task in a stream of its own, the oldest task first. The tail counts for the slot: what
 * its newest task has not, those before it fill up. So one is asked after the other, and only then read.
 */
async function tailsOf(
  deps: LogsDeps,
  newestFirst: readonly Task[],
  request: Request,
  silent: Set<string>,
  signal: AbortSignal,
): Promise<AsyncGenerator<LogChunk[]>[]> {
  const streams: AsyncGenerator<LogChunk[]>[] = [];
  let left = request.tail;
  for (const task of newestFirst) {
    const lines = linesOf(deps, task, { ...request, tail: left }, silent, signal);
    if (left < 0) {
      streams.unshift(lines);
      continue;
    }
    const first = await lines.next();
    if (first.done !== true) {
      streams.unshift(startingWith(first.value, lines));
      left = Math.max(0, left - (first.value[0]?.lines ?? 0));
    }
  }
  return streams;
}

async function* startingWith<T>(first: T, rest: AsyncGenerator<T>): AsyncGenerator<T> {
  yield first;
  yield* rest;
}

/** May the target name the task? Cheap, for each change of the cluster; `named` is right. */
function mayName(target: string, { stack, serviceId, serviceName }: Task): boolean {
  const names = [stack, serviceId, serviceName, `${stack}_${serviceName}`];
  return names.some((name) => target === name || target.startsWith(`${name}.`));
}

function named(index: ClusterIndex, target: string, task: Task): boolean {
  try {
    return resolveTasks(index, target).some(({ id }) => id === task.id);
  } catch {
    return false;
  }
}

/**
 * The lines of one task, from its node; when that fails one warning, unless the node is among the `silent` already. When they
 * are followed and the stream breaks, it is opened again for as long as task and node are known, and goes on at the position of
 * the last chunk; the last one of all is a mark that says that no more will come. In each array the first chunk has the names.
 */
export async function* linesOf(
  { index, agents }: LogsDeps,
  task: Task,
  { follow, tail, sinceMs }: Request,
  silent: Set<string>,
  signal: AbortSignal,
  from?: LogPosition,
): AsyncGenerator<LogChunk[]> {
  const taskId = task.id;
  const name = taskName(index.view, task);
  const nodeName = index.view.nodes.get(task.nodeId)?.name ?? task.nodeId;
  let position = follow ? (from ?? LogPosition.create({ taskId })) : undefined;
  const told = (more: Partial<LogChunk>) => [LogChunk.create({ taskId, taskName: name, nodeName, position, ...more })];
  const isKnown = () => index.view.nodes.get(task.nodeId) !== undefined && index.view.tasks.get(taskId) !== undefined;
  const reported = () => index.view.taskStatuses.get(taskId)?.state ?? TaskState.TASK_STATE_PENDING;
  const isOver = () => !follow || !isKnown() || hasEnded(reported());
  let delayMs = firstRetryMs;
  while (!signal.aborted) {
    try {
      using agent = agents.open(task.nodeId);
      const isUnderWay = position?.state === LogReading.LOG_READING_UNDER_WAY;
      const stream = agent.client.logs({ taskId, follow, tail, sinceMs, from: isUnderWay ? position : undefined });
      const cancel = () => stream.cancel();
      signal.addEventListener("abort", cancel, { once: true });
      try {
        for await (const { chunks } of agent.messages(stream)) {
          const [first, last] = [chunks[0], chunks.at(-1)];
          if (first === undefined || last === undefined) continue;
          // That a node answers is no sign yet that it is back for good.
          if (!last.mark) {
            silent.delete(task.nodeId);
            delayMs = firstRetryMs;
          }
          position = last.position ?? position;
          last.position = position;
          Object.assign(first, { taskId, taskName: name, nodeName });
          yield chunks;
        }
      } finally {
        signal.removeEventListener("abort", cancel);
        stream.cancel();
      }
      // A node agent that stops in good order ends its streams as if their tasks had ended.
      if (isOver()) break;
    } catch (error) {
      if (signal.aborted) return;
      const why = errorOf(error);
      if (why instanceof ClusterError && why.code === "not-found") {
        // One whose files are gone, or that never started, has no lines: nothing is missing. Another is on its way to the node.
        if (isOver()) break;
      } else if (why.code !== "unavailable") {
        yield told({ warning: `no lines of ${name} from node ${nodeName}: ${messageOf(why)}` });
        break;
      } else {
        const again = follow && isKnown();
        if (!silent.has(task.nodeId)) {
          silent.add(task.nodeId);
          yield told({ warning: `lines are missing${again ? " for now, trying again" : ""}: ${withHint(why)}` });
        }
        if (!again) break;
      }
    }
    await delay(delayMs, undefined, { signal }).catch(() => undefined);
    delayMs = Math.min(delayMs * 2, longestRetryMs);
  }
  if (follow && !signal.aborted) yield told({ mark: true, position: endOf(taskId) });
}

const withHint = ({ message, hint }: ClusterError) => (hint === undefined ? message : `${message}. ${hint}`);

/** About as many as a message of 64 KiB has. */
const mostTogether = 512;

/** What the streams give, without marks, in order of time: batches in which each chunk without names is of the task before it. */
async function* byTime(streams: readonly AsyncGenerator<LogChunk[]>[]): AsyncGenerator<LogChunk[]> {
  const named = streams.map(withoutMarks);
  for await (const runs of mergedByTime(named, ({ timeUs }) => timeUs, mostTogether)) {
    let chunks: LogChunk[] = [];
    let bytes = 0;
    let last = -1;
    for (const { items, stream } of runs) {
      for (const chunk of items) {
        // Those of other tasks stand between them now, or none any more.
        if (stream === last && chunks.length > 0) Object.assign(chunk, unnamed);
        last = stream;
        chunks.push(chunk);
        bytes += chunk.line.length;
        if (bytes < batchBytes) continue;
        yield chunks;
        chunks = [];
        bytes = 0;
      }
    }
    if (chunks.length > 0) yield chunks;
  }
}

const batchBytes = 64 * 1024;
const unnamed = { taskId: "", taskName: "", nodeName: "" };

/** The stream's chunks but for marks, each with its names. */
async function* withoutMarks(batches: AsyncGenerator<LogChunk[]>): AsyncGenerator<LogChunk[]> {
  for await (const chunks of batches) yield chunksOf({ chunks }).filter(({ mark }) => !mark);
}
