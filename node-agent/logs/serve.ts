import type { ServerWritableStream } from "@grpc/grpc-js";
import { send } from "../../lib/grpc/server.ts";
import type { AgentLogsRequest, LogChunk } from "../../proto/gen/embassy/v1/api.ts";
import { readLog } from "./read.ts";

export interface ServedLog {
  readonly path: string;
  readonly taskName: string;
  /** Aborted once the log will not grow any more. */
  readonly ended: AbortSignal;
}

/** Sends a task's lines, one a chunk, as fast as they are taken. */
export async function serveLogs(
  log: ServedLog,
  nodeName: string,
  call: ServerWritableStream<AgentLogsRequest, LogChunk>,
  signal: AbortSignal,
): Promise<void> {
  const { taskId, follow, tail, sinceMs } = call.request;
  const lines = readLog({
    path: log.path,
    tail,
    sinceUs: sinceMs * 1_000,
    follow: follow ? log.ended : undefined,
    signal,
  });
  for await (const { timeUs, stderr, text, partial } of lines) {
    const chunk = { taskId, taskName: log.taskName, nodeName, timeUs, stderr, line: text, partial, warning: "" };
    await send(call, chunk, signal);
  }
}
