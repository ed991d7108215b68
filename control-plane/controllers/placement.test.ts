import { describe, expect, it } from "vitest";
import {
  Affinity,
  Placement,
  PlacementStrategy,
  PublishedPort,
  PublishMode,
  ResourceAmount,
  Resources,
  type ServiceSpec,
  SpreadRule,
  TaintEffect,
  Toleration,
} from "../../proto/gen/embassy/v1/stack.ts";
import { BusyPort, Member, NodeStatus, type Taint } from "../../proto/gen/embassy/v1/state.ts";
import { stackProgress } from "../domain/progress.ts";
import { changeTaints } from "../domain/taints.ts";
import { aService, aStack, replicas } from "../domain/testing.ts";
import { SteppedCluster } from "./testing.ts";

// What users say about places, from the stack or the node to where tasks run.

const { TAINT_EFFECT_NO_SCHEDULE, TAINT_EFFECT_PREFER_NO_SCHEDULE, TAINT_EFFECT_NO_EXECUTE } = TaintEffect;
const global: ServiceSpec["mode"] = { $case: "global", value: {} };
const taint = (effect: TaintEffect, value = ""): Taint => ({ key: "gpu", value, effect });

class PlacedCluster extends SteppedCluster {
  static async withNodes(...names: string[]): Promise<PlacedCluster> {
    const cluster = new PlacedCluster();
    await cluster.addNodes(...names);
    return cluster;
  }

  async taint(id: string, ...taints: Taint[]): Promise<void> {
    const node = this.index.view.nodes.get(id);
    if (node === undefined) throw new Error(`no node ${id}`);
    await this.store.commit([{ table: "nodes", id, value: { ...node, taints } }]);
    await this.settle();
  }

  async label(labelsOf: (id: string) => Record<string, string>): Promise<void> {
    const nodes = [...this.index.view.nodes.entries()];
    await this.store.commit(
      nodes.map(([id, node]) => ({ table: "nodes" as const, id, value: { ...node, labels: labelsOf(id) } })),
    );
  }

  /** Deploys services and lets them settle. */
  async run(...services: ServiceSpec[]): Promise<void> {
    await this.deploy(aStack("s", services));
    await this.settleFor(10);
  }

  /** The nodes that run a task of the service, a node for each. */
  nodesOf(name: string): string[] {
    return this.running("s", name)
      .map((task) => task.split("@")[1] ?? "")
      .sort();
  }
}

