import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { clusterArbitrary, effort, nodeArbitrary } from "./arbitraries.ts";
import { aGroup, aNode, mebibyte, someTasks } from "./builders.ts";
import { Scheduler } from "./scheduler.ts";
import { applyChanges, type Change, type Outcome, simulate } from "./simulate.ts";
import type { SchedulerTask } from "./types.ts";

const changeArbitrary: fc.Arbitrary<Change> = fc.oneof(
  fc.record({ kind: fc.constant("drain" as const), node: fc.constantFrom("n0", "n1", "n2", "n3") }),
  fc.record({ kind: fc.constant("lose" as const), node: fc.constantFrom("n4", "n5") }),
  nodeArbitrary("n9").map((node) => ({ kind: "add" as const, node })),
  fc.record({
    kind: fc.constant("resize" as const),
    group: fc.constantFrom("s0", "s1", "s2"),
    reservations: fc.record({ milliCpus: fc.constantFrom(50, 800), memoryBytes: fc.constant(64 * mebibyte) }),
  }),
  fc.record({ kind: fc.constant("scale" as const), group: fc.constantFrom("s0", "s1", "s2"), tasks: fc.nat(8) }),
);

describe("simulate", () => {
  it("foretells exactly what then happens, and changes nothing itself", () => {
    fc.assert(
      fc.property(clusterArbitrary, fc.array(changeArbitrary, { minLength: 1, maxLength: 3 }), (build, changes) => {
        const unique = changes.filter(
          (c, i) => c.kind !== "lose" || changes.findIndex((o) => o.kind === "lose" && o.node === c.node) === i,
        );
        const scheduler = build();
        const before = scheduler.snapshot();
        const foretold = simulate(scheduler, unique);
        expect(scheduler.snapshot()).toEqual(before);
        expect(happened(scheduler, unique)).toEqual(placesOf(foretold));
        // And once more through the function that carries changes out, on a cluster built anew.
        const again = build();
        expect(applyChanges(again, unique)).toEqual(foretold);
        expect(again.snapshot()).toEqual(scheduler.snapshot());
      }),
      effort(1_000),
    );
  });

  it("replaces no task of a drained or lost node that may run only there", () => {
    const agent = aGroup("agent");
    const scheduler = new Scheduler();
    scheduler.upsertGroup(agent);
    for (const id of ["a", "b", "c"]) {
      scheduler.upsertNode(aNode(id));
      scheduler.addTask({ id: `agent.${id}`, group: agent.id, onlyNode: id });
    }
    scheduler.schedule();
    const changes: readonly Change[] = [
      { kind: "drain", node: "a" },
      { kind: "lose", node: "b" },
    ];
    expect(simulate(scheduler, changes)).toEqual({
      moves: [],
      stopped: ["agent.a", "agent.b"],
      preempted: [],
      unplaced: [],
    });
  });

  it("tells the moves of a drain, what no longer fits, and what preemption stops", () => {
    const web = aGroup("web", { reservations: { milliCpus: 3_000, memoryBytes: 0 } });
    const scheduler = new Scheduler();
    for (const id of ["a", "b", "c"]) scheduler.upsertNode(aNode(id));
    scheduler.upsertGroup(web);
    scheduler.schedule(someTasks(web, 2));
    const [first] = scheduler.snapshot().tasks as readonly [SchedulerTask];
    const free = ["a", "b", "c"].find((id) => !scheduler.snapshot().tasks.some(({ node }) => node === id)) as string;
    const drained = simulate(scheduler, [{ kind: "drain", node: first.node as string }]);
    expect(drained.moves).toEqual([{ task: first.id, group: web.id, from: first.node, to: free }]);
    const lost = simulate(scheduler, [
      { kind: "lose", node: first.node as string },
      { kind: "lose", node: free },
    ]);
    expect(lost.unplaced[0]?.explanation.summary).toBe("1 node: 3 CPU needed, 1 free");
    expect(() => simulate(scheduler, [{ kind: "drain", node: "x" }])).toThrow("the scheduler knows no node x");
  });
});

/** The same changes told event by event, as a control plane does. */
function happened(scheduler: Scheduler, changes: readonly Change[]): readonly string[] {
  for (const change of changes) {
    const { tasks, nodes, groups } = scheduler.snapshot();
    const wait = (task: SchedulerTask): void =>
      scheduler.addTask({ id: task.id, group: task.group, name: task.name, onlyNode: task.onlyNode });
    if (change.kind === "add") scheduler.upsertNode(change.node);
    if (change.kind === "drain")
      scheduler.upsertNode({
        ...(nodes.find(({ id }) => id === change.node) as (typeof nodes)[number]),
        availability: "drain",
      });
    if (change.kind === "drain" || change.kind === "lose") {
      for (const task of tasks) {
        if (task.onlyNode === change.node) scheduler.removeTask(task.id);
        else if (task.node === change.node) wait(task);
      }
    }
    if (change.kind === "lose") scheduler.removeNode(change.node);
    if (change.kind === "resize") {
      scheduler.upsertGroup({
        ...(groups.find(({ id }) => id === change.group) as (typeof groups)[number]),
        reservations: change.reservations,
      });
      for (const task of tasks) if (task.group === change.group && task.node !== undefined) wait(task);
    }
    if (change.kind === "scale") {
      const own = tasks.filter(({ group }) => group === change.group);
      for (let n = 1, have = own.length; have < change.tasks; n++) {
        const id = `${change.group}+${n}`;
        if (own.some((task) => task.id === id)) continue;
        scheduler.addTask({
          id,
          group: change.group,
          name: `${(groups.find((g) => g.id === change.group) as (typeof groups)[number]).name}+${n}`,
        });
        have++;
      }
      const kept = [...own].sort((a, b) => Number(a.node === undefined) - Number(b.node === undefined));
      for (const { id } of kept.slice(change.tasks)) scheduler.removeTask(id);
    }
  }
  const { placements } = scheduler.schedule();
  return [
    ...placements.map(({ task, node, preempts }) => `${task}@${node} ${preempts.join()}`),
    ...scheduler.unplaced().map(({ tasks, explanation }) => `${tasks.join()}: ${explanation.summary}`),
  ];
}

function placesOf({ moves, preempted, unplaced }: Outcome): readonly string[] {
  return [
    ...moves.map(
      ({ task, to }) =>
        `${task}@${to} ${preempted
          .filter(({ by }) => by === task)
          .map((p) => p.task)
          .join()}`,
    ),
    ...unplaced.map(({ tasks, explanation }) => `${tasks.join()}: ${explanation.summary}`),
  ];
}
