import type { ServerWritableStream } from "@grpc/grpc-js";
import { send } from "../../lib/grpc/server.ts";
import { type AgentLogsRequest, type LogBatch, LogChunk, LogReading } from "../../proto/gen/embassy/v1/api.ts";
import { type LogPlace, readLog } from "./read.ts";

export interface ServedLog {
  readonly path: string;
  readonly taskName: string;
  /** Aborted once the log will not grow any more. */
  readonly ended: AbortSignal;
}

/** Sends a task's lines, as many at once as are read at once, as fast as they are taken; first of all a mark that says where they begin. */
export async function serveLogs(
  log: ServedLog,
  nodeName: string,
  call: ServerWritableStream<AgentLogsRequest, LogBatch>,
  signal: AbortSignal,
): Promise<void> {
  const { taskId, follow, tail, sinceMs, from } = call.request;
  const blank = LogChunk.create({ taskId, taskName: log.taskName, nodeName });
  const one = (more: Partial<LogChunk>): LogBatch => ({ chunks: [{ ...blank, ...more }] });
  const positionAt = ({ file, offset, skip }: LogPlace) =>
    follow ? { taskId, state: LogReading.LOG_READING_UNDER_WAY, file, offset, skip } : undefined;
  const lines = readLog({
    path: log.path,
    tail,
    sinceUs: sinceMs * 1_000,
    from,
    follow: follow ? log.ended : undefined,
    signal,
    onStart: async (start) => {
      await send(call, one({ mark: true, lines: start.lines, position: positionAt(start) }), signal);
      if (!start.lost) return;
      const warning = `lines of ${log.taskName} may be missing or come twice: its log was rotated meanwhile`;
      await send(call, one({ warning }), signal);
    },
  });
  const unnamed = LogChunk.create();
  for await (const read of lines) {
    const last = read.length - 1;
    const chunks = read.map(({ timeUs, stderr, text, partial, next }, n) => ({
      ...(n === 0 ? blank : unnamed),
      timeUs,
      stderr,
      line: text,
      partial,
      position: n === last ? positionAt(next) : undefined,
    }));
    await send(call, { chunks }, signal);
  }
}