describe("a taint of a node", () => {
  const tolerating = (over: Partial<Toleration>) => Placement.create({ tolerations: [Toleration.create(over)] });

  it("keeps new tasks off that do not tolerate it, and leaves those that run", async () => {
    using cluster = await PlacedCluster.withNodes("a", "b");
    await cluster.run(aService("web", { mode: replicas(2) }));
    await cluster.taint("a", taint(TAINT_EFFECT_NO_SCHEDULE));
    await cluster.run(aService("web", { mode: replicas(4) }));
    expect(cluster.nodesOf("web")).toEqual(["a", "b", "b", "b"]);
    await cluster.taint("b", taint(TAINT_EFFECT_NO_SCHEDULE, "a100"));
    await cluster.run(aService("web", { mode: replicas(5) }));
    expect(cluster.tasks("s", "web").at(-1)?.unplaced).toBe(
      "1 node: taint gpu:no-schedule not tolerated; 1: taint gpu=a100:no-schedule not tolerated",
    );
    await cluster.taint("a");
    expect(cluster.nodesOf("web")).toEqual(["a", "a", "b", "b", "b"]);
  });

  it.each<[string, Partial<Toleration>, boolean]>([
    ["its key", { key: "gpu" }, true],
    ["its key and value", { key: "gpu", value: "a100" }, true],
    ["its key and effect", { key: "gpu", effect: TAINT_EFFECT_NO_SCHEDULE }, true],
    ["everything", {}, true],
    ["another key", { key: "disk" }, false],
    ["another value", { key: "gpu", value: "b200" }, false],
    ["no value", { key: "gpu", value: "" }, false],
    ["another effect", { key: "gpu", effect: TAINT_EFFECT_NO_EXECUTE }, false],
  ])("takes a task that tolerates %s: %o %s", async (_, toleration, placed) => {
    using cluster = await PlacedCluster.withNodes("a");
    await cluster.taint("a", taint(TAINT_EFFECT_NO_SCHEDULE, "a100"));
    const placement = tolerating(toleration);
    await cluster.run(
      aService("web", { mode: replicas(1), placement }),
      aService("agent", { mode: global, placement }),
    );
    for (const name of ["web", "agent"]) expect(cluster.nodesOf(name)).toEqual(placed ? ["a"] : []);
  });

  it("against running tasks moves those away that do not tolerate it, after their successors are ready", async () => {
    using cluster = await PlacedCluster.withNodes("a", "b");
    const placement = tolerating({ key: "gpu" });
    await cluster.run(
      aService("web", { mode: replicas(2) }),
      aService("agent", { mode: global }),
      aService("driver", { mode: global, placement }),
    );
    await cluster.taint("a", taint(TAINT_EFFECT_NO_EXECUTE));
    expect(cluster.nodesOf("web")).toEqual(["b", "b"]);
    expect(cluster.nodesOf("agent")).toEqual(["b"]);
    expect(cluster.nodesOf("driver")).toEqual(["a", "b"]);
    expect(stackProgress(cluster.index, "s").converged).toBe(true);
    await cluster.taint("a");
    expect(cluster.nodesOf("agent")).toEqual(["a", "b"]);
  });

  it("against new tasks leaves a global service's task there, and gives the node none", async () => {
    using cluster = await PlacedCluster.withNodes("a");
    await cluster.run(aService("agent", { mode: global }));
    await cluster.taint("a", taint(TAINT_EFFECT_NO_SCHEDULE));
    await cluster.addNodes("b");
    await cluster.taint("b", taint(TAINT_EFFECT_NO_SCHEDULE));
    expect(cluster.nodesOf("agent")).toEqual(["a"]);
    expect(stackProgress(cluster.index, "s").converged).toBe(true);
  });

  it("that only advises against is left to tasks that have nowhere else to go", async () => {
    using cluster = await PlacedCluster.withNodes("a", "b");
    await cluster.taint("a", taint(TAINT_EFFECT_PREFER_NO_SCHEDULE));
    await cluster.run(aService("web", { mode: replicas(1) }), aService("db", { mode: replicas(1) }));
    expect([...cluster.nodesOf("web"), ...cluster.nodesOf("db")]).toEqual(["b", "b"]);
    await cluster.drain("b");
    await cluster.settleFor(1);
    expect([...cluster.nodesOf("web"), ...cluster.nodesOf("db")]).toEqual(["a", "a"]);
  });
});

describe("a service is spread", () => {
  const zoned = async (...zones: string[]) => {
    const cluster = await PlacedCluster.withNodes(...zones.map((zone, n) => `${zone}${n}`));
    await cluster.label((id) => ({ zone: id.charAt(0) }));
    return cluster;
  };
  const rule = (over: Partial<SpreadRule>) =>
    Placement.create({ spreadRules: [SpreadRule.create({ over: "node.labels.zone", otherShare: 1, ...over })] });
  const zonesOf = (cluster: PlacedCluster) =>
    cluster
      .nodesOf("web")
      .map((id) => id.charAt(0))
      .join("");

  it("in the shares that each value should have", async () => {
    using cluster = await zoned("a", "b", "b", "b", "c");
    const placement = rule({ shares: { a: 70, b: 30 }, otherShare: 0 });
    await cluster.run(aService("web", { mode: replicas(10), placement }));
    expect(zonesOf(cluster)).toBe("aaaaaaabbb");
  });

  it("without those that a drained node is about to lose", async () => {
    using cluster = await zoned("a", "a", "b", "b", "b");
    await cluster.run(aService("web", { mode: replicas(4), placement: rule({}) }));
    expect(zonesOf(cluster)).toBe("aabb");
    await cluster.drain("a0");
    await cluster.settleFor(10);
    expect(cluster.nodesOf("web").filter((id) => id === "a1")).toHaveLength(2);
    expect(zonesOf(cluster)).toBe("aabb");
  });

  it("by no more than max_skew, and waits rather than exceed it", async () => {
    using cluster = await zoned("a", "a", "a", "b");
    const web = aService("web", { mode: replicas(4), placement: { ...rule({ maxSkew: 1 }), maxReplicasPerNode: 1 } });
    await cluster.run(web);
    expect(zonesOf(cluster)).toBe("aab");
    expect(cluster.tasks("s", "web").find(({ nodeId }) => nodeId === "")?.unplaced).toContain(
      "node.labels.zone a would have 3 tasks, the emptiest 1: more than maxSkew 1",
    );
    await cluster.addNodes("b4");
    await cluster.label((id) => ({ zone: id.charAt(0) }));
    await cluster.settle();
    expect(zonesOf(cluster)).toBe("aabb");
  });
});

