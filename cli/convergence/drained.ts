import { setTimeout as delay } from "node:timers/promises";
import { call } from "../../lib/grpc/client.ts";
import type { ClusterClient, TaskView } from "../../proto/gen/embassy/v1/api.ts";
import { TaskState } from "../../proto/gen/embassy/v1/state.ts";
import { CommandFailure, exitCodes } from "../exit.ts";
import { taskName } from "../names.ts";
import { formatSeconds } from "../render/format.ts";
import { Progress } from "../render/progress.ts";
import type { Screen } from "../render/style.ts";

/** Waits until no task runs on the node. Throws CommandFailure with exit code 4, naming those left, when the time is over. */
export async function untilDrained(
  client: ClusterClient,
  node: string,
  options: { readonly timeoutMs: number; readonly screen: Screen; readonly signal: AbortSignal },
): Promise<void> {
  const { timeoutMs, screen, signal } = options;
  const deadlineMs = performance.now() + timeoutMs;
  const progress = new Progress(screen);
  const request = { stack: "", service: "", node, all: false };
  for (;;) {
    const { tasks } = await call(client.listTasks.bind(client), request, { signal });
    const left = tasks.filter((view) => !hasEnded(view));
    if (left.length === 0) return;
    const names = left.map(taskName).sort().join(", ");
    if (performance.now() > deadlineMs) {
      throw new CommandFailure(`${node} still runs ${names} after ${formatSeconds(timeoutMs)}`, exitCodes.timeout, {
        hint: "The cluster goes on moving them: `clusterctl ps --node` shows what is left.",
      });
    }
    progress.show(new Map([[node, `${node} runs ${names}`]]));
    // A node's tasks have no watch of their own.
    await delay(100, undefined, { signal });
  }
}

function hasEnded({ status }: TaskView): boolean {
  return (status?.state ?? TaskState.TASK_STATE_PENDING) >= TaskState.TASK_STATE_COMPLETE;
}

/** How long the scheduler may take to say that a task fits nowhere. */
const placingMs = 2_000;

/**
 * Successors of the node's tasks that fit on no node now, by name, and why: what its drain left. Looks again while one has
 * neither a place nor a reason.
 */
export async function unplacedTasks(
  client: ClusterClient,
  node: string,
  signal: AbortSignal,
): Promise<{ readonly name: string; readonly why: string }[]> {
  const deadlineMs = performance.now() + placingMs;
  const list = async (request: { node: string; all: boolean }) =>
    (await call(client.listTasks.bind(client), { stack: "", service: "", ...request }, { signal })).tasks;
  const left = new Set((await list({ node, all: true })).map(({ task }) => task?.id ?? ""));
  for (;;) {
    const waiting = (await list({ node: "", all: false })).filter(
      ({ task }) => task !== undefined && task.nodeId === "" && left.has(task.replaces),
    );
    if (waiting.every(({ task }) => task?.unplaced) || performance.now() > deadlineMs) {
      const unplaced = waiting.flatMap((view) =>
        view.task?.unplaced ? [{ name: taskName(view), why: view.task.unplaced }] : [],
      );
      return unplaced.toSorted((a, b) => a.name.localeCompare(b.name));
    }
    await delay(100, undefined, { signal });
  }
}
