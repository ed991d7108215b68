import { EventEmitter, once } from "node:events";
import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect } from "node:tls";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { systemClock } from "../../lib/clock/clock.ts";
import { call, channelOptions } from "../../lib/grpc/client.ts";
import { silentLog } from "../../lib/log/log.ts";
import { Authority, createAuthority } from "../../lib/pki/authority.ts";
import { fingerprintOf, readCertificate } from "../../lib/pki/certificate.ts";
import { createCsr } from "../../lib/pki/csr.ts";
import { loadIdentity } from "../../lib/pki/identity.ts";
import { fetchPinnedCa, joinCredentials } from "../../lib/pki/pin.ts";
import { formatToken, newSecret, parseToken } from "../../lib/pki/token.ts";
import {
  type EnrollRequest,
  type EnrollResponse,
  JoinClient,
  JoinService,
} from "../../proto/gen/embassy/v1/dispatcher.ts";
import { Availability, NodeSession } from "../../proto/gen/embassy/v1/state.ts";
import { serveGrpc } from "../listen.ts";
import { freePort } from "../store/etcd.testing.ts";
import { createMemoryStore } from "../store/memory.ts";
import { member } from "../store/testing.ts";
import { MemberCertificates } from "./certificates.ts";
import { initCluster, loadAuthority } from "./init.ts";
import { Join, renewCertificate } from "./join.ts";
import { readClusterFile, stateFiles } from "./state-dir.ts";
import { createToken } from "./tokens.ts";

const hourMs = 60 * 60 * 1000;

async function cluster() {
  const time = { nowMs: Date.UTC(2030, 0, 1) };
  const clock = { nowMs: () => time.nowMs };
  const pair = await createAuthority("embassy test", time.nowMs);
  const authority = await Authority.load(pair.certificate, pair.key);
  const store = createMemoryStore();
  const deps = { store, authority, clusterId: "cccccccccccc", advertise: "m1:7400", clock, log: silentLog };
  const tokens = { store, caFingerprint: authority.fingerprint, clock };
  const join = new Join(deps);
  const enroll = async (token: string, nodeName: string): Promise<EnrollResponse> =>
    await join.enroll({ token, nodeName, csrDer: (await createCsr()).csrDer });
  const up = async (nodeId: string) => {
    const lease = await store.grantLease(5_000);
    await store.commit([{ table: "sessions", id: nodeId, value: NodeSession.create({ nodeId }), lease }]);
    return lease;
  };
  return { time, store, authority, tokens, enroll, up, deps, join, token: await createToken(tokens, 0) };
}

describe("join tokens", () => {
  it("pin the cluster's CA, keep only a hash in the state, and clear out those that have run out", async () => {
    const { store, tokens, token, authority, time } = await cluster();
    const { secret, caFingerprint } = parseToken(token);
    expect(caFingerprint).toBe(authority.fingerprint);
    expect(JSON.stringify([...store.view.tokens.values()])).not.toContain(secret);
    time.nowMs += 25 * hourMs;
    await createToken(tokens, hourMs);
    expect([...store.view.tokens.values()].map(({ expiresAtMs }) => expiresAtMs)).toEqual([time.nowMs + hourMs]);
  });

  it.each([-1, Number.NaN, 366 * 24 * hourMs])("do not live for %d ms", async (ttlMs) => {
    const { tokens } = await cluster();
    await expect(createToken(tokens, ttlMs)).rejects.toMatchObject({ code: "invalid" });
  });
});

