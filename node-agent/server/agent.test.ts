import { createServer } from "node:net";
import { connect } from "node:tls";
import { expect, it } from "vitest";
import { channelOptions, clientCredentials } from "../../lib/grpc/client.ts";
import { silentLog } from "../../lib/log/log.ts";
import { Authority, createAuthority } from "../../lib/pki/authority.ts";
import { AgentClient } from "../../proto/gen/embassy/v1/api.ts";
import { AgentServer } from "./agent.ts";

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise<void>((resolve) => server.close(() => resolve()));
  return typeof address === "object" && address !== null ? address.port : 0;
}

it("shows a renewed certificate to whoever connects from then on, and lets calls under way go on", async () => {
  const { certificate, key } = await createAuthority("test", Date.now());
  const authority = await Authority.load(certificate, key);
  const issue = async (role: "node" | "manager") =>
    await authority.issue({ commonName: "aaaaaaaaaaaa", role, nowMs: Date.now() });
  const [old, renewed, manager] = [await issue("node"), await issue("node"), await issue("manager")];
  const port = await freePort();
  const shown = async () =>
    await new Promise<string>((resolve, reject) => {
      const socket = connect({ port, host: "127.0.0.1", ...tls, ALPNProtocols: ["h2"] }, () => {
        resolve(socket.getPeerX509Certificate()?.toString() ?? "");
        socket.destroy();
      });
      socket.on("error", reject);
    });
  const tls = { ca: manager.ca, cert: manager.certificate, key: manager.key, checkServerIdentity: () => undefined };

  await using agent = new AgentServer({
    nodeName: "n",
    listen: { host: "127.0.0.1", port },
    runtime: { exec: async () => await Promise.reject(new Error("not here")), logPath: () => "/nonexistent/log" },
    tasks: { find: () => undefined, mounting: () => [] },
    volumes: {
      list: async () => await Promise.resolve([]),
      sizes: async () => await Promise.resolve({}),
      remove: async () => await Promise.reject(new Error("none")),
    },
    log: silentLog,
  });
  await agent.listen(old);
  const client = new AgentClient(`127.0.0.1:${port}`, clientCredentials(manager, { role: "node" }), channelOptions);
  try {
    const call = client.exec();
    const answered = new Promise<string>((resolve) => call.on("error", (error) => resolve(error.message)));
    call.resume();
    // Its headers come at once: a caller tells an agent that has nothing to send from one that is gone.
    await new Promise((resolve) => call.once("metadata", resolve));
    expect(await shown()).toBe(old.certificate.toString());
    await agent.listen(renewed);
    expect(await shown()).toBe(renewed.certificate.toString());
    // The stream that was opened before is answered over its own connection.
    call.end();
    expect(await answered).toMatch(/first message of an exec/);
  } finally {
    client.close();
  }
});
