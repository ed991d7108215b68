import type { ClientReadableStream } from "@grpc/grpc-js";
import { errorOf } from "../lib/grpc/status.ts";

/**
 * The messages of a server's stream. Throws a ClusterError when it fails, the signal's reason when it is aborted. Call it as soon
 * as the stream is open: it fails by itself when its client is closed, also before its reader has begun and after it has ended,
 * and a failure that nobody listens to ends the process.
 */
export function messages<T>(stream: ClientReadableStream<T>, signal: AbortSignal): AsyncGenerator<T> {
  const failures: unknown[] = [];
  stream.on("error", (error) => failures.push(error));
  return read(stream, signal, failures);
}

async function* read<T>(
  stream: ClientReadableStream<T>,
  signal: AbortSignal,
  failures: readonly unknown[],
): AsyncGenerator<T> {
  const stop = () => stream.cancel();
  signal.addEventListener("abort", stop, { once: true });
  try {
    for await (const message of stream) yield message as T;
    // What failed before this began looks like one that has ended.
    if (failures.length > 0) throw failures[0];
  } catch (error) {
    signal.throwIfAborted();
    throw errorOf(error);
  } finally {
    signal.removeEventListener("abort", stop);
    stream.cancel();
  }
}

/** What the streams give, as it comes, each with its stream's number. Throws what the first to fail fails with, and ends the others. */
export async function* merged<T>(streams: readonly AsyncGenerator<T>[]): AsyncGenerator<readonly [T, number]> {
  const pull = (index: number, stream: AsyncGenerator<T>) => stream.next().then((next) => ({ index, stream, next }));
  const heads = new Map(streams.map((stream, index) => [index, pull(index, stream)]));
  try {
    while (heads.size > 0) {
      const { index, stream, next } = await Promise.race(heads.values());
      if (next.done === true) heads.delete(index);
      else {
        yield [next.value, index];
        heads.set(index, pull(index, stream));
      }
    }
  } finally {
    // Not awaited: one that waits for its next message ends with the connection.
    for (const [index, stream] of streams.entries())
      if (heads.has(index)) stream.return(undefined).catch(() => undefined);
    for (const head of heads.values()) head.catch(() => undefined);
  }
}
