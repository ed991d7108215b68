import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { effort, groupArbitrary, nodeArbitrary, volumes } from "./arbitraries.ts";
import { BruteForce } from "./brute-force.ts";
import { aGroup, aNode } from "./builders.ts";
import { filters } from "./filters/index.ts";
import { planRebalance, type RebalanceOptions, type RebalancePlan } from "./rebalance.ts";
import { Scheduler } from "./scheduler.ts";
import type { NodeRecord, TaskRecord } from "./state/records.ts";
import type { SchedulerTask, TaskGroup } from "./types.ts";

function place(
  scheduler: Scheduler,
  group: TaskGroup,
  where: Readonly<Record<string, number>>,
  overrides: Partial<SchedulerTask> = {},
): void {
  let n = 0;
  for (const [node, count] of Object.entries(where)) {
    for (let i = 0; i < count; i++)
      scheduler.addTask({ id: `${group.id}.${n++}`, group: group.id, node, ...overrides });
  }
}

function aCluster(group: TaskGroup, ids: readonly string[]): Scheduler {
  const scheduler = new Scheduler();
  for (const id of ids) scheduler.upsertNode(aNode(id));
  scheduler.upsertGroup(group);
  return scheduler;
}

/** Makes the moves for real. */
function execute(scheduler: Scheduler, { moves }: RebalancePlan): void {
  for (const { task, to } of moves) {
    const told = scheduler.snapshot().tasks.find(({ id }) => id === task) as SchedulerTask;
    scheduler.removeTask(task);
    scheduler.addTask({ ...told, node: to });
  }
}

const skew: RebalanceOptions = { goal: { kind: "skew", bound: 1 } };

