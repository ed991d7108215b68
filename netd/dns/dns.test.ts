import { createSocket } from "node:dgram";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { decode, encode, type RecordType } from "dns-packet";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { silentLog } from "../../lib/log/log.ts";
import { NetworkState } from "../../proto/gen/embassy/v1/dispatcher.ts";
import { ClusterState } from "../state/cluster.ts";
import { answer, type Reply } from "./answer.ts";
import { Forwarder, framed, nameserversOf } from "./forward.ts";
import { type Asker, Names } from "./names.ts";
import { DnsServer } from "./server.ts";

/** Stack shop: web links redis as cache; both on net1, redis also on net2. Stack other: a redis on net1, too. */
function shop(): ClusterState {
  const state = new ClusterState();
  state.apply(
    NetworkState.fromPartial({
      revision: 1,
      complete: true,
      services: [
        {
          id: "web",
          stack: "shop",
          name: "web",
          networks: [{ networkId: "net1", vip: "10.112.0.1" }],
          links: [{ serviceId: "redis", alias: "Cache" }],
        },
        {
          id: "redis",
          stack: "shop",
          name: "redis",
          networks: [
            { networkId: "net1", vip: "10.112.0.2", aliases: ["kv"] },
            { networkId: "net2", vip: "10.112.0.3" },
          ],
          ports: [{ target: 6379, published: 6379, name: "resp" }],
        },
        { id: "xredis", stack: "other", name: "redis", networks: [{ networkId: "net1", vip: "10.112.0.9" }] },
        { id: "rr", stack: "shop", name: "rr", networks: [{ networkId: "net1" }], endpointMode: 1 },
        { id: "secret", stack: "shop", name: "secret", networks: [{ networkId: "net3", vip: "10.112.0.7" }] },
      ],
      endpoints: [
        {
          taskId: "r1",
          serviceId: "redis",
          slot: 1,
          ready: true,
          addresses: [{ networkId: "net1", address: "10.96.0.2" }],
        },
        {
          taskId: "r2",
          serviceId: "redis",
          slot: 2,
          ready: false,
          addresses: [{ networkId: "net1", address: "10.96.0.3" }],
        },
        {
          taskId: "q1",
          serviceId: "rr",
          slot: 1,
          ready: true,
          addresses: [{ networkId: "net1", address: "10.96.0.4" }],
        },
        {
          taskId: "q2",
          serviceId: "rr",
          slot: 2,
          ready: true,
          addresses: [{ networkId: "net1", address: "10.96.0.5" }],
        },
      ],
    }),
  );
  return state;
}

const web: Asker = { serviceId: "web", networkIds: ["net1"], resolvers: [] };
const redis: Asker = { serviceId: "redis", networkIds: ["net1", "net2"], resolvers: [] };

function ask(name: string, asker: Asker | undefined, type: RecordType, state = shop()): string {
  const found = answer(
    encode({ type: "query", id: 7, questions: [{ type, name }] }),
    asker,
    new Names(state),
    0,
    65_535,
  );
  if (found === undefined) return "nothing";
  if (found.forward) return "forward";
  const packet = decode(found.bytes);
  const data = (packet.answers ?? []).map((record) =>
    "data" in record ? JSON.stringify(record.data).replaceAll('"', "") : "",
  );
  // The decoder names the code; its types do not know.
  const rcode = "rcode" in packet ? String(packet.rcode) : "";
  return rcode === "NOERROR" ? data.join(" ") : rcode;
}

