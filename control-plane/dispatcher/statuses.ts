import type { Clock } from "../../lib/clock/clock.ts";
import type { Log } from "../../lib/log/log.ts";
import { TaskState, TaskStatus } from "../../proto/gen/embassy/v1/state.ts";
import { mayAdvance } from "../domain/tasks.ts";
import type { Store, View } from "../store/types.ts";

export interface StatusDeps {
  readonly store: Pick<Store, "view" | "commit">;
  readonly clock: Clock;
  readonly log: Log;
}

const mostWrites = 256;
const retryMs = 200;

/**
 * Takes the statuses that nodes report into the store, in as few transactions as possible: while one is under way the next
 * batch gathers, and of one task only the newest status is written.
 */
export class StatusBatcher {
  readonly #deps: StatusDeps;
  readonly #pending = new Map<string, TaskStatus>();
  #flushing: Promise<void> | undefined;
  #stopped = false;

  constructor(deps: StatusDeps) {
    this.#deps = deps;
  }

  /** Keeps those statuses that say something new of tasks of this node; the rest is dropped. */
  submit(nodeId: string, statuses: readonly TaskStatus[]): void {
    const { store, clock } = this.#deps;
    for (const status of statuses) {
      const known = this.#pending.get(status.taskId) ?? store.view.taskStatuses.get(status.taskId);
      const accepted = acceptStatus(store.view, nodeId, known, status, clock.nowMs());
      if (accepted !== undefined) this.#pending.set(status.taskId, accepted);
    }
    this.#flush();
  }

  /** Takes no more, and waits for what is being written. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#flushing;
  }

  #flush(): void {
    if (this.#flushing !== undefined || this.#pending.size === 0 || this.#stopped) return;
    this.#flushing = this.#writeAll().finally(() => {
      this.#flushing = undefined;
      this.#flush();
    });
  }

  async #writeAll(): Promise<void> {
    const { store, clock, log } = this.#deps;
    // Later in this turn, so that what several nodes send at once is one batch.
    await Promise.resolve();
    while (this.#pending.size > 0 && !this.#stopped) {
      const batch = [...this.#pending.entries()].slice(0, mostWrites);
      for (const [taskId] of batch) this.#pending.delete(taskId);
      try {
        await store.commit(batch.map(([id, value]) => ({ table: "taskStatuses", id, value })));
      } catch (error) {
        log.warn("cannot write task statuses", { count: batch.length, retryInMs: retryMs, error });
        for (const [taskId, status] of batch) if (!this.#pending.has(taskId)) this.#pending.set(taskId, status);
        await clock.sleep(retryMs);
      }
    }
  }
}

/**
 * The status to keep of a report, or undefined when it says nothing new: of a task that the node does not hold, of an
 * earlier state than known, or the same again. `observedAtMs` becomes this member's time of the change of state, since
 * nodes' clocks differ.
 */
export function acceptStatus(
  view: View,
  nodeId: string,
  known: TaskStatus | undefined,
  reported: TaskStatus,
  nowMs: number,
): TaskStatus | undefined {
  if (view.tasks.get(reported.taskId)?.nodeId !== nodeId || reported.state === TaskState.TASK_STATE_ORPHANED) {
    return undefined;
  }
  if (known !== undefined && !mayAdvance(known.state, reported.state)) return undefined;
  const sameState = known?.state === reported.state;
  const accepted = { ...reported, observedAtMs: sameState ? known.observedAtMs : nowMs };
  if (known !== undefined && isSame(known, accepted)) return undefined;
  return accepted;
}

function isSame(a: TaskStatus, b: TaskStatus): boolean {
  const bytes = (status: TaskStatus) => Buffer.from(TaskStatus.encode({ ...status, sequence: 0 }).finish());
  return bytes(a).equals(bytes(b));
}
