import type { ServerDuplexStream } from "@grpc/grpc-js";
import { ClusterError } from "../../lib/errors/errors.ts";
import { send } from "../../lib/grpc/server.ts";
import type { ExecInput, ExecOutput } from "../../proto/gen/embassy/v1/api.ts";
import { type Task, TaskState } from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { observedState, taskName } from "../domain/tasks.ts";
import type { Agents } from "./agents.ts";
import { resolveTasks } from "./resolve.ts";

/** The task that a command is to run in: the one running task that the target names. */
function targetOf(index: ClusterIndex, target: string): Task {
  const tasks = resolveTasks(index, target, true);
  const running = tasks.filter((task) => observedState(index.view, task) === TaskState.TASK_STATE_RUNNING);
  const [only] = running;
  if (only !== undefined && running.length === 1) return only;
  const names = running.map((task) => taskName(index.view, task));
  if (names.length > 1) {
    throw new ClusterError(`${target} has ${names.length} running tasks`, {
      code: "invalid",
      subject: target,
      hint: `Say which: ${names.slice(0, 8).join(", ")}.`,
    });
  }
  throw new ClusterError(`no task of ${target} is running`, {
    code: "not-found",
    subject: target,
    hint: "`clusterctl ps --all` shows its tasks and what became of them.",
  });
}

/** Carries one exec between the caller and the node's agent, both ways at the speed of the slower. */
export async function proxyExec(
  { index, agents }: { readonly index: ClusterIndex; readonly agents: Agents },
  call: ServerDuplexStream<ExecInput, ExecOutput>,
  signal: AbortSignal,
): Promise<void> {
  const input = call[Symbol.asyncIterator]() as AsyncIterator<ExecInput>;
  const first = await input.next();
  const message = first.done === true ? undefined : first.value.message;
  if (message?.$case !== "start") {
    throw new ClusterError("the first message of an exec says what to run", { code: "invalid" });
  }
  const task = targetOf(index, message.value.target);
  using agent = agents.open(task.nodeId);
  const upstream = agent.client.exec();
  const cancel = () => upstream.cancel();
  signal.addEventListener("abort", cancel, { once: true });
  const forward = async () => {
    await send(upstream, { message: { $case: "start", value: { ...message.value, target: task.id } } }, signal);
    for (;;) {
      const next = await input.next();
      if (next.done === true) break;
      await send(upstream, next.value, signal);
    }
    upstream.end();
  };
  // The end of the command is the end of the call; input that comes later has nobody to read it.
  forward().catch(() => upstream.cancel());
  try {
    for await (const output of agent.messages<ExecOutput>(upstream)) await send(call, output, signal);
  } catch (error) {
    signal.throwIfAborted();
    throw error;
  } finally {
    signal.removeEventListener("abort", cancel);
  }
}
