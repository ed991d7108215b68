import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DisruptionPolicy, Placement, PlacementStrategy, Resources } from "../../../proto/gen/embassy/v1/stack.ts";
import { Availability, NodeState } from "../../../proto/gen/embassy/v1/state.ts";
import { aService, aStack, replicas } from "../../domain/testing.ts";
import { effort } from "../../scheduler/arbitraries.ts";
import { SteppedCluster } from "../testing.ts";

const names = ["a", "b", "c", "d", "e"];
const settings = {
  rebalanceSettleMs: 30_000,
  rebalanceCooldownMs: 60_000,
  rebalanceIntervalMs: 60_000,
  rebalancePatienceMs: 60_000,
  rebalanceAtOnce: 2,
  rebalanceSkew: 1,
};
/** As long as the longest cooldown there can be, and a round after it. */
const restMs = settings.rebalanceCooldownMs * 16 + 60_000;

const affinity = fc.record({
  to: fc.constantFrom(
    { $case: "node" as const, value: "node.labels.zone == x" },
    { $case: "service" as const, value: { service: "s0", over: "node.id" } },
    { $case: "service" as const, value: { service: "s1", over: "node.labels.zone" } },
  ),
  weight: fc.constantFrom(-100, -30, 60, 100),
});

const service = fc.record({
  replicas: fc.integer({ min: 2, max: 7 }),
  milliCpus: fc.constantFrom(0, 0, 500, 1_300),
  affinities: fc.array(affinity, { maxLength: 4 }),
  zones: fc.constantFrom("no", "no", "even", "shares", "skew"),
  perNode: fc.constantFrom(0, 0, 0, 0, 3),
  avoids: fc.boolean(),
  packs: fc.constantFrom(...Array<boolean>(9).fill(false), true),
  minAvailable: fc.constantFrom(0, 0, 0, 1, 3),
  rebalance: fc.constantFrom(true, true, true, true, false),
});
type RandomService = typeof service extends fc.Arbitrary<infer T> ? T : never;

const change = fc.record({
  node: fc.constantFrom(...names),
  what: fc.constantFrom(
    "drain",
    "activate",
    "activate",
    "activate",
    "pause",
    "down",
    "ready",
    "ready",
    "ready",
    "zone x",
    "zone y",
    "crash",
    "mend",
  ),
  /** What comes after it, as often within a rest as after it. */
  seconds: fc.constantFrom(0, 2, 20, 60, 200, 400),
  /** Passes and steps of nodes that are made after that, in the midst of which the next change comes. */
  steps: fc.integer({ min: 0, max: 8 }),
});
type RandomChange = typeof change extends fc.Arbitrary<infer T> ? T : never;

function specOf(one: RandomService, n: number) {
  const over = "node.labels.zone";
  const rule = { over, shares: {}, otherShare: 1, maxSkew: 0 };
  const spreadRules = {
    no: [],
    even: [rule],
    shares: [{ ...rule, shares: { x: 3, y: 1 } }],
    skew: [{ ...rule, maxSkew: 1 }],
  }[one.zones];
  return aService(`s${n}`, {
    mode: replicas(one.replicas),
    resources: Resources.create({ reservations: { milliCpus: one.milliCpus, memoryBytes: 0, pids: 0, generic: {} } }),
    placement: Placement.create({
      affinities: one.affinities,
      spreadRules: spreadRules ?? [],
      maxReplicasPerNode: one.perNode,
      constraints: one.avoids ? ["node.labels.zone != y"] : [],
      strategy: one.packs ? PlacementStrategy.PLACEMENT_STRATEGY_BINPACK : PlacementStrategy.PLACEMENT_STRATEGY_SPREAD,
    }),
    disruption: DisruptionPolicy.create({ rebalance: one.rebalance, minAvailable: one.minAvailable }),
  });
}

async function make(cluster: SteppedCluster, { node, what }: RandomChange, services: number): Promise<void> {
  const spec = cluster.index.view.nodes.get(node);
  if (spec === undefined) {
    await cluster.addNodes(node);
    return;
  }
  const label = async (zone: string) =>
    await cluster.store.commit([{ table: "nodes", id: node, value: { ...spec, labels: { zone } } }]);
  switch (what) {
    case "drain":
      return await cluster.setAvailability(node, Availability.AVAILABILITY_DRAIN);
    case "activate":
      return await cluster.setAvailability(node, Availability.AVAILABILITY_ACTIVE);
    case "pause":
      return await cluster.setAvailability(node, Availability.AVAILABILITY_PAUSE);
    case "down":
      return await cluster.setNode(node, NodeState.NODE_STATE_DOWN);
    case "ready":
      return await cluster.setNode(node, NodeState.NODE_STATE_READY);
    case "zone x":
    case "zone y":
      return void (await label(what.slice(-1)));
    case "crash":
      cluster.spared = new Set([...cluster.index.view.tasks.entries()].map(([id]) => id));
      cluster.crashing.add(`s${names.indexOf(node) % services}`);
      return;
    default:
      cluster.crashing.clear();
  }
}

