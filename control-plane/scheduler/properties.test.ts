import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Command, commandArbitrary, effort, groupArbitrary, mostCommands, volumes } from "./arbitraries.ts";
import { BruteForce } from "./brute-force.ts";
import { Scheduler, type SchedulerSnapshot } from "./scheduler.ts";
import type { Placement, ScheduleResult, SchedulerNode, SchedulerTask, Strategy, TaskGroup } from "./types.ts";

interface World {
  readonly scheduler: Scheduler;
  readonly groups: readonly TaskGroup[];
  readonly options: { readonly strategy: Strategy; readonly seed: number };
  created: number;
}

/** Tells the scheduler what a command says; `onSchedule` gets what was before, and what was decided. */
function perform(
  world: World,
  command: Command,
  onSchedule: (before: SchedulerSnapshot, result: ScheduleResult) => void,
): void {
  const { scheduler, groups } = world;
  const at = <T>(list: readonly T[], n: number): T | undefined => list[n % Math.max(1, list.length)];
  switch (command.kind) {
    case "node":
      scheduler.upsertNode(command.spec);
      break;
    case "lose":
      scheduler.removeNode(`n${command.node}`);
      break;
    case "ask":
      if (!scheduler.snapshot().groups.some(({ id }) => id === (at(groups, command.group) as TaskGroup).id))
        scheduler.upsertGroup(at(groups, command.group) as TaskGroup);
      for (let i = 0; i < command.count; i++) {
        scheduler.addTask({
          id: `t${String(world.created++).padStart(4, "0")}`,
          group: (at(groups, command.group) as TaskGroup).id,
          onlyNode: command.onlyNode === undefined ? undefined : `n${command.onlyNode}`,
          turn: command.sinceMs === undefined ? undefined : { sinceMs: command.sinceMs, slot: command.count - i },
        });
      }
      break;
    case "end": {
      const task = at(scheduler.snapshot().tasks, command.task);
      if (task !== undefined) scheduler.removeTask(task.id);
      break;
    }
    case "fail":
      scheduler.setFailures((at(groups, command.group) as TaskGroup).id, `n${command.node}`, command.count);
      break;
    case "regroup": {
      const group = at(groups, command.group) as TaskGroup;
      const { milliCpus, minAvailable } = command;
      const priority = (group.priority ?? 0) === 0 ? 0 : command.priority;
      scheduler.upsertGroup({ ...group, priority, minAvailable, reservations: { ...group.reservations, milliCpus } });
      break;
    }
    case "forget":
      scheduler.removeGroup((at(groups, command.group) as TaskGroup).id);
      break;
    case "move-volume":
      scheduler.upsertVolume({ ...volumes[0], homeNode: `n${command.node}` });
      break;
    case "schedule": {
      const before = scheduler.snapshot();
      onSchedule(before, scheduler.schedule());
      break;
    }
    default:
      command satisfies never;
  }
}

function aWorld(groups: readonly TaskGroup[], strategy: Strategy, seed: number): World {
  const scheduler = new Scheduler({ strategy, seed });
  for (const volume of volumes) scheduler.upsertVolume(volume);
  const unique = [...new Map(groups.map((group) => [group.id, group])).values()];
  for (const group of unique) scheduler.upsertGroup(group);
  return { scheduler, groups: unique, options: { strategy, seed }, created: 0 };
}

const groupsArbitrary = (plain: boolean): fc.Arbitrary<TaskGroup[]> =>
  fc.tuple(...[0, 1, 2, 3, 4, 5].map((i) => groupArbitrary(i, { plain })));

/** Names in a stable form, for comparing two results. */
const shown = (placements: readonly Placement[]): readonly string[] =>
  placements.map(({ task, node, ports, preempts }) => `${task} ${node} ${ports.join()} ${preempts.join()}`);

const waitingOf = (tasks: readonly SchedulerTask[]): readonly string[] =>
  tasks.filter(({ node }) => node === undefined).map(({ id }) => id);

