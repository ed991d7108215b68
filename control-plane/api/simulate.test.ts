import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { SimulateRequest, type SimulateResponse } from "../../proto/gen/embassy/v1/api.ts";
import {
  ContainerSpec,
  DisruptionPolicy,
  Mount,
  MountType,
  NetworkSpec,
  OnNodeLoss,
  Placement,
  PlacementStrategy,
  PublishedPort,
  PublishMode,
  Resources,
  type ServiceSpec,
  SpreadRule,
  UpdateOrder,
  UpdatePolicy,
} from "../../proto/gen/embassy/v1/stack.ts";
import { NodeDescription, NodeSpec, NodeState, NodeStatus } from "../../proto/gen/embassy/v1/state.ts";
import { SteppedCluster } from "../controllers/testing.ts";
import { isLive, taskName } from "../domain/tasks.ts";
import { aService, aStack, replicas } from "../domain/testing.ts";
import { effort } from "../scheduler/arbitraries.ts";
import { hash } from "../scheduler/state/cluster.ts";
import { simulate } from "./simulate.ts";

const settings = { blockPrefix: 27, silentHoldMs: 300_000 };

async function foretold(cluster: SteppedCluster, request: Partial<SimulateRequest>): Promise<SimulateResponse> {
  return await simulate(cluster.index, SimulateRequest.fromPartial(request), settings, cluster.nowMs);
}

const reserving = (milliCpus: number) => ({
  resources: Resources.create({ reservations: { milliCpus, memoryBytes: 0, pids: 0, generic: {} } }),
});

const global: Partial<ServiceSpec> = { mode: { $case: "global", value: {} } };

/** Where each task that lives is, by its name: "s_web.1@a"; "s_web.1@" when it waits. */
function places(cluster: SteppedCluster): string[] {
  const { view } = cluster.index;
  return [...view.tasks.values()]
    .filter((task) => isLive(view, task))
    .map((task) => `${taskName(view, task)}@${task.nodeId}`)
    .sort();
}

/** The places after the moves, stops and waits that were foretold. Of one that stays the successor waits. */
function placesAfter(before: readonly string[], { moves, stops, waits, stays }: SimulateResponse): string[] {
  const after = new Map(before.map((place) => place.split("@") as [string, string]));
  for (const { taskName: name } of stops) after.delete(name);
  for (const { taskName: name } of waits) after.set(name, "");
  for (const { taskName: name, from, to } of moves) {
    expect(from).toBe(after.get(name) ?? "");
    after.set(name, to);
  }
  const successors = stays.filter(({ taskName: name }) => /\.\d+$/.test(name)).map(({ taskName: name }) => `${name}@`);
  return [...[...after].map(([name, node]) => `${name}@${node}`), ...successors].sort();
}

async function grow(cluster: SteppedCluster, id: string, milliCpus: number, zone: string): Promise<void> {
  const description = NodeDescription.create({ os: "linux", arch: "amd64", milliCpus, memoryBytes: 2 ** 30 });
  const labels: Record<string, string> = zone === "" ? {} : { zone };
  await cluster.store.commit([
    { table: "nodes", id, value: NodeSpec.create({ id, name: id, labels }) },
    { table: "nodeStatuses", id, value: NodeStatus.create({ id, state: NodeState.NODE_STATE_READY, description }) },
  ]);
}