describe("enrolling", () => {
  it("gives a certificate of role node and writes the node", async () => {
    const { enroll, token, store, authority } = await cluster();
    await store.commit([{ table: "members", id: "m2", value: member("m2", { address: "m2:7400", startedAtMs: 1 }) }]);
    const answer = await enroll(token, "host-1");
    expect(readCertificate(answer.certificatePem)).toMatchObject({ commonName: answer.nodeId, role: "node" });
    expect(fingerprintOf(answer.caPem)).toBe(authority.fingerprint);
    expect(answer.clusterId).toBe("cccccccccccc");
    expect(answer.managers).toEqual(["m1:7400", "m2:7400"]);
    expect(store.view.nodes.get(answer.nodeId)).toMatchObject({ id: answer.nodeId, name: "host-1" });
  });

  it("is denied without the right token, and changes nothing", async () => {
    const { enroll, token, store, authority, time } = await cluster();
    const wrong = formatToken({ caFingerprint: authority.fingerprint, secret: newSecret() });
    const foreign = formatToken({ caFingerprint: "0".repeat(64), secret: parseToken(token).secret });
    await expect(enroll(wrong, "host-1")).rejects.toMatchObject({
      code: "denied",
      message: expect.stringMatching(/not known/),
    });
    await expect(enroll(foreign, "host-1")).rejects.toMatchObject({
      code: "denied",
      message: expect.stringMatching(/another cluster/),
    });
    await expect(enroll("nonsense", "host-1")).rejects.toMatchObject({ code: "invalid" });
    time.nowMs += 24 * hourMs;
    await expect(enroll(token, "host-1")).rejects.toMatchObject({
      code: "denied",
      message: expect.stringMatching(/run out/),
    });
    expect(store.view.nodes.size).toBe(0);
  });

  it.each(["", "Host_1", "-a", "a-", "a".repeat(64), "a b"])("refuses the name %j", async (name) => {
    const { enroll, token } = await cluster();
    await expect(enroll(token, name)).rejects.toMatchObject({ code: "invalid", subject: "node name" });
  });

  it("refuses a request that is none", async () => {
    const { join, token, store } = await cluster();
    const request = { token, nodeName: "host-1", csrDer: Buffer.from("nonsense") };
    await expect(join.enroll(request)).rejects.toMatchObject({ code: "invalid" });
    expect(store.view.nodes.size).toBe(0);
  });

  it("refuses a name whose node is up, and takes it over, with labels, once that is down", async () => {
    const { enroll, token, store, up } = await cluster();
    const first = await enroll(token, "host-1");
    const node = store.view.nodes.get(first.nodeId);
    if (node === undefined) throw new Error("no node");
    const value = { ...node, labels: { disk: "ssd" }, availability: Availability.AVAILABILITY_DRAIN };
    await store.commit([{ table: "nodes", id: first.nodeId, value }]);
    const lease = await up(first.nodeId);
    await expect(enroll(token, "host-1")).rejects.toMatchObject({ code: "conflict", subject: "node/host-1" });
    expect(store.view.nodes.size).toBe(1);
    store.expireLease(lease);
    const second = await enroll(token, "host-1");
    expect(second.nodeId).not.toBe(first.nodeId);
    expect([...store.view.nodes.values()]).toMatchObject([
      { id: second.nodeId, name: "host-1", labels: { disk: "ssd" }, availability: Availability.AVAILABILITY_DRAIN },
    ]);
  });

  it("gives a name to one node only when many ask at once, at two members", async () => {
    const { enroll, token, store, deps } = await cluster();
    const other = new Join(deps);
    const csrs = await Promise.all(Array.from({ length: 8 }, async () => (await createCsr()).csrDer));
    await Promise.all(
      csrs.flatMap((csrDer, i) => [
        other.enroll({ token, nodeName: "host-1", csrDer }),
        enroll(token, `host-${i + 2}`),
      ]),
    );
    expect([...store.view.nodes.values()].map(({ name }) => name).sort()).toEqual(
      Array.from({ length: 9 }, (_, i) => `host-${i + 1}`),
    );
  });
});

describe("renewal", () => {
  it("keeps the node's id, and is denied once it is removed", async () => {
    const { enroll, token, store, deps } = await cluster();
    const { nodeId } = await enroll(token, "host-1");
    const { csrDer } = await createCsr();
    const { certificatePem } = await renewCertificate(deps, nodeId, csrDer);
    expect(readCertificate(certificatePem)).toMatchObject({ commonName: nodeId, role: "node" });
    await store.commit([{ table: "nodes", id: nodeId, value: undefined }]);
    await expect(renewCertificate(deps, nodeId, csrDer)).rejects.toMatchObject({ code: "denied" });
  });
});

describe("joining over the network", () => {
  it("pins the CA, enrols, and shows a server's renewed certificate to the next joiner", async () => {
    const directory = await mkdtemp(join(tmpdir(), "embassy-join-"));
    await using cleanup = new AsyncDisposableStack();
    cleanup.defer(async () => await rm(directory, { recursive: true }));
    const time = { nowMs: Date.now() };
    const waking = new EventEmitter();
    const clock = {
      nowMs: () => time.nowMs,
      monotonicMs: () => performance.now(),
      sleep: async (_ms: number, signal?: AbortSignal) => {
        await once(waking, "wake", signal === undefined ? {} : { signal });
      },
    };
    const first = await initCluster({
      stateDir: directory,
      member: "m1",
      advertise: "127.0.0.1:7400",
      nowMs: time.nowMs,
    });
    const files = stateFiles(directory);
    const [authority, state] = await Promise.all([loadAuthority(files), readClusterFile(files)]);
    const certificates = await MemberCertificates.load({ files, authority, cluster: state, clock, log: silentLog });
    const store = createMemoryStore();
    const service = new Join({ store, authority, clusterId: "c", advertise: "m1:7400", clock, log: silentLog });
    const port = await freePort();
    const credentials = certificates.listener("optional");
    cleanup.use(
      await serveGrpc(`127.0.0.1:${port}`, "--join-listen", credentials, systemClock, (server) => {
        server.addService(JoinService, service.service);
      }),
    );
    const { caFingerprint } = parseToken(first);
    const token = await createToken({ store, caFingerprint, clock }, 0);
    const enroll = async (nodeName: string) => {
      const ca = await fetchPinnedCa({ host: "127.0.0.1", port, caFingerprint });
      const client = new JoinClient(`127.0.0.1:${port}`, joinCredentials(ca), channelOptions);
      const { csrDer } = await createCsr();
      try {
        return await call<EnrollRequest, EnrollResponse>(client.enroll.bind(client), { token, nodeName, csrDer });
      } finally {
        client.close();
      }
    };
    expect((await enroll("host-1")).managers).toEqual(["m1:7400"]);
    await expect(enroll("host_2")).rejects.toMatchObject({ code: "invalid", subject: "node name" });
    const shown = async () => {
      const socket = connect({ host: "127.0.0.1", port, rejectUnauthorized: false, ALPNProtocols: ["h2"] });
      await once(socket, "secureConnect");
      const { serialNumber } = socket.getPeerCertificate();
      socket.destroy();
      return serialNumber;
    };
    const before = await shown();
    const stop = new AbortController();
    const renewed = Promise.withResolvers<void>();
    const keeping = certificates.keep(() => renewed.resolve(), stop.signal);
    time.nowMs += 61 * 24 * hourMs;
    waking.emit("wake");
    await renewed.promise;
    expect(await shown()).not.toBe(before);
    stop.abort();
    await keeping;
  });
});