describe("an affinity", () => {
  const wish = (service: string, weight: number, over = "node.id") =>
    Placement.create({ affinities: [Affinity.create({ to: { $case: "service", value: { service, over } }, weight })] });
  const one = { mode: replicas(1) };

  it.each([["web", "db"] as const, ["db", "web"] as const])(
    "brings services together, whichever is placed first: %s, %s",
    async (...order) => {
      using cluster = await PlacedCluster.withNodes("a", "b", "c", "d");
      const filler = aService("filler", { mode: replicas(2) });
      await cluster.run(filler);
      const services = { db: aService("db", one), web: aService("web", { ...one, placement: wish("db", 100) }) };
      await cluster.run(filler, ...order.map((name) => services[name]));
      expect(cluster.nodesOf("web")).toEqual(cluster.nodesOf("db"));
    },
  );

  it("that is negative keeps them apart, and is given up where there is no other place", async () => {
    using cluster = await PlacedCluster.withNodes("a", "b");
    const placement = wish("db", -100);
    await cluster.run(aService("db", { mode: replicas(1) }), aService("web", { mode: replicas(2), placement }));
    const [db] = cluster.nodesOf("db");
    // One each, as its own task on the node weighs as much; the first keeps away.
    expect(cluster.nodesOf("web")).toHaveLength(2);
    expect(cluster.tasks("s", "web")[0]?.nodeId).not.toBe(db);
  });

  it("to nodes draws to those that meet the constraint", async () => {
    using cluster = await PlacedCluster.withNodes("a", "b", "c");
    await cluster.label((id) => ({ disk: id === "c" ? "ssd" : "hdd" }));
    const to = { $case: "node", value: "node.labels.disk == ssd" } as const;
    const placement = Placement.create({ affinities: [Affinity.create({ to, weight: 100 })] });
    await cluster.run(aService("web", { ...one, placement }));
    expect(cluster.nodesOf("web")).toEqual(["c"]);
  });

  it("of a service that comes later, or changes, counts for what the other one gets from then on", async () => {
    using cluster = await PlacedCluster.withNodes("a", "b", "c", "d");
    const db = (count: number) => aService("db", { mode: replicas(count) });
    const web = (placement: Partial<Placement>) =>
      aService("web", {
        mode: replicas(3),
        placement: Placement.create({ ...placement, constraints: ["node.hostname == d"] }),
      });
    const onD = () => cluster.nodesOf("db").filter((id) => id === "d").length;
    await cluster.run(aService("filler", { mode: replicas(4) }), db(1), web({}));
    expect(onD()).toBe(0);
    await cluster.run(aService("filler", { mode: replicas(4) }), db(1), web(wish("db", 100)));
    await cluster.run(aService("filler", { mode: replicas(4) }), db(2), web(wish("db", 100)));
    expect(onD()).toBe(1);
    await cluster.run(aService("filler", { mode: replicas(4) }), db(2), web(wish("db", -100)));
    await cluster.run(aService("filler", { mode: replicas(4) }), db(5), web(wish("db", -100)));
    expect(onD()).toBe(1);
  });

  it("holds for what has been removed and deployed anew", async () => {
    using cluster = await PlacedCluster.withNodes("a", "b", "c", "d");
    const web = aService("web", { ...one, placement: wish("db", 100) });
    await cluster.run(aService("db", one), web);
    await cluster.run(aService("filler", { mode: replicas(3) }));
    await cluster.run(aService("filler", { mode: replicas(3) }), aService("db", one), web);
    expect(cluster.nodesOf("web")).toEqual(cluster.nodesOf("db"));
  });
});

it("a service that is packed fills one node before the next", async () => {
  using cluster = await PlacedCluster.withNodes("a", "b", "c");
  const reservations = ResourceAmount.create({ milliCpus: 1_000 });
  const packed = (strategy: PlacementStrategy) => ({
    mode: replicas(4),
    resources: Resources.create({ reservations }),
    placement: Placement.create({ strategy }),
  });
  await cluster.run(aService("web", packed(PlacementStrategy.PLACEMENT_STRATEGY_BINPACK)));
  expect(new Set(cluster.nodesOf("web")).size).toBe(1);
  await cluster.run(aService("web", packed(PlacementStrategy.PLACEMENT_STRATEGY_SPREAD)));
  expect(new Set(cluster.nodesOf("web")).size).toBe(3);
});

