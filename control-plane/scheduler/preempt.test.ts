import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { effort, groupArbitrary, nodeArbitrary, volumes } from "./arbitraries.ts";
import { BruteForce } from "./brute-force.ts";
import { aGroup, aNode, mebibyte, someTasks } from "./builders.ts";
import { givePorts } from "./filters/host-port.ts";
import { filters } from "./filters/index.ts";
import { Scheduler } from "./scheduler.ts";
import { compareNodes, costOf } from "./scores/index.ts";
import { type GroupRecord, type NodeRecord, type ServiceRecord, type TaskRecord, tasksOn } from "./state/records.ts";
import type { Resources, TaskGroup } from "./types.ts";

const cpus = (milliCpus: number): Resources => ({ milliCpus, memoryBytes: 0 });

/** A node of 4 CPUs that holds tasks of these groups, one of each, and what is stopped there for the last group. */
function victims(groups: readonly TaskGroup[], vital: TaskGroup): readonly string[] | undefined {
  const scheduler = new Scheduler();
  scheduler.upsertNode(aNode("a"));
  for (const group of [...groups, vital]) scheduler.upsertGroup(group);
  for (const [i, group] of groups.entries()) {
    const ports = group.ports?.map(({ port, range }) => port || (range?.[0] ?? 0));
    scheduler.addTask({ id: `${i} ${group.service}`, group: group.id, node: "a", ports });
  }
  const { placements } = scheduler.schedule(someTasks(vital, 1));
  return placements[0]?.preempts;
}

