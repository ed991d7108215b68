import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { effort } from "../arbitraries.ts";
import { aGroup, aNode } from "../builders.ts";
import type { TaskGroup } from "../types.ts";
import { ClusterState, hash } from "./cluster.ts";
import { type NodeRecord, TaskRecord, tasksOn } from "./records.ts";

function aState(ids: readonly string[]): ClusterState {
  const state = new ClusterState({ strategy: "spread", seed: 0 });
  for (const id of ids) state.upsertNode(aNode(id));
  return state;
}

const names = (count: number): string[] => Array.from({ length: count }, (_, i) => `n${i}`);

describe("a node's index", () => {
  it("follows its tie, but for what the places near by already hold", () => {
    const state = aState(names(3_000));
    for (const { index, tie } of state.nodes.values()) {
      const range = 2 ** Math.floor(Math.log2(index));
      const away = (index - range - Math.floor((tie / 2 ** 32) * range) + range) % range;
      expect(away).toBeLessThan(64);
    }
  });

  it("is taken again after the node has left", () => {
    const state = aState(names(200));
    const before = state.byIndex.length;
    for (let i = 0; i < 5_000; i++) {
      state.removeNode(state.nodes.get(`n${i}`) as NodeRecord);
      state.upsertNode(aNode(`n${i + 200}`));
    }
    expect(state.byIndex.length).toBeLessThanOrEqual(2 * before);
    expect(new Set([...state.nodes.values()].map(({ index }) => index)).size).toBe(200);
  });

  it("stays small when all ties are alike", () => {
    const crowd = names(200_000).filter((id) => hash(id, 0) < 2 ** 24);
    expect(crowd.length).toBeGreaterThan(600);
    const state = aState(crowd);
    expect(state.byIndex.length).toBeLessThanOrEqual(4 * crowd.length);
    expect(new Set([...state.nodes.values()].map(({ index }) => index)).size).toBe(crowd.length);
  });
});

it("nodes keep what is free when others announce many more kinds of resources", () => {
  const state = aState(["a", "b"]);
  const group = state.upsertGroup(aGroup("web"));
  state.attach(new TaskRecord("web.1", group, "web.1", 0), state.nodes.get("b") as NodeRecord);
  const free = (): number[] => ["a", "b"].map((id) => state.freeOf(state.nodes.get(id) as NodeRecord, 0));
  expect(free()).toEqual([4_000, 3_750]);
  const generic = Object.fromEntries(names(20).map((kind) => [kind, 7]));
  const c = state.upsertNode(aNode("c", { capacity: { milliCpus: 1_000, memoryBytes: 0, generic } }));
  expect(free()).toEqual([4_000, 3_750]);
  const last = state.dimension("generic/n19");
  expect(state.freeOf(c, last)).toBe(7);
  expect(state.freeOf(state.nodes.get("a") as NodeRecord, last)).toBe(0);
});

it("a node lists the tasks that are on it, in whatever order they leave", () => {
  const state = aState(["a"]);
  const node = state.nodes.get("a") as NodeRecord;
  const group = state.upsertGroup(aGroup("web"));
  const [first, second, third] = names(3).map((id, i) => new TaskRecord(id, group, id, i)) as [
    TaskRecord,
    TaskRecord,
    TaskRecord,
  ];
  const ids = (): string[] =>
    tasksOn(node)
      .map(({ id }) => id)
      .sort();
  for (const task of [first, second, third]) state.attach(task, node);
  state.detach(second);
  expect(ids()).toEqual(["n0", "n2"]);
  state.attach(second, node);
  state.detach(second);
  state.detach(first);
  expect(ids()).toEqual(["n2"]);
  state.detach(third);
  expect([ids(), node.taskCount]).toEqual([[], 0]);
});

it("knows the services that groups name, in whatever way and order they come and go, and no others", () => {
  const service = fc.constantFrom("s0", "s1", "s2", "s3");
  const spec = fc.record({
    id: fc.constantFrom("g0", "g1", "g2"),
    service,
    affinity: fc.option(service),
    links: fc.array(service, { maxLength: 2 }),
    isWrong: fc.boolean(),
  });
  const command = fc.oneof(
    { weight: 2, arbitrary: fc.record({ do: fc.constant("upsert" as const), spec }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant("remove" as const), spec }) },
  );
  fc.assert(
    fc.property(fc.array(command, { maxLength: 30 }), (commands) => {
      const state = aState(["a", "b"]);
      const present = new Map<string, TaskGroup>();
      for (const { do: what, spec: given } of commands) {
        const { id } = given;
        if (what === "remove") {
          const group = state.groups.get(id);
          if (group !== undefined) state.removeGroup(group);
          present.delete(id);
        } else {
          const group = aGroup(given.service, {
            id,
            affinities:
              given.affinity === null
                ? []
                : [{ kind: "service", service: given.affinity, over: "node.labels.zone", weight: 5 }],
            links: given.links.map((to) => ({ service: to, bytesPerSecond: 1 })),
            constraints: given.isWrong ? ["nonsense"] : [],
          });
          if (given.isWrong) expect(() => state.upsertGroup(group)).toThrow(/nonsense/);
          else {
            state.upsertGroup(group);
            present.set(id, group);
          }
        }
        const named = [...present.values()].flatMap(({ service: own, affinities = [], links = [] }) => [
          own,
          ...affinities.flatMap((one) => (one.kind === "service" ? [one.service] : [])),
          ...links.map((link) => link.service),
        ]);
        expect([...state.services.keys()].sort()).toEqual([...new Set(named)].sort());
        // What a group counts in is what others of the service look at.
        for (const [groupId, { service: own }] of present) {
          expect(state.groups.get(groupId)?.service).toBe(state.services.get(own));
        }
      }
    }),
    effort(300),
  );
});
