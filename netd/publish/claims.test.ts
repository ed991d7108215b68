import { createSocket } from "node:dgram";
import { once } from "node:events";
import { type AddressInfo, createServer } from "node:net";
import { expect, it } from "vitest";
import { silentLog } from "../../lib/log/log.ts";
import { listListeners } from "../kernel/listeners.ts";
import { type Claim, PortClaims } from "./claims.ts";

async function listener(host: string, port = 0) {
  const server = createServer().listen(port, host);
  await once(server, "listening");
  return {
    port: (server.address() as AddressInfo).port,
    close: async () => await new Promise((resolve) => server.close(resolve)),
  };
}

const tcp = (port: number, address = "0.0.0.0"): Claim => ({ protocol: "tcp", address, port });

/** Claims that tell of every change. */
function claims() {
  const changed: string[][] = [];
  let wake = Promise.withResolvers<void>();
  const all = new PortClaims({
    log: silentLog,
    listeners: listListeners,
    onChange: (units) => {
      changed.push([...units]);
      wake.resolve();
      wake = Promise.withResolvers<void>();
    },
    onBusy: () => {},
    retryMs: 20,
  });
  return { all, changed, change: async () => await wake.promise };
}

it("one port at an address and at every address are both the cluster's own, whichever comes first", async () => {
  for (const order of [
    ["127.0.0.1", "0.0.0.0"],
    ["0.0.0.0", "127.0.0.1"],
  ] as const) {
    const probe = await listener("127.0.0.1");
    await probe.close();
    const { all } = claims();
    await using _ = all;
    for (const address of order) await all.set(new Map([[`service ${address}`, [tcp(probe.port, address)]]]));
    expect(order.map((address) => all.has(tcp(probe.port, address)))).toEqual([true, true]);
    expect(all.busy()).toEqual([]);
    const both = tcp(probe.port);
    await all.set(new Map(order.map((address) => [`service ${address}`, []])));
    await all.set(new Map([["service both", [both, tcp(probe.port, "127.0.0.1")]]]));
    expect(all.busy()).toEqual([]);
  }
});

it("a port of two units is let go of with the last, and then anybody may have it", async () => {
  const probe = await listener("127.0.0.1");
  await probe.close();
  const { all } = claims();
  await using _ = all;
  await all.set(
    new Map([
      ["service a", [tcp(probe.port)]],
      ["attachment b", [tcp(probe.port)]],
    ]),
  );
  await all.set(new Map([["service a", []]]));
  await expect(listener("127.0.0.1", probe.port)).rejects.toMatchObject({ code: "EADDRINUSE" });
  await all.set(new Map([["attachment b", []]]));
  expect(all.has(tcp(probe.port))).toBe(false);
  await (await listener("127.0.0.1", probe.port)).close();
});

it("a busy port is had once its program has ended, TCP and UDP apart; who waited is told", async () => {
  const program = await listener("127.0.0.1");
  const udp = createSocket("udp4").bind(program.port, "127.0.0.1");
  await once(udp, "listening");
  const { all, changed, change } = claims();
  await using _ = all;
  const both: Claim[] = [tcp(program.port), { ...tcp(program.port), protocol: "udp" }];
  await all.set(new Map([["service a", both]]));
  expect(all.busy().map(({ protocol, by }) => [protocol, /\(pid \d+\)$/.test(by)])).toEqual([
    ["tcp", true],
    ["udp", true],
  ]);
  const first = change();
  await program.close();
  await first;
  expect(both.map((claim) => all.has(claim))).toEqual([true, false]);
  const second = change();
  udp.close();
  await second;
  expect(both.map((claim) => all.has(claim))).toEqual([true, true]);
  expect(changed).toEqual([["service a"], ["service a"]]);
});

it("tells where the program listens: at an address, or at every one although it also does at that address", async () => {
  const [local, other] = [await listener("127.0.0.1"), await listener("127.0.0.2")];
  const everywhere = createSocket({ type: "udp4", reuseAddr: true }).bind(local.port, "0.0.0.0");
  await once(everywhere, "listening");
  const here = createSocket({ type: "udp4", reuseAddr: true }).bind(local.port, "127.0.0.1");
  await once(here, "listening");
  const { all } = claims();
  await using _ = all;
  const udp: Claim = { ...tcp(local.port, "127.0.0.1"), protocol: "udp" };
  await all.set(new Map([["service a", [tcp(local.port), tcp(other.port, "127.0.0.2"), tcp(other.port), udp]]]));
  const told = new Map(all.busy().map(({ protocol, address, port, at }) => [`${protocol} ${address} ${port}`, at]));
  expect(told).toEqual(
    new Map([
      [`tcp 0.0.0.0 ${local.port}`, "127.0.0.1"],
      [`tcp 127.0.0.2 ${other.port}`, "127.0.0.2"],
      [`tcp 0.0.0.0 ${other.port}`, "127.0.0.2"],
      [`udp 127.0.0.1 ${local.port}`, ""],
    ]),
  );
  here.close();
  everywhere.close();
  await local.close();
  await other.close();
});

it("the cluster's own ports are never claimed, and port 0 is none", async () => {
  const { all } = claims();
  await using _ = all;
  await all.set(new Map([["service a", [tcp(7400), tcp(0), { ...tcp(4789), protocol: "udp" }]]]));
  expect([all.has(tcp(7400)), all.has(tcp(0)), all.busy()]).toEqual([false, false, []]);
});

it("who cannot tell who listens gives way", async () => {
  const program = await listener("0.0.0.0");
  const failing = new PortClaims({
    log: silentLog,
    listeners: () => {
      throw new Error("no ss");
    },
    onChange: () => {},
    onBusy: () => {},
  });
  await using _ = failing;
  await failing.set(new Map([["service a", [tcp(program.port)]]]));
  expect(failing.busy()).toEqual([{ ...tcp(program.port), by: "", at: "" }]);
  await program.close();
});

it("a program that ends while it is asked for leaves its port to the cluster at once", async () => {
  const program = await listener("0.0.0.0");
  await using all = new PortClaims({
    log: silentLog,
    listeners: async () => {
      await program.close();
      return [];
    },
    onChange: () => {},
    onBusy: () => {},
  });
  await all.set(new Map([["service a", [tcp(program.port)]]]));
  expect([all.has(tcp(program.port)), all.busy()]).toEqual([true, []]);
  await expect(listener("0.0.0.0", program.port)).rejects.toMatchObject({ code: "EADDRINUSE" });
});
