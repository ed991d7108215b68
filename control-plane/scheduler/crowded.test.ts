import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { effort } from "./arbitraries.ts";
import { BruteForce } from "./brute-force.ts";
import { aGroup, aNode, mebibyte, someTasks } from "./builders.ts";
import { Scheduler } from "./scheduler.ts";
import { tasksOn } from "./state/records.ts";
import type { SchedulerNode, Strategy, TaskGroup } from "./types.ts";

/** mulberry32: numbers below `limit`, the same for the same seed. */
function numbers(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 4_294_967_296) * limit);
  };
}

const spreads: readonly (TaskGroup["spread"] | undefined)[] = [
  [{ over: "node.labels.zone" }],
  [{ over: "node.labels.zone", shares: { a: 3 } }],
  [{ over: "node.labels.zone", maxSkew: 2 }],
];

/** Nodes with a task of wide are too many for the shared view. */
const affinities: readonly (TaskGroup["affinities"] | undefined)[] = [
  [{ kind: "service", service: "wide", over: "node.id", weight: -40 }],
  [{ kind: "service", service: "g7", over: "node.labels.zone", weight: 70 }],
  [{ kind: "node", constraint: "node.labels.zone == b", weight: 30 }],
];

/**
 * Large enough for what small clusters never reach: a service with a view of its own, bits chosen anew because searches
 * fail, grids for random sizes, trees that grow, a log that is cut.
 */
describe("a crowded cluster of 300 nodes", () => {
  it.each<Strategy>(["spread", "binpack"])("decides as a look at every node does (%s)", (strategy) => {
    fc.assert(
      fc.property(fc.nat(1_000_000), (seed) => {
        const next = numbers(seed);
        const scheduler = new Scheduler({ strategy, explainLimit: 0 });
        const nodes = Array.from({ length: 300 }, (_, i) =>
          aNode(`n${i}`, { labels: { zone: "abc"[i % 3] as string } }),
        );
        for (const node of nodes) scheduler.upsertNode(node);
        const wide = aGroup("wide", { reservations: { milliCpus: 200, memoryBytes: 0 }, maxPerNode: 2 });
        const groups: TaskGroup[] = [wide];
        for (let i = 0; i < 120; i++) {
          const any = next(4) > 0;
          groups.push(
            aGroup(`g${i}`, {
              reservations: { milliCpus: 100 + next(1_500), memoryBytes: (64 + next(3_000)) * mebibyte },
              constraints: any ? [] : [`node.labels.zone == ${"abc"[next(3)]}`],
              ports: next(6) === 0 ? [{ port: 80 + next(3), protocol: "tcp" }] : undefined,
              spread: spreads[next(12)],
              affinities: affinities[next(16)],
              links: next(12) === 0 ? [{ service: "wide", bytesPerSecond: 1 }] : undefined,
              strategy: next(8) === 0 ? "binpack" : undefined,
            }),
          );
        }
        groups.push(aGroup("none", { reservations: { milliCpus: 0, memoryBytes: 0 } }));
        for (const group of groups) scheduler.upsertGroup(group);
        const brute = new BruteForce(scheduler.snapshot(), { strategy });
        const alive: string[] = [];
        const away: string[] = [];
        let created = 0;
        const ask = (group: TaskGroup, count: number): void => {
          const tasks = someTasks(group, count, created);
          created += count;
          for (const task of tasks) brute.add(task);
          const { placements, unplaced } = scheduler.schedule(tasks);
          for (const placement of placements) {
            expect(placement.node).toBe(brute.best(placement.task)?.node.spec.id);
            brute.apply(placement);
            alive.push(placement.task);
          }
          for (const { tasks: left } of unplaced) {
            if (left[0] !== undefined) expect(brute.best(left[0])).toBeUndefined();
            // Waiting tasks would be retried with every end of another: not what this test is about.
            for (const id of left) {
              scheduler.removeTask(id);
              brute.remove(id);
            }
          }
        };
        ask(wide, 400);
        for (let round = 0; round < 220; round++) {
          ask(groups[1 + next(groups.length - 1)] as TaskGroup, 1 + next(round < 150 ? 12 : 3));
          if (round % 3 === 0) ask(wide, 1);
          for (let i = 0; i < (round < 120 ? 1 : 4); i++) {
            const [ended] = alive.splice(next(alive.length), 1);
            if (ended === undefined) continue;
            scheduler.removeTask(ended);
            brute.remove(ended);
          }
          const changed = nodes[next(300)] as SchedulerNode;
          if (round % 5 === 0 && !away.includes(changed.id)) {
            const node: SchedulerNode = {
              ...changed,
              labels: { zone: "abc"[next(3)] as string },
              availability: next(4) === 0 ? "drain" : "active",
            };
            scheduler.upsertNode(node);
            brute.state.upsertNode(node);
          }
          if (round % 10 === 0) {
            const { id } = groups[1 + next(groups.length - 1)] as TaskGroup;
            const [node, failures] = [`n${next(300)}`, next(4)];
            scheduler.setFailures(id, node, failures);
            const record = brute.state.nodes.get(node);
            if (record !== undefined) brute.state.setFailures(brute.group(id), record, failures);
          }
          if (round % 12 === 0) {
            // Its tasks go with it, and it is another node when it returns.
            const lost = brute.state.nodes.get(`n${next(300)}`);
            for (const { id: task } of lost === undefined ? [] : tasksOn(lost)) {
              alive.splice(alive.indexOf(task), 1);
              scheduler.removeTask(task);
              brute.remove(task);
            }
            if (lost !== undefined) {
              scheduler.removeNode(lost.id);
              brute.state.removeNode(lost);
              away.push(lost.id);
            }
            if (away.length > 3) {
              const back = aNode(away.shift() as string, { labels: { zone: "abc"[next(3)] as string } });
              scheduler.upsertNode(back);
              brute.state.upsertNode(back);
            }
          }
        }
        // The state is as full as it was meant to be.
        expect(alive.length).toBeGreaterThan(600);
      }),
      effort(2),
    );
  });
});