describe("after any sequence of events", () => {
  for (const plain of [true, false]) {
    const kind = plain ? "plain groups" : "priorities and gangs";

    it(`each decision is the one that looking at every node gives (${kind})`, () => {
      fc.assert(
        fc.property(
          groupsArbitrary(plain),
          fc.constantFrom<Strategy>("spread", "binpack"),
          fc.nat(3),
          fc.array(commandArbitrary, { minLength: 20, maxLength: mostCommands }),
          (groups, strategy, seed, commands) => {
            const world = aWorld(groups, strategy, seed);
            const check = (before: SchedulerSnapshot, result: ScheduleResult): void => {
              const brute = new BruteForce(before, world.options);
              for (const placement of result.placements) {
                if (placement.preempts.length === 0)
                  expect(placement.node).toBe(brute.best(placement.task)?.node.spec.id);
                else expect(brute.best(placement.task)).toBeUndefined();
                brute.apply(placement);
              }
            };
            for (const command of commands) perform(world, command, check);
            // Until nothing more happens: what still waits then fits nowhere (gangs apart, which wait for each other).
            for (let placed = 1; placed > 0; )
              perform(world, { kind: "schedule" }, (_b, r) => (placed = r.placements.length));
            const end = world.scheduler.snapshot();
            const brute = new BruteForce(end, world.options);
            for (const id of waitingOf(end.tasks)) {
              if (brute.tasks.get(id)?.group.spec.gang === undefined) expect(brute.best(id)).toBeUndefined();
            }
          },
        ),
        effort(plain ? 250 : 250),
      );
    });

    it(`the index decides as one built from scratch (${kind})`, () => {
      fc.assert(
        fc.property(
          groupsArbitrary(plain),
          fc.constantFrom<Strategy>("spread", "binpack"),
          fc.array(commandArbitrary, { minLength: 20, maxLength: mostCommands }),
          (groups, strategy, commands) => {
            const world = aWorld(groups, strategy, 0);
            const check = (before: SchedulerSnapshot, result: ScheduleResult): void => {
              const scratch = Scheduler.restore(before, world.options);
              expect(shown(result.placements)).toEqual(shown(scratch.schedule().placements));
              expect(waitingOf(world.scheduler.snapshot().tasks)).toEqual(waitingOf(scratch.snapshot().tasks));
            };
            for (const command of [...commands, { kind: "schedule" as const }]) perform(world, command, check);
          },
        ),
        effort(plain ? 250 : 250),
      );
    });
  }

  it("nothing is over-committed, no hard rule is broken, and the same events give the same answers", () => {
    fc.assert(
      fc.property(
        groupsArbitrary(false),
        fc.constantFrom<Strategy>("spread", "binpack"),
        fc.array(commandArbitrary, { minLength: 20, maxLength: mostCommands }),
        (groups, strategy, commands) => {
          const decided: string[][] = [[], []];
          for (const log of decided) {
            const world = aWorld(groups, strategy, 1);
            for (const command of commands) {
              perform(world, command, (before, result) => {
                log.push(...shown(result.placements), ...result.unplaced.map(({ explanation }) => explanation.summary));
                const after = world.scheduler.snapshot();
                checkRules(after, result.placements);
                checkPreemptions(before, after, result.placements);
                checkGangs(after, result.placements);
              });
            }
          }
          expect(decided[0]).toEqual(decided[1]);
        },
      ),
      effort(200),
    );
  });
});

/** Only tasks of lower priority are stopped, and no service is left with fewer than its budget keeps. */
function checkPreemptions(before: SchedulerSnapshot, after: SchedulerSnapshot, placements: readonly Placement[]): void {
  const groups = new Map(after.groups.map((group) => [group.id, group]));
  const groupOf = new Map(
    [...before.tasks, ...after.tasks].map((task) => [task.id, groups.get(task.group) as TaskGroup]),
  );
  const known = new Set(after.nodes.map(({ id }) => id));
  for (const { task, preempts } of placements) {
    for (const victim of preempts) {
      const { service, priority = 0 } = groupOf.get(victim) as TaskGroup;
      expect(priority).toBeLessThan(groupOf.get(task)?.priority ?? 0);
      const kept = Math.max(...after.groups.filter((g) => g.service === service).map((g) => g.minAvailable ?? 0));
      const left = after.tasks.filter((t) => known.has(t.node ?? "") && groupOf.get(t.id)?.service === service);
      expect(left.length).toBeGreaterThanOrEqual(kept);
    }
  }
}