describe("rebalance", () => {
  it("moves the fewest tasks to the node that has joined", () => {
    const group = aGroup("web");
    const scheduler = aCluster(group, ["a", "b", "c"]);
    place(scheduler, group, { a: 5, b: 4 });
    const plan = scheduler.planRebalance(skew);
    expect([plan.before, plan.after, plan.limitedBy]).toEqual([5, 0, undefined]);
    expect(plan.moves.map(({ from, to }) => `${from}>${to}`).sort()).toEqual(["a>c", "a>c", "b>c"]);
    expect(plan.moves[0]?.why).toBe("web has 5 tasks in a and 0 in c");
  });

  it("keeps within the disruption budget, and leaves tasks in cooldown alone", () => {
    const group = aGroup("web", { minAvailable: 5 });
    const scheduler = aCluster(group, ["a", "b"]);
    place(scheduler, group, { a: 6 });
    const plan = scheduler.planRebalance(skew);
    expect([plan.moves.length, plan.limitedBy]).toEqual([1, "budget"]);
    const cooling = aCluster(aGroup("web"), ["a", "b"]);
    place(cooling, aGroup("web"), { a: 6 }, { pinned: true });
    expect(cooling.planRebalance(skew)).toEqual({ moves: [], before: 6, after: 6, limitedBy: "room" });
  });

  it("empties the nodes that are not needed", () => {
    const group = aGroup("job", { reservations: { milliCpus: 1_000, memoryBytes: 0 }, strategy: "binpack" });
    const scheduler = aCluster(group, ["a", "b", "c"]);
    place(scheduler, group, { a: 3, b: 1, c: 1 });
    const plan = scheduler.planRebalance({ goal: { kind: "fragmentation", bound: 0 } });
    expect(plan.moves).toHaveLength(1);
    expect(plan.limitedBy).toBeUndefined();
    expect(plan.after).toBe(0);
  });

  it("evens out the nodes of a zone too, and zones before nodes", () => {
    const group = aGroup("web", { spread: [{ over: "node.labels.zone" }] });
    const scheduler = new Scheduler();
    for (const [id, zone] of [
      ["a1", "a"],
      ["a2", "a"],
      ["b1", "b"],
      ["b2", "b"],
    ] as const)
      scheduler.upsertNode(aNode(id, { labels: { zone } }));
    scheduler.upsertGroup(group);
    place(scheduler, group, { a1: 2, b1: 1, b2: 1 });
    const within = scheduler.planRebalance(skew);
    expect(within.moves.map(({ from, to, why }) => [from, to, why])).toEqual([
      ["a1", "a2", "web has 2 tasks in a1 and 0 in a2"],
    ]);
    for (const id of ["6", "7"]) scheduler.addTask({ id, group: group.id, node: "a1" });
    const across = scheduler.planRebalance(skew);
    expect(across.moves.map(({ from, to }) => `${from}>${to[0]}`)).toEqual(["a1>b", "a1>a"]);
    expect(across.after).toBeLessThanOrEqual(1);
  });

  it("leaves the nodes of a service that is to be packed, and writers that cannot start before they stop", () => {
    const packed = aGroup("job", { strategy: "binpack" });
    const packing = aCluster(packed, ["a", "b"]);
    place(packing, packed, { a: 4 });
    expect(packing.planRebalance(skew)).toEqual({ moves: [], before: 0, after: 0 });
    const writer = aGroup("db", { volumes: [{ volume: "v" }] });
    const reader = aGroup("view", { volumes: [{ volume: "v", readOnly: true }] });
    const scheduler = aCluster(writer, ["a", "b"]);
    scheduler.upsertGroup(reader);
    scheduler.upsertVolume({ id: "v", name: "data", access: "single-writer" });
    place(scheduler, writer, { a: 1 });
    place(scheduler, reader, { a: 1 });
    expect(scheduler.planRebalance({ goal: { kind: "fragmentation", bound: 0 } }).moves).toEqual([]);
    scheduler.addTask({ id: "view.2", group: reader.id, node: "a" });
    expect(scheduler.planRebalance(skew).moves.map(({ task }) => task)).toEqual(["view.2"]);
    place(scheduler, reader, { b: 1 });
    const emptied = scheduler.planRebalance({ goal: { kind: "fragmentation", bound: 0 } });
    expect(emptied.moves.every(({ to }) => to === "a")).toBe(true);
  });

  it("moves no task twice to empty several nodes", () => {
    const group = aGroup("job", { reservations: { milliCpus: 1_000, memoryBytes: 0 } });
    const scheduler = aCluster(group, ["a", "b", "c"]);
    place(scheduler, group, { a: 1, b: 1, c: 2 });
    const { moves } = scheduler.planRebalance({ goal: { kind: "fragmentation", bound: 0 } });
    expect(moves.map(({ from, to }) => `${from}>${to}`)).toEqual(["a>c", "b>c"]);
  });

  it("leaves room for a task that may go to few nodes", () => {
    const reservations = { milliCpus: 500, memoryBytes: 0 };
    const any = aGroup("any", { reservations });
    const bound = aGroup("bound", { reservations, constraints: ["node.labels.zone == a"] });
    const scheduler = new Scheduler();
    for (const [id, zone, milliCpus] of [
      ["n0", "b", 1_000],
      ["n1", "b", 1_000],
      ["n2", "a", 1_000],
      ["n3", "a", 3_000],
    ] as const)
      scheduler.upsertNode(aNode(id, { labels: { zone }, capacity: { milliCpus, memoryBytes: 2 ** 33 } }));
    for (const group of [any, bound]) scheduler.upsertGroup(group);
    place(scheduler, any, { n3: 1, n1: 1, n0: 1 });
    place(scheduler, bound, { n3: 1, n2: 1 });
    const { moves } = scheduler.planRebalance({ goal: { kind: "fragmentation", bound: 0.34 } });
    expect(moves.map(({ task, from }) => [task, from])).toEqual([
      ["bound@1.0", "n3"],
      ["any@1.0", "n3"],
    ]);
  });

  it("needs no more moves than any other choice of moves does, on small clusters", () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.constantFrom("a", "b"), fc.constantFrom(1_000, 2_000, 3_000)), {
          minLength: 2,
          maxLength: 4,
        }),
        fc.array(
          fc.record({
            milliCpus: fc.constantFrom(250, 500, 1_000),
            spread: fc.constantFrom([], [{ over: "node.labels.zone" }]),
            strategy: fc.constantFrom("spread" as const, "binpack" as const),
            constraints: fc.constantFrom([], ["node.labels.zone == a"]),
          }),
          { minLength: 1, maxLength: 2 },
        ),
        fc.array(fc.tuple(fc.nat(1), fc.nat(3)), { minLength: 2, maxLength: 7 }),
        fc.constantFrom<RebalanceOptions["goal"]>(
          { kind: "skew", bound: 1 },
          { kind: "skew", bound: 2 },
          { kind: "fragmentation", bound: 0 },
          { kind: "fragmentation", bound: 0.34 },
        ),
        (nodes, shapes, where, goal) => {
          const scheduler = new Scheduler();
          for (const [i, [zone, milliCpus]] of nodes.entries())
            scheduler.upsertNode(aNode(`n${i}`, { labels: { zone }, capacity: { milliCpus, memoryBytes: 2 ** 33 } }));
          const groups = shapes.map(({ milliCpus, ...shape }, i) =>
            aGroup(`s${i}`, { ...shape, reservations: { milliCpus, memoryBytes: 0 } }),
          );
          for (const group of groups) scheduler.upsertGroup(group);
          for (const [i, [g, n]] of where.entries()) {
            const { id: group } = groups[g % groups.length] as TaskGroup;
            const node = `n${n % nodes.length}`;
            if (scheduler.whyNot(group, node).fits) scheduler.addTask({ id: `t${i}`, group, node });
          }
          const plan = scheduler.planRebalance({ goal });
          if (plan.limitedBy !== undefined || plan.moves.length > 3) return;
          const brute = new BruteForce(scheduler.snapshot());
          expect([plan.moves.length, reaches(brute, goal, plan.moves.length - 1)]).toEqual([plan.moves.length, false]);
        },
      ),
      effort(300),
    );
  });

  it("of any cluster: each move is allowed, the goal gets no further away, and a second plan is empty", () => {
    fc.assert(
      fc.property(
        fc.tuple(...[0, 1, 2, 3, 4, 5].map((i) => nodeArbitrary(`n${i}`))),
        fc.tuple(...[0, 1, 2].map((i) => groupArbitrary(i))),
        fc.array(fc.tuple(fc.nat(2), fc.nat(5), fc.boolean()), { maxLength: 25 }),
        fc.constantFrom<RebalanceOptions["goal"]>(
          { kind: "skew", bound: 1 },
          { kind: "skew", bound: 2 },
          { kind: "fragmentation", bound: 0.2 },
        ),
        (nodes, groups, where, goal) => {
          const scheduler = new Scheduler();
          for (const node of nodes) scheduler.upsertNode(node);
          for (const volume of volumes) scheduler.upsertVolume(volume);
          for (const group of groups) scheduler.upsertGroup(group);
          // Places at random, where the rules allow it.
          for (const [i, [g, n, pinned]] of where.entries()) {
            const group = groups[g] as TaskGroup;
            if (scheduler.whyNot(group.id, `n${n}`).fits)
              scheduler.addTask({
                id: `t${i}`,
                group: group.id,
                node: `n${n}`,
                pinned,
                ports: group.ports?.map(({ port }) => port || 82),
              });
          }
          const before = scheduler.snapshot();
          const plan = scheduler.planRebalance({ goal });
          expect(scheduler.snapshot()).toEqual(before);
          // A small share makes a step of its own: a domain that has to keep its task then looks further from one emptied.
          if (groups.every(({ spread = [] }) => spread.every(({ shares }) => shares === undefined)))
            expect(plan.after).toBeLessThanOrEqual(plan.before);
          checkMoves(before, plan);
          if (plan.limitedBy === "budget") return;
          execute(scheduler, plan);
          const second = scheduler.planRebalance({ goal });
          if (second.limitedBy !== "budget") expect(second.moves).toEqual([]);
        },
      ),
      effort(400),
    );
  });

  it("needs no more moves than the counts demand, where nothing stands in the way", () => {
    fc.assert(
      fc.property(fc.array(fc.nat(8), { minLength: 2, maxLength: 6 }), fc.constantFrom(1, 2, 3), (counts, bound) => {
        const group = aGroup("web", { reservations: { milliCpus: 1, memoryBytes: 0 } });
        const scheduler = aCluster(
          group,
          counts.map((_, i) => `n${i}`),
        );
        place(scheduler, group, Object.fromEntries(counts.map((count, i) => [`n${i}`, count])));
        const plan = scheduler.planRebalance({ goal: { kind: "skew", bound } });
        expect(plan.limitedBy).toBeUndefined();
        expect(plan.moves.length).toBe(fewest(counts, bound));
      }),
      effort(200),
    );
  });
});

