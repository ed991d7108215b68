import { describe, expect, it } from "vitest";
import { aGroup, aNode, someTasks } from "./builders.ts";
import { Scheduler } from "./scheduler.ts";
import type { Resources, SchedulerNode, TaskGroup } from "./types.ts";

const cpus = (milliCpus: number): Resources => ({ milliCpus, memoryBytes: 0 });
const zones = (id: string, zone: string, overrides: Partial<SchedulerNode> = {}): SchedulerNode =>
  aNode(id, { labels: { zone }, ...overrides });

interface Case {
  readonly nodes: readonly SchedulerNode[];
  /** Tasks that are there, by node; a number of tasks of a group each. */
  readonly there?: readonly (readonly [TaskGroup, string])[];
  /** One task of it waits. */
  readonly waits: TaskGroup;
  readonly others?: readonly TaskGroup[];
  readonly event: (scheduler: Scheduler) => void;
}

/** Ids of there: "<service>.<n>" in the order given; the one that waits is "waiting". */
function blocked({ nodes, there = [], waits, others = [] }: Case): Scheduler {
  const scheduler = new Scheduler();
  scheduler.upsertVolume({ id: "v", name: "data", access: "single-writer" });
  for (const node of nodes) scheduler.upsertNode(node);
  for (const group of [...there.map(([group]) => group), ...others, waits]) scheduler.upsertGroup(group);
  for (const [i, [group, node]] of there.entries())
    scheduler.addTask({ id: `${group.service}.${i + 1}`, group: group.id, node });
  expect(scheduler.schedule([{ id: "waiting", group: waits.id }]).unplaced.map(({ tasks }) => tasks)).toEqual([
    ["waiting"],
  ]);
  return scheduler;
}

const plain = aGroup("web", { reservations: cpus(3_000) });
const half = aGroup("half", { reservations: cpus(2_000) });
const batch = aGroup("batch", { reservations: cpus(1_000), priority: -1 });
const boss = aGroup("boss", { reservations: cpus(3_000), priority: 9 });
const vital = aGroup("vital", { reservations: cpus(3_000), priority: 5 });
const skewed = aGroup("web", { reservations: cpus(1_000), spread: [{ over: "node.labels.zone", maxSkew: 1 }] });
const writer = aGroup("db", { volumes: [{ volume: "v" }], reservations: cpus(1_000) });
const small = { capacity: { milliCpus: 100, memoryBytes: 0 } };

/** Zone a is at its most, zone b has no room. */
const atMostSkew: Pick<Case, "nodes" | "there" | "waits"> = {
  nodes: [zones("a", "a"), zones("b", "b", small), zones("c", "a")],
  there: [[skewed, "a"]],
  waits: skewed,
};
/** A writer on one node, and room on another. */
const written: Pick<Case, "nodes" | "there" | "waits"> = {
  nodes: [aNode("a"), aNode("b")],
  there: [
    [writer, "a"],
    [half, "b"],
  ],
  waits: { ...writer, id: "db@2" },
};
/** What could be stopped is kept by its budget. */
const kept = aGroup("kept", { reservations: cpus(4_000), minAvailable: 1 });
const budgeted: Pick<Case, "nodes" | "there" | "waits"> = {
  nodes: [aNode("a"), aNode("b", { ready: false, labels: { spare: "yes" } })],
  there: [[kept, "a"]],
  waits: vital,
};

