import type { TaskStatus } from "../../proto/gen/embassy/v1/state.ts";

/**
 * The statuses that the control plane has not been sent over the present stream: the newest of each task. Streams have no
 * acknowledgements, so a new stream begins with every status the node holds, and this with nothing.
 */
export class Outbox {
  readonly #pending = new Map<string, TaskStatus>();

  /** Replaces an older status of the same task. */
  put(status: TaskStatus): void {
    const known = this.#pending.get(status.taskId);
    if (known === undefined || known.sequence < status.sequence) this.#pending.set(status.taskId, status);
  }

  /** Takes at most that many out, in the order their tasks first came. */
  take(most: number): TaskStatus[] {
    const batch: TaskStatus[] = [];
    for (const [taskId, status] of this.#pending) {
      if (batch.length === most) break;
      batch.push(status);
      this.#pending.delete(taskId);
    }
    return batch;
  }

  /** For a stream whose first message holds everything. */
  clear(): void {
    this.#pending.clear();
  }

  get size(): number {
    return this.#pending.size;
  }
}