describe("names", () => {
  it.each<[string, Asker | undefined, RecordType, string]>([
    ["redis", web, "A", "10.112.0.2"],
    ["REDIS", web, "A", "10.112.0.2"],
    ["redis.shop", web, "A", "10.112.0.2"],
    ["redis.other", web, "A", "10.112.0.9"],
    ["kv", web, "A", "10.112.0.2"],
    ["cache", web, "A", "10.112.0.2"],
    ["cache", redis, "A", "NXDOMAIN"],
    ["tasks.redis", web, "A", "10.96.0.2"],
    ["tasks.redis.shop", web, "A", "10.96.0.2"],
    ["2.redis", web, "A", "10.96.0.3"],
    ["3.redis", web, "A", "NXDOMAIN"],
    ["rr", web, "A", "10.96.0.4 10.96.0.5"],
    ["secret", web, "A", "NXDOMAIN"],
    ["secret.shop", web, "A", "NXDOMAIN"],
    ["redis", web, "AAAA", ""],
    ["nothing", web, "A", "NXDOMAIN"],
    ["nothing.shop", web, "A", "NXDOMAIN"],
    ["www.example.org", web, "A", "forward"],
    ["redis", undefined, "A", "forward"],
    ["2.0.112.10.in-addr.arpa", web, "PTR", "redis.shop"],
    ["2.0.96.10.in-addr.arpa", web, "PTR", "1.redis.shop"],
    ["7.0.112.10.in-addr.arpa", web, "PTR", "NXDOMAIN"],
    ["1.1.1.1.in-addr.arpa", web, "PTR", "forward"],
    ["_resp._tcp.redis", web, "SRV", "{priority:0,weight:1,port:6379,target:1.redis.shop}"],
    ["_none._tcp.redis", web, "SRV", "NXDOMAIN"],
  ])("%s asked by %o for %s: %s", (name, asker, type, expected) => {
    expect(ask(name, asker, type)).toBe(expected);
  });

  it("rotates lists, and only those must not be kept", () => {
    const query = encode({ type: "query", id: 1, questions: [{ type: "A", name: "rr" }] });
    const names = new Names(shop());
    const firsts = [0, 1, 2].map((turn) => {
      const found = answer(query, web, names, turn, 512) as Reply;
      expect(found.keep).toBe(false);
      const [first] = decode(found.bytes).answers ?? [];
      return first !== undefined && "data" in first ? first.data : "";
    });
    expect(firsts).toEqual(["10.96.0.4", "10.96.0.5", "10.96.0.4"]);
  });

  it("cuts what does not fit, with the flag that asks for TCP", () => {
    const state = shop();
    state.apply(
      NetworkState.fromPartial({
        revision: 2,
        endpoints: Array.from({ length: 60 }, (_, i) => ({
          taskId: `n${i}`,
          serviceId: "rr",
          slot: i + 3,
          ready: true,
          addresses: [{ networkId: "net1", address: `10.96.1.${i}` }],
        })),
      }),
    );
    const query = encode({ type: "query", id: 1, questions: [{ type: "A", name: "rr" }] });
    const udp = answer(query, web, new Names(state), 0, Number.POSITIVE_INFINITY) as Reply;
    expect(udp.bytes.length).toBeLessThanOrEqual(512);
    expect(udp.bytes.readUInt8(2) & 2).toBe(2);
  });

  it("survives any bytes", () => {
    const names = new Names(shop());
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 600 }), (bytes) => {
        answer(Buffer.from(bytes), web, names, 0, 512);
      }),
      { seed: 1, numRuns: 2_000 },
    );
  });
});