const serviceArbitrary = fc
  .record({
    count: fc.integer({ min: 1, max: 5 }),
    isGlobal: fc.nat({ max: 5 }).map((n) => n === 0),
    milliCpus: fc.constantFrom(0, 500, 1_000, 2_000),
    constraints: fc.constantFrom<string[]>([], [], ["node.labels.zone == a"], ["node.labels.zone != a"]),
    spread: fc.constantFrom<string[]>([], ["node.labels.zone"]),
    maxSkew: fc.constantFrom(0, 0, 0, 1, 2),
    near: fc.constantFrom("", "", "w0", "w1"),
    packs: fc.boolean(),
    priority: fc.constantFrom(0, 0, 0, 5),
    hasVolume: fc.nat({ max: 3 }).map((n) => n === 0),
    waits: fc.boolean(),
    maxReplicasPerNode: fc.constantFrom(0, 0, 1, 2),
    port: fc.constantFrom(0, 0, 80),
    order: fc.constantFrom(UpdateOrder.UPDATE_ORDER_STOP_FIRST, UpdateOrder.UPDATE_ORDER_START_FIRST),
    minAvailable: fc.constantFrom(0, 0, 0, 1, 2, 5),
  })
  .map(
    ({
      count,
      isGlobal,
      milliCpus,
      maxSkew,
      near,
      packs,
      priority,
      port,
      order,
      minAvailable,
      hasVolume,
      waits,
      ...placement
    }): Partial<ServiceSpec> => {
      const over = "node.labels.zone";
      const affinity = { to: { $case: "service" as const, value: { service: near, over } }, weight: 50 };
      const onNodeLoss = waits ? OnNodeLoss.ON_NODE_LOSS_WAIT : OnNodeLoss.ON_NODE_LOSS_RECREATE;
      const mount = Mount.create({ type: MountType.MOUNT_TYPE_VOLUME, source: "data", target: "/data", onNodeLoss });
      const published = PublishedPort.create({ target: 80, published: port, mode: PublishMode.PUBLISH_MODE_HOST });
      return {
        ...(isGlobal ? global : { mode: replicas(count) }),
        priority,
        disruption: DisruptionPolicy.create({ minAvailable }),
        ...reserving(milliCpus),
        placement: Placement.create({
          ...placement,
          spreadRules: maxSkew === 0 ? [] : [SpreadRule.create({ over, maxSkew })],
          affinities: near === "" ? [] : [affinity],
          strategy: packs ? PlacementStrategy.PLACEMENT_STRATEGY_BINPACK : PlacementStrategy.PLACEMENT_STRATEGY_SPREAD,
        }),
        ports: port === 0 ? [] : [published],
        update: UpdatePolicy.create({ order }),
        container: ContainerSpec.create({ image: "registry/web", mounts: hasVolume ? [mount] : [] }),
      };
    },
  );

/** Ids in an order that has nothing to do with that in which they are minted: another one for each seed. */
function mixedIds(seed: number): () => string {
  let minted = 0;
  return () => `${hash(`${++minted}`, seed).toString(16).padStart(8, "0")}-${minted}`;
}

const clusterArbitrary = fc.record({
  nodes: fc.array(fc.record({ milliCpus: fc.constantFrom(1_000, 2_000, 4_000), zone: fc.constantFrom("", "a", "b") }), {
    minLength: 2,
    maxLength: 6,
  }),
  services: fc.array(serviceArbitrary, { minLength: 1, maxLength: 5 }),
});

/** Services with volumes of their own: see the README for those that share some. */
async function made(
  { nodes, services }: typeof clusterArbitrary extends fc.Arbitrary<infer T> ? T : never,
  idSeed: number,
): Promise<SteppedCluster> {
  const cluster = new SteppedCluster();
  cluster.mintId = mixedIds(idSeed);
  for (const [n, { milliCpus, zone }] of nodes.entries()) await grow(cluster, `n${n}`, milliCpus, zone);
  await cluster.deploy(
    aStack(
      "s",
      services.map(({ container, ...over }, n) => {
        const mounts = container?.mounts.map((mount) => ({ ...mount, source: `data${n}` })) ?? [];
        return aService(`w${n}`, { ...over, container: ContainerSpec.create({ ...container, mounts }) });
      }),
    ),
  );
  await cluster.settleFor(10);
  return cluster;
}

