import { setTimeout as delay } from "node:timers/promises";
import { call } from "../../lib/grpc/client.ts";
import type { ClusterClient, TaskView } from "../../proto/gen/embassy/v1/api.ts";
import { NodeState, TaskState } from "../../proto/gen/embassy/v1/state.ts";
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
    const kept = keptWords(left);
    if (performance.now() > deadlineMs) {
      const out = `\`clusterctl node drain --force ${node}\` moves or stops them all the same, and so does a deploy with a lower x-disruption.min_available.`;
      throw new CommandFailure(
        `${node} still runs ${names} after ${formatSeconds(timeoutMs)}${kept}`,
        exitCodes.timeout,
        {
          hint: `The cluster goes on moving them: \`clusterctl ps --node ${node}\` shows what is left.${kept === "" ? "" : ` ${out}`}`,
        },
      );
    }
    progress.show(new Map([[node, `${node} runs ${names}${kept}`]]));
    // A node's tasks have no watch of their own.
    await delay(100, undefined, { signal });
  }
}

/** "; shop_web.1 goes on: shop_web has to keep 2 up (x-disruption.min_available), and has 2". "": nothing is kept. */
function keptWords(left: readonly TaskView[]): string {
  const byReason = Map.groupBy(
    left.filter(({ kept }) => kept !== ""),
    ({ kept }) => kept,
  );
  return [...byReason]
    .map(([why, tasks]) => {
      const names = tasks.map(taskName).sort();
      return `; ${names.join(", ")} ${names.length === 1 ? "goes" : "go"} on: ${why}`;
    })
    .join("");
}

function hasEnded({ status }: TaskView): boolean {
  return (status?.state ?? TaskState.TASK_STATE_PENDING) >= TaskState.TASK_STATE_COMPLETE;
}

/**
 * Of a node that is down: which of its tasks that were given up are replaced elsewhere, sorted ("shop_web.1 on host-2"). Whether
 * they still run there, nobody can tell. Undefined: the node is not down, and what its tasks are is known.
 */
export async function replacedOfDown(
  client: ClusterClient,
  node: string,
  signal: AbortSignal,
): Promise<string[] | undefined> {
  const { nodes } = await call(client.listNodes.bind(client), {}, { signal });
  const named = nodes.find(({ spec }) => spec?.name === node) ?? nodes.find(({ spec }) => spec?.id.startsWith(node));
  if (named?.status?.state !== NodeState.NODE_STATE_DOWN) return undefined;
  const list = async (request: { node: string; all: boolean }) =>
    (await call(client.listTasks.bind(client), { stack: "", service: "", ...request }, { signal })).tasks;
  // What takes the place of a lost task is of the same name, and does not say what it replaces: that has not ended by itself.
  const epochs = new Map<string, number>();
  for (const view of await list({ node, all: true })) {
    if (view.status?.state !== TaskState.TASK_STATE_ORPHANED) continue;
    epochs.set(taskName(view), Math.max(epochs.get(taskName(view)) ?? 0, view.task?.epoch ?? 0));
  }
  const deadlineMs = performance.now() + placingMs;
  for (;;) {
    const successors = (await list({ node: "", all: false })).filter(
      (view) => (view.task?.epoch ?? 0) > (epochs.get(taskName(view)) ?? Number.POSITIVE_INFINITY),
    );
    const isSettled = successors.every(({ task, nodeName }) => nodeName !== "" || task?.unplaced);
    if (!isSettled && performance.now() < deadlineMs) {
      await delay(100, undefined, { signal });
      continue;
    }
    return successors
      .filter(({ nodeName }) => nodeName !== "")
      .map((view) => `${taskName(view)} on ${view.nodeName}`)
      .toSorted((x, y) => x.localeCompare(y, "en", { numeric: true }));
  }
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
