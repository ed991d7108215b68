import { X509Certificate } from "node:crypto";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { Server, ServerCredentials } from "@grpc/grpc-js";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ClusterError } from "../../lib/errors/errors.ts";
import { unary } from "../../lib/grpc/server.ts";
import { lockDirectory } from "../../lib/lock/lock.ts";
import { silentLog } from "../../lib/log/log.ts";
import { Authority, createAuthority } from "../../lib/pki/authority.ts";
import { loadIdentity } from "../../lib/pki/identity.ts";
import { formatToken, newSecret } from "../../lib/pki/token.ts";
import { type EnrollRequest, JoinService } from "../../proto/gen/embassy/v1/dispatcher.ts";
import type { JoinConfig } from "../config.ts";
import { joinCluster } from "./join.ts";
import { identityFiles, readNodeFile, writeNodeFile } from "./node.ts";

let stateDir: string;
beforeEach(async () => {
  stateDir = join(await mkdtemp(join(tmpdir(), "embassy-join-")), "noded");
});
afterEach(async () => {
  await rm(join(stateDir, ".."), { recursive: true });
});

async function newAuthority(): Promise<Authority> {
  const { certificate, key } = await createAuthority("test", Date.now());
  return await Authority.load(certificate, key);
}

const secret = newSecret();

/** Plays the control plane's part of a join, with certificates of one authority. */
async function serve(
  authority: Authority,
): Promise<AsyncDisposable & { readonly port: number; readonly asked: EnrollRequest[] }> {
  const manager = await authority.issue({ commonName: "m1", role: "manager", nowMs: Date.now() });
  const server = new Server();
  const asked: EnrollRequest[] = [];
  server.addService(JoinService, {
    enroll: unary(async (request: EnrollRequest) => {
      asked.push(request);
      if (!request.token.endsWith(secret)) throw new ClusterError("the token is not valid", { code: "denied" });
      const grant = { commonName: "nodeidaaaaaa", role: "node", nowMs: Date.now() } as const;
      return {
        nodeId: "nodeidaaaaaa",
        certificatePem: await authority.sign(request.csrDer, grant),
        caPem: authority.certificate,
        clusterId: "clusteraaaaa",
        managers: ["10.0.0.1:7400"],
      };
    }),
  });
  const chain = Buffer.concat([manager.certificate, manager.ca]);
  const credentials = ServerCredentials.createSsl(null, [{ private_key: manager.key, cert_chain: chain }], false);
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync("127.0.0.1:0", credentials, (error, bound) => (error === null ? resolve(bound) : reject(error))),
  );
  return {
    port,
    asked,
    async [Symbol.asyncDispose]() {
      server.forceShutdown();
      await Promise.resolve();
    },
  };
}

const config = (port: number, token: string): JoinConfig => ({
  command: "join",
  stateDir,
  manager: { host: "127.0.0.1", port },
  token,
  name: "host-1",
  underlay: undefined,
});

describe("joinCluster", () => {
  it("gets a certificate for a key that stays here, and writes who the node is", async () => {
    const authority = await newAuthority();
    await using server = await serve(authority);
    await joinCluster(config(server.port, formatToken({ caFingerprint: authority.fingerprint, secret })), silentLog);
    expect(await readNodeFile(stateDir)).toEqual({
      nodeId: "nodeidaaaaaa",
      name: "host-1",
      clusterId: "clusteraaaaa",
      managers: ["10.0.0.1:7400"],
      underlay: "127.0.0.1",
    });
    const identity = await loadIdentity(identityFiles(stateDir));
    expect(new X509Certificate(identity.certificate).subject).toBe("CN=nodeidaaaaaa\nOU=node");
    expect(server.asked.map(({ nodeName }) => nodeName)).toEqual(["host-1"]);
  });

  it("refuses to join twice, and changes nothing", async () => {
    const authority = await newAuthority();
    await using server = await serve(authority);
    const joined = config(server.port, formatToken({ caFingerprint: authority.fingerprint, secret }));
    await joinCluster(joined, silentLog);
    const key = await readFile(identityFiles(stateDir).key);
    await expect(joinCluster({ ...joined, name: "host-2" }, silentLog)).rejects.toMatchObject({
      code: "conflict",
      message: "this host is node host-1 (nodeidaaaaaa) of cluster clusteraaaaa already",
    });
    expect(await readFile(identityFiles(stateDir).key)).toEqual(key);
    expect(server.asked).toHaveLength(1);
  });

  it("joins again once the node was removed and its tasks are stopped, and keeps volumes and images", async () => {
    const authority = await newAuthority();
    await using server = await serve(authority);
    const joined = config(server.port, formatToken({ caFingerprint: authority.fingerprint, secret }));
    const before = await joinCluster(joined, silentLog);
    const data = join(stateDir, "volumes/s_db/_data/rows");
    await mkdir(dirname(data), { recursive: true });
    await writeFile(data, "kept");
    const old = { ...before, nodeId: "oldnodeaaaaa" };
    await writeNodeFile(stateDir, { ...old, removed: "stopping" });
    await expect(joinCluster(joined, silentLog)).rejects.toMatchObject({
      code: "conflict",
      message: "this host was node host-1 (oldnodeaaaaa) of cluster clusteraaaaa, and its tasks are not stopped yet",
    });
    await writeNodeFile(stateDir, { ...old, removed: "done" });
    {
      await using _ = await lockDirectory(stateDir, "noded");
      await expect(joinCluster(joined, silentLog)).rejects.toMatchObject({ code: "conflict", subject: stateDir });
    }
    const key = await readFile(identityFiles(stateDir).key);
    await joinCluster({ ...joined, name: "host-2" }, silentLog);
    expect(await readNodeFile(stateDir)).toEqual({ ...before, name: "host-2" });
    expect(await readFile(identityFiles(stateDir).key)).not.toEqual(key);
    expect(await readFile(data, "utf8")).toBe("kept");
  });

  it("says nothing to a control plane of another CA, and writes nothing", async () => {
    const stranger = await newAuthority();
    const authority = await newAuthority();
    await using server = await serve(stranger);
    const token = formatToken({ caFingerprint: authority.fingerprint, secret });
    await expect(joinCluster(config(server.port, token), silentLog)).rejects.toMatchObject({ code: "denied" });
    expect(server.asked).toEqual([]);
    await expect(readdir(stateDir)).rejects.toMatchObject({ code: "ENOENT" });
  });

  it("tells a refused token, a malformed one and a silent address", async () => {
    const authority = await newAuthority();
    await using server = await serve(authority);
    const refused = formatToken({ caFingerprint: authority.fingerprint, secret: newSecret() });
    await expect(joinCluster(config(server.port, refused), silentLog)).rejects.toMatchObject({
      code: "denied",
      message: "the token is not valid",
    });
    await expect(joinCluster(config(server.port, "token"), silentLog)).rejects.toMatchObject({ code: "invalid" });
    const { port } = server;
    await server[Symbol.asyncDispose]();
    await expect(joinCluster(config(port, refused), silentLog)).rejects.toMatchObject({ code: "unavailable" });
    await expect(readdir(stateDir)).rejects.toMatchObject({ code: "ENOENT" });
  });
});
