import { setTimeout as delay } from "node:timers/promises";
import type { ClientReadableStream } from "@grpc/grpc-js";
import { hasCode } from "../lib/errors/errors.ts";
import { unansweredStatus } from "../lib/grpc/status.ts";
import { chunksOf } from "../lib/logs/batches.ts";
import {
  type LogBatch,
  type LogChunk,
  type LogPosition,
  LogReading,
  type LogsResumption,
} from "../proto/gen/embassy/v1/api.ts";
import { messages } from "./stream.ts";

const firstRetryMs = 100;
const longestRetryMs = 2_000;

/** Tells of outages, each once, however many streams it breaks: that it began, and that the last stream is back. */
export class Outages {
  readonly #say: (text: string) => void;
  #broken = 0;

  constructor(say: (text: string) => void) {
    this.#say = say;
  }

  broke(): void {
    if (this.#broken++ === 0) this.#say("the connection to the cluster broke off, trying again");
  }

  back(): void {
    if (--this.#broken === 0) this.#say("connected again: the log goes on with the next line");
  }
}

/**
 * The chunks of a followed log as they come, without marks, until all its tasks have ended and are read. A call that breaks off is made again
 * for as long as the signal is not aborted, behind the last chunk of each task. Throws what the first call fails with, and what the cluster answers a later one with.
 */
export async function* followed(
  call: (resume: LogsResumption | undefined) => ClientReadableStream<LogBatch>,
  outages: Outages,
  signal: AbortSignal,
): AsyncGenerator<LogChunk[]> {
  const positions = new Map<string, LogPosition>();
  let wasAnswered = false;
  let isBroken = false;
  for (let delayMs = firstRetryMs; ; delayMs = Math.min(delayMs * 2, longestRetryMs)) {
    try {
      const resume = wasAnswered ? { tasks: [...positions.values()] } : undefined;
      const stream = call(resume);
      stream.once("metadata", () => {
        wasAnswered = true;
        delayMs = firstRetryMs;
        if (isBroken) outages.back();
        isBroken = false;
      });
      for await (const batch of messages(stream, signal)) {
        const chunks = chunksOf(batch);
        yield chunks.filter(({ mark }) => !mark);
        for (const { taskId, position } of chunks) if (position !== undefined) positions.set(taskId, position);
      }
      // A member of the control plane that stops in good order may end the call as if nothing more were to come.
      const isRead = [...positions.values()].every(({ state }) => state === LogReading.LOG_READING_ENDED);
      if (positions.size > 0 && isRead) return;
    } catch (error) {
      if (!wasAnswered || !hasCode(error, "unavailable") || unansweredStatus(error) === undefined) throw error;
    }
    if (!isBroken) outages.broke();
    isBroken = true;
    await delay(delayMs, undefined, { signal }).catch(() => signal.throwIfAborted());
  }
}
