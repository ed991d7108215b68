import type { Scheduler } from "./scheduler.ts";
import { unknown } from "./state/cluster.ts";
import type { Resources, SchedulerNode, SchedulerTask, TaskGroup, Unplaced } from "./types.ts";

/** A change to try: what the control plane would do when it happened. */
export type Change =
  /** The node takes no more tasks, and those that it has are replaced elsewhere; those that may run nowhere else end. */
  | { readonly kind: "drain"; readonly node: string }
  | { readonly kind: "add"; readonly node: SchedulerNode }
  /** The node is gone; its tasks are replaced or end as with `drain`. */
  | { readonly kind: "lose"; readonly node: string }
  /** The group's tasks reserve this from now on, so that each is replaced. */
  | { readonly kind: "resize"; readonly group: string; readonly reservations: Resources }
  /** The group has this many tasks: new ones are placed, or the last to arrive are stopped, waiting ones first. */
  | { readonly kind: "scale"; readonly group: string; readonly tasks: number };

export interface Move {
  readonly task: string;
  readonly group: string;
  /** Absent: the task was not placed before. */
  readonly from?: string | undefined;
  readonly to: string;
}

/** What changes lead to. Lists are in the order in which things are decided. */
export interface Outcome {
  readonly moves: readonly Move[];
  /** Tasks that scaling down stops, and those that may run only on a node drained or lost. */
  readonly stopped: readonly string[];
  /** Tasks that preemption stops, with what waits for their place. */
  readonly preempted: readonly { readonly task: string; readonly by: string }[];
  /** Everything that waits afterwards. */
  readonly unplaced: readonly Unplaced[];
}

/**
 * Carries the changes out on the scheduler itself, by the same calls that the control plane makes, and decides once.
 * A task that has to move keeps its id: it is told again without a node, in the order in which the tasks had arrived.
 * @throws ClusterError `not-found`: a node or group of a change is unknown; changes before it have been made.
 */
export function applyChanges(scheduler: Scheduler, changes: readonly Change[]): Outcome {
  const before = new Map<string, string>();
  const stopped: string[] = [];
  for (const change of changes) applyChange(scheduler, change, before, stopped);
  const { placements } = scheduler.schedule();
  const groupOf = new Map(scheduler.snapshot().tasks.map(({ id, group }) => [id, group]));
  return {
    moves: placements.map(({ task, node }) => ({
      task,
      group: groupOf.get(task) ?? "",
      from: before.get(task),
      to: node,
    })),
    stopped,
    preempted: placements.flatMap(({ task, preempts }) => preempts.map((victim) => ({ task: victim, by: task }))),
    unplaced: scheduler.unplaced(),
  };
}

/** What the changes would lead to. The scheduler stays as it is: they are carried out on a fork of it. */
export function simulate(scheduler: Scheduler, changes: readonly Change[]): Outcome {
  return applyChanges(scheduler.fork(), changes);
}

function applyChange(scheduler: Scheduler, change: Change, before: Map<string, string>, stopped: string[]): void {
  const { nodes, groups, tasks } = scheduler.snapshot();
  const replace = (task: SchedulerTask): void => {
    if (task.node !== undefined && !before.has(task.id)) before.set(task.id, task.node);
    scheduler.removeTask(task.id);
    const { node: _node, ports: _ports, ...waiting } = task;
    scheduler.addTask(waiting);
  };
  const leave = (node: SchedulerNode): void => {
    for (const task of tasks) {
      if (task.onlyNode === node.id) {
        scheduler.removeTask(task.id);
        stopped.push(task.id);
      } else if (task.node === node.id) replace(task);
    }
  };
  switch (change.kind) {
    case "drain": {
      const node = found(nodes, change.node, "node");
      scheduler.upsertNode({ ...node, availability: "drain" });
      leave(node);
      return;
    }
    case "add":
      scheduler.upsertNode(change.node);
      return;
    case "lose": {
      const node = found(nodes, change.node, "node");
      leave(node);
      scheduler.removeNode(node.id);
      return;
    }
    case "resize": {
      const group: TaskGroup = found(groups, change.group, "group");
      scheduler.upsertGroup({ ...group, reservations: change.reservations });
      for (const task of tasks) if (task.group === group.id && task.node !== undefined) replace(task);
      return;
    }
    case "scale": {
      const group = found(groups, change.group, "group");
      const own = tasks.filter((task) => task.group === group.id);
      for (let i = own.length, n = 1; i < change.tasks; n++) {
        const id = `${group.id}+${n}`;
        if (own.some((task) => task.id === id)) continue;
        scheduler.addTask({ id, group: group.id, name: `${group.name}+${n}` });
        i++;
      }
      const byWorth = [
        ...own.filter(({ node }) => node !== undefined),
        ...own.filter(({ node }) => node === undefined),
      ];
      for (const task of byWorth.slice(Math.max(0, change.tasks)).reverse()) {
        scheduler.removeTask(task.id);
        stopped.push(task.id);
      }
      return;
    }
    default:
      change satisfies never;
  }
}

function found<T extends { readonly id: string }>(list: readonly T[], id: string, kind: string): T {
  const item = list.find((one) => one.id === id);
  if (item === undefined) throw unknown(kind, id);
  return item;
}