/** Where one task of a gang was placed, none of the gang waits. */
function checkGangs(after: SchedulerSnapshot, placements: readonly Placement[]): void {
  const gangOf = new Map(after.groups.map(({ id, gang }) => [id, gang]));
  const groupOf = new Map(after.tasks.map(({ id, group }) => [id, group]));
  for (const { task } of placements) {
    const gang = gangOf.get(groupOf.get(task) ?? "");
    if (gang === undefined) continue;
    expect(after.tasks.filter(({ node, group }) => node === undefined && gangOf.get(group) === gang)).toEqual([]);
  }
}

/** The hard rules once more, written apart from the filters, for every node that has just got a task. */
function checkRules(snapshot: SchedulerSnapshot, placements: readonly Placement[]): void {
  const groups = new Map(snapshot.groups.map((group) => [group.id, group]));
  const groupOf = (task: SchedulerTask): TaskGroup => groups.get(task.group) as TaskGroup;
  const nodes = new Map(snapshot.nodes.map((node) => [node.id, node]));
  const tasks = new Map(snapshot.tasks.map((task) => [task.id, task]));
  const placed = snapshot.tasks.filter((task) => nodes.has(task.node ?? ""));
  for (const placement of placements) {
    const task = tasks.get(placement.task);
    // Placed, and preempted by a later decision of the same pass.
    if (task?.node !== placement.node) continue;
    const node = nodes.get(placement.node);
    const group = groupOf(task);
    if (node === undefined) throw new Error("placed on an unknown node");
    expect(unsuitable(node, group, snapshot, task.onlyNode !== undefined)).toBeUndefined();
    if (task.onlyNode !== undefined) expect(node.id).toBe(task.onlyNode);

    const here = placed.filter((other) => other.node === node.id);
    const sum = (amount: (group: TaskGroup) => number): number =>
      here.reduce((all, other) => all + amount(groupOf(other)), 0);
    const { reservations, maxPerNode = 0 } = group;
    if (reservations.milliCpus > 0)
      expect(sum((g) => g.reservations.milliCpus)).toBeLessThanOrEqual(node.capacity.milliCpus);
    if (reservations.memoryBytes > 0)
      expect(sum((g) => g.reservations.memoryBytes)).toBeLessThanOrEqual(node.capacity.memoryBytes);
    if ((reservations.pids ?? 0) > 0)
      expect(sum((g) => g.reservations.pids ?? 0)).toBeLessThanOrEqual(node.capacity.pids ?? Infinity);
    if ((reservations.generic?.["gpu"] ?? 0) > 0) {
      expect(sum((g) => g.reservations.generic?.["gpu"] ?? 0)).toBeLessThanOrEqual(node.capacity.generic?.["gpu"] ?? 0);
    }
    if (maxPerNode > 0) expect(here.filter((other) => groupOf(other) === group).length).toBeLessThanOrEqual(maxPerNode);
    expect(placement.ports.length).toBe(group.ports?.length ?? 0);
    for (const [i, port] of placement.ports.entries()) {
      const wanted = group.ports?.[i];
      if (wanted?.port !== 0) expect(port).toBe(wanted?.port);
      else expect([80, 81, 82]).toContain(port);
      const holders = here.flatMap((other) =>
        (other.ports ?? []).filter((held, at) => {
          const { protocol, address } = groupOf(other).ports?.[at] ?? {};
          const isApart = address !== undefined && wanted?.address !== undefined && address !== wanted.address;
          return held === port && protocol === wanted?.protocol && !isApart;
        }),
      );
      expect(holders).toHaveLength(1);
    }
    for (const { volume, readOnly } of group.volumes ?? []) {
      if (readOnly === true || snapshot.volumes.find(({ id }) => id === volume)?.access !== "single-writer") continue;
      const writers = placed.filter((other) =>
        groupOf(other).volumes?.some((use) => use.volume === volume && use.readOnly !== true),
      );
      expect(writers).toHaveLength(1);
    }
  }
  // Where preemption or another version has not changed the counts since.
  if (placements.some(({ preempts }) => preempts.length > 0)) return;
  const ofService = Map.groupBy(
    placements.map(({ task }) => groupOf(tasks.get(task) as SchedulerTask)),
    ({ service }) => service,
  );
  for (const all of ofService.values())
    if (new Set(all).size === 1) checkSkew(all[0] as TaskGroup, snapshot, placements);
}

