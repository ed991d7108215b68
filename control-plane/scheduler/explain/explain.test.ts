import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { clusterArbitrary, effort } from "../arbitraries.ts";
import { aGroup, aNode, someTasks } from "../builders.ts";
import { Scheduler } from "../scheduler.ts";
import type { Explanation, SchedulerNode, TaskGroup } from "../types.ts";

/** Why a task of the group fits nowhere, with these tasks there. */
function explained(
  nodes: readonly SchedulerNode[],
  group: TaskGroup,
  there: readonly (readonly [TaskGroup, string])[] = [],
): Explanation {
  const scheduler = new Scheduler();
  for (const node of nodes) scheduler.upsertNode(node);
  for (const one of [...there.map(([other]) => other), group]) scheduler.upsertGroup(one);
  for (const [i, [other, node]] of there.entries())
    scheduler.addTask({ id: `${other.service}.${i + 1}`, group: other.id, node });
  const [unplaced] = scheduler.schedule(someTasks(group, 1)).unplaced;
  if (unplaced === undefined) throw new Error("it was placed");
  expect(scheduler.explain(`${group.id}.1`).explanation).toEqual(unplaced.explanation);
  expect(scheduler.unplaced()).toEqual([unplaced]);
  return unplaced.explanation;
}

describe("explanations", () => {
  const ported = aGroup("web", { ports: [{ port: 80, protocol: "tcp" }] });

  it("count nodes together that differ in who holds the port, and name the holder of one", () => {
    const other = { ...ported, id: "other@1", service: "other" };
    const [a, b] = [aNode("a"), aNode("b")];
    expect(explained([a], ported, [[other, "a"]]).summary).toBe("1 node: port 80 held by other.1");
    const two = explained([a, b], ported, [
      [other, "a"],
      [other, "b"],
    ]);
    expect(two.summary).toBe("2 nodes: port 80 taken");
    expect(two.nearest?.reasons[0]?.text).toMatch(/^port 80 held by other\.[12]$/);
  });

  it("count what nodes lack by resource, with the amounts of the one that lacks least", () => {
    const node = (id: string, milliCpus: number, memoryBytes: number): SchedulerNode =>
      aNode(id, { capacity: { milliCpus, memoryBytes } });
    const group = aGroup("web", { reservations: { milliCpus: 2_000, memoryBytes: 2 ** 30 } });
    const nodes = [
      node("a", 500, 2 ** 31),
      node("b", 1_500, 2 ** 31),
      node("c", 4_000, 2 ** 29),
      node("d", 1_000, 2 ** 29),
    ];
    expect(explained(nodes, group).summary).toBe(
      "2 nodes: 2 CPU needed, 1500m free; 1: 1 GiB memory needed, 512 MiB free; 1: 2 CPU needed, 1 free; 1 GiB memory needed, 512 MiB free",
    );
    expect(explained(nodes, group).nearest?.hostname).toBe("b");
  });

  it("stay short, however many reasons there are", () => {
    const nodes = Array.from({ length: 60 }, (_, i) =>
      aNode(`n${i}`, { taints: [{ key: `k${i}`, effect: "no-schedule" }] }),
    );
    const { summary, reasons } = explained(nodes, aGroup("web"));
    expect(summary).toMatch(/^1 node: taint .*; 52: other reasons$/);
    expect(reasons).toHaveLength(60);
    const skewed = aGroup("web", { spread: [{ over: "node.hostname", maxSkew: 1 }], ports: ported.ports });
    const full = [
      ...nodes.slice(0, 5).map(({ id }) => aNode(id)),
      aNode("full", { capacity: { milliCpus: 0, memoryBytes: 0 } }),
    ];
    expect(
      explained(
        full,
        { ...skewed, ports: undefined },
        full.slice(0, 5).map(({ id }) => [{ ...skewed, id: "web@0", ports: undefined }, id]),
      ).summary,
    ).toBe(
      "5 nodes: node.hostname would have more than maxSkew 1 tasks above the emptiest; 1: 250m CPU needed, 0 free; 256 MiB memory needed, 0 B free",
    );
  });

  it("count by class of node", () => {
    const nodes = ["a", "a", "b"].map((zone, i) => aNode(`n${i}`, { labels: { zone }, availability: "pause" }));
    expect(explained(nodes, ported).reasons[0]?.classes).toEqual([
      { class: "linux/amd64 worker zone=a", count: 2 },
      { class: "linux/amd64 worker zone=b", count: 1 },
    ]);
  });

  it("tell of a gang that one of it would fit alone", () => {
    const gang = aGroup("train", { gang: "g", reservations: { milliCpus: 3_000, memoryBytes: 0 } });
    const scheduler = new Scheduler();
    scheduler.upsertNode(aNode("a"));
    scheduler.upsertGroup(gang);
    scheduler.schedule(someTasks(gang, 2));
    const { candidates, explanation } = scheduler.explain("train@1.1");
    expect(candidates.map(({ node }) => node)).toEqual(["a"]);
    expect(explanation?.summary).toBe("gang g does not fit as a whole");
    expect(scheduler.unplaced()[0]?.explanation.summary).toBe("gang g does not fit as a whole");
  });

  it("say what then happens: whyNot for each node, the candidates for where it goes, the counts for all that refuse", () => {
    fc.assert(
      fc.property(clusterArbitrary, (build) => {
        const scheduler = build();
        const { nodes, groups } = scheduler.snapshot();
        for (const { gang: _gang, ...group } of groups) {
          const fork = scheduler.fork();
          for (const { id, node } of fork.snapshot().tasks) if (node === undefined) fork.removeTask(id);
          // With a priority below all, nothing is stopped for it.
          fork.upsertGroup({ ...group, priority: -9 });
          for (const { id } of nodes) {
            const { fits, reasons } = fork.whyNot(group.id, id, true);
            expect(fits).toBe(reasons.length === 0);
            const { placements } = fork.schedule([{ id: "probe", group: group.id, onlyNode: id }]);
            expect(placements.map(({ node }) => node)).toEqual(fits ? [id] : []);
            fork.removeTask("probe");
          }
          fork.addTask({ id: "probe", group: group.id });
          const { fitting, candidates, explanation } = fork.explain("probe");
          const { placements, unplaced } = fork.schedule();
          expect(placements[0]?.node).toBe(candidates[0]?.node);
          expect(fitting).toBeGreaterThanOrEqual(candidates.length);
          expect(explanation.reasons.reduce((sum, { count }) => sum + count, 0)).toBe(nodes.length - fitting);
          expect(unplaced[0]?.explanation).toEqual(fitting === 0 ? explanation : undefined);
          if (fitting > 0 || explanation.nearest === undefined) continue;
          expect(explanation.nearest.reasons).toEqual(fork.whyNot(group.id, explanation.nearest.node).reasons);
        }
      }),
      effort(200),
    );
  });
});

