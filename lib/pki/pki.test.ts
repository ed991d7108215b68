import { createHash, generateKeyPairSync, X509Certificate } from "node:crypto";
import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createServer as createTlsServer, type TlsOptions } from "node:tls";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { TlsIdentity } from "../grpc/tls.ts";
import { Authority, createAuthority } from "./authority.ts";
import { fingerprintOf, readCertificate } from "./certificate.ts";
import { createCsr } from "./csr.ts";
import { loadIdentity, writeIdentity } from "./identity.ts";
import { fetchPinnedCa } from "./pin.ts";
import { formatToken, hashSecret, newSecret, parseToken } from "./token.ts";

const dayMs = 24 * 60 * 60 * 1000;
const nowMs = Date.UTC(2030, 0, 1);

async function newAuthority(): Promise<Authority> {
  const { certificate, key } = await createAuthority("embassy test", nowMs);
  return await Authority.load(certificate, key);
}

describe("Authority", () => {
  it("makes a CA that signs leaves and nothing deeper", async () => {
    const { certificate } = await createAuthority("embassy test", nowMs);
    const ca = new X509Certificate(certificate);
    expect(ca.ca).toBe(true);
    expect(ca.verify(ca.publicKey)).toBe(true);
    expect(fingerprintOf(certificate)).toBe(createHash("sha256").update(ca.raw).digest("hex"));
  });

  it("signs a request for the subject that is granted, whatever the request says", async () => {
    const authority = await newAuthority();
    const { csrDer, key } = await createCsr();
    const certificate = await authority.sign(csrDer, { commonName: "abcdefghijkl", role: "node", nowMs });
    const info = readCertificate(certificate);
    expect(info).toEqual({
      commonName: "abcdefghijkl",
      role: "node",
      notBeforeMs: nowMs - 60 * 60 * 1000,
      notAfterMs: nowMs + 90 * dayMs,
      renewAtMs: expect.any(Number),
    });
    expect(info.renewAtMs - info.notBeforeMs).toBeCloseTo(((info.notAfterMs - info.notBeforeMs) * 2) / 3);
    const leaf = new X509Certificate(certificate);
    expect(leaf.ca).toBe(false);
    expect(leaf.verify(new X509Certificate(authority.certificate).publicKey)).toBe(true);
    expect(leaf.checkIssued(new X509Certificate(authority.certificate))).toBe(true);
    expect(key.toString()).toContain("PRIVATE KEY");
  });

  it("names hosts and addresses", async () => {
    const authority = await newAuthority();
    const { certificate } = await authority.issue({
      commonName: "m1",
      role: "manager",
      nowMs,
      hosts: ["127.0.0.1", "etcd.example"],
    });
    expect(new X509Certificate(certificate).subjectAltName).toBe("IP Address:127.0.0.1, DNS:etcd.example");
  });

  it("refuses what is not a request, a tampered one and another kind of key", async () => {
    const authority = await newAuthority();
    const grant = { commonName: "x", role: "node", nowMs } as const;
    await expect(authority.sign(Buffer.from("nonsense"), grant)).rejects.toMatchObject({ code: "invalid" });
    await expect(authority.sign(Buffer.alloc(0), grant)).rejects.toMatchObject({ code: "invalid" });
    const { csrDer } = await createCsr();
    const tampered = Buffer.from(csrDer);
    tampered.writeUInt8(tampered.readUInt8(tampered.length - 1) ^ 1, tampered.length - 1);
    await expect(authority.sign(tampered, grant)).rejects.toMatchObject({ code: "invalid" });
  });

  it("refuses a CA certificate with another CA's key", async () => {
    const one = await createAuthority("one", nowMs);
    const other = await createAuthority("other", nowMs);
    await expect(Authority.load(one.certificate, other.key)).rejects.toMatchObject({ code: "invalid" });
    const rsa = generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey.export({ type: "pkcs8", format: "pem" });
    await expect(Authority.load(one.certificate, Buffer.from(rsa))).rejects.toMatchObject({ code: "invalid" });
  });

  it("renews with the key that is there", async () => {
    const authority = await newAuthority();
    const first = await createCsr();
    const second = await createCsr(first.key);
    expect(second.key.equals(first.key)).toBe(true);
    const [a, b] = await Promise.all(
      [first, second].map(({ csrDer }) => authority.sign(csrDer, { commonName: "n", role: "node", nowMs })),
    );
    const key = (pem: Buffer | undefined) =>
      pem && new X509Certificate(pem).publicKey.export({ type: "spki", format: "der" }).toString("hex");
    expect(key(a)).toBe(key(b));
  });
});

