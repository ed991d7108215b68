import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { NetworkState } from "../../proto/gen/embassy/v1/dispatcher.ts";
import { EndpointMode, Protocol } from "../../proto/gen/embassy/v1/stack.ts";
import { slotMarkBase } from "../kernel/ruleset.ts";
import { ClusterState } from "../state/cluster.ts";
import { StateBuilder } from "../testing/states.ts";
import { DesiredItems } from "./desired.ts";
import { applyToModel, plan } from "./diff.ts";
import { type Item, idOf } from "./items.ts";
import { allUnits, planUnit, unitsTouchedBy } from "./units.ts";
import type { Attachment, View } from "./view.ts";

const tcp = (port: number) => ({ port, protocol: Protocol.PROTOCOL_TCP });

function viewOf(state: NetworkState, attachments: readonly Attachment[] = []): View {
  const cluster = new ClusterState();
  cluster.apply(state);
  const all = new Map(attachments.map((one) => [one.taskId, one]));
  return { cluster, attachments: all, underlayMtu: 1_500, mayPublish: () => true };
}

const task = (taskId: string, serviceId: string, addresses: Record<string, string>): Attachment => ({
  taskId,
  serviceId,
  slot: 1,
  addresses: Object.entries(addresses).map(([networkId, address]) => ({ networkId, address })),
  hostPorts: [],
  netns: `/run/netns/${taskId}`,
  resolvers: [],
});

function everything(view: View): Map<string, Item> {
  const desired = new DesiredItems();
  for (const unit of allUnits(view)) {
    for (const [name, items] of planUnit(view, unit)) desired.set(name, items, new Set());
  }
  return new Map(desired.items);
}

/** "kind key => value" of what a unit wants. */
function lines(view: View, unit: string): string[] {
  const items = [...planUnit(view, unit).values()].flat();
  return items.map((item) => `${item.kind} ${item.key}${item.value === "" ? "" : ` => ${item.value}`}`);
}

const base = () =>
  new StateBuilder()
    .host("h0", "172.31.99.1")
    .host("h1", "172.31.99.2")
    .network("net", 1, ["h0", "h1"])
    .network("iso", 2, ["h0", "h1"], { isolated: true });

describe("a network", () => {
  it("is a device, this host's block, and three entries for each other host, whatever the number of endpoints", () => {
    const state = base();
    expect(lines(viewOf(state.for("h0")), "network net")).toEqual([
      "link emb4097 => vxlan 4097 local 172.31.99.1 port 4789 nolearning mac 02:76:ac:1f:63:01 mtu 1450",
      "sysctl net/ipv4/conf/emb4097/route_localnet => 1",
      "element subnets 10.96.16.0/20 => 1979715585",
      "element netdevs emb4097 . 1979715585",
      "address 10.96.16.1/32 emb4097 => global",
      "route main 10.96.16.0/27 => blackhole",
      "fdb 02:76:ac:1f:63:02 emb4097 => 172.31.99.2",
      "neighbour 172.31.99.2 emb4097 => 02:76:ac:1f:63:02",
      "route main 10.96.16.32/27 => via 172.31.99.2 dev emb4097 onlink src 10.96.16.1",
    ]);
    for (let n = 0; n < 50; n++) state.endpoint(`t${n}`, "web", "h1", { net: `10.96.16.${40 + n}` });
    expect(lines(viewOf(state.for("h0")), "network net")).toHaveLength(9);
  });

  it("has a host without a block as a peer while it serves a published port", () => {
    const state = base().host("h2", "172.31.99.3");
    const peers = () => lines(viewOf(state.for("h0")), "network net").filter((line) => line.startsWith("fdb"));
    expect(peers()).toHaveLength(1);
    state.service("web", { net: "10.112.0.1" }, { ports: [{ target: 80, published: 8080 } as never] });
    expect(peers()).toHaveLength(2);
  });

  it("is nothing while this host's own address is not known", () => {
    const state = base();
    state.hosts.delete("h0");
    expect(lines(viewOf(state.for("h0")), "network net")).toEqual([]);
  });
});

