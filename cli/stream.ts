import type { ClientReadableStream } from "@grpc/grpc-js";
import { errorOf } from "../lib/grpc/status.ts";

/** The messages of a server's stream. Throws a ClusterError when it fails, the signal's reason when it is aborted. */
export async function* messages<T>(stream: ClientReadableStream<T>, signal: AbortSignal): AsyncGenerator<T> {
  const stop = () => stream.cancel();
  signal.addEventListener("abort", stop, { once: true });
  try {
    for await (const message of stream) yield message as T;
  } catch (error) {
    signal.throwIfAborted();
    throw errorOf(error);
  } finally {
    signal.removeEventListener("abort", stop);
    stream.cancel();
  }
}
