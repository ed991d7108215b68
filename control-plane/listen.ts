import { Server, type ServerCredentials } from "@grpc/grpc-js";
import type { Clock } from "../lib/clock/clock.ts";
import { ClusterError, messageOf } from "../lib/errors/errors.ts";

const drainMs = 2_000;

/** A gRPC server with its services registered by `add`, listening. Throws `conflict` when the address is taken. */
export async function serveGrpc(
  listen: string,
  flag: string,
  credentials: ServerCredentials,
  clock: Clock,
  add: (server: Server) => void,
): Promise<AsyncDisposable> {
  const server = new Server({
    "grpc.max_receive_message_length": -1,
    "grpc.max_send_message_length": -1,
    // A node that vanished without a word is let go; a shorter time than the client's would be taken for an attack.
    "grpc.keepalive_time_ms": 10_000,
    "grpc.keepalive_timeout_ms": 5_000,
  });
  add(server);
  await new Promise<void>((resolve, reject) => {
    server.bindAsync(listen, credentials, (cause) => {
      if (cause === null) return resolve();
      const taken = messageOf(cause).includes("EADDRINUSE");
      reject(
        new ClusterError(`cannot listen on ${listen}: ${taken ? "the address is in use" : messageOf(cause)}`, {
          code: taken ? "conflict" : "invalid",
          subject: flag,
          hint: `Stop what listens there (\`ss -ltnp\` shows it), or give ${flag} another address.`,
          cause,
        }),
      );
    });
  });
  return {
    [Symbol.asyncDispose]: async () => {
      const drained = new Promise<void>((resolve) => server.tryShutdown(() => resolve()));
      const cut = new AbortController();
      await Promise.race([drained, clock.sleep(drainMs, cut.signal).catch(() => undefined)]);
      cut.abort();
      server.forceShutdown();
    },
  };
}
