import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Server, ServerCredentials } from "@grpc/grpc-js";
import { expect, it } from "vitest";
import { ClusterError } from "../../lib/errors/errors.ts";
import { unary } from "../../lib/grpc/server.ts";
import { AttachRequest, NetdService } from "../../proto/gen/embassy/v1/local.ts";
import { Netd } from "./client.ts";

it("says that netd is not there, and passes on what it says when it is", async () => {
  const directory = await mkdtemp(join(tmpdir(), "embassy-netd-"));
  const socket = join(directory, "netd.sock");
  const full = () => {
    throw new ClusterError("no address is free in 10.0.0.0/27", { code: "exhausted", hint: "Wait." });
  };
  const server = new Server();
  server.addService(NetdService, {
    attach: unary(full),
    detach: unary(full),
    listAttachments: unary(full),
    status: unary(full),
    verify: unary(full),
  });
  try {
    using away = new Netd(join(directory, "none.sock"));
    const { signal } = new AbortController();
    await expect(away.list()).rejects.toMatchObject({
      code: "unavailable",
      message: "waits for the network: netd is not there",
    });
    await new Promise<void>((resolve, reject) =>
      server.bindAsync(`unix:${socket}`, ServerCredentials.createInsecure(), (error) =>
        error === null ? resolve() : reject(error),
      ),
    );
    using netd = new Netd(socket);
    await expect(netd.attach(AttachRequest.create({ taskId: "a" }), signal)).rejects.toMatchObject({
      code: "exhausted",
      message: "no address is free in 10.0.0.0/27",
      hint: "Wait.",
    });
  } finally {
    server.forceShutdown();
    await rm(directory, { recursive: true });
  }
});
