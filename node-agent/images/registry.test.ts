import { createHash, randomBytes } from "node:crypto";
import http from "node:http";
import type { AddressInfo } from "node:net";
import { describe, expect, it } from "vitest";
import { systemClock } from "../../lib/clock/clock.ts";
import { parseReference } from "../../lib/images/reference.ts";
import { HttpClient } from "./http.ts";
import { parseChallenge, Registry, registryWords } from "./registry.ts";
import type { Credentials } from "./types.ts";

type Handler = (request: http.IncomingMessage, response: http.ServerResponse) => void;

const content = randomBytes(200_000);
const digest = `sha256:${createHash("sha256").update(content).digest("hex")}`;

/** A registry that misbehaves as the test wants, and a client for it. */
async function startFake(handler: Handler, options: { credentials?: Credentials; idleTimeoutMs?: number } = {}) {
  const requests: string[] = [];
  const server = http.createServer((request, response) => {
    requests.push(`${request.url} ${request.headers.authorization ?? "-"} ${request.headers.range ?? "-"}`);
    handler(request, response);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  const client = new HttpClient({ idleTimeoutMs: options.idleTimeoutMs ?? 5_000, proxyEnv: {} });
  const registry = new Registry(host, {
    http: client,
    clock: systemClock,
    insecure: [host],
    credentials: async () => await Promise.resolve(options.credentials),
    retryDelaysMs: [1, 1],
  });
  return {
    host,
    requests,
    registry,
    manifest: async () => await registry.manifest(parseReference(`${host}/app:1`)),
    [Symbol.asyncDispose]: async () => {
      client.close();
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

const json = (response: http.ServerResponse, status: number, body: unknown, headers: http.OutgoingHttpHeaders = {}) => {
  response.writeHead(status, headers).end(JSON.stringify(body));
};
const refuse = (code: string, message: string) => ({ errors: [{ code, message }] });

describe("a registry's refusals", () => {
  it.each([
    [404, "not-found", "manifest unknown"],
    [401, "denied", "authentication required"],
    [403, "denied", "requested access to the resource is denied"],
    [400, "invalid", "invalid repository name"],
  ] as const)("%d is %s, with its words and without another attempt", async (status, code, words) => {
    await using fake = await startFake((_, response) => json(response, status, refuse("CODE", words)));
    await expect(fake.manifest()).rejects.toMatchObject({
      code,
      message: expect.stringContaining(words),
    });
    expect(fake.requests).toHaveLength(1);
  });

  it.each([429, 500, 503])("%d is tried again and then unavailable", async (status) => {
    await using fake = await startFake((_, response) => json(response, status, refuse("TOOMANYREQUESTS", "slow down")));
    await expect(fake.manifest()).rejects.toMatchObject({
      code: "unavailable",
      message: expect.stringContaining("slow down"),
    });
    expect(fake.requests).toHaveLength(3);
  });

  it("is unavailable when nobody listens, and says so at once", async () => {
    const fake = await startFake(() => {});
    await fake[Symbol.asyncDispose]();
    await expect(fake.manifest()).rejects.toMatchObject({
      code: "unavailable",
      message: expect.stringMatching(/^cannot reach registry 127\.0\.0\.1:\d+: .*ECONNREFUSED/),
    });
  });

  it("is unavailable when it keeps silent", async () => {
    await using fake = await startFake(() => {}, { idleTimeoutMs: 50 });
    await expect(fake.manifest()).rejects.toMatchObject({
      code: "unavailable",
      message: expect.stringContaining("no answer for 0.05 s"),
    });
  });

  it("says that plain HTTP has to be allowed when TLS meets it", async () => {
    await using fake = await startFake((_, response) => response.end());
    const client = new HttpClient({ idleTimeoutMs: 1_000, proxyEnv: {} });
    const strict = new Registry(fake.host, {
      http: client,
      clock: systemClock,
      insecure: [],
      credentials: async () => await Promise.resolve(undefined),
      retryDelaysMs: [],
    });
    await expect(strict.manifest(parseReference(`${fake.host}/app:1`))).rejects.toMatchObject({
      code: "unavailable",
      hint: expect.stringContaining(`--insecure-registry ${fake.host}`),
    });
    client.close();
  });
});

describe("authorization", () => {
  it("fetches a token as the challenge says, and shows it from then on", async () => {
    await using fake = await startFake((request, response) => {
      if (request.url?.startsWith("/token") === true) return json(response, 200, { token: "T1", expires_in: 300 });
      if (request.headers.authorization === "Bearer T1") return json(response, 200, { schemaVersion: 2 });
      const challenge = `Bearer realm="http://${request.headers.host}/token",service="s",scope="repository:app:pull"`;
      return json(response, 401, {}, { "www-authenticate": challenge });
    });
    await fake.manifest();
    await fake.manifest();
    expect(fake.requests).toEqual([
      "/v2/app/manifests/1 - -",
      "/token?service=s&scope=repository%3Aapp%3Apull - -",
      "/v2/app/manifests/1 Bearer T1 -",
      "/v2/app/manifests/1 Bearer T1 -",
    ]);
  });

  it("shows user and password where they are asked for", async () => {
    const credentials = { username: "u", password: "p:w" };
    const basic = `Basic ${Buffer.from("u:p:w").toString("base64")}`;
    await using fake = await startFake(
      (request, response) => {
        if (request.headers.authorization === basic) return json(response, 200, {});
        return json(response, 401, {}, { "www-authenticate": 'Basic realm="r"' });
      },
      { credentials },
    );
    await fake.manifest();
    expect(fake.requests.at(-1)).toContain(basic);
  });

  it("asks no second time when the credentials are refused", async () => {
    await using fake = await startFake(
      (_, response) => json(response, 401, refuse("UNAUTHORIZED", "bad password"), { "www-authenticate": "Basic" }),
      { credentials: { username: "u", password: "p" } },
    );
    await expect(fake.manifest()).rejects.toMatchObject({
      code: "denied",
      message: expect.stringContaining("bad password"),
    });
    expect(fake.requests).toHaveLength(2);
  });

  it("does not show credentials to where a blob is redirected", async () => {
    await using store = await startFake((_, response) => response.end(content));
    await using fake = await startFake(
      (request, response) => {
        if (request.headers.authorization === undefined)
          return json(response, 401, {}, { "www-authenticate": "Basic" });
        return json(response, 307, {}, { location: `http://${store.host}/elsewhere` });
      },
      { credentials: { username: "u", password: "p" } },
    );
    expect((await fake.registry.smallBlob("app", digest, content.length)).equals(content)).toBe(true);
    expect(store.requests).toEqual(["/elsewhere - -"]);
  });

  it("does not follow redirects for ever", async () => {
    await using fake = await startFake((_, response) => json(response, 302, {}, { location: "/again" }));
    await expect(fake.manifest()).rejects.toMatchObject({
      message: expect.stringContaining("redirects more than 5 times"),
    });
  });

  it("reads challenges with quotes and commas in them", () => {
    const { scheme, parameters } = parseChallenge(
      'Bearer realm="https://a/t",scope="repository:a:pull,push", error=invalid_token',
    );
    expect(scheme).toBe("bearer");
    expect([...parameters]).toEqual([
      ["realm", "https://a/t"],
      ["scope", "repository:a:pull,push"],
      ["error", "invalid_token"],
    ]);
  });
});

describe("blobs", () => {
  it("goes on at the byte where the connection broke", async () => {
    let broken = 0;
    await using fake = await startFake((request, response) => {
      const from = Number(/bytes=(\d+)-/.exec(request.headers.range ?? "")?.[1] ?? 0);
      if (broken < 3) {
        broken += 1;
        response.writeHead(from === 0 ? 200 : 206, { "content-length": content.length - from });
        response.write(content.subarray(from, from + 30_000), () => response.destroy());
        return;
      }
      response.writeHead(206, { "content-length": content.length - from }).end(content.subarray(from));
    });
    expect((await fake.registry.smallBlob("app", digest, content.length)).equals(content)).toBe(true);
    expect(fake.requests).toHaveLength(4);
    expect(fake.requests.slice(1).every((line) => /bytes=[1-9]\d*-$/.test(line))).toBe(true);
  });

  it("passes over what it has when the registry knows no ranges", async () => {
    let first = true;
    await using fake = await startFake((_, response) => {
      response.writeHead(200, { "content-length": content.length });
      if (first) response.write(content.subarray(0, 50_000), () => response.destroy());
      else response.end(content);
      first = false;
    });
    expect((await fake.registry.smallBlob("app", digest, content.length)).equals(content)).toBe(true);
  });

  it("gives up when no attempt brings anything", async () => {
    await using fake = await startFake((_, response) => {
      response.writeHead(200, { "content-length": content.length });
      response.flushHeaders();
      setImmediate(() => response.destroy());
    });
    await expect(fake.registry.smallBlob("app", digest, content.length)).rejects.toMatchObject({
      code: "unavailable",
      message: expect.stringMatching(/broke off blob sha256:/),
    });
    expect(fake.requests).toHaveLength(3);
  });

  it.each([
    ["other content", Buffer.from(content).fill(0, 0, 1), /has digest sha256:/],
    ["longer content", Buffer.concat([content, content]), /is longer than/],
  ])("refuses %s", async (_, bytes, words) => {
    await using fake = await startFake((_request, response) => response.end(bytes));
    await expect(fake.registry.smallBlob("app", digest, content.length)).rejects.toMatchObject({
      code: "invalid",
      message: expect.stringMatching(words),
    });
  });

  it("refuses a manifest that is not the one its digest names", async () => {
    await using fake = await startFake((_, response) => json(response, 200, { schemaVersion: 2 }));
    const reference = parseReference(`${fake.host}/app@${digest}`);
    await expect(fake.registry.manifest(reference)).rejects.toMatchObject({ code: "invalid" });
  });

  it("stops when it is told to", async () => {
    const stop = new AbortController();
    await using fake = await startFake((_, response) => {
      response.writeHead(200, { "content-length": content.length }).write(content.subarray(0, 10));
      stop.abort(new Error("enough"));
    });
    await expect(fake.registry.smallBlob("app", digest, content.length, stop.signal)).rejects.toThrow("enough");
  });
});

describe("registryWords", () => {
  it("finds the sentences in what registries answer", () => {
    expect(registryWords(Buffer.from(JSON.stringify(refuse("A", "b"))))).toBe("A: b");
    expect(registryWords(Buffer.from("plain words"))).toBe("plain words");
    expect(registryWords(Buffer.from("<html>"))).toBeUndefined();
    expect(registryWords(Buffer.from(""))).toBeUndefined();
  });
});