describe("what fits nowhere is looked at again", () => {
  it.each<readonly [string, Case]>([
    [
      "when what was in its place ends",
      { nodes: [aNode("a")], there: [[half, "a"]], waits: plain, event: (s) => s.removeTask("half.1") },
    ],
    ["when a node joins", { nodes: [], waits: plain, event: (s) => s.upsertNode(aNode("a")) }],
    [
      "when a node is activated",
      { nodes: [aNode("a", { availability: "drain" })], waits: plain, event: (s) => s.upsertNode(aNode("a")) },
    ],
    [
      "when a label makes a node suit",
      {
        nodes: [aNode("a")],
        waits: { ...plain, constraints: ["node.labels.zone == a"] },
        event: (s) => s.upsertNode(zones("a", "a")),
      },
    ],
    [
      "when a node grows",
      {
        nodes: [aNode("a", small)],
        waits: plain,
        event: (s) => s.upsertNode(aNode("a")),
      },
    ],
    [
      "when the emptiest zone is drained",
      { ...atMostSkew, event: (s) => s.upsertNode(zones("b", "b", { ...small, availability: "drain" })) },
    ],
    ["when the emptiest zone is lost", { ...atMostSkew, event: (s) => s.removeNode("b") }],
    [
      "when the emptiest zone gets a task",
      { ...atMostSkew, event: (s) => s.addTask({ id: "web.2", group: skewed.id, node: "b" }) },
    ],
    ["when a task of the fullest zone ends", { ...atMostSkew, event: (s) => s.removeTask("web.1") }],
    ["when the writer of its volume ends elsewhere", { ...written, event: (s) => s.removeTask("db.1") }],
    ["when the node of its volume's writer is lost", { ...written, event: (s) => s.removeNode("a") }],
    [
      "when its volume is for all",
      { ...written, event: (s) => s.upsertVolume({ id: "v", name: "data", access: "shared" }) },
    ],
    ["when a budget lets go of a victim", { ...budgeted, event: (s) => s.upsertGroup({ ...kept, minAvailable: 0 }) }],
    [
      "when the version of a victim's service that kept it is gone",
      {
        ...budgeted,
        there: [[aGroup("kept", { id: "kept@0", reservations: cpus(4_000) }), "a"]],
        others: [kept],
        event: (s) => s.removeGroup(kept.id),
      },
    ],
    [
      "when what is in its place matters less",
      {
        nodes: [aNode("a")],
        there: [[boss, "a"]],
        waits: vital,
        event: (s) => s.upsertGroup({ ...boss, priority: 0 }),
      },
    ],
    [
      "when there is something less important only later, and enough of what may not be stopped ends beside it",
      {
        nodes: [aNode("a")],
        there: [[half, "a"]],
        waits: plain,
        event: (s) => {
          s.upsertGroup(batch);
          for (const id of ["batch.1", "batch.2"]) s.addTask({ id, group: batch.id, node: "a" });
          s.schedule();
          s.removeTask("half.1");
        },
      },
    ],
    [
      "when what is in its place needs less",
      {
        nodes: [aNode("a")],
        there: [[half, "a"]],
        waits: plain,
        event: (s) => s.upsertGroup({ ...half, reservations: cpus(1_000) }),
      },
    ],
    [
      "when it needs less itself",
      {
        nodes: [aNode("a")],
        there: [[half, "a"]],
        waits: plain,
        event: (s) => s.upsertGroup({ ...plain, reservations: cpus(1_000) }),
      },
    ],
    [
      "when a victim's service gets another task, of whatever version and priority",
      {
        ...budgeted,
        others: [aGroup("kept", { id: "kept@2", priority: 9 })],
        event: (s) => s.addTask({ id: "kept.2", group: "kept@2", node: "b" }),
      },
    ],
    [
      "when a node returns with a task of a victim's service",
      {
        ...budgeted,
        event: (s) => {
          s.addTask({ id: "kept.2", group: "kept@1", node: "c" });
          s.schedule();
          s.upsertNode(aNode("c", { ready: false }));
        },
      },
    ],
    [
      "when enough of what may not be stopped ends beside what may",
      {
        nodes: [aNode("a")],
        there: [
          [batch, "a"],
          [batch, "a"],
          [half, "a"],
        ],
        waits: plain,
        event: (s) => s.removeTask("half.3"),
      },
    ],
  ])("%s", (_name, given) => {
    const scheduler = blocked(given);
    given.event(scheduler);
    expect(scheduler.schedule().placements.map(({ task }) => task)).toEqual(["waiting"]);
  });

  it.each<readonly [string, Case]>([
    ["when nothing has happened", { nodes: [aNode("a", small)], waits: vital, event: () => undefined }],
    [
      "when a node is told again as it was",
      {
        nodes: [aNode("a")],
        there: [
          [batch, "a"],
          [boss, "a"],
        ],
        waits: vital,
        event: (s) => s.upsertNode(aNode("a")),
      },
    ],
    [
      "when it is told again as it was",
      { nodes: [aNode("a", small)], waits: plain, event: (s) => s.addTask({ id: "waiting", group: plain.id }) },
    ],
    [
      "when it is explained",
      {
        ...atMostSkew,
        event: (s) => [s.explain("waiting"), s.explain("web.1"), s.unplaced(), s.whyNot(skewed.id, "a")],
      },
    ],
    [
      "when a node that refuses it changes a label",
      { nodes: [aNode("a", small)], waits: plain, event: (s) => s.upsertNode(zones("a", "a", small)) },
    ],
    [
      "when a node is drained",
      {
        nodes: [aNode("a"), aNode("b")],
        there: [
          [half, "a"],
          [half, "b"],
        ],
        waits: plain,
        event: (s) => s.upsertNode(aNode("a", { availability: "drain" })),
      },
    ],
    [
      "when too little is freed",
      {
        nodes: [aNode("a")],
        there: [
          [half, "a"],
          [writer, "a"],
        ],
        waits: plain,
        event: (s) => s.removeTask("db.2"),
      },
    ],
    [
      "when too little is freed even with all that may be stopped",
      {
        nodes: [aNode("a")],
        there: [
          [batch, "a"],
          [writer, "a"],
          [half, "a"],
        ],
        waits: plain,
        event: (s) => s.removeTask("db.2"),
      },
    ],
    [
      "when a service goes that had no task, or is told again",
      {
        nodes: [aNode("a", small)],
        waits: vital,
        others: [half, kept],
        event: (s) => {
          s.upsertGroup(kept);
          s.removeGroup(half.id);
        },
      },
    ],
    [
      "when a volume is told again as it was",
      { ...written, event: (s) => s.upsertVolume({ id: "v", name: "data", access: "single-writer" }) },
    ],
    [
      "when another service gets a task, and one ends, under a skew",
      {
        ...atMostSkew,
        others: [half],
        event: (s) => {
          s.addTask({ id: "half.9", group: half.id, node: "c" });
          s.schedule();
          s.removeTask("half.9");
        },
      },
    ],
    [
      "when another service gets a task, and one ends, under a single writer",
      { ...written, event: (s) => [s.addTask({ id: "half.9", group: half.id, node: "a" }), s.removeTask("half.2")] },
    ],
    [
      "when a reader of its volume ends",
      {
        ...written,
        there: [
          [writer, "a"],
          [aGroup("view", { volumes: [{ volume: "v", readOnly: true }] }), "a"],
        ],
        event: (s) => s.removeTask("view.2"),
      },
    ],
    ["when a node joins under a single writer", { ...written, event: (s) => s.upsertNode(aNode("c")) }],
    [
      "when a victim's service gets no more than its budget",
      {
        ...budgeted,
        there: [],
        nodes: [aNode("a", small), aNode("b", { ready: false })],
        others: [kept],
        event: (s) => s.addTask({ id: "kept.2", group: "kept@1", node: "b" }),
      },
    ],
  ])("but not %s", (_name, given) => {
    const scheduler = blocked(given);
    given.event(scheduler);
    expect(scheduler.schedule()).toEqual({ placements: [], unplaced: [] });
  });

  it.each<readonly [string, Omit<Case, "event">, TaskGroup]>([
    ["a skew", atMostSkew, { ...skewed, id: "web@2", reservations: cpus(50) }],
    ["a budget", budgeted, aGroup("kept", { id: "kept@2", priority: 9, constraints: ["node.labels.spare == yes"] })],
  ])("in the same pass as the placement that loosens %s", (_name, given, next) => {
    const scheduler = blocked({ ...given, others: [next], event: () => undefined });
    scheduler.upsertNode(
      aNode("b", { labels: { zone: "b", spare: "yes" }, capacity: { milliCpus: 250, memoryBytes: 2 ** 28 } }),
    );
    const { placements } = scheduler.schedule(someTasks(next, 1));
    expect(placements.map(({ task }) => task)).toEqual([`${next.id}.1`, "waiting"]);
  });

  it("keeps its turn when it may run elsewhere than before", () => {
    const scheduler = new Scheduler();
    scheduler.upsertNode(aNode("a", { availability: "pause" }));
    scheduler.upsertGroup(plain);
    // The second and the third wait for a node that is not there.
    const wait = (id: string, onlyNode?: string) => scheduler.addTask({ id, group: plain.id, onlyNode });
    wait("first");
    wait("second", "gone");
    wait("third", "gone");
    wait("fourth");
    scheduler.schedule();
    for (const id of ["third", "second"]) wait(id);
    scheduler.upsertNode(aNode("a", { capacity: cpus(9_000) }));
    expect(scheduler.schedule().placements.map(({ task }) => task)).toEqual(["first", "second", "third"]);
  });

  it("has its turn by how long it has waited, then by name, slot and node, whatever the order of arrival", () => {
    const scheduler = new Scheduler();
    const groups = ["web", "api"].map((name) => aGroup(name, { name, reservations: cpus(1_000) }));
    for (const group of groups) scheduler.upsertGroup(group);
    const [web, api] = groups.map(({ id }) => id) as [string, string];
    const wait = (id: string, group: string, sinceMs: number, slot: number, onlyNode?: string) =>
      scheduler.addTask({ id, group, onlyNode, turn: { sinceMs, slot } });
    wait("web 3, later", web, 9, 3);
    wait("web 2", web, 5, 2);
    wait("web 0 on b", web, 5, 0, "b");
    wait("web 1", web, 5, 1);
    scheduler.schedule();
    wait("api 9", api, 5, 9);
    wait("web 0 on a", web, 5, 0, "a");
    wait("web 4, earlier", web, 7, 4);
    scheduler.addTask({ id: "without a turn", group: web });
    // Told with another turn it takes that.
    wait("web 4, earlier", web, 3, 4);
    for (const id of ["a", "b"]) scheduler.upsertNode(aNode(id, { capacity: cpus(4_000) }));
    expect(scheduler.schedule().placements.map(({ task }) => task)).toEqual([
      "without a turn",
      "web 4, earlier",
      "web 1",
      "web 2",
      "web 3, later",
      "api 9",
      "web 0 on a",
      "web 0 on b",
    ]);
  });

  it("keeps its turn when it is told again", () => {
    const scheduler = new Scheduler();
    scheduler.upsertGroup(plain);
    const tasks = someTasks(plain, 3);
    scheduler.schedule(tasks);
    scheduler.addTask({ ...(tasks[0] as (typeof tasks)[number]), name: "again" });
    scheduler.upsertNode(aNode("a"));
    expect(scheduler.schedule().placements.map(({ task }) => task)).toEqual(["web@1.1"]);
  });

  it("not for what a gang has only tried: neither the gang nor others", () => {
    const gang = (name: string): TaskGroup[] =>
      ["first", "second"].map((part) =>
        aGroup(`${name}-${part}`, { gang: name, reservations: cpus(3_000), priority: 5 }),
      );
    const groups = [...gang("g"), ...gang("h")];
    const scheduler = new Scheduler();
    scheduler.upsertNode(aNode("a"));
    for (const group of [batch, vital, ...groups]) scheduler.upsertGroup(group);
    scheduler.schedule(someTasks(batch, 4));
    // Room for one after the other of a gang's two, were some of the four stopped.
    const asked = scheduler.schedule(groups.flatMap((group) => someTasks(group, 1)));
    expect([asked.placements, asked.unplaced.length]).toEqual([[], 4]);
    expect(scheduler.schedule()).toEqual({ placements: [], unplaced: [] });
    scheduler.upsertNode(aNode("b"));
    const placed = scheduler.schedule().placements;
    expect(placed.map(({ task }) => task)).toEqual(["g-first@1.1", "g-second@1.1"]);
    expect(placed.flatMap(({ preempts }) => preempts)).toHaveLength(3);
  });
});
