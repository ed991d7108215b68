import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { silentLog } from "../../../lib/log/log.ts";
import { Resources } from "../../../proto/gen/embassy/v1/stack.ts";
import { DesiredState, Task } from "../../../proto/gen/embassy/v1/state.ts";
import { taskName } from "../../domain/tasks.ts";
import { aService, TestCluster } from "../../domain/testing.ts";
import { effort } from "../../scheduler/arbitraries.ts";
import { SchedulerFeed } from "./feed.ts";

const resources = Resources.create({ reservations: { milliCpus: 1_000, memoryBytes: 0, pids: 0, generic: {} } });

const taskArbitrary = fc
  .record({
    service: fc.nat(2),
    slot: fc.integer({ min: 1, max: 6 }),
    onlyNode: fc.constantFrom("", "", "a", "b"),
    createdAtMs: fc.nat(2),
    priority: fc.constantFrom(0, 0, 5),
  })
  .map(({ service, slot, onlyNode, createdAtMs, priority }) => {
    const spec = aService(`w${service}`, { priority, resources });
    const desired = DesiredState.DESIRED_STATE_RUNNING;
    // Each priority is a version of its own.
    const version = { serviceId: `w${service}`, serviceName: spec.name, serviceVersion: priority + 1, spec };
    return Task.create({ ...version, stack: "s", slot: onlyNode === "" ? slot : 0, onlyNode, createdAtMs, desired });
  });

/** Tasks that wait, one of each seat, in two orders. */
const waitingArbitrary = fc
  .uniqueArray(taskArbitrary, {
    maxLength: 16,
    selector: ({ serviceId, slot, onlyNode }) => `${serviceId}.${onlyNode}.${slot}`,
  })
  .chain((tasks) => {
    const shuffled = fc.shuffledSubarray(tasks, { minLength: tasks.length });
    return fc.tuple(shuffled, shuffled);
  });

describe("whose turn it is", () => {
  it("hangs on what the view holds: not on ids, nor on the order in which the scheduler was told", async () => {
    await fc.assert(
      fc.asyncProperty(waitingArbitrary, async (orders) => {
        const seen: string[][] = [];
        for (const order of orders) {
          using cluster = new TestCluster();
          const feeds = [new SchedulerFeed(cluster.index, silentLog)];
          using _ = cluster.index.subscribe((changes) => {
            for (const feed of feeds) feed.apply(changes);
          });
          for (const task of order) {
            const id = cluster.mintId();
            await cluster.store.commit([{ table: "tasks", id, value: { ...task, id } }]);
          }
          // Another leader, that reads it all at once.
          feeds.push(new SchedulerFeed(cluster.index, silentLog));
          // Room for some of them.
          await cluster.addNodes("a", "b");
          const { view } = cluster.index;
          for (const { scheduler } of feeds) {
            const { placements } = scheduler.schedule();
            seen.push(placements.map(({ task, node }) => `${taskName(view, view.tasks.get(task) as Task)}@${node}`));
          }
        }
        for (const placed of seen) expect(placed).toEqual(seen[0]);
      }),
      effort(200),
    );
  });
});
