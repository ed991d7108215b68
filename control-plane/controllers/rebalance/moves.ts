import { silentLog } from "../../../lib/log/log.ts";
import type { Service, Task } from "../../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../../domain/index.ts";
import { groupId } from "../../domain/scheduler-facts.ts";
import { seatsOf } from "../../domain/service-tasks.ts";
import { taskName } from "../../domain/tasks.ts";
import type { RebalanceMove, Scheduler, SchedulerTask } from "../../scheduler/index.ts";
import { SchedulerFeed } from "../scheduling/feed.ts";

/** What moves are planned on: the state, in which what is not to be moved stays in the way. Costs a copy of all of it. */
export class MoveTrial {
  readonly #index: ClusterIndex;
  readonly #scheduler: Scheduler;
  readonly #skew: number;
  readonly #movable = new Map<string, SchedulerTask>();

  /** `made`: tasks that count as gone, as their successors have a place. `skew`: the difference that is left alone, from 1. */
  constructor(index: ClusterIndex, mayMove: (task: Task) => boolean, made: Iterable<string>, skew: number) {
    this.#index = index;
    this.#skew = skew;
    const { scheduler } = new SchedulerFeed(index, silentLog, { explainLimit: 0 });
    this.#scheduler = scheduler;
    for (const id of made) scheduler.removeTask(id);
    // What is not to be moved stays in the way: a plan that counts on its move would wait for ever.
    for (const told of scheduler.snapshot().tasks) {
      if (told.node === undefined) continue;
      const task = index.view.tasks.get(told.id);
      if (task !== undefined && mayMove(task)) this.#movable.set(told.id, told);
      else scheduler.addTask({ ...told, pinned: true });
    }
  }

  /** The fewest moves after which the skew is within its bound, in the order in which they are to be made. */
  plan(): readonly RebalanceMove[] {
    return this.#scheduler.planRebalance({ goal: { kind: "skew", bound: this.#skew } }).moves;
  }

  /**
   * Would the scheduler, which chooses the place of the task's successor and looks at more than the skew, bring the plan nearer
   * to its end? Then the successor stays in the way of what is asked next, beside the task. `planned`: moves of the service.
   */
  try(move: RebalanceMove, planned: number): boolean {
    const task = this.#index.view.tasks.get(move.task);
    const told = this.#movable.get(move.task);
    if (task === undefined || told === undefined) return false;
    const id = `successor of ${task.id}`;
    const name = taskName(this.#index.view, task);
    const successor = { id, group: groupId(task), name };
    // It takes room that there is, as the successor of one that is up does.
    const turn = { sinceMs: Number.MAX_SAFE_INTEGER, slot: task.slot };
    this.#scheduler.addTask({ ...successor, patient: true, turn });
    const placed = this.#scheduler.schedule().placements.find((placement) => placement.task === id);
    if (placed !== undefined && placed.node !== move.from) {
      this.#scheduler.addTask({ ...successor, node: placed.node, ports: placed.ports, pinned: true });
      if (placed.node === move.to || this.#leftWithout(move.task, task.serviceId) < planned) {
        this.#scheduler.addTask({ ...told, pinned: true });
        return true;
      }
      this.#scheduler.addTask(told);
    }
    this.#scheduler.removeTask(id);
    return false;
  }

  /** Moves of the service that would be left once the task has gone. */
  #leftWithout(taskId: string, serviceId: string): number {
    this.#scheduler.removeTask(taskId);
    return this.plan().filter(({ task }) => this.#index.view.tasks.get(task)?.serviceId === serviceId).length;
  }
}

/** Tasks of the service that are to move and whose successors have a place. */
export function movesMade(index: ClusterIndex, service: Service): string[] {
  const marked = new Set(service.moving);
  if (marked.size === 0) return [];
  return seatsOf(index, service)
    .filter(({ good }) => good.some(({ nodeId }) => nodeId !== ""))
    .flatMap(({ stale }) => stale.filter(({ id }) => marked.has(id)).map(({ id }) => id));
}
