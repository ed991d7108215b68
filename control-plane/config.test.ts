import { describe, expect, it } from "vitest";
import { type Flags, listenedPorts, parseConfig, parseDuration, parseHostPort } from "./config.ts";

const flags: Flags = {
  stateDir: "/var/lib/embassy/clusterd",
  listen: "0.0.0.0:7400",
  joinListen: "0.0.0.0:7401",
  httpListen: "127.0.0.1:7402",
  etcdBinary: "etcd",
  etcdListen: "127.0.0.1:7404",
  etcdPeerListen: "127.0.0.1:7405",
  etcdQuota: "4g",
  heartbeatInterval: "1500ms",
  leaseTtl: "5s",
  silentHold: "5m",
  rebalanceSettle: "30s",
  rebalanceCooldown: "10m",
  networkPool: "10.96.0.0/12",
  networkPrefix: "20",
  blockPrefix: "27",
  vipPool: "10.112.0.0/16",
  logLevel: "info",
};

describe("parseConfig", () => {
  it("takes the defaults", () => {
    expect(parseConfig(flags)).toMatchObject({
      heartbeatIntervalMs: 1_500,
      leaseTtlMs: 5_000,
      silentHoldMs: 300_000,
      rebalanceSettleMs: 30_000,
      rebalanceCooldownMs: 600_000,
      networkPrefix: 20,
      etcd: { kind: "embedded", quotaBytes: 4 * 2 ** 30 },
    });
  });

  it("says which ports that is: its own, and those of etcd wherever that comes from", () => {
    const ports = (over: Partial<Flags>) => listenedPorts(parseConfig({ ...flags, ...over })).map(({ port }) => port);
    expect(ports({ listen: "0.0.0.0:8400", etcdPeerListen: "0.0.0.0:9405" })).toEqual([8400, 7401, 7402, 7404, 9405]);
    expect(ports({ etcdEndpoints: "http://127.0.0.1:2379" })).toEqual([7400, 7401, 7402, 2379]);
  });

  it("takes another etcd, with and without TLS", () => {
    const tls = { etcdCa: "ca", etcdCert: "cert", etcdKey: "key" };
    expect(parseConfig({ ...flags, ...tls, etcdEndpoints: "https://10.0.0.1:2379, https://e2" }).etcd).toEqual({
      kind: "external",
      endpoints: ["10.0.0.1:2379", "e2:2379"],
      tls: { ca: "ca", certificate: "cert", key: "key" },
    });
    expect(parseConfig({ ...flags, etcdEndpoints: "http://127.0.0.1:2379" }).etcd).toMatchObject({ tls: undefined });
  });

  it.each<[Partial<Flags>, string]>([
    [{ listen: "7400" }, "--listen"],
    [{ listen: "host:7400" }, "--listen"],
    [{ joinListen: "0.0.0.0:70000" }, "--join-listen"],
    [{ httpListen: "127.0.0.1" }, "--http-listen"],
    [{ heartbeatInterval: "1500" }, "--heartbeat-interval"],
    [{ heartbeatInterval: "10ms" }, "--heartbeat-interval"],
    [{ leaseTtl: "1s" }, "--lease-ttl"],
    [{ silentHold: "25h" }, "--silent-hold"],
    [{ rebalanceSettle: "0s" }, "--rebalance-settle"],
    [{ rebalanceCooldown: "25h" }, "--rebalance-cooldown"],
    [{ leaseTtl: "2500ms" }, "--lease-ttl"],
    [{ leaseTtl: "2s" }, "--lease-ttl"],
    [{ networkPool: "10.96.0.1/12" }, "--network-pool"],
    [{ networkPool: "10.112.0.0/12" }, "--vip-pool"],
    [{ networkPrefix: "8" }, "--network-prefix"],
    [{ blockPrefix: "16" }, "--block-prefix"],
    [{ blockPrefix: "x" }, "--block-prefix"],
    [{ logLevel: "loud" }, "--log-level"],
    [{ etcdQuota: "9g" }, "--etcd-quota"],
    [{ etcdQuota: "lots" }, "--etcd-quota"],
    [{ etcdCa: "ca.pem" }, "--etcd-ca"],
    [{ etcdEndpoints: "10.0.0.1:2379" }, "--etcd-endpoints"],
    [{ etcdEndpoints: "https://10.0.0.1:2379" }, "--etcd-endpoints"],
    [{ etcdEndpoints: "http://a:1,https://b:1" }, "--etcd-endpoints"],
    [{ etcdEndpoints: "http://a:1", etcdCa: "ca.pem" }, "--etcd-endpoints"],
  ])("refuses %j and names the flag", (over, flag) => {
    expect(() => parseConfig({ ...flags, ...over })).toThrow(
      expect.objectContaining({ code: "invalid", subject: flag }),
    );
  });
});

it("parseDuration reads units", () => {
  expect(["250ms", "1.5s", "10m", "24h"].map((text) => parseDuration("--x", text))).toEqual([
    250, 1_500, 600_000, 86_400_000,
  ]);
});

it("parseHostPort fills in the port and refuses what is no host", () => {
  expect(parseHostPort("--advertise", "10.0.0.1", 7400)).toBe("10.0.0.1:7400");
  expect(parseHostPort("--advertise", "m1.example:17400", 7400)).toBe("m1.example:17400");
  for (const text of ["", ":7400", "a b", "h:0", "h:99999", "[::1]:7400", "h_1"]) {
    expect(() => parseHostPort("--advertise", text, 7400)).toThrow(/--advertise/);
  }
});
