import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Availability, NodeState } from "../../../proto/gen/embassy/v1/state.ts";
import { TestCluster } from "../../domain/testing.ts";
import { type NodeTimes, planNodes } from "./plan.ts";

const settings = { reconnectGraceMs: 10_000, silentHoldMs: 300_000 };
const { NODE_STATE_READY: ready, NODE_STATE_SILENT: silent, NODE_STATE_DOWN: down } = NodeState;

interface NodeFacts {
  /** Default: ready. */
  readonly state?: NodeState;
  /** Default: heard. */
  readonly session?: "heard" | "quiet" | "gone";
  /** What became of the member that held the session. Default: it lives. */
  readonly member?: "lives" | "lost" | "restarted";
  readonly drained?: boolean;
}

/** Nodes "a", "b" and so on, as given. */
async function clusterOf(facts: readonly NodeFacts[]): Promise<TestCluster> {
  const cluster = new TestCluster();
  const { store } = cluster;
  await store.commit([
    { table: "memberSessions", id: "m", value: { name: "m", incarnation: "one" } },
    { table: "memberSessions", id: "r", value: { name: "r", incarnation: "two" } },
  ]);
  const members = { lives: "m", lost: "l", restarted: "r" };
  for (const [n, { state = ready, session = "heard", member = "lives", drained = false }] of facts.entries()) {
    const id = String.fromCharCode(97 + n);
    await cluster.addNodes(id);
    if (drained) await cluster.drain(id);
    const [status, record] = [cluster.index.nodeStatus(id), cluster.index.view.sessions.get(id)];
    if (status === undefined || record === undefined) throw new Error("a node has a status and a session");
    await store.commit([
      { table: "nodeStatuses", id, value: { ...status, state, clusterd: members[member], incarnation: "one" } },
      { table: "sessions", id, value: session === "gone" ? undefined : { ...record, quiet: session === "quiet" } },
    ]);
  }
  return cluster;
}

interface Given {
  readonly nowMs?: number;
  readonly missing?: Record<string, number>;
  readonly lost?: Record<string, number>;
  readonly heardMs?: number | undefined;
  readonly silentHoldMs?: number;
}

async function plan(facts: readonly NodeFacts[], given: Given = {}) {
  using cluster = await clusterOf(facts);
  const times: NodeTimes = {
    missing: new Map(Object.entries(given.missing ?? {})),
    lost: new Map(Object.entries(given.lost ?? {})),
    heardMs: given.heardMs,
  };
  const { nowMs = 1_000_000, silentHoldMs = settings.silentHoldMs } = given;
  const { actions, wakeAtMs, together } = planNodes(cluster.index.view, times, nowMs, { ...settings, silentHoldMs });
  return { actions: actions.map(({ kind, nodeId }) => `${nodeId} ${kind}`).join(", "), wakeAtMs, together };
}

const heard: NodeFacts = {};
const quiet: NodeFacts = { session: "quiet" };
const gone: NodeFacts = { session: "gone" };
const held: NodeFacts = { state: silent, session: "gone" };
const lost: NodeFacts = { state: down, session: "gone" };

describe("one node", () => {
  it.each<[string, NodeFacts, string]>([
    ["with its session", heard, ""],
    ["that is quiet", quiet, ""],
    ["with its session, whatever became of its member", { member: "lost" }, ""],
    ["without its session, while the member that held it lives", gone, "a down"],
    ["without its session, when its member is gone", { ...gone, member: "lost" }, ""],
    ["without its session, when its member has started again", { ...gone, member: "restarted" }, ""],
    ["that is down", lost, ""],
    ["that is drained, without its session", { ...gone, drained: true }, "a down"],
  ])("%s", async (_, node, actions) => {
    expect(await plan([node, heard, heard])).toMatchObject({ actions, together: false });
  });

  it("is down once the grace after its member is over, and not before", async () => {
    const nodes = [{ ...gone, member: "lost" as const }, heard, heard];
    const at = async (nowMs: number, missing: Record<string, number> = { a: 1_000 }) =>
      await plan(nodes, { nowMs, missing });
    expect(await at(10_999)).toMatchObject({ actions: "", wakeAtMs: 11_000 });
    expect(await at(11_000)).toMatchObject({ actions: "a down" });
    expect(await at(5_000, {})).toMatchObject({ actions: "", wakeAtMs: 15_000 });
  });

  it("that was removed is nobody's concern", async () => {
    using cluster = await clusterOf([gone]);
    await cluster.store.commit([{ table: "nodes", id: "a", value: undefined }]);
    const times = { missing: new Map(), lost: new Map(), heardMs: undefined };
    expect(planNodes(cluster.index.view, times, 0, settings).actions).toEqual([]);
  });
});

