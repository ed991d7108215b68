import { expect, it } from "vitest";
import { systemClock } from "../lib/clock/clock.ts";
import { ClusterError } from "../lib/errors/errors.ts";
import { call, channelOptions, clientCredentials } from "../lib/grpc/client.ts";
import { serverCredentials } from "../lib/grpc/server.ts";
import type { Role } from "../lib/grpc/tls.ts";
import { Authority, createAuthority } from "../lib/pki/authority.ts";
import {
  ManagerClient,
  ManagerService,
  type SecretsRequest,
  type SecretsResponse,
} from "../proto/gen/embassy/v1/dispatcher.ts";
import { serveGrpc } from "./listen.ts";
import { managerService, Peers } from "./peers.ts";
import { freePort } from "./store/etcd.testing.ts";
import { createMemoryStore } from "./store/memory.ts";
import { member } from "./store/testing.ts";

async function setUp() {
  const nowMs = Date.now();
  const pair = await createAuthority("test", nowMs);
  const authority = await Authority.load(pair.certificate, pair.key);
  const issue = async (role: Role, commonName = "x") => await authority.issue({ commonName, role, nowMs });
  const asked: string[] = [];
  const service = managerService({
    checkToken: (token) => {
      if (token !== "right") throw new ClusterError("wrong token", { code: "denied" });
    },
    secrets: async () => await Promise.resolve({ caKeyPem: pair.key, storeKey: "key", etcd: ["m1:7404"] }),
    network: {
      released: async (taskId, revision) => void asked.push(`${taskId} ${revision}`),
      settledAt: async (revision) => void asked.push(`${revision}`),
    },
  });
  const address = `127.0.0.1:${await freePort()}`;
  const server = await serveGrpc(
    address,
    "--listen",
    serverCredentials(await issue("manager", "m1")),
    systemClock,
    (one) => one.addService(ManagerService, service),
  );
  const secrets = async (role: Role, token: string) => {
    const client = new ManagerClient(address, clientCredentials(await issue(role)), channelOptions);
    try {
      return await call<SecretsRequest, SecretsResponse>(client.secrets.bind(client), { token });
    } finally {
      client.close();
    }
  };
  return {
    address,
    issue,
    asked,
    secrets,
    key: pair.key,
    [Symbol.asyncDispose]: async () => await server[Symbol.asyncDispose](),
  };
}

it("gives a manager's secrets to a manager's certificate with a manager's token, and to no other", async () => {
  await using one = await setUp();
  expect((await one.secrets("manager", "right")).caKeyPem).toEqual(one.key);
  await expect(one.secrets("manager", "wrong")).rejects.toMatchObject({ code: "denied", message: "wrong token" });
  for (const role of ["node", "admin"] as const) {
    await expect(one.secrets(role, "right")).rejects.toMatchObject({
      code: "denied",
      message: expect.stringContaining("role manager"),
    });
  }
});

it("asks every other member that is alive, and says when one could not be asked", async () => {
  await using one = await setUp();
  const store = createMemoryStore();
  const join = async (name: string, address: string) => {
    const lease = await store.grantLease(5_000);
    await store.commit([
      { table: "members", id: name, value: member(name, { address, startedAtMs: 1 }) },
      { table: "memberSessions", id: name, value: { name, incarnation: "i" }, lease },
    ]);
  };
  const identity = await one.issue("manager", "m0");
  using peers = new Peers({ view: store.view, member: "m0", identity: () => identity });
  const { signal } = new AbortController();
  await join("m0", "127.0.0.1:1");
  expect(await peers.released("t", 7, signal)).toBe(true);
  await join("m1", one.address);
  expect(await peers.released("t", 7, signal)).toBe(true);
  expect(await peers.settled(8, signal)).toBe(true);
  expect(one.asked).toEqual(["t 7", "8"]);
  await join("m2", `127.0.0.1:${await freePort()}`);
  expect(await peers.released("t", 9, signal)).toBe(false);
  expect(one.asked).toEqual(["t 7", "8", "t 9"]);
});
