import { describe, expect, it } from "vitest";
import { Placement, type ServiceSpec, TaintEffect, Toleration } from "../../proto/gen/embassy/v1/stack.ts";
import { Member, type Taint } from "../../proto/gen/embassy/v1/state.ts";
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