describe("nodes that go silent together", () => {
  it.each<[string, readonly NodeFacts[], string]>([
    ["2 of 3", [gone, gone, heard], "a silent, b silent"],
    ["1 of 3, and another is quiet", [gone, quiet, heard], "a silent"],
    ["3 of 3", [gone, quiet, gone], "a silent, c silent"],
    ["3 of 5", [gone, quiet, quiet, heard, heard], "a silent"],
    ["2 of 2", [gone, quiet], "a silent"],
    ["1 of 2: as likely lost as cut off", [gone, heard], "a down"],
    ["the only one", [gone], "a down"],
    ["1 of 3", [gone, heard, heard], "a down"],
    ["half", [gone, quiet, heard, heard], "a down"],
    ["2 of 5", [gone, gone, heard, heard, heard], "a down, b down"],
    [
      "all after the grace for their member",
      [
        { ...gone, member: "lost" },
        { ...gone, member: "lost" },
      ],
      "",
    ],
    ["2 of 3, one of them drained: it gives up nothing", [gone, { ...gone, drained: true }, heard], "a down, b down"],
    [
      "2 of 3 that hold tasks, beside drained ones",
      [gone, gone, heard, { drained: true }, { drained: true }],
      "a silent, b silent",
    ],
    ["2 of 3 while a drained one goes", [gone, gone, heard, { ...gone, drained: true }], "a silent, b silent, d down"],
    ["1 while another may be on its way to another member", [gone, { ...gone, member: "lost" }, heard], "a down"],
  ])("%s", async (_, nodes, actions) => {
    expect(await plan(nodes)).toMatchObject({ actions });
  });

  it("count those that were lost just before, and none that has been lost for long", async () => {
    expect(await plan([lost, gone, heard], { lost: { a: 996_000 } })).toMatchObject({ actions: "b silent" });
    expect(await plan([lost, gone, heard], { lost: { a: 995_000 } })).toMatchObject({ actions: "b down" });
  });

  it("are so after the grace for their member, too", async () => {
    const nodes: NodeFacts[] = [{ ...gone, member: "lost" }, { ...gone, member: "restarted" }, heard];
    expect(await plan(nodes, { missing: { a: 990_000, b: 990_000 } })).toMatchObject({ actions: "a silent, b silent" });
  });

  it("are down at once where there is no hold", async () => {
    expect(await plan([gone, gone, heard], { silentHoldMs: 0 })).toMatchObject({
      actions: "a down, b down",
      together: false,
    });
  });
});

describe("silent nodes", () => {
  const nodes = [held, held, heard];

  it("keep their tasks until the hold is over, each its own", async () => {
    const since = { a: 700_001, b: 700_500 };
    expect(await plan(nodes, { lost: since })).toMatchObject({ actions: "", wakeAtMs: 1_000_001, together: true });
    expect(await plan(nodes, { lost: since, nowMs: 1_000_001 })).toMatchObject({
      actions: "a down",
      wakeAtMs: 1_000_500,
    });
    expect(await plan(nodes)).toMatchObject({ actions: "", wakeAtMs: 1_300_000 });
  });

  it("get the grace once most are heard again, and no longer than the hold", async () => {
    const one = [held, heard, heard];
    const at = async (since: number, heardMs: Given["heardMs"]) => await plan(one, { lost: { a: since }, heardMs });
    expect(await at(900_000, undefined)).toMatchObject({ actions: "", wakeAtMs: 1_010_000, together: false });
    expect(await at(900_000, 990_001)).toMatchObject({ actions: "", wakeAtMs: 1_000_001 });
    expect(await at(900_000, 990_000)).toMatchObject({ actions: "a down" });
    expect(await at(700_000, 999_999)).toMatchObject({ actions: "a down" });
  });

  it("are down as soon as somebody drains them", async () => {
    expect(await plan([{ ...held, drained: true }, held, heard], { lost: { a: 999_999 } })).toMatchObject({
      actions: "a down",
    });
  });

  it("that come back are left alone", async () => {
    expect(await plan([{ state: silent }, held, heard])).toMatchObject({ actions: "" });
  });

  it("are joined by others that go silent meanwhile", async () => {
    expect(await plan([held, held, gone, heard, heard])).toMatchObject({ actions: "c silent" });
  });
});

it("a plan that was carried out leaves nothing to do but to wait, and what it says is bounded", async () => {
  const node = fc.record({
    state: fc.constantFrom(ready, silent, down),
    session: fc.constantFrom("heard" as const, "quiet" as const, "gone" as const),
    member: fc.constantFrom("lives" as const, "lost" as const, "restarted" as const),
    drained: fc.boolean(),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(node, { maxLength: 7 }), async (nodes) => {
      using cluster = await clusterOf(nodes);
      const { view } = cluster.index;
      const lostSince = new Map<string, number>();
      const missing = new Map<string, number>();
      for (const [id] of view.nodes.entries()) {
        if (view.sessions.get(id) !== undefined) continue;
        missing.set(id, 0);
        if (view.nodeStatuses.get(id)?.state !== ready) lostSince.set(id, 0);
      }
      let heardMs: number | undefined;
      const step = async (nowMs: number) => {
        const made = planNodes(view, { missing, lost: lostSince, heardMs }, nowMs, settings);
        heardMs = made.together ? undefined : (heardMs ?? nowMs);
        for (const { kind, nodeId } of made.actions) {
          if (!lostSince.has(nodeId)) lostSince.set(nodeId, nowMs);
          await cluster.setNode(nodeId, kind === "down" ? down : silent);
        }
        return made;
      };
      let nowMs = 0;
      const first = await step(nowMs);
      expect(first.actions.every(({ nodeId }) => view.sessions.get(nodeId) === undefined)).toBe(true);
      for (let pass = 0; pass < 30; pass++) {
        const again = await step(nowMs);
        expect(again.actions).toEqual([]);
        if (again.wakeAtMs === undefined) break;
        expect(again.wakeAtMs).toBeGreaterThan(nowMs);
        nowMs = again.wakeAtMs;
        await step(nowMs);
      }
      for (const [id, { state }] of view.nodeStatuses.entries()) {
        if (view.sessions.get(id) === undefined) expect(state).toBe(down);
      }
    }),
    { seed: 5, numRuns: 200 },
  );
});

it("a paused node counts as any other", async () => {
  using cluster = await clusterOf([gone, gone, heard]);
  await cluster.setAvailability("a", Availability.AVAILABILITY_PAUSE);
  const times = { missing: new Map(), lost: new Map(), heardMs: undefined };
  expect(planNodes(cluster.index.view, times, 0, settings).actions.map(({ kind }) => kind)).toEqual([
    "silent",
    "silent",
  ]);
});