describe("an ambassador", () => {
  const slot = (n: number) => slotMarkBase + n;
  it("leads to ready endpoints only, one slot each", () => {
    const state = base()
      .service("db", { net: "10.112.0.1" })
      .endpoint("a", "db", "h0", { net: "10.96.16.2" }, { slot: 2 })
      .endpoint("b", "db", "h1", { net: "10.96.16.34" }, { slot: 1 })
      .endpoint("c", "db", "h1", { net: "10.96.16.35" }, { slot: 3, ready: false });
    expect(lines(viewOf(state.for("h0")), "service db")).toEqual([
      "element vipnet 10.112.0.1 => 1979715585",
      "element svc 10.112.0.1 => jump rr2",
      `element be 10.112.0.1 . ${slot(0)} => 10.96.16.34`,
      `element be 10.112.0.1 . ${slot(1)} => 10.96.16.2`,
    ]);
  });

  it("keeps its address without endpoints, and has none with endpoint mode dnsrr", () => {
    const state = base()
      .service("db", { net: "10.112.0.1" })
      .service("rr", { net: "10.112.0.2" }, { endpointMode: EndpointMode.ENDPOINT_MODE_DNSRR })
      .endpoint("a", "rr", "h0", { net: "10.96.16.2" });
    expect(lines(viewOf(state.for("h0")), "service db")).toEqual(["element vipnet 10.112.0.1 => 1979715585"]);
    expect(lines(viewOf(state.for("h0")), "service rr")).toEqual([]);
  });

  it("repeats backends over a large chooser, their shares one slot apart at most", () => {
    const state = base().service("db", { net: "10.112.0.1" });
    for (let n = 0; n < 100; n++) state.endpoint(`t${n}`, "db", "h1", { net: `10.96.17.${n}` }, { slot: n });
    const shares = new Map<string, number>();
    for (const line of lines(viewOf(state.for("h0")), "service db").filter((one) => one.startsWith("element be"))) {
      const backend = line.split(" => ")[1] ?? "";
      shares.set(backend, (shares.get(backend) ?? 0) + 1);
    }
    expect(shares.size).toBe(100);
    expect(new Set(shares.values())).toEqual(new Set([10, 11]));
  });
});

describe("policy", () => {
  const attachment = task("taskaaaaaaaa", "web", { net: "10.96.16.2", iso: "10.96.32.2" });
  const rights = (state: StateBuilder) =>
    lines(viewOf(state.for("h0"), [attachment]), "attachment taskaaaaaaaa").filter((line) =>
      /^element (links|allow|members)/.test(line),
    );

  it("makes a task a member of open networks only, by each of its addresses", () => {
    expect(rights(base().service("web", { net: "10.112.0.1", iso: "10.112.0.2" }))).toEqual([
      "element members 10.96.16.2 . 1979715585",
      "element members 10.96.32.2 . 1979715585",
    ]);
  });

  it("makes a link a capability for the exposed ports, on isolated networks", () => {
    const state = base()
      .service("web", { iso: "10.112.0.2" }, { links: [{ serviceId: "db", alias: "db" }] })
      .service("db", { net: "10.112.0.3", iso: "10.112.0.4" }, { exposed: [tcp(6379), { port: 53, protocol: 1 }] });
    expect(rights(state).filter((line) => line.includes("links"))).toEqual([
      "element links 10.96.16.2 . 10.112.0.4 . tcp . 6379",
      "element links 10.96.32.2 . 10.112.0.4 . tcp . 6379",
      "element links 10.96.16.2 . 10.112.0.4 . udp . 53",
      "element links 10.96.32.2 . 10.112.0.4 . udp . 53",
    ]);
  });

  it("opens the tasks themselves of a linked service that has no VIP", () => {
    const state = base()
      .service("web", { iso: "10.112.0.2" }, { links: [{ serviceId: "db", alias: "db" }] })
      .service("db", { iso: "" }, { exposed: [tcp(1)], endpointMode: EndpointMode.ENDPOINT_MODE_DNSRR })
      .endpoint("a", "db", "h1", { iso: "10.96.32.34" });
    expect(rights(state).filter((line) => line.includes("allow"))).toEqual([
      "element allow 10.96.16.2 . 10.96.32.34 . tcp . 1",
      "element allow 10.96.32.2 . 10.96.32.34 . tcp . 1",
    ]);
  });
});