describe("the server", () => {
  async function overUdp(port: number, message: Buffer): Promise<Buffer> {
    const socket = createSocket("udp4");
    try {
      return await new Promise<Buffer>((resolve) => {
        socket.on("message", resolve);
        socket.send(message, port, "127.0.0.1");
      });
    } finally {
      socket.close();
    }
  }

  async function overTcp(port: number, message: Buffer): Promise<Buffer> {
    return await new Promise((resolve, reject) => {
      const connection = connect(port, "127.0.0.1", () => connection.write(framed(message)));
      connection.on("error", reject);
      connection.once("data", (data) => {
        connection.destroy();
        resolve(Buffer.from(data.subarray(2)));
      });
    });
  }

  const first = (bytes: Buffer) => {
    const [record] = decode(bytes).answers ?? [];
    return record !== undefined && "data" in record ? record.data : "";
  };

  it("answers over UDP and TCP, after garbage too, forgets on a change, and forwards the rest", async () => {
    const folder = mkdtempSync(join(tmpdir(), "embassy-dns-"));
    // The resolver that is asked for the rest: one of our own kind, whose askers are all web.
    const upstreamState = shop();
    await using upstream = new DnsServer({
      log: silentLog,
      address: "127.0.0.1",
      port: 0,
      names: new Names(upstreamState),
      askerAt: () => web,
      forwarder: { ask: async () => await Promise.resolve(undefined) },
    });
    await upstream.listen();
    writeFileSync(join(folder, "resolv.conf"), "nameserver 127.0.0.1\n");
    using forwarder = new Forwarder({
      log: silentLog,
      resolvConf: join(folder, "resolv.conf"),
      never: ["169.254.42.1"],
      port: upstream.port,
    });
    const state = shop();
    let asker: Asker | undefined = web;
    await using server = new DnsServer({
      log: silentLog,
      address: "127.0.0.1",
      port: 0,
      names: new Names(state),
      askerAt: () => asker,
      forwarder,
    });
    await server.listen();
    const query = encode({ type: "query", id: 99, questions: [{ type: "A", name: "redis" }] });
    await overUdp(server.port, Buffer.concat([Buffer.from([0, 1, 0, 0, 0, 9]), Buffer.alloc(20, 255)])).catch(() => {});
    for (const send of [overUdp, overUdp, overTcp]) {
      const bytes = await send(server.port, query);
      expect(bytes.readUInt16BE(0)).toBe(99);
      expect(first(bytes)).toBe("10.112.0.2");
    }
    const { services } = state.snapshot();
    state.apply(
      NetworkState.fromPartial({
        revision: 2,
        services: services
          .filter(({ id }) => id === "redis")
          .map((service) => ({ ...service, networks: [{ networkId: "net1", vip: "10.112.0.77" }] })),
      }),
    );
    server.changed();
    expect(first(await overUdp(server.port, query))).toBe("10.112.0.77");
    asker = undefined;
    expect(first(await overUdp(server.port, query))).toBe("10.112.0.2");
    rmSync(folder, { recursive: true });
  });

  it("asks a task's own resolvers instead of the host's", async () => {
    await using upstream = new DnsServer({
      log: silentLog,
      address: "127.0.0.1",
      port: 0,
      names: new Names(shop()),
      askerAt: () => web,
      forwarder: { ask: async () => await Promise.resolve(undefined) },
    });
    await upstream.listen();
    using forwarder = new Forwarder({ log: silentLog, resolvConf: "/nonexistent", never: [], port: upstream.port });
    const query = encode({ type: "query", id: 3, questions: [{ type: "A", name: "redis" }] });
    expect(first((await forwarder.ask(query, ["127.0.0.1"])) ?? query)).toBe("10.112.0.2");
    // What one task's resolver said is not for those who ask others.
    expect(((await forwarder.ask(query)) ?? query).readUInt8(3) & 0xf).toBe(2);
  });

  it("says at once that it cannot when there is no resolver", async () => {
    using forwarder = new Forwarder({ log: silentLog, resolvConf: "/nonexistent/resolv.conf", never: [] });
    const query = encode({ type: "query", id: 5, questions: [{ type: "A", name: "www.example.org" }] });
    const bytes = await forwarder.ask(query);
    expect(bytes?.readUInt16BE(0)).toBe(5);
    expect((bytes?.readUInt8(3) ?? 0) & 0xf).toBe(2);
  });

  it("reads the resolvers of a resolv.conf", () => {
    expect(nameserversOf("# x\nnameserver 1.2.3.4\nsearch a\n  nameserver ::1 \nnameserver\n")).toEqual([
      "1.2.3.4",
      "::1",
    ]);
  });
});
