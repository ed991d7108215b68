import type { ServerDuplexStream } from "@grpc/grpc-js";
import { ClusterError } from "../../lib/errors/errors.ts";
import { send } from "../../lib/grpc/server.ts";
import type { ExecInput, ExecOutput, ExecStart } from "../../proto/gen/embassy/v1/api.ts";
import type { ExecSession, Runtime } from "../runtime/types.ts";

export interface ExecDeps {
  readonly runtime: Pick<Runtime, "exec">;
  /** Throws unless the task runs here. */
  readonly requireRunning: (taskId: string) => void;
}

type Call = ServerDuplexStream<ExecInput, ExecOutput>;

// What one message carries; a frame of HTTP/2 is smaller still.
const chunkBytes = 64 * 1024;

/**
 * Runs a command in a task's container: the first message says which, those after it are its input; its output comes back
 * as it is written, and its exit code last. A caller that goes away ends the command.
 */
export async function serveExec(deps: ExecDeps, call: Call, signal: AbortSignal): Promise<void> {
  const inputs = call[Symbol.asyncIterator]() as AsyncIterator<ExecInput, undefined, undefined>;
  const first = await inputs.next();
  if (first.done === true || first.value.message?.$case !== "start") {
    throw new ClusterError("the first message of an exec must say what to start", { code: "invalid" });
  }
  const start = first.value.message.value;
  if (start.command.length === 0) throw new ClusterError("there is no command to execute", { code: "invalid" });
  deps.requireRunning(start.target);
  const session = await deps.runtime.exec(start.target, requestOf(start), signal);
  const stop = () => session.kill();
  signal.addEventListener("abort", stop, { once: true });
  try {
    if (!start.stdin) session.stdin.end();
    // Ends with the call: the command does not wait for it.
    void feed(inputs, session, signal).catch(stop);
    const outputs = [
      pour(session.stdout, call, "stdout", signal),
      ...(start.tty ? [] : [pour(session.stderr, call, "stderr", signal)]),
    ];
    const [exit, poured] = await Promise.all([session.exit, Promise.all(outputs)]);
    signal.throwIfAborted();
    // Why the command did not start the runtime may have written among its output by itself.
    if (exit.message !== "" && !poured.some((bytes) => bytes > 0)) {
      const value = Buffer.from(`${exit.message}\n`);
      await send(call, { message: { $case: start.tty ? "stdout" : "stderr", value } }, signal);
    }
    await send(call, { message: { $case: "exitCode", value: exit.exitCode } }, signal);
  } finally {
    signal.removeEventListener("abort", stop);
  }
}

function requestOf(start: ExecStart) {
  const { command, tty, environment, user, workingDir, size } = start;
  return { command, tty, environment, user, workingDir, size };
}

async function feed(
  inputs: AsyncIterator<ExecInput, undefined, undefined>,
  session: ExecSession,
  signal: AbortSignal,
): Promise<void> {
  // The command may close its input, or end, before it has read everything.
  session.stdin.on("error", () => undefined);
  for (let next = await inputs.next(); next.done !== true && !signal.aborted; next = await inputs.next()) {
    const { message } = next.value;
    switch (message?.$case) {
      case "stdin":
        if (!session.stdin.write(message.value)) await flowing(session);
        break;
      case "stdinClosed":
        if (message.value) session.stdin.end();
        break;
      case "resize":
        await session.resize(message.value.rows, message.value.columns);
        break;
      case "start":
      case undefined:
        break;
      default:
        message satisfies never;
    }
  }
  // A caller that says no more has no more input.
  session.stdin.end();
}

/** Resolves when more input may be written, or never will be read. */
async function flowing({ stdin, exit }: ExecSession): Promise<void> {
  const events = ["drain", "close", "error"];
  const { promise, resolve } = Promise.withResolvers<void>();
  for (const event of events) stdin.on(event, resolve);
  await Promise.race([promise, exit]);
  for (const event of events) stdin.removeListener(event, resolve);
}

/** Sends it to its end; how many bytes it was. */
async function pour(
  from: NodeJS.ReadableStream,
  call: Call,
  stream: "stdout" | "stderr",
  signal: AbortSignal,
): Promise<number> {
  let bytes = 0;
  for await (const piece of from) {
    const chunk = typeof piece === "string" ? Buffer.from(piece) : piece;
    for (let at = 0; at < chunk.length; at += chunkBytes) {
      await send(call, { message: { $case: stream, value: chunk.subarray(at, at + chunkBytes) } }, signal);
    }
    bytes += chunk.length;
  }
  return bytes;
}
