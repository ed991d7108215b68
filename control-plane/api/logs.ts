import { setTimeout as delay } from "node:timers/promises";
import type { ServerWritableStream } from "@grpc/grpc-js";
import { ClusterError, messageOf } from "../../lib/errors/errors.ts";
import { send } from "../../lib/grpc/server.ts";
import { errorOf } from "../../lib/grpc/status.ts";
import { LogChunk, type LogsRequest } from "../../proto/gen/embassy/v1/api.ts";
import { type Task, TaskState } from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { hasEnded, taskName } from "../domain/tasks.ts";
import type { Agents } from "./agents.ts";
import { resolveTasks } from "./resolve.ts";

const firstRetryMs = 250;
const longestRetryMs = 5_000;

/**
 * Lines of the tasks that the target names: by time when they are read to their end, as they come when they are followed.
 * A node that cannot be reached is one warning. Following goes on when
 * the node is back, and with tasks that come later.
 */
export async function streamLogs(
  deps: { readonly index: ClusterIndex; readonly agents: Agents },
  call: ServerWritableStream<LogsRequest, LogChunk>,
  signal: AbortSignal,
): Promise<void> {
  const { index } = deps;
  const request = call.request;
  const silent = new Set<string>();
  const tasks = resolveTasks(index, request.target, false).filter(({ nodeId }) => nodeId !== "");
  if (!request.follow) {
    for await (const chunk of byTime(tasks.map((task) => linesOf(deps, task, request, silent, signal))))
      await send(call, chunk, signal);
    return;
  }
  if (tasks.length === 0) resolveTasks(index, request.target, false);
  const followed = new Set<string>();
  const running = new Set<Promise<void>>();
  const { promise: failed, reject } = Promise.withResolvers<never>();
  const follow = (task: Task) => {
    if (followed.has(task.id)) return;
    followed.add(task.id);
    const pumping = (async () => {
      for await (const chunk of linesOf(deps, task, request, silent, signal)) await send(call, chunk, signal);
    })();
    running.add(pumping);
    pumping.catch(reject).finally(() => running.delete(pumping));
  };
  for (const task of tasks) follow(task);
  const services = new Set(tasks.map(({ serviceId }) => serviceId));
  const onlyOne = index.view.tasks.get(request.target) !== undefined;
  using _ = index.subscribe((changes) => {
    if (onlyOne) return;
    for (const { table, id } of changes) {
      const task = table === "tasks" || table === "taskStatuses" ? index.view.tasks.get(id) : undefined;
      if (task === undefined || task.nodeId === "" || !services.has(task.serviceId)) continue;
      // Its log is there once the node has said something of it.
      if (index.view.taskStatuses.get(id) !== undefined && named(index, request.target, task)) follow(task);
    }
  });
  const { promise: gone, resolve } = Promise.withResolvers<void>();
  signal.addEventListener("abort", () => resolve(), { once: true });
  if (onlyOne) await Promise.race([Promise.all(running), gone, failed]);
  else await Promise.race([gone, failed]);
}

function named(index: ClusterIndex, target: string, task: Task): boolean {
  try {
    return resolveTasks(index, target, false).some(({ id }) => id === task.id);
  } catch {
    return false;
  }
}

/** Where the reading of one task's lines stands. */
interface Position {
  /** Of the last line seen; 0: none yet. */
  timeUs: number;
  /** How many lines of that very time were seen. */
  lines: number;
}

/**
 * The lines of one task, from its node; when that fails one warning, unless the node is among the `silent` already. When they
 * are followed and the stream breaks, it is opened again for as long as task and node are known, after the last line seen.
 */
