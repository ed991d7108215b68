import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { effort } from "./arbitraries.ts";
import { BruteForce } from "./brute-force.ts";
import { aGroup, aNode, mebibyte, someTasks } from "./builders.ts";
import { Scheduler } from "./scheduler.ts";
import type { Strategy, TaskGroup } from "./types.ts";

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
              spread: next(6) === 0 ? [{ over: "node.labels.zone" }] : undefined,
            }),
          );
        }
        groups.push(aGroup("none", { reservations: { milliCpus: 0, memoryBytes: 0 } }));
        for (const group of groups) scheduler.upsertGroup(group);
        const brute = new BruteForce(scheduler.snapshot(), { strategy });
        const alive: string[] = [];
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
          if (round % 20 === 0) {
            const node = {
              ...(nodes[next(300)] as (typeof nodes)[number]),
              labels: { zone: "abc"[next(3)] as string },
            };
            scheduler.upsertNode(node);
            brute.state.upsertNode(node);
          }
        }
        // The state is as full as it was meant to be.
        expect(alive.length).toBeGreaterThan(600);
      }),
      effort(3),
    );
  });
});
