import { setTimeout as delay } from "node:timers/promises";
import { call } from "../../lib/grpc/client.ts";
import type { ClusterClient } from "../../proto/gen/embassy/v1/api.ts";
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
    if (tasks.length === 0) return;
    const names = tasks.map(taskName).sort().join(", ");
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

/** How long the scheduler may take to say that a task fits nowhere. */
const placingMs = 2_000;

/** Tasks that fit on no node now, by name, and why: what a drain may leave. Looks again while a service lacks tasks. */
export async function unplacedTasks(
  client: ClusterClient,
  signal: AbortSignal,
): Promise<{ readonly name: string; readonly why: string }[]> {
  const deadlineMs = performance.now() + placingMs;
  const request = { stack: "", service: "", node: "", all: false };
  for (;;) {
    const { services } = await call(client.listServices.bind(client), { stack: "" }, { signal });
    const { tasks } = await call(client.listTasks.bind(client), request, { signal });
    const unplaced = tasks.flatMap((view) =>
      view.task?.unplaced ? [{ name: taskName(view), why: view.task.unplaced }] : [],
    );
    const isComplete = services.every(({ running, desired }) => running >= desired);
    if (unplaced.length > 0 || isComplete || performance.now() > deadlineMs) {
      return unplaced.toSorted((a, b) => a.name.localeCompare(b.name));
    }
    await delay(100, undefined, { signal });
  }
}