it("counts reasons anew some at a time, those first that were counted longest ago, and none where nothing has changed", () => {
  const groups = ["x", "y", "z"].map((name) => aGroup(name, { constraints: ["node.hostname == b"] }));
  const scheduler = new Scheduler();
  scheduler.upsertNode(aNode("a"));
  for (const group of groups) scheduler.upsertGroup(group);
  scheduler.schedule(groups.flatMap((group) => someTasks(group, 2)));
  const recount = (limits: { readonly nodes: number; readonly tasks: number }) => {
    const { unplaced, more } = scheduler.recount(limits);
    return [unplaced.map(({ group, explanation }) => `${group} ${explanation.summary}`).sort(), more];
  };
  const all = { nodes: 100, tasks: 100 };
  const why = "1 node: node is paused";
  expect(recount(all)).toEqual([[], false]);
  scheduler.upsertNode(aNode("a", { availability: "pause" }));
  expect(recount({ ...all, nodes: 2 })).toEqual([[`x@1 ${why}`, `y@1 ${why}`], true]);
  scheduler.upsertNode(aNode("a", { availability: "drain" }));
  expect(recount({ ...all, tasks: 1 })).toEqual([["z@1 1 node: node is drained"], true]);
  expect(recount({ nodes: 0, tasks: 0 })).toEqual([["x@1 1 node: node is drained"], true]);
  expect(recount(all)).toEqual([["y@1 1 node: node is drained"], false]);
  // What fits by now is for the next pass to tell.
  scheduler.upsertNode(aNode("a", { hostname: "b" }));
  expect(recount(all)).toEqual([[], false]);
  expect(scheduler.schedule().placements).toHaveLength(6);
  expect(scheduler.hasUnplaced).toBe(false);
});