export async function* linesOf(
  { index, agents }: { readonly index: ClusterIndex; readonly agents: Pick<Agents, "open"> },
  task: Task,
  request: LogsRequest,
  silent: Set<string>,
  signal: AbortSignal,
): AsyncGenerator<LogChunk> {
  const taskId = task.id;
  const name = taskName(index.view, task);
  const nodeName = index.view.nodes.get(task.nodeId)?.name ?? task.nodeId;
  const warn = (warning: string) => LogChunk.create({ taskId, taskName: name, nodeName, warning });
  const openedAtMs = Date.now();
  const seen: Position = { timeUs: 0, lines: 0 };
  const isKnown = () => index.view.nodes.get(task.nodeId) !== undefined && index.view.tasks.get(taskId) !== undefined;
  let delayMs = firstRetryMs;
  let broken = false;
  while (!signal.aborted) {
    try {
      using agent = agents.open(task.nodeId);
      const stream = agent.client.logs({ taskId, ...resumed(request, seen, broken, openedAtMs) });
      const cancel = () => stream.cancel();
      signal.addEventListener("abort", cancel, { once: true });
      try {
        const from = { ...seen };
        let skip = seen.lines;
        let repeats = broken && seen.timeUs > 0;
        for await (const chunk of agent.messages(stream)) {
          if (repeats && chunk.timeUs < from.timeUs) continue;
          if (repeats && chunk.timeUs === from.timeUs && skip-- > 0) continue;
          // Only up to there: a clock that is set back later hides nothing.
          repeats = false;
          // A stream that only repeats what was seen is no sign that the node is back for good.
          silent.delete(task.nodeId);
          delayMs = firstRetryMs;
          seen.lines = chunk.timeUs === seen.timeUs ? seen.lines + 1 : 1;
          seen.timeUs = chunk.timeUs;
          yield { ...chunk, taskId, taskName: name, nodeName };
        }
      } finally {
        signal.removeEventListener("abort", cancel);
        stream.cancel();
      }
      // A node agent that stops in good order ends its streams as if their tasks had ended.
      const state = index.view.taskStatuses.get(taskId)?.state ?? TaskState.TASK_STATE_PENDING;
      if (!request.follow || hasEnded(state) || !isKnown()) return;
    } catch (error) {
      if (signal.aborted) return;
      const why = errorOf(error);
      // A task whose files are gone, or that never started, has no lines: nothing is missing.
      if (why instanceof ClusterError && why.code === "not-found") return;
      if (why.code !== "unavailable") {
        yield warn(`no lines of ${name} from node ${nodeName}: ${messageOf(why)}`);
        return;
      }
      const again = request.follow && isKnown();
      if (!silent.has(task.nodeId)) {
        silent.add(task.nodeId);
        yield warn(`no lines from node ${nodeName}${again ? " for now, trying again" : ""}: ${withHint(why)}`);
      }
      if (!again) return;
    }
    broken = true;
    await delay(delayMs, undefined, { signal }).catch(() => undefined);
    delayMs = Math.min(delayMs * 2, longestRetryMs);
  }
}

const withHint = ({ message, hint }: ClusterError) => (hint === undefined ? message : `${message}. ${hint}`);

/** What to ask for so that nothing after the last line seen is left out; times are whole milliseconds there. */
function resumed({ follow, tail, sinceMs }: LogsRequest, seen: Position, broken: boolean, openedAtMs: number) {
  if (seen.timeUs > 0 && broken) return { follow, tail: -1, sinceMs: Math.floor(seen.timeUs / 1_000) };
  // Only what is new was asked for, and what came during the gap is.
  if (broken && tail === 0) return { follow, tail: -1, sinceMs: Math.max(sinceMs, openedAtMs) };
  return { follow, tail, sinceMs };
}

/** Merges streams that are each in order of time into one that is. */
async function* byTime(streams: readonly AsyncGenerator<LogChunk>[]): AsyncGenerator<LogChunk> {
  const heads = await Promise.all(streams.map(async (stream) => ({ stream, next: await stream.next() })));
  for (;;) {
    let first: (typeof heads)[number] | undefined;
    for (const head of heads) {
      if (head.next.done === true) continue;
      if (first === undefined || first.next.done === true || head.next.value.timeUs < first.next.value.timeUs)
        first = head;
    }
    if (first === undefined || first.next.done === true) return;
    yield first.next.value;
    first.next = await first.stream.next();
  }
}