describe("preemption", () => {
  const vital = aGroup("vital", { reservations: cpus(2_000), priority: 10 });

  it.each([
    ["x", "y"],
    ["y", "x"],
  ])("of tasks that matter alike stops the first by name, whatever their ids: %s and %s", (first, second) => {
    const scheduler = new Scheduler();
    scheduler.upsertNode(aNode("a"));
    const batch = aGroup("batch", { reservations: cpus(2_000) });
    for (const group of [batch, vital]) scheduler.upsertGroup(group);
    scheduler.addTask({ id: first, name: "batch.1", group: batch.id, node: "a" });
    scheduler.addTask({ id: second, name: "batch.2", group: batch.id, node: "a" });
    expect(scheduler.schedule(someTasks(vital, 1)).placements[0]?.preempts).toEqual([first]);
  });

  it.each<readonly [string, readonly TaskGroup[], TaskGroup, readonly string[] | undefined]>([
    [
      "one large task and not two small ones",
      [1_000, 1_000, 2_000].map((milliCpus) => aGroup(`t${milliCpus}`, { reservations: cpus(milliCpus) })),
      vital,
      ["2 t2000"],
    ],
    [
      "two unimportant tasks and not one that matters more",
      [
        aGroup("some", { reservations: cpus(2_000), priority: 5 }),
        aGroup("batch", { reservations: cpus(1_000) }),
        aGroup("batch", { reservations: cpus(1_000) }),
      ],
      vital,
      ["1 batch", "2 batch"],
    ],
    [
      "the one that its service can spare, though another comes first",
      [aGroup("kept", { reservations: cpus(2_000), minAvailable: 1 }), aGroup("spare", { reservations: cpus(2_000) })],
      vital,
      ["1 spare"],
    ],
    [
      "of a service that can spare one, the version that is large enough",
      [
        aGroup("web", { id: "web@1", reservations: cpus(1_000), minAvailable: 1 }),
        aGroup("web", { id: "web@2", reservations: cpus(3_000), minAvailable: 1 }),
      ],
      vital,
      ["1 web"],
    ],
    [
      "who holds the port, and nobody else",
      [
        aGroup("a", { reservations: cpus(1_000) }),
        aGroup("b", { reservations: cpus(1_000), ports: [{ port: 80, protocol: "tcp" }] }),
      ],
      { ...vital, reservations: cpus(100), ports: [{ port: 80, protocol: "tcp" }] },
      ["1 b"],
    ],
    [
      "nobody of a service at its budget for a port of a range",
      [0, 1].map(() => aGroup("b", { reservations: cpus(1), ports: [{ port: 80, protocol: "tcp" }], minAvailable: 2 })),
      { ...vital, ports: [{ port: 0, protocol: "tcp", range: [80, 80] }] },
      undefined,
    ],
    ["nobody of the same priority", [aGroup("peer", { reservations: cpus(4_000), priority: 10 })], vital, undefined],
    ["nobody of a higher one", [aGroup("boss", { reservations: cpus(4_000), priority: 11 })], vital, undefined],
    ["nobody of its own service", [aGroup("vital", { id: "vital@0", reservations: cpus(4_000) })], vital, undefined],
    [
      "nobody of its own gang",
      [aGroup("helper", { reservations: cpus(4_000), gang: "g" })],
      { ...vital, gang: "g" },
      undefined,
    ],
    [
      "one below the default, for one of the default",
      [aGroup("batch", { reservations: cpus(4_000), priority: -1 })],
      { ...vital, priority: 0 },
      ["0 batch"],
    ],
    [
      "nobody when all together are not enough",
      [aGroup("batch", { reservations: cpus(1_000) }), aGroup("boss", { reservations: cpus(3_000), priority: 11 })],
      vital,
      undefined,
    ],
  ])("stops %s", (_name, groups, group, expected) => {
    expect(victims(groups, group)).toEqual(expected);
  });

  describe("of a service with a budget", () => {
    const size = { reservations: cpus(2_000) };
    const kept = aGroup("kept", { ...size, minAvailable: 2 });
    const scheduler = (down: readonly boolean[]) => {
      const made = new Scheduler();
      for (const [i] of down.entries()) made.upsertNode(aNode(`n${i}`, { capacity: cpus(2_000) }));
      made.upsertGroup(kept);
      made.upsertGroup(vital);
      for (const [i, one] of down.entries()) made.addTask({ id: `t${i}`, group: kept.id, node: `n${i}`, down: one });
      return made;
    };

    it.each([
      ["one that serves when enough others do", [false, false, false], ["t0", "t1", "t2"]],
      ["none that serves when others do not", [false, false, true], ["t2"]],
      ["one that does not serve even below the budget", [false, true, true], ["t1", "t2"]],
    ])("stops %s", (_, down, allowed) => {
      const { placements } = scheduler(down).schedule(someTasks(vital, 1));
      expect(placements[0]?.preempts.map((id) => allowed.includes(id))).toEqual([true]);
    });

    it("looks again once another serves", () => {
      const made = scheduler([false, false]);
      made.upsertNode(aNode("small", { capacity: cpus(100) }));
      expect(made.schedule(someTasks(vital, 1)).placements).toEqual([]);
      made.addTask({ id: "late", group: kept.id, node: "small", down: true });
      expect(made.schedule().placements).toEqual([]);
      made.addTask({ id: "late", group: kept.id, node: "small", down: false });
      expect(made.schedule().placements.map(({ preempts }) => preempts.length)).toEqual([1]);
    });
  });

  it("is not for one that is patient, which keeps nobody of its service from it, until it may", () => {
    const scheduler = new Scheduler();
    for (const id of ["a", "b"]) scheduler.upsertNode(aNode(id, { capacity: cpus(2_000) }));
    const batch = aGroup("batch", { reservations: cpus(2_000) });
    for (const group of [batch, vital]) scheduler.upsertGroup(group);
    for (const id of ["a", "b"]) scheduler.addTask({ id: `batch ${id}`, group: batch.id, node: id });
    const first = { id: "first", group: vital.id, patient: true };
    const { placements, unplaced } = scheduler.schedule([first, { id: "second", group: vital.id }]);
    expect(placements.map(({ task, preempts }) => [task, preempts.length])).toEqual([["second", 1]]);
    expect(unplaced.flatMap(({ tasks }) => tasks)).toEqual(["first"]);
    scheduler.addTask(first);
    expect(scheduler.schedule().placements).toEqual([]);
    scheduler.addTask({ ...first, patient: false });
    expect(scheduler.schedule().placements).toMatchObject([{ task: "first", preempts: [expect.any(String)] }]);
  });

  it("stops the fewest and least important that any choice allows, and finds a place whenever there is one", () => {
    let preempted = 0;
    fc.assert(
      fc.property(
        fc.tuple(...[0, 1, 2].map((i) => nodeArbitrary(`n${i}`))),
        fc.tuple(...[0, 1, 2, 3, 4, 5].map((i) => groupArbitrary(i, { plain: true }))),
        fc.array(fc.constantFrom(-5, 0, 5), { minLength: 6, maxLength: 6 }),
        fc.constantFrom(500, 1_000, 1_900),
        fc.array(fc.tuple(fc.nat(4), fc.nat(2), fc.boolean()), { minLength: 10, maxLength: 25 }),
        (nodes, plain, priorities, size, where) => {
          const scheduler = new Scheduler();
          const groups = [
            ...new Map(plain.map((group, i) => [group.id, { ...group, priority: priorities[i] as number }])).values(),
          ];
          // What is asked for is a service of its own, and wants much.
          const asked = groups.pop() as TaskGroup;
          const wanted = {
            ...asked,
            id: "asked@1",
            service: "asked",
            priority: 7,
            reservations: { milliCpus: size, memoryBytes: 2_000 * mebibyte },
            constraints: [],
            tolerations: [{}],
          };
          for (const { labels, capacity } of nodes)
            scheduler.upsertNode(aNode(`n${scheduler.snapshot().nodes.length}`, { labels, capacity }));
          for (const volume of volumes) scheduler.upsertVolume(volume);
          for (const group of [...groups, wanted]) scheduler.upsertGroup(group);
          for (const [i, [g, n, down]] of where.entries()) {
            const group = groups[g] as TaskGroup;
            if (!scheduler.whyNot(group.id, `n${n}`).fits) continue;
            const node = scheduler.snapshot();
            const brute = new BruteForce(node);
            const ports = givePorts(group.ports ?? [], brute.state.nodes.get(`n${n}`) as NodeRecord);
            scheduler.addTask({ id: `t${String(i).padStart(2, "0")}`, group: group.id, node: `n${n}`, ports, down });
          }
          scheduler.addTask({ id: "asked", group: wanted.id });
          const brute = new BruteForce(scheduler.snapshot());
          const best = brute.best("asked") === undefined ? bestChoice(brute, brute.group(wanted.id)) : undefined;
          const [placement] = scheduler.schedule().placements;
          if (brute.best("asked") !== undefined) {
            expect(placement?.preempts).toEqual([]);
            return;
          }
          if (best !== undefined) preempted++;
          const stopped = placement?.preempts.map((id) => brute.tasks.get(id) as TaskRecord);
          expect(placement === undefined ? undefined : [placement.node, worthOf(stopped ?? [])]).toEqual(
            best === undefined ? undefined : [best.node.id, worthOf(best.victims)],
          );
        },
      ),
      effort(400),
    );
    expect(preempted).toBeGreaterThan(30);
  });
});

