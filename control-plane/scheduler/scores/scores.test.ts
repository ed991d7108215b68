import { describe, expect, it } from "vitest";
import { aGroup, aNode } from "../builders.ts";
import { Scheduler } from "../scheduler.ts";
import type { SchedulerNode, TaskGroup } from "../types.ts";

/** The terms of node "a" for a group "web", with a task of "db" on it and two nodes in zone a. */
function terms(
  group: Partial<TaskGroup>,
  node: Partial<SchedulerNode> = {},
  prepare?: (scheduler: Scheduler) => void,
): Record<string, number> {
  const scheduler = new Scheduler();
  scheduler.upsertNode(aNode("a", { labels: { zone: "a" }, ...node }));
  scheduler.upsertNode(aNode("b", { labels: { zone: "a" } }));
  const db = aGroup("db", { reservations: { milliCpus: 1_000, memoryBytes: 0 } });
  const web = aGroup("web", group);
  scheduler.upsertGroup(db);
  scheduler.upsertGroup(web);
  scheduler.addTask({ id: "db.1", group: db.id, node: "a" });
  prepare?.(scheduler);
  const { candidate } = scheduler.whyNot(web.id, "a");
  expect(candidate.cost).toBe(candidate.terms.reduce((sum, { points }) => sum + points, 0));
  return Object.fromEntries(candidate.terms.map(({ name, points }) => [name, points]));
}

it("an image that more than 64 nodes hold draws nobody, and draws again once fewer do", () => {
  const scheduler = new Scheduler();
  const app = aGroup("web", { image: "app:1" });
  scheduler.upsertGroup(app);
  // Of its own view, which knows the costs of last time.
  scheduler.upsertGroup({ ...app, id: "web@2" });
  const nodes = Array.from({ length: 300 }, (_, n) => aNode(`n${n}`));
  for (const node of nodes) scheduler.upsertNode(node);
  for (const { id } of nodes) scheduler.addTask({ id: `on-${id}`, group: "web@2", node: id });
  const holders = () => {
    const { placements } = scheduler.schedule(Array.from({ length: 70 }, (_, n) => ({ id: `w${n}`, group: app.id })));
    for (const { task } of placements) scheduler.removeTask(task);
    return placements.filter(({ node }) => Number(node.slice(1)) < 65).length;
  };
  for (const node of nodes.slice(0, 64)) scheduler.upsertNode({ ...node, images: ["other:1", "app:1"] });
  expect(holders()).toBe(64);
  scheduler.upsertNode({ ...aNode("n64"), images: ["app:1"] });
  expect(holders()).toBeLessThan(40);
  scheduler.removeTask("on-n0");
  scheduler.removeNode("n0");
  expect(holders()).toBe(64);
});

describe("each score", () => {
  const load = 251;

  it.each<readonly [string, Partial<TaskGroup>, Partial<SchedulerNode>, Record<string, number>]>([
    ["load: a quarter reserved and one task", {}, {}, { load }],
    ["load: the other way round for binpack", { strategy: "binpack" }, {}, { load: 2_000 - load }],
    ["service: a task of the service is there", { service: "db" }, {}, { load, service: 1_000 }],
    ["image: missing", { image: "app:1" }, {}, { load }],
    ["image: there", { image: "app:1" }, { images: ["app:1"] }, { load, image: -5 }],
    ["taint: advises against", {}, { taints: [{ key: "x", effect: "prefer-no-schedule" }] }, { load, taint: 800 }],
    [
      "scarce: keeps a generic resource for those that need it",
      {},
      { capacity: { milliCpus: 4_000, memoryBytes: 2 ** 33, generic: { gpu: 1 } } },
      { load, scarce: 300 },
    ],
    [
      "node affinity",
      { affinities: [{ kind: "node", constraint: "node.labels.zone == a", weight: 20 }] },
      {},
      { load, "node-affinity": -200 },
    ],
    [
      "affinity to a service in the zone",
      { affinities: [{ kind: "service", service: "db", over: "node.labels.zone", weight: 30 }] },
      {},
      { load, affinity: -300 },
    ],
    [
      "anti-affinity to a service on the node",
      { affinities: [{ kind: "service", service: "db", over: "node.id", weight: -30 }] },
      {},
      { load, "affinity-on-node": 300 },
    ],
    [
      "links: the share of bytes that stays on the node",
      {
        links: [
          { service: "db", bytesPerSecond: 30 },
          { service: "cache", bytesPerSecond: 10 },
        ],
      },
      {},
      { load, links: -375 },
    ],
    [
      "spread: the next task in the zone",
      { service: "db", spread: [{ over: "node.labels.zone" }] },
      {},
      { load, service: 1_000, spread: 2_000_000 },
    ],
    [
      "spread: by share",
      { service: "db", spread: [{ over: "node.labels.zone", shares: { a: 3 } }] },
      {},
      { load, service: 1_000, spread: 1_333_333 },
    ],
  ])("%s", (_name, group, node, expected) => {
    expect(terms(group, node)).toEqual(expected);
  });

  it("failures: recent ones of this version on this node", () => {
    expect(terms({}, {}, (scheduler) => scheduler.setFailures("web@1", "a", 3))).toEqual({ load, failures: 1_500 });
  });

  it("failures outlast a change of the group", () => {
    const changed = terms({}, {}, (scheduler) => {
      scheduler.setFailures("web@1", "a", 3);
      scheduler.upsertGroup(aGroup("web", { minAvailable: 1 }));
      // Without the failures the index would take a, which is emptier.
      for (const id of ["db.2", "db.3"]) scheduler.addTask({ id, group: "db@1", node: "b" });
      expect(scheduler.schedule([{ id: "web.1", group: "web@1" }]).placements[0]?.node).toBe("b");
    });
    expect(changed["failures"]).toBe(1_500);
  });
});