describe("desired items", () => {
  const item = (key: string, value: string): Item => ({ kind: "route", key, value, why: "" });

  it("what two units want is the later one's, and goes back to the other", () => {
    const desired = new DesiredItems();
    const value = () => desired.items.get("route k")?.value;
    desired.set("a", [item("k", "1")], new Set());
    const touched = new Set<string>();
    desired.set("b", [item("k", "2")], touched);
    expect([value(), [...touched]]).toEqual(["2", ["route k"]]);
    desired.set("a", [item("k", "3")], new Set());
    expect(value()).toBe("2");
    desired.set("b", [], new Set());
    expect(value()).toBe("3");
    desired.set("a", [], new Set());
    expect(value()).toBeUndefined();
  });
});

describe("plan", () => {
  it("sets in the order of need, removes in the other, and leaves to the kernel what goes with a device", () => {
    const before = everything(viewOf(base().for("h0"), [task("taskaaaaaaaa", "web", { net: "10.96.16.2" })]));
    const kinds = (actions: ReturnType<typeof plan>) => [...new Set(actions.map((a) => `${a.do} ${a.item.kind}`))];
    expect(kinds(plan(before, new Map()))).toEqual(
      [
        "set sysctl",
        "set link",
        "set sysctl",
        "set address",
        "set neighbour",
        "set fdb",
        "set route",
        "set element",
      ].filter((kind, n, all) => all.indexOf(kind) === n),
    );
    const actions = plan(new Map(), before);
    expect(kinds(actions)).toEqual(["remove element", "remove route", "remove address", "remove link"]);
    expect(actions.filter((a) => a.item.kind === "route").map((a) => a.item.key)).toEqual([
      "main 10.96.16.0/27",
      "main 10.96.32.0/27",
    ]);
  });

  it("sets again all that a device held when the device itself has to be made anew", () => {
    const desired = everything(viewOf(base().for("h0")));
    const observed = new Map(desired);
    const link: Item = { kind: "link", key: "emb4097", value: "vxlan 9 local 1.1.1.1 mac x mtu 1", why: "" };
    observed.set(idOf(link), link);
    const keys = plan(desired, observed).map(({ item }) => `${item.kind} ${item.key}`);
    expect(keys).toContain("link emb4097");
    expect(keys).toContain("route main 10.96.16.32/27");
    expect(keys).toContain("address 10.96.16.1/32 emb4097");
    expect(keys).not.toContain("address 10.96.32.1/32 emb4098");
  });
});

// A random cluster, seen by h0: what one message changes is planned from the units that it touches alone.
const names = ["a", "b", "c", "d"] as const;
const name = fc.constantFrom(...names);
const step = fc.oneof(
  fc.record({ do: fc.constant("host" as const), id: fc.constantFrom("h0", "h1", "h2", "h3"), gone: fc.boolean() }),
  fc.record({
    do: fc.constant("network" as const),
    id: fc.constantFrom("net", "iso"),
    isolated: fc.boolean(),
    internal: fc.boolean(),
    gone: fc.boolean(),
  }),
  fc.record({
    do: fc.constant("service" as const),
    id: name,
    links: fc.uniqueArray(name, { maxLength: 2 }),
    ports: fc.boolean(),
    dnsrr: fc.boolean(),
    networks: fc.uniqueArray(fc.constantFrom("net", "iso"), { minLength: 1 }),
    gone: fc.boolean(),
  }),
  fc.record({
    do: fc.constant("endpoint" as const),
    id: fc.integer({ min: 0, max: 7 }),
    service: name,
    ready: fc.boolean(),
    gone: fc.boolean(),
  }),
);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