interface Choice {
  readonly node: NodeRecord;
  readonly victims: readonly TaskRecord[];
}

/** Highest priority among them, and how many. */
function worthOf(tasks: readonly TaskRecord[]): readonly [number, number] {
  return [Math.max(...tasks.map(({ group }) => group.priority)), tasks.length];
}

/** The best of all nodes and all sets of tasks that may go. */
function bestChoice(brute: BruteForce, group: GroupRecord): Choice | undefined {
  const { state } = brute;
  let best: Choice | undefined;
  for (const node of state.nodes.values()) {
    const cost = costOf(state, group, node);
    const candidates = tasksOn(node).filter(
      (task) => task.group.priority < group.priority && task.group.service !== group.service,
    );
    for (let set = 1; set < 2 ** candidates.length; set++) {
      const victims = candidates.filter((_, i) => (set & (1 << i)) !== 0);
      if (!better({ node, victims }, cost, best, brute, group)) continue;
      const over = Map.groupBy(victims, (task) => task.group.service);
      const isOver = ([service, gone]: [ServiceRecord, TaskRecord[]]) => {
        const serving = gone.filter(({ down }) => !down).length;
        return serving > 0 && service.placed - service.down - serving < service.minAvailable;
      };
      if ([...over].some(isOver)) continue;
      for (const task of victims) state.detach(task);
      const refusing = filters.filter((filter) => !filter.passes(state, group, node));
      for (const task of victims) state.attach(task, node);
      if (refusing.length === 0 && domainsPass(brute, group, node)) best = { node, victims };
    }
  }
  return best;
}

/** What hangs on other nodes is not made room for: it has to pass as things are. */
function domainsPass({ state }: BruteForce, group: GroupRecord, node: NodeRecord): boolean {
  return filters.every((filter) => filter.looksAt !== "domain" || filter.passes(state, group, node));
}

function better(
  choice: Choice,
  cost: number,
  best: Choice | undefined,
  { state }: BruteForce,
  group: GroupRecord,
): boolean {
  if (best === undefined) return true;
  const [high, count] = worthOf(choice.victims);
  const [bestHigh, bestCount] = worthOf(best.victims);
  const byNode =
    choice.node === best.node ? 0 : compareNodes(cost, choice.node, costOf(state, group, best.node), best.node);
  return (high - bestHigh || count - bestCount || byNode) < 0;
}