describe("the role of a node", () => {
  const member = (name: string, address: string) =>
    ({ table: "members", id: name, value: Member.create({ name, address }) }) as const;
  const only = (role: string) => Placement.create({ constraints: [`node.role == ${role}`] });

  it.each([
    ["address", (own: string) => member("elsewhere", `${own}:7400`)],
    ["name", () => member("b", "b.example:7400")],
  ])("is manager where a member has its %s, for as long as there is that member", async (_, memberOf) => {
    using cluster = await PlacedCluster.withNodes("a", "b", "c");
    const joined = memberOf(cluster.index.nodeStatus("b")?.description?.underlayAddress ?? "");
    await cluster.store.commit([member("a", "192.0.2.1:7400")]);
    await cluster.run(
      aService("one", { mode: replicas(2), placement: only("manager") }),
      aService("all", { mode: global, placement: only("manager") }),
      aService("rest", { mode: global, placement: only("worker") }),
    );
    expect(["one", "all", "rest"].map((name) => cluster.nodesOf(name))).toEqual([["a", "a"], ["a"], ["b", "c"]]);
    await cluster.store.commit([joined]);
    await cluster.run(
      aService("one", { mode: replicas(4), placement: only("manager") }),
      aService("all", { mode: global, placement: only("manager") }),
      aService("rest", { mode: global, placement: only("worker") }),
    );
    expect(["one", "all", "rest"].map((name) => cluster.nodesOf(name))).toEqual([
      ["a", "a", "b", "b"],
      ["a", "b"],
      ["c"],
    ]);
    await cluster.store.commit([{ ...joined, value: undefined }]);
    await cluster.settle();
    expect(["all", "rest"].map((name) => cluster.nodesOf(name))).toEqual([["a"], ["b", "c"]]);
  });
});

it("a port of a host is kept from others at the same address only", async () => {
  using cluster = await PlacedCluster.withNodes("a");
  const at = (name: string, hostIp: string) =>
    aService(name, {
      mode: replicas(1),
      ports: [PublishedPort.create({ target: 80, published: 80, mode: PublishMode.PUBLISH_MODE_HOST, hostIp })],
    });
  const status = NodeStatus.create(cluster.index.view.nodeStatuses.get("a"));
  const busyPorts = [BusyPort.create({ port: 80, listensAt: "127.0.0.1", by: "nginx (pid 8)" })];
  await cluster.store.commit([{ table: "nodeStatuses", id: "a", value: { ...status, busyPorts } }]);
  await cluster.run(at("one", "10.0.0.5"), at("two", "10.0.0.6"), at("three", "0.0.0.0"), at("four", "127.0.0.1"));
  expect(["one", "two", "three", "four"].map((name) => cluster.nodesOf(name))).toEqual([["a"], ["a"], [], []]);
  expect(["three", "four"].map((name) => cluster.tasks("s", name).at(-1)?.unplaced)).toEqual([
    expect.stringMatching(/^1 node: port 80 held by s_(one|two)\.1$/),
    "1 node: port 80 at 127.0.0.1 held by nginx (pid 8)",
  ]);
  const anywhere = [BusyPort.create({ port: 81, by: "nginx (pid 8)" })];
  await cluster.store.commit([{ table: "nodeStatuses", id: "a", value: { ...status, busyPorts: anywhere } }]);
  await cluster.settleFor(10);
  expect(cluster.nodesOf("four")).toEqual(["a"]);
});

it("taints have an effect once for each key", () => {
  const before = [
    taint(TAINT_EFFECT_NO_SCHEDULE, "old"),
    taint(TAINT_EFFECT_NO_EXECUTE),
    { ...taint(TAINT_EFFECT_NO_SCHEDULE), key: "b" },
  ];
  const set = [taint(TAINT_EFFECT_NO_SCHEDULE, "new")];
  expect(changeTaints(before, [{ key: "gpu", effect: TAINT_EFFECT_NO_EXECUTE }], set)).toEqual([before[2], set[0]]);
  expect(changeTaints(before, [{ key: "gpu" }], [])).toEqual([before[2]]);
  expect(changeTaints(before, [{ key: "nope" }], [])).toHaveLength(3);
});