function change(state: StateBuilder, one: Step): void {
  switch (one.do) {
    case "host":
      if (one.gone) state.hosts.delete(one.id);
      else state.host(one.id, `172.31.99.${Number(one.id.slice(1)) + 1}`);
      return;
    case "network":
      if (one.gone) state.networks.delete(one.id);
      else
        state.network(one.id, one.id === "net" ? 1 : 2, ["h0", "h1", "h2"], {
          isolated: one.isolated,
          internal: one.internal,
        });
      return;
    case "service": {
      if (one.gone) {
        state.services.delete(one.id);
        return;
      }
      const vips = Object.fromEntries(
        one.networks.map((id) => [id, `10.112.${id === "net" ? 1 : 2}.${names.indexOf(one.id) + 1}`]),
      );
      state.service(one.id, vips, {
        exposed: [tcp(80)],
        links: one.links.map((serviceId) => ({ serviceId, alias: serviceId })),
        ports: one.ports
          ? [{ target: 80, published: 8_000 + names.indexOf(one.id), protocol: 0, mode: 0, hostIp: "", name: "" }]
          : [],
        endpointMode: one.dnsrr ? EndpointMode.ENDPOINT_MODE_DNSRR : EndpointMode.ENDPOINT_MODE_VIP,
      });
      return;
    }
    case "endpoint":
      if (one.gone) state.endpoints.delete(`t${one.id}`);
      else
        state.endpoint(
          `t${one.id}`,
          one.service,
          "h1",
          { net: `10.96.16.${40 + one.id}`, iso: `10.96.32.${40 + one.id}` },
          { ready: one.ready, slot: one.id },
        );
      return;
    default:
      one satisfies never;
  }
}

describe("planning by what changed", () => {
  it("comes to the same as planning everything, and applied leaves nothing to do", () => {
    fc.assert(
      fc.property(
        fc.array(fc.array(step, { minLength: 1, maxLength: 4 }), { minLength: 1, maxLength: 12 }),
        (messages) => {
          const attachments = [
            task("taskaaaaaaaa", "a", { net: "10.96.16.2" }),
            task("taskbaaaaaaa", "b", { iso: "10.96.32.2", net: "10.96.16.3" }),
          ];
          const state = base();
          const view = viewOf(state.for("h0"), attachments);
          const desired = new DesiredItems();
          const kernel = new Map<string, Item>();
          const work = (units: Iterable<string>) => {
            const touched = new Set<string>();
            for (const unit of units) {
              const plans = planUnit(view, unit);
              if (unit === "hosts") {
                for (const known of desired.units()) {
                  if (known.startsWith("host ") && !plans.has(known)) desired.set(known, [], touched);
                }
              }
              for (const [unitName, items] of plans) desired.set(unitName, items, touched);
            }
            applyToModel(kernel, plan(desired.items, kernel, touched));
          };
          work(allUnits(view));
          for (const message of messages) {
            for (const one of message) change(state, one);
            // Through the wire, as it comes.
            const sent = NetworkState.decode(NetworkState.encode(state.for("h0")).finish());
            work(unitsTouchedBy(view, view.cluster.apply(sent)));
            const values = (items: ReadonlyMap<string, Item>) =>
              new Map([...items].map(([id, { value }]) => [id, value]));
            expect(values(desired.items)).toEqual(values(everything(view)));
            // Settings of devices stay with the kernel, and nobody takes them away.
            expect(plan(desired.items, kernel)).toEqual([]);
          }
        },
      ),
      { seed: 7, numRuns: 150 },
    );
  });
});
