import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { ClusterError, isErrno, messageOf } from "../errors/errors.ts";

export interface StatusDeps {
  /** What /healthz answers (JSON), with 200 or 503. */
  readonly health: () => { readonly healthy: boolean };
  /** What /metrics answers, in Prometheus' text format. */
  readonly metrics: () => string | Promise<string>;
}

/**
 * Serves GET /healthz and /metrics on "HOST:PORT" until it is disposed of. Throws `conflict` when the address is taken,
 * `invalid` when it is not this host's.
 */
export async function serveStatus(listen: string, deps: StatusDeps): Promise<AsyncDisposable> {
  const server = createServer((request, response) => {
    answer(request, response, deps).catch((error: unknown) => {
      response.writeHead(500, { "content-type": "text/plain" }).end(`${messageOf(error)}\n`);
    });
  });
  const colon = listen.lastIndexOf(":");
  await new Promise<void>((resolve, reject) => {
    server.once("error", (cause) =>
      reject(
        new ClusterError(`cannot listen on ${listen}: ${messageOf(cause)}`, {
          code: isErrno(cause, "EADDRINUSE") ? "conflict" : "invalid",
          subject: "--http-listen",
          hint: "Stop what listens there (`ss -ltnp` shows it), or give --http-listen another address.",
          cause,
        }),
      ),
    );
    server.listen({ host: listen.slice(0, colon), port: Number(listen.slice(colon + 1)) }, resolve);
  });
  return {
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}

async function answer(request: IncomingMessage, response: ServerResponse, deps: StatusDeps): Promise<void> {
  const path = request.url?.split("?")[0];
  if (request.method !== "GET") {
    response.writeHead(405).end();
  } else if (path === "/healthz") {
    const health = deps.health();
    const status = health.healthy ? 200 : 503;
    response.writeHead(status, { "content-type": "application/json" }).end(`${JSON.stringify(health)}\n`);
  } else if (path === "/metrics") {
    response.writeHead(200, { "content-type": "text/plain; version=0.0.4" }).end(await deps.metrics());
  } else {
    response.writeHead(404).end("There are /healthz and /metrics.\n");
  }
}