describe("join token", () => {
  it("comes back from its text", () => {
    const token = { caFingerprint: "0123456789abcdef".repeat(4), secret: newSecret() };
    expect(parseToken(`${formatToken(token)}\n`)).toEqual(token);
    expect(hashSecret(token.secret)).toHaveLength(32);
  });

  it.each([
    "",
    "EMB-1-",
    "EMB-2-00-aa",
    `EMB-1-${"g".repeat(64)}-${"a".repeat(32)}`,
    `EMB-1-${"0".repeat(64)}-${"a".repeat(31)}`,
  ])("refuses %j without repeating it", (text) => {
    expect(() => parseToken(text)).toThrow(/^this is not a join token$/);
  });
});

describe("identity files", () => {
  let directory: string;
  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "embassy-pki-"));
  });
  afterEach(async () => {
    await rm(directory, { recursive: true });
  });
  const files = () => ({
    ca: join(directory, "identity/ca.pem"),
    certificate: join(directory, "identity/node.pem"),
    key: join(directory, "identity/node.key"),
  });

  it("come back as written, the key for the owner only", async () => {
    const authority = await newAuthority();
    const identity = await authority.issue({ commonName: "n", role: "node", nowMs });
    await writeIdentity(files(), identity);
    expect(await loadIdentity(files())).toEqual(identity);
    expect((await stat(files().key)).mode & 0o777).toBe(0o600);
  });

  it("are refused when they do not belong together, and a missing one is named", async () => {
    const authority = await newAuthority();
    const identity = await authority.issue({ commonName: "n", role: "node", nowMs });
    const stranger = await (await newAuthority()).issue({ commonName: "n", role: "node", nowMs });
    await writeIdentity(files(), { ...identity, key: stranger.key });
    await expect(loadIdentity(files())).rejects.toMatchObject({
      code: "invalid",
      message: expect.stringMatching(/not for the key/),
    });
    await writeIdentity(files(), { ...identity, ca: stranger.ca });
    await expect(loadIdentity(files())).rejects.toMatchObject({
      code: "invalid",
      message: expect.stringMatching(/not signed/),
    });
    await writeIdentity(files(), identity);
    await writeFile(files().key, "nonsense");
    await expect(loadIdentity(files())).rejects.toMatchObject({ code: "invalid" });
    await rm(files().key);
    await expect(loadIdentity(files())).rejects.toMatchObject({ code: "not-found", subject: files().key });
    expect(await readFile(files().ca)).toEqual(identity.ca);
  });
});

describe("fetchPinnedCa", () => {
  async function serve(options: TlsOptions): Promise<AsyncDisposable & { readonly port: number }> {
    const server = createTlsServer({ ...options, ALPNProtocols: ["h2"] }, (socket) =>
      socket.on("error", () => undefined),
    );
    server.on("tlsClientError", () => undefined);
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    return {
      port: (server.address() as AddressInfo).port,
      [Symbol.asyncDispose]: async () => await new Promise<void>((resolve) => server.close(() => resolve())),
    };
  }
  const chain = ({ certificate, key, ca }: TlsIdentity) => ({ key, cert: Buffer.concat([certificate, ca]) });
  const pin = (port: number, caFingerprint: string) => fetchPinnedCa({ host: "127.0.0.1", port, caFingerprint });

  it("resolves with the CA that the token names", async () => {
    const authority = await newAuthority();
    await using server = await serve(
      chain(await authority.issue({ commonName: "m", role: "manager", nowMs: Date.now() })),
    );
    const ca = await pin(server.port, authority.fingerprint);
    expect(fingerprintOf(ca)).toBe(authority.fingerprint);
  });

  it("refuses another CA, a node's certificate, and a chain that only shows the right CA", async () => {
    const authority = await newAuthority();
    const stranger = await newAuthority();
    const nowMs = Date.now();
    const manager = await stranger.issue({ commonName: "m", role: "manager", nowMs });
    const node = await authority.issue({ commonName: "n", role: "node", nowMs });
    for (const identity of [manager, node, { ...manager, ca: authority.certificate }]) {
      await using server = await serve(chain(identity));
      await expect(pin(server.port, authority.fingerprint)).rejects.toMatchObject({ code: "denied" });
    }
  });

  it("says when nobody listens", async () => {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as AddressInfo;
    await new Promise<void>((resolve) => server.close(() => resolve()));
    await expect(pin(port, "0".repeat(64))).rejects.toMatchObject({
      code: "unavailable",
      message: `cannot reach 127.0.0.1:${port}: connection refused`,
    });
  });

  it("says when who listens does not speak TLS, and nothing of OpenSSL's", async () => {
    const server = createServer((socket) =>
      socket
        .on("error", () => {})
        .resume()
        .end("SSH-2.0-OpenSSH_9.2\r\n"),
    );
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as AddressInfo;
    await expect(pin(port, "0".repeat(64))).rejects.toMatchObject({
      code: "unavailable",
      message: `cannot reach 127.0.0.1:${port}: it does not speak TLS`,
      hint: expect.stringContaining("7401 for hosts that join"),
    });
    await new Promise<void>((resolve) => server.close(() => resolve()));
  });
});
