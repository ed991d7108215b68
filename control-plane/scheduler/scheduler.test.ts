import { describe, expect, it } from "vitest";
import { aGroup, aNode, mebibyte, someTasks } from "./builders.ts";
import { Scheduler } from "./index.ts";
import type { HostPort, SchedulerNode, TaskGroup } from "./types.ts";

function aScheduler(nodes: readonly SchedulerNode[], groups: readonly TaskGroup[]): Scheduler {
  const scheduler = new Scheduler();
  for (const node of nodes) scheduler.upsertNode(node);
  for (const group of groups) scheduler.upsertGroup(group);
  return scheduler;
}

/** Tasks per node after placing `count` tasks of the group. */
function placed(nodes: readonly SchedulerNode[], group: TaskGroup, count: number): Record<string, number> {
  const perNode: Record<string, number> = {};
  const { placements } = aScheduler(nodes, [group]).schedule(someTasks(group, count));
  for (const { node } of placements) perNode[node] = (perNode[node] ?? 0) + 1;
  return perNode;
}

describe("scheduler", () => {
  it("spreads a service over the nodes", () => {
    expect(placed([aNode("a"), aNode("b"), aNode("c")], aGroup("web"), 6)).toEqual({ a: 2, b: 2, c: 2 });
  });

  it("never over-commits and says what is short", () => {
    const group = aGroup("db", { reservations: { milliCpus: 3_000, memoryBytes: 512 * mebibyte } });
    const scheduler = aScheduler([aNode("a"), aNode("b")], [group]);
    const { placements, unplaced } = scheduler.schedule(someTasks(group, 3));
    expect(placements.map(({ node }) => node).sort()).toEqual(["a", "b"]);
    expect(unplaced).toHaveLength(1);
    expect(unplaced[0]?.tasks).toEqual(["db@1.3"]);
    expect(unplaced[0]?.explanation.summary).toBe("2 nodes: 3 CPU needed, 1 free");
    expect(unplaced[0]?.explanation.nearest?.reasons[0]?.fix).toMatch(
      /^Free 2 CPU on node [ab], or lower the reservation\.$/,
    );
  });

  it("counts each reason, with the node that lacks least", () => {
    const nodes = [
      aNode("drained", { availability: "drain" }),
      aNode("paused", { availability: "pause" }),
      aNode("down", { ready: false }),
      aNode("other", { labels: { zone: "b" } }),
      aNode("none"),
      aNode("small", { labels: { zone: "a" }, capacity: { milliCpus: 1_000, memoryBytes: 300 * mebibyte } }),
    ];
    const group = aGroup("web", {
      constraints: ["node.labels.zone == a"],
      reservations: { milliCpus: 100, memoryBytes: 512 * mebibyte },
    });
    const { unplaced } = aScheduler(nodes, [group]).schedule(someTasks(group, 1));
    expect(unplaced[0]?.explanation.summary).toBe(
      "2 nodes: constraint node.labels.zone == a not met; 1: 512 MiB memory needed, 300 MiB free; 1: node is down; 1: node is drained; 1: node is paused",
    );
    expect(unplaced[0]?.explanation.nearest?.hostname).toBe("small");
  });

  it("gives host ports once per node, the lowest free of a range, and names the holder of a taken one", () => {
    const fixed = aGroup("web", { ports: [{ port: 80, protocol: "tcp" }] });
    const ranged = aGroup("game", { ports: [{ port: 0, protocol: "udp", range: [7_000, 7_001] }] });
    const scheduler = aScheduler([aNode("a")], [fixed, ranged]);
    const first = scheduler.schedule(someTasks(fixed, 2));
    expect(first.placements.map(({ ports }) => ports)).toEqual([[80]]);
    expect(first.unplaced[0]?.explanation.summary).toBe("1 node: port 80 held by web.1");
    const second = scheduler.schedule(someTasks(ranged, 3));
    expect(second.placements.map(({ ports }) => ports)).toEqual([[7_000], [7_001]]);
    expect(second.unplaced.at(-1)?.explanation.summary).toBe("1 node: no free port in 7000-7001");
    scheduler.removeTask("web@1.1");
    expect(scheduler.schedule().placements.map(({ task }) => task)).toEqual(["web@1.2"]);
  });

  it("gives a port once at each address, and gives it back there alone", () => {
    const at = (service: string, address?: string) =>
      aGroup(service, { ports: [{ port: 80, protocol: "tcp", address }] });
    const [first, second, all] = [at("first", "10.0.0.5"), at("second", "10.0.0.6"), at("all")];
    const scheduler = aScheduler([aNode("a")], [first, second, all]);
    const tasks = [first, second, all].flatMap((group) => someTasks(group, 2));
    const { placements, unplaced } = scheduler.schedule(tasks);
    expect(placements.map(({ task }) => task)).toEqual(["first@1.1", "second@1.1"]);
    expect(unplaced.map(({ explanation }) => explanation.summary)).toEqual([
      "1 node: port 80 at 10.0.0.5 held by first.1",
      "1 node: port 80 at 10.0.0.6 held by second.1",
      "1 node: port 80 held by second.1",
    ]);
    scheduler.removeTask("second@1.1");
    expect(scheduler.schedule().placements.map(({ task }) => task)).toEqual(["second@1.2"]);
    scheduler.removeGroup("first@1");
    expect(scheduler.schedule().placements).toEqual([]);
    scheduler.removeGroup("second@1");
    expect(scheduler.schedule().placements.map(({ task }) => task)).toEqual(["all@1.1"]);
  });

  it("counts a port that two have been put at until both have left", () => {
    const web = aGroup("web", { ports: [{ port: 80, protocol: "tcp" }] });
    const scheduler = aScheduler([aNode("a")], [web]);
    for (const task of someTasks(web, 2)) scheduler.addTask({ ...task, node: "a" });
    expect(scheduler.schedule([{ id: "new", group: "web@1" }]).placements).toEqual([]);
    scheduler.removeTask("web@1.1");
    expect(scheduler.schedule().placements).toEqual([]);
    scheduler.removeTask("web@1.2");
    expect(scheduler.schedule().placements).toHaveLength(1);
  });

  it("keeps to the most tasks per node", () => {
    expect(placed([aNode("a"), aNode("b")], aGroup("web", { maxPerNode: 1 }), 5)).toEqual({ a: 1, b: 1 });
  });

  it("spreads over zones first, whatever the nodes per zone", () => {
    const nodes = ["a", "b", "c", "d", "e", "f"].map((id) =>
      aNode(id, { labels: { zone: id === "a" ? "east" : "west" } }),
    );
    const perNode = placed(nodes, aGroup("web", { spread: [{ over: "node.labels.zone" }] }), 6);
    expect(perNode["a"]).toBe(3);
  });

  it("keeps to the outer of two nested preferences, however uneven the inner domains are", () => {
    const capacity = { milliCpus: 1_000_000, memoryBytes: 2 ** 50 };
    const racks = ["1", "2", "3", "4", "5", "6"].map((rack) =>
      aNode(`b${rack}`, { labels: { zone: "b", rack }, capacity }),
    );
    const nodes = [aNode("a", { labels: { zone: "a", rack: "1" }, capacity }), ...racks];
    const group = aGroup("web", { spread: [{ over: "node.labels.zone" }, { over: "node.labels.rack" }] });
    const perNode = placed(nodes, group, 2_400);
    expect(perNode).toEqual({ a: 1_200, b1: 200, b2: 200, b3: 200, b4: 200, b5: 200, b6: 200 });
  });

  it("never goes beyond a hard skew", () => {
    const nodes = [
      aNode("a", { labels: { zone: "a" }, capacity: { milliCpus: 500, memoryBytes: 512 * mebibyte } }),
      aNode("b", { labels: { zone: "b" } }),
      aNode("unlabelled"),
    ];
    const group = aGroup("web", { spread: [{ over: "node.labels.zone", maxSkew: 1 }] });
    const { placements, unplaced } = aScheduler(nodes, [group]).schedule(someTasks(group, 6));
    expect(placements).toHaveLength(5);
    expect(unplaced[0]?.explanation.reasons.map(({ kind }) => kind).sort()).toEqual([
      "max-skew",
      "max-skew",
      "resources",
    ]);
  });

  it("measures the skew of each service by its own tasks, whatever was decided just before", () => {
    const spread = [{ over: "node.labels.zone", maxSkew: 1 }];
    const full = aGroup("full", { spread });
    const tooBig = aGroup("full", { id: "full@2", spread, reservations: { milliCpus: 64_000, memoryBytes: 0 } });
    const web = aGroup("web", { spread });
    const few = { milliCpus: 100, memoryBytes: 0 };
    const nodes = [
      aNode("a", { labels: { zone: "a" } }),
      aNode("b", { labels: { zone: "b" }, capacity: { ...few, pids: 1 } }),
    ];
    const scheduler = aScheduler(nodes, [full, tooBig, web]);
    for (const [id, group, node] of [
      ["full.1", full.id, "a"],
      ["full.2", full.id, "b"],
      ["web.1", web.id, "a"],
    ] as const)
      scheduler.addTask({ id, group, node });
    // Its emptiest zone has one task; that of web, which shares the view, has none, and no room.
    const { placements, unplaced } = scheduler.schedule([...someTasks(tooBig, 1), { id: "web.2", group: web.id }]);
    expect(placements).toEqual([]);
    expect(unplaced.map(({ group }) => group)).toEqual([tooBig.id, web.id]);
  });

  it("binpack fills one node before the next, when asked to", () => {
    const perNode = placed([aNode("a"), aNode("b")], aGroup("job", { strategy: "binpack", maxPerNode: 0 }), 3);
    expect(new Set(Object.values(perNode))).toEqual(new Set([1, 2]));
  });

  it("puts a global service's task on its node only", () => {
    const group = aGroup("agent");
    const scheduler = aScheduler([aNode("a"), aNode("b", { availability: "pause" })], [group]);
    const { placements, unplaced } = scheduler.schedule([
      { id: "1", group: group.id, onlyNode: "a" },
      { id: "2", group: group.id, onlyNode: "b" },
      { id: "3", group: group.id, onlyNode: "gone" },
    ]);
    expect(placements.map(({ task, node }) => [task, node])).toEqual([["1", "a"]]);
    expect(unplaced.map(({ explanation }) => explanation.summary)).toEqual([
      "1 node: node is paused",
      "node gone is unknown",
    ]);
  });

  it("counts tasks whose node is told later, and frees what ends", () => {
    const group = aGroup("web", { reservations: { milliCpus: 4_000, memoryBytes: 0 } });
    const scheduler = aScheduler([], [group]);
    scheduler.addTask({ id: "old", group: group.id, node: "a" });
    scheduler.upsertNode(aNode("a"));
    expect(scheduler.schedule([{ id: "new", group: group.id }]).unplaced).toHaveLength(1);
    scheduler.removeTask("old");
    expect(scheduler.schedule().placements).toEqual([{ task: "new", node: "a", ports: [], preempts: [] }]);
  });

  it("refuses a wrong constraint with the place and what is allowed", () => {
    expect(() => aScheduler([], [aGroup("web", { constraints: ["node.id = a"] })])).toThrow(
      'group web@1, constraints[0]: "=" is no operator at character 9 of "node.id = a"',
    );
  });

  it.each<readonly [string, readonly HostPort[], string]>([
    ["a port that is none", [{ port: 70_000, protocol: "tcp" }], "there is no port in 70000-70000"],
    ["an empty range", [{ port: 0, protocol: "tcp", range: [90, 80] }], "there is no port in 90-80"],
    ["a port twice", [53, 53].map((port) => ({ port, protocol: "udp" })), "port 53/udp is asked for twice"],
    [
      "a port at one address and at all of them",
      [undefined, "10.0.0.5"].map((address) => ({ port: 53, protocol: "udp", address })),
      "port 53/udp is asked for twice",
    ],
  ])("refuses %s", (_name, ports, message) => {
    expect(() => aScheduler([], [aGroup("web", { ports })])).toThrow(`group web@1: ${message}`);
  });

  it("tells for one node every reason and the cost", () => {
    const group = aGroup("web", {
      constraints: ["node.labels.zone exists"],
      reservations: { milliCpus: 8_000, memoryBytes: 0 },
    });
    const verdict = aScheduler([aNode("a")], [group]).whyNot(group.id, "a");
    expect(verdict.fits).toBe(false);
    expect(verdict.reasons.map(({ kind }) => kind)).toEqual(["constraint", "resources"]);
  });

  it("does not use up a scarce class of nodes where a common one does as well", () => {
    const whole = aGroup("whole", { reservations: { milliCpus: 4_000, memoryBytes: 0 } });
    let scarce = 0;
    for (let seed = 0; seed < 40; seed++) {
      const scheduler = new Scheduler({ seed });
      // The scarce zone joins first: an order of joining would use it up first.
      for (let i = 0; i < 100; i++) scheduler.upsertNode(aNode(`n${i}`, { labels: { zone: i < 10 ? "a" : "b" } }));
      scheduler.upsertGroup(whole);
      for (const { node } of scheduler.schedule(someTasks(whole, 50)).placements)
        if (Number(node.slice(1)) < 10) scarce++;
    }
    // Its share of the nodes is a tenth; so is its share of the tasks, within three standard deviations.
    expect(scarce / (40 * 50)).toBeGreaterThan(0.08);
    expect(scarce / (40 * 50)).toBeLessThan(0.12);
  });

  it("keeps nodes with generic resources for those that need them", () => {
    const gpu = aNode("gpu", { capacity: { milliCpus: 64_000, memoryBytes: 2 ** 40, generic: { gpu: 4 } } });
    expect(placed([gpu, aNode("plain")], aGroup("web", { reservations: { milliCpus: 1, memoryBytes: 0 } }), 1)).toEqual(
      { plain: 1 },
    );
  });

  it("tells groups that need a generic resource from those that ask for none of it", () => {
    const nothing = { milliCpus: 0, memoryBytes: 0 };
    const capacity = { milliCpus: 64_000, memoryBytes: 2 ** 40 };
    const [none, one] = [0, 1].map((gpu) =>
      aGroup(`gpu${gpu}`, { reservations: { ...nothing, generic: { gpu } } }),
    ) as [TaskGroup, TaskGroup];
    const nodes = [aNode("gpu", { capacity: { ...capacity, generic: { gpu: 4 } } }), aNode("plain", { capacity })];
    // Without the scarce resource gpu would be the emptier one.
    const other = aGroup("other", { reservations: { milliCpus: 6_400, memoryBytes: 0 } });
    const scheduler = aScheduler(nodes, [one, none, other]);
    scheduler.addTask({ id: "other.1", group: other.id, node: "plain" });
    const { placements } = scheduler.schedule([...someTasks(one, 1), ...someTasks(none, 1)]);
    expect(placements.map(({ node }) => node)).toEqual(["gpu", "plain"]);
  });

  it("looks again at what is blocked only when something could unblock it", () => {
    const big = aGroup("big", { reservations: { milliCpus: 3_000, memoryBytes: 0 } });
    const small = aGroup("small", { reservations: { milliCpus: 2_000, memoryBytes: 0 } });
    const scheduler = aScheduler([aNode("a"), aNode("b", { labels: { x: "1" } })], [big, small]);
    scheduler.schedule(someTasks(small, 4));
    expect(scheduler.schedule(someTasks(big, 1)).unplaced).toHaveLength(1);
    // Nothing has happened, a label has changed, one of two tasks has ended: it still fits nowhere, and is not looked at.
    expect(scheduler.schedule()).toEqual({ placements: [], unplaced: [] });
    scheduler.upsertNode(aNode("b", { labels: { x: "2" } }));
    expect(scheduler.schedule()).toEqual({ placements: [], unplaced: [] });
    const onA = scheduler.snapshot().tasks.filter(({ node }) => node === "a");
    scheduler.removeTask(onA[0]?.id ?? "");
    expect(scheduler.schedule()).toEqual({ placements: [], unplaced: [] });
    expect(scheduler.unplaced()[0]?.explanation.nearest?.node).toBe("a");
    scheduler.removeTask(onA[1]?.id ?? "");
    expect(scheduler.schedule().placements.map(({ node }) => node)).toEqual(["a"]);
  });

  it("preempts the fewest and least important, within the budget, and reports the victims", () => {
    const spare = aGroup("spare", { reservations: { milliCpus: 1_000, memoryBytes: 0 }, minAvailable: 3 });
    const batch = aGroup("batch", { reservations: { milliCpus: 1_000, memoryBytes: 0 }, priority: 1 });
    const vital = aGroup("vital", { reservations: { milliCpus: 2_000, memoryBytes: 0 }, priority: 10 });
    const scheduler = aScheduler([aNode("a")], [spare, batch, vital]);
    scheduler.schedule([...someTasks(spare, 3), ...someTasks(batch, 1)]);
    // Two must go, and spare keeps three: nothing can be done.
    expect(scheduler.schedule(someTasks(vital, 1)).unplaced).toHaveLength(1);
    scheduler.upsertGroup({ ...spare, minAvailable: 2 });
    const { placements } = scheduler.schedule();
    expect(placements.map(({ task }) => task)).toEqual(["vital@1.1"]);
    expect(placements[0]?.preempts).toHaveLength(2);
    expect(placements[0]?.preempts[1]).toBe("batch@1.1");
    // The victim still stops: told as being there, it does not count again.
    scheduler.addTask({ id: "batch@1.1", group: batch.id, node: "a" });
    expect(scheduler.whyNot(spare.id, "a").fits).toBe(false);
    scheduler.removeTask("batch@1.1");
    expect(scheduler.schedule(someTasks(batch, 1, 2)).unplaced).toHaveLength(1);
  });

  it("places a gang whole or not at all", () => {
    const leader = aGroup("leader", { gang: "train", reservations: { milliCpus: 1_000, memoryBytes: 0 } });
    const worker = aGroup("worker", { gang: "train", reservations: { milliCpus: 3_000, memoryBytes: 0 } });
    const scheduler = aScheduler([aNode("a"), aNode("b")], [leader, worker]);
    const { placements, unplaced } = scheduler.schedule([...someTasks(leader, 1), ...someTasks(worker, 3)]);
    expect(placements).toEqual([]);
    expect(unplaced.map(({ group, explanation }) => [group, explanation.summary])).toEqual([
      ["leader@1", "gang train waits for worker@1: 2 nodes: 3 CPU needed, 1 free"],
      ["worker@1", "2 nodes: 3 CPU needed, 1 free"],
    ]);
    scheduler.upsertNode(aNode("c"));
    expect(scheduler.schedule().placements).toHaveLength(4);
  });

  it("finds the order in which a gang fits, and stops nobody where one does", () => {
    const small = { milliCpus: 1_000, memoryBytes: 0 };
    const leader = aGroup("leader", { gang: "train", priority: 5, reservations: small });
    const worker = aGroup("worker", { gang: "train", priority: 5, reservations: { milliCpus: 4_000, memoryBytes: 0 } });
    const batch = aGroup("batch", { reservations: { milliCpus: 3_000, memoryBytes: 0 } });
    const scheduler = aScheduler([aNode("a"), aNode("b")], [leader, worker, batch]);
    scheduler.addTask({ id: "batch.1", group: batch.id, node: "b" });
    // The leader comes first and would go to a, which is emptier; then the worker would have to make room on b.
    expect(scheduler.schedule([...someTasks(leader, 1), ...someTasks(worker, 1)]).placements).toEqual([
      { task: "worker@1.1", node: "a", ports: [], preempts: [] },
      { task: "leader@1.1", node: "b", ports: [], preempts: [] },
    ]);
  });

  it("gives back all that a gang took when one of it does not fit: ports, volumes, and whom it stopped", () => {
    const part = (name: string, over: Partial<TaskGroup>): TaskGroup =>
      aGroup(name, { gang: "g", priority: 5, reservations: { milliCpus: 2_000, memoryBytes: 0 }, ...over });
    const ported = part("ported", { ports: [{ port: 0, protocol: "tcp", range: [80, 80] }] });
    const writer = part("writer", { volumes: [{ volume: "v" }] });
    const second = part("second", { volumes: [{ volume: "v" }] });
    const batch = aGroup("batch", { reservations: { milliCpus: 4_000, memoryBytes: 0 } });
    const scheduler = aScheduler([aNode("a")], [ported, writer, second, batch]);
    scheduler.upsertVolume({ id: "v", name: "data", access: "single-writer" });
    scheduler.schedule(someTasks(batch, 1));
    const before = scheduler.snapshot().tasks;
    const asked = [ported, writer, second].flatMap((group) => someTasks(group, 1));
    const { placements, unplaced } = scheduler.schedule(asked);
    expect(placements).toEqual([]);
    expect(unplaced).toHaveLength(3);
    expect(scheduler.snapshot().tasks.slice(0, 1)).toEqual(before);
    expect(
      scheduler
        .snapshot()
        .tasks.slice(1)
        .map(({ node, ports }) => [node, ports]),
    ).toEqual(asked.map(() => [undefined, []]));
    scheduler.upsertVolume({ id: "v", name: "data", access: "shared" });
    scheduler.removeTask("ported@1.1");
    expect(scheduler.schedule().placements.map(({ task, preempts }) => [task, preempts])).toEqual([
      ["writer@1.1", ["batch@1.1"]],
      ["second@1.1", []],
    ]);
  });

  it("takes a placement back when its task is told again without a node", () => {
    const group = aGroup("web", { reservations: { milliCpus: 4_000, memoryBytes: 0 } });
    const scheduler = aScheduler([aNode("a")], [group]);
    scheduler.schedule(someTasks(group, 1));
    scheduler.addTask({ id: "web@1.1", group: group.id });
    expect(scheduler.isPlaced("web@1.1")).toBe(false);
    expect(scheduler.schedule().placements).toHaveLength(1);
  });

  it("shows the top candidates of a placement with their scores", () => {
    const group = aGroup("web");
    const scheduler = aScheduler([aNode("a"), aNode("b")], [group]);
    scheduler.schedule(someTasks(group, 2));
    const { node, candidates } = scheduler.explain("web@1.1");
    expect(candidates.map(({ cost }) => cost)).toEqual([0, 1_064]);
    expect(candidates[0]?.node).toBe(node);
    expect(candidates[1]?.terms).toEqual([
      { name: "service", points: 1_000 },
      { name: "load", points: 64 },
    ]);
  });

  it("stops after the most placements asked for, and goes on from there", () => {
    const [first, second] = [aGroup("first"), aGroup("second")];
    const scheduler = aScheduler([aNode("a"), aNode("b")], [first, second]);
    const tasks = [...someTasks(first, 3), ...someTasks(second, 3)];
    const inParts: string[] = [];
    for (let result = scheduler.schedule(tasks, { mostPlacements: 2 }); result.placements.length > 0; ) {
      expect(result.placements.length).toBeLessThanOrEqual(2);
      inParts.push(...result.placements.map(({ task, node }) => `${task} ${node}`));
      result = scheduler.schedule([], { mostPlacements: 2 });
    }
    const whole = aScheduler([aNode("a"), aNode("b")], [first, second]).schedule(tasks).placements;
    expect(inParts).toEqual(whole.map(({ task, node }) => `${task} ${node}`));
  });
});