describe("what is foretold", () => {
  it("of a drain is what the drain then does", async () => {
    let moved = 0;
    let waited = 0;
    let stayed = 0;
    await fc.assert(
      fc.asyncProperty(clusterArbitrary, fc.nat(), async (given, pick) => {
        using cluster = await made(given, pick);
        const node = `n${pick % given.nodes.length}`;
        const before = places(cluster);
        const answer = await foretold(cluster, { drain: [node] });
        expect(places(cluster)).toEqual(before);
        await cluster.drain(node);
        await cluster.settleFor(10);
        expect(placesAfter(before, answer)).toEqual(places(cluster));
        moved += answer.moves.length;
        waited += answer.waits.length;
        stayed += answer.stays.length;
      }),
      effort(300),
    );
    expect(moved).toBeGreaterThan(50);
    expect(waited).toBeGreaterThan(50);
    expect(stayed).toBeGreaterThan(20);
  });

  it("of a lost host, of a new one and of another number of tasks too", async () => {
    await fc.assert(
      fc.asyncProperty(clusterArbitrary, fc.nat(), fc.nat({ max: 5 }), async (given, pick, count) => {
        using cluster = await made(given, pick);
        const check = async (request: Partial<SimulateRequest>, act: () => Promise<void>) => {
          const before = places(cluster);
          const answer = await foretold(cluster, request);
          await act();
          await cluster.settleFor(10);
          expect(placesAfter(before, answer)).toEqual(places(cluster));
        };
        const node = `n${pick % given.nodes.length}`;
        const w = pick % given.services.length;
        const service = cluster.service("s", `w${w}`);
        if (service.spec?.mode?.$case === "replicated") {
          await check({ scale: [{ service: `s_w${w}`, replicas: count }] }, async () => {
            const spec = { ...service.spec, mode: replicas(count) } as ServiceSpec;
            await cluster.store.commit([{ table: "services", id: service.id, value: { ...service, spec } }]);
          });
        }
        await check({ lose: [node] }, async () => await cluster.setNode(node, NodeState.NODE_STATE_DOWN));
        await check({ add: [{ milliCpus: 2_000, memoryBytes: 2 ** 30, count: 1 }] }, async () => {
          await grow(cluster, "new-1", 2_000, "");
        });
      }),
      effort(80),
    );
  });
});