/** Which of the rules over what node and group are keeps the group off the node. */
function unsuitable(
  node: SchedulerNode,
  group: TaskGroup,
  snapshot: SchedulerSnapshot,
  bound = false,
): string | undefined {
  if (node.availability !== "active" || !node.ready) return "takes no tasks";
  if (node.diskPressure === true && !bound) return "takes no tasks that could run elsewhere";
  const { zone, rack } = node.labels;
  const met: Readonly<Record<string, boolean>> = {
    "node.labels.zone == a": zone === "a",
    "node.labels.zone in (a, b)": zone === "a" || zone === "b",
    "node.labels.zone exists": zone !== undefined,
    "node.labels.rack != 1": rack !== "1",
    "node.labels.rack >= 2": rack === "2",
    "node.hostname =~ ^n[0-4]$": ["n0", "n1", "n2", "n3", "n4"].includes(node.hostname),
  };
  for (const text of group.constraints ?? []) if (met[text] !== true) return text;
  for (const { key, value = "", effect } of node.taints ?? []) {
    const tolerated = (group.tolerations ?? []).some(
      (one) => (one.key ?? key) === key && (one.value ?? value) === value && (one.effect ?? effect) === effect,
    );
    if (effect !== "prefer-no-schedule" && !tolerated) return `taint ${key}`;
  }
  if (group.platforms !== undefined && node.arch !== "amd64") return "platform";
  for (const { volume } of group.volumes ?? []) {
    const home = snapshot.volumes.find(({ id }) => id === volume)?.homeNode;
    if (home !== undefined && home !== node.id) return `volume ${volume}`;
  }
  return undefined;
}

/** No domain that has just got a task has more than `maxSkew` above the emptiest one that the group could use. */
function checkSkew(group: TaskGroup, snapshot: SchedulerSnapshot, placements: readonly Placement[]): void {
  const groups = new Map(snapshot.groups.map((one) => [one.id, one]));
  for (const [depth, { maxSkew }] of (group.spread ?? []).entries()) {
    if (maxSkew === undefined) continue;
    const path = (group.spread ?? []).slice(0, depth + 1).map(({ over }) => over.replace("node.labels.", ""));
    const domainOf = (node: SchedulerNode | undefined): string | undefined =>
      node?.labels[path.at(-1) ?? ""] === undefined ? undefined : path.map((key) => node.labels[key] ?? "none").join();
    const counts = new Map<string, number>();
    for (const node of snapshot.nodes) {
      const domain = unsuitable(node, group, snapshot) === undefined ? domainOf(node) : undefined;
      if (domain !== undefined) counts.set(domain, 0);
    }
    for (const task of snapshot.tasks) {
      const at = snapshot.nodes.find(({ id }) => id === task.node);
      if (at?.availability === "drain" && task.onlyNode === undefined) continue;
      const domain = domainOf(at);
      if (domain === undefined || groups.get(task.group)?.service !== group.service) continue;
      if (counts.has(domain)) counts.set(domain, (counts.get(domain) ?? 0) + 1);
    }
    for (const { task: id, node } of placements) {
      const task = snapshot.tasks.find((one) => one.id === id);
      if (task?.group !== group.id) continue;
      const domain = domainOf(snapshot.nodes.find((one) => one.id === node));
      expect(domain).toBeDefined();
      expect((counts.get(domain ?? "") ?? 0) - Math.min(...counts.values())).toBeLessThanOrEqual(maxSkew);
    }
  }
}