/** Fewest moves after which no two counts differ by more than the bound: for each floor, what is above or below it. */
function fewest(counts: readonly number[], bound: number): number {
  const total = counts.reduce((a, b) => a + b, 0);
  let best = Number.POSITIVE_INFINITY;
  for (let floor = 0; floor * counts.length <= total; floor++) {
    const above = counts.reduce((sum, count) => sum + Math.max(0, count - floor - bound), 0);
    const below = counts.reduce((sum, count) => sum + Math.max(0, floor - count), 0);
    best = Math.min(best, Math.max(above, below));
  }
  return best;
}

/**
 * Do so many moves of any tasks to any nodes that take them reach the goal? To empty nodes, tasks go to nodes in use and come from
 * such as are empty in the end.
 */
function reaches(
  brute: BruteForce,
  goal: RebalanceOptions["goal"],
  moves: number,
  left: readonly NodeRecord[] = [],
): boolean {
  const { state } = brute;
  if (moves < 0) return false;
  const met = planRebalance(state, { goal, mostMoves: 0 }).before <= goal.bound;
  if (met && left.every((node) => node.taskCount === 0)) return true;
  for (const task of moves === 0 ? [] : brute.tasks.values()) {
    const from = task.node as NodeRecord;
    for (const to of state.nodes.values()) {
      if (to === from || (goal.kind === "fragmentation" && to.taskCount === 0)) continue;
      state.detach(task);
      const fits = filters.every((filter) => filter.passes(state, task.group, to));
      state.attach(task, fits ? to : from);
      const emptied = goal.kind === "fragmentation" ? [...left, from] : left;
      const reached = fits && reaches(brute, goal, moves - 1, emptied);
      state.detach(task);
      state.attach(task, from);
      if (reached) return true;
    }
  }
  return false;
}

/** Each move, in order: the task is movable and its new node passes every filter; budgets hold. */
function checkMoves(before: ReturnType<Scheduler["snapshot"]>, { moves }: RebalancePlan): void {
  const brute = new BruteForce(before);
  const perService = new Map<string, number>();
  for (const { task: id, from, to } of moves) {
    const task = brute.tasks.get(id) as TaskRecord;
    const target = brute.state.nodes.get(to) as NodeRecord;
    expect(before.tasks.find((told) => told.id === id)?.pinned).not.toBe(true);
    expect(task.node?.spec.id).toBe(from);
    brute.state.detach(task);
    expect(filters.filter((filter) => !filter.passes(brute.state, task.group, target)).map(({ kind }) => kind)).toEqual(
      [],
    );
    brute.state.attach(task, target);
    perService.set(task.group.service.id, (perService.get(task.group.service.id) ?? 0) + 1);
    expect(perService.get(task.group.service.id)).toBeLessThanOrEqual(
      task.group.service.placed - task.group.service.minAvailable,
    );
  }
}