describe("a state directory", () => {
  let directory: string;
  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "embassy-init-"));
  });
  afterEach(async () => {
    await rm(directory, { recursive: true });
  });
  const options = () => ({
    stateDir: join(directory, "m1"),
    member: "m1",
    advertise: "10.0.0.1:7400",
    nowMs: Date.now(),
  });

  it("is made once: a second init changes nothing", async () => {
    const token = await initCluster(options());
    const files = stateFiles(options().stateDir);
    const before = await readFile(files.cluster, "utf8");
    expect(parseToken(token).caFingerprint).toBe((await loadAuthority(files)).fingerprint);
    await expect(initCluster(options())).rejects.toMatchObject({ code: "conflict" });
    expect(await readFile(files.cluster, "utf8")).toBe(before);
    for (const secret of [files.caKey, files.storeKey, files.manager.key, files.etcd.key, files.admin, files.cluster]) {
      expect((await stat(secret)).mode & 0o077).toBe(0);
    }
    const context = JSON.parse(await readFile(files.admin, "utf8"));
    expect(context).toMatchObject({ endpoints: ["10.0.0.1:7400"] });
    expect(readCertificate(Buffer.from(context.certificate))).toMatchObject({ commonName: "admin", role: "admin" });
    expect(readCertificate((await loadIdentity(files.manager)).certificate)).toMatchObject({
      commonName: "m1",
      role: "manager",
    });
  });

  it("gets new certificates at two thirds of their life, which its listeners then show", async () => {
    await initCluster(options());
    const files = stateFiles(options().stateDir);
    const authority = await loadAuthority(files);
    const time = { nowMs: Date.now() };
    const asleep = new EventEmitter();
    const clock = {
      nowMs: () => time.nowMs,
      sleep: async (_ms: number, signal?: AbortSignal) => {
        asleep.emit("asleep");
        await once(asleep, "wake", signal === undefined ? {} : { signal });
      },
    };
    const cluster = await readClusterFile(files);
    const certificates = await MemberCertificates.load({ files, authority, cluster, clock, log: silentLog });
    const first = certificates.identities.manager.certificate;
    const seen: Buffer[] = [];
    certificates.addIdentityCertificateListener((update) => update !== null && seen.push(update.certificate));
    const stop = new AbortController();
    let sleeping = once(asleep, "asleep");
    const renewals: string[] = [];
    const keeping = certificates.keep(
      ({ etcd }) => renewals.push(readCertificate(etcd.certificate).commonName),
      stop.signal,
    );
    const wakeAfter = async (days: number) => {
      await sleeping;
      time.nowMs += days * 24 * hourMs;
      sleeping = once(asleep, "asleep");
      asleep.emit("wake");
      await sleeping;
    };
    await wakeAfter(59);
    expect(renewals).toEqual([]);
    await wakeAfter(2);
    expect(renewals).toEqual(["m1"]);
    expect(seen).toHaveLength(2);
    expect(certificates.identities.manager.certificate.equals(first)).toBe(false);
    expect(readCertificate((await loadIdentity(files.etcd)).certificate).notAfterMs).toBeGreaterThan(
      time.nowMs + 89 * 24 * hourMs,
    );
    stop.abort();
    await keeping;
  });

  it("says what is wrong with it", async () => {
    const files = stateFiles(join(directory, "none"));
    await expect(readClusterFile(files)).rejects.toMatchObject({
      code: "not-found",
      hint: expect.stringContaining("init"),
    });
    await initCluster(options());
    await writeFile(stateFiles(options().stateDir).cluster, "{");
    await expect(readClusterFile(stateFiles(options().stateDir))).rejects.toMatchObject({ code: "invalid" });
  });
});