/** Time in steps, with the cluster at rest after each. */
async function go(cluster: SteppedCluster, ms: number, stepMs: number, onStep?: () => void): Promise<void> {
  for (const untilMs = cluster.nowMs + ms; cluster.nowMs < untilMs; ) {
    cluster.nowMs += stepMs;
    await cluster.settle(onStep);
  }
}

/** Tasks of each service that are up, and how many it wants. */
function upOf(cluster: SteppedCluster): ReadonlyMap<string, { readonly up: number; readonly wanted: number }> {
  return new Map(
    [...cluster.index.view.services.values()].map(({ stack, spec }) => {
      const name = spec?.name ?? "";
      const wanted = spec?.mode?.$case === "replicated" ? spec.mode.value.replicas : 0;
      return [name, { up: cluster.running(stack, name).length, wanted }];
    }),
  );
}

describe("services that are spread by themselves", () => {
  it("come to rest and stay so, whatever happened before, and none has fewer tasks up for it", async () => {
    const counts: Record<string, number> = {};
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 2, max: 5 }),
        fc.array(service, { minLength: 1, maxLength: 3 }),
        fc.array(change, { minLength: 4, maxLength: 12 }),
        async (nodes, services, changes) => {
          using cluster = new SteppedCluster();
          let id = 0;
          cluster.mintId = () => `t${String(id++).padStart(4, "0")}`;
          cluster.rebalanceSettings = settings;
          await cluster.addNodes(...names.slice(0, nodes));
          await cluster.deploy(aStack("s", services.map(specOf)));
          await go(cluster, 10_000, 2_000);
          for (const one of changes) {
            await make(cluster, one, services.length);
            if (one.seconds > 0) await go(cluster, one.seconds * 1_000, one.seconds > 20 ? 5_000 : 1_000);
            cluster.nowMs += settings.rebalanceSettleMs;
            for (let n = 0; n < one.steps; n++) {
              await cluster.plan();
              await cluster.stepNodes();
              cluster.nowMs += 500;
            }
          }
          cluster.crashing.clear();
          await go(cluster, 20_000, 2_000);
          // Nothing happens any more but moves: what is up stays up, and they come to an end.
          const best = new Map<string, number>();
          const watch = () => {
            for (const [name, { up, wanted }] of upOf(cluster)) {
              if (up < (best.get(name) ?? 0)) throw new Error(`${name} has ${up} tasks up, and had ${best.get(name)}`);
              best.set(name, Math.min(wanted, Math.max(up, best.get(name) ?? 0)));
            }
          };
          await go(cluster, restMs, 20_000, watch);
          const began = cluster.rebalanced.length;
          for (let n = 0; n < 6; n++) {
            cluster.nowMs += restMs;
            await go(cluster, 10_000, 2_000, watch);
          }
          for (const { kind } of cluster.rebalanced) counts[kind] = (counts[kind] ?? 0) + 1;
          const more = cluster.rebalanced.slice(began);
          if (more.length > 0) throw new Error(`does not come to rest: ${JSON.stringify(more)}`);
          checkCooldowns(cluster);
        },
      ),
      effort(120),
    );
    // Random clusters in which nothing moves, or nothing goes wrong, would promise nothing.
    expect(counts["moved"]).toBeGreaterThan(50);
    expect(counts["failed"]).toBeGreaterThan(0);
  });
});

/** Rounds of a service are a cooldown apart, none is longer than it was planned, and so many are under way at most. */
function checkCooldowns(cluster: SteppedCluster): void {
  const underWay = new Set<string>();
  const last = new Map<string, { readonly atMs: number; left: number }>();
  for (const action of cluster.rebalanced) {
    const { serviceId, kind, atMs } = action;
    if (kind !== "move") {
      underWay.delete(serviceId);
      last.set(serviceId, { atMs, left: kind === "moved" ? (last.get(serviceId)?.left ?? 0) : 0 });
      continue;
    }
    if (underWay.has(serviceId)) throw new Error(`two moves of ${serviceId} at once`);
    underWay.add(serviceId);
    if (underWay.size > settings.rebalanceAtOnce) throw new Error("too many moves at once");
    const before = last.get(serviceId);
    const inRound = before !== undefined && before.left > 0;
    if (inRound && action.left >= before.left) throw new Error(`the round of ${serviceId} has become longer`);
    if (!inRound && before !== undefined && atMs < before.atMs + settings.rebalanceCooldownMs) {
      throw new Error(`${serviceId} moves at ${atMs}, and did at ${before.atMs}`);
    }
    last.set(serviceId, { atMs, left: action.left });
  }
}