describe("an answer", () => {
  async function three(...services: ServiceSpec[]): Promise<SteppedCluster> {
    const cluster = new SteppedCluster();
    for (const [id, zone] of [
      ["a", "x"],
      ["b", "y"],
      ["c", "y"],
    ] as const)
      await grow(cluster, id, 2_000, zone);
    await cluster.deploy(aStack("s", services));
    await cluster.settle();
    cluster.nowMs += 1_000;
    return cluster;
  }

  it("says what moves, ends and waits, why, and what would mend it elsewhere than on the node that goes", async () => {
    const pinned = Placement.create({ constraints: ["node.labels.zone == x"] });
    using cluster = await three(
      aService("agent", global),
      aService("db", { mode: replicas(1), ...reserving(1_500), placement: pinned }),
      aService("web", { mode: replicas(3) }),
    );
    const { revision } = cluster.index.view;
    const { moves, stops, waits, notes } = await foretold(cluster, { drain: ["a"] });
    expect(moves).toMatchObject([
      {
        taskName: expect.stringMatching(/^s_web\.[123]$/),
        from: "a",
        to: expect.any(String),
        why: "its node gives it away",
      },
    ]);
    expect(cluster.index.view.tasks.get(moves[0]?.taskId ?? "")?.nodeId).toBe("a");
    expect(stops).toMatchObject([{ taskName: "s_agent.a", node: "a", why: "its node gives it away" }]);
    expect(waits).toMatchObject([
      {
        taskName: "s_db.1",
        from: "a",
        already: false,
        why: "2 nodes: constraint node.labels.zone == x not met; 1: node is drained",
        nearest: { score: { nodeName: expect.stringMatching(/^[bc]$/) }, reasons: [{ kind: "constraint" }] },
      },
    ]);
    expect(notes).toEqual([]);
    expect(cluster.index.view.revision).toBe(revision);
  });

  it("takes all changes at once: what is lost goes to what is added", async () => {
    using cluster = await three(
      aService("db", { mode: replicas(4), ...reserving(1_500) }),
      aService("web", { mode: replicas(2) }),
    );
    const request = { lose: ["zone=y"], add: [{ milliCpus: 4_000, memoryBytes: 2 ** 30, count: 1 }] };
    const { moves, waits, notes } = await foretold(cluster, {
      ...request,
      scale: [{ service: "web", replicas: 3 }],
    });
    expect(moves.filter(({ taskName }) => taskName.startsWith("s_db")).map(({ to }) => to)).toEqual(["new-1", "new-1"]);
    expect(moves).toContainEqual(expect.objectContaining({ taskName: "s_web.3", from: "", taskId: "" }));
    // The one that waited already has the first choice.
    expect(waits).toMatchObject([{ taskName: expect.stringMatching(/^s_db\./), already: false }]);
    expect(notes).toEqual([
      "2 of 3 nodes lost at about the same time count as silent: nothing of this happens for 300 s, unless they are drained or removed",
    ]);
  });

  it("names who has to wait for one of higher priority", async () => {
    using cluster = new SteppedCluster();
    for (const id of ["a", "b"]) await grow(cluster, id, 2_000, "");
    const one = { mode: replicas(1), ...reserving(1_500) };
    await cluster.deploy(aStack("s", [aService("vital", { ...one, priority: 5 })]));
    await cluster.settle();
    await cluster.deploy(aStack("t", [aService("batch", one)]));
    await cluster.settle();
    const node = cluster.tasks("s", "vital")[0]?.nodeId ?? "";
    const other = node === "a" ? "b" : "a";
    const { moves, stops, waits } = await foretold(cluster, { drain: [node] });
    expect(moves).toMatchObject([{ taskName: "s_vital.1", from: node, to: other }]);
    expect(stops).toEqual([]);
    expect(waits).toMatchObject([
      { taskName: "t_batch.1", from: other, why: expect.stringMatching(/^preempted by s_vital\.1; 1 node: /) },
    ]);
    await cluster.drain(node);
    await cluster.settle();
    expect(places(cluster)).toEqual([`s_vital.1@${other}`, "t_batch.1@"]);
    expect(cluster.tasks("t", "batch").at(-1)?.unplaced).toBe(waits[0]?.why);
  });

  it.each([
    [{}, "there is nothing to simulate"],
    [{ drain: ["d"] }, "there is no node d"],
    [{ lose: ["zone=z"] }, "no node has the label zone=z"],
    [{ scale: [{ service: "nope", replicas: 1 }] }, "there is no service nope"],
    [{ scale: [{ service: "agent", replicas: 1 }] }, "service s_agent is global"],
    [{ add: [{ milliCpus: 1, memoryBytes: 1, count: 1_000_000 }] }, "1000000 nodes cannot be added"],
  ])("to %j is an error: %s", async (request, message) => {
    using cluster = await three(aService("agent", global));
    await expect(foretold(cluster, request)).rejects.toThrow(message);
  });

  it("gives no place where the network has no addresses", async () => {
    using cluster = new SteppedCluster();
    await cluster.addNodes("a", "b");
    const networks = [NetworkSpec.create({ name: "default", subnet: "10.50.0.0/27" })];
    await cluster.deploy(aStack("s", [aService("web", { mode: replicas(1) })], { networks }));
    await cluster.settle();
    const [task] = cluster.tasks("s", "web");
    const { moves, waits } = await foretold(cluster, { drain: [task?.nodeId ?? ""] });
    expect(moves).toEqual([]);
    expect(waits).toMatchObject([
      { taskName: "s_web.1", why: "network s_default is full: every block of 10.50.0.0/27 is given to a node" },
    ]);
    await cluster.drain(task?.nodeId ?? "");
    await cluster.plan();
    await cluster.plan();
    expect(cluster.tasks("s", "web").at(-1)).toMatchObject({ nodeId: "", unplaced: waits[0]?.why });
  });
});
