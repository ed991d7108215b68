import { chmod, mkdir, rm } from "node:fs/promises";
import { connect } from "node:net";
import { dirname } from "node:path";
import { Server, ServerCredentials } from "@grpc/grpc-js";
import { ClusterError, messageOf } from "../../lib/errors/errors.ts";
import { unary } from "../../lib/grpc/server.ts";
import { NetdService } from "../../proto/gen/embassy/v1/local.ts";
import type { Netd } from "../netd.ts";

/** Attaches that name no deadline give up after this long. */
const defaultWaitMs = 30_000;
/** Before the caller's deadline, so that it hears the cause and not only that time is up. */
const marginMs = 200;

/** Serves the Netd service on a unix socket that only this user may open. Throws `conflict` when another netd serves it. */
export async function serveNetd(netd: Netd, socket: string): Promise<AsyncDisposable> {
  if (await answers(socket)) {
    throw new ClusterError(`another netd serves ${socket}`, {
      code: "conflict",
      subject: socket,
      hint: "Stop it, or name another socket with --socket.",
    });
  }
  const server = new Server({ "grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1 });
  server.addService(NetdService, {
    attach: unary(async (request, call) => {
      const wait = new AbortController();
      const deadline = call.getDeadline();
      const untilMs = deadline instanceof Date ? deadline.getTime() : deadline;
      const waitMs = Number.isFinite(untilMs) ? Math.max(0, untilMs - Date.now() - marginMs) : defaultWaitMs;
      const timer = setTimeout(() => wait.abort(), waitMs);
      call.on("cancelled", () => wait.abort());
      try {
        return await netd.attach(request, wait.signal);
      } finally {
        clearTimeout(timer);
      }
    }),
    detach: unary(async ({ taskId }) => {
      await netd.detach(taskId);
      return {};
    }),
    listAttachments: unary(() => ({ attachments: netd.attachments() })),
    status: unary(() => netd.status()),
    verify: unary(async ({ repair }) => ({
      drifts: (await netd.verify(repair)).map((drift) => ({ ...drift, repaired: repair })),
    })),
  });
  await mkdir(dirname(socket), { recursive: true, mode: 0o755 });
  await rm(socket, { force: true });
  // From its first instant, not only once its mode is set.
  const before = process.umask(0o177);
  try {
    await new Promise<void>((resolve, reject) => {
      server.bindAsync(`unix:${socket}`, ServerCredentials.createInsecure(), (error) => {
        if (error === null) resolve();
        else {
          const message = `cannot listen on ${socket}: ${messageOf(error)}`;
          reject(new ClusterError(message, { code: "unavailable", subject: socket, cause: error }));
        }
      });
    });
  } finally {
    process.umask(before);
  }
  await chmod(socket, 0o600);
  return {
    async [Symbol.asyncDispose]() {
      const { promise, resolve } = Promise.withResolvers<void>();
      server.tryShutdown(() => resolve());
      const timer = setTimeout(() => server.forceShutdown(), 1_000);
      await promise;
      clearTimeout(timer);
      await rm(socket, { force: true });
    },
  };
}

async function answers(socket: string): Promise<boolean> {
  return await new Promise<boolean>((resolve) => {
    const connection = connect(socket);
    connection.once("connect", () => {
      connection.destroy();
      resolve(true);
    });
    connection.once("error", () => resolve(false));
  });
}
