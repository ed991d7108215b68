import { DependencyCondition } from "../../../proto/gen/embassy/v1/stack.ts";
import { type Service, type Task, TaskState } from "../../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../../domain/index.ts";
import { serviceNamed } from "../../domain/links.ts";
import { isComplete, seatsOf } from "../../domain/service-tasks.ts";
import { isUp, observedState } from "../../domain/tasks.ts";

/** How long a link, or a dependency that is not required, may hold back a start. */
export const optionalWaitMs = 5_000;

export interface Gate {
  /** What the service's tasks wait for before they may start; empty: nothing. */
  readonly waitsFor: string;
  /** They wait for links and optional dependencies alone, which hold them back for `optionalWaitMs` at most. */
  readonly bounded: boolean;
}

const open: Gate = { waitsFor: "", bounded: true };

/**
 * What holds back the start of a service's tasks. A dependency counts for the first start of a version only: once a task of
 * that version has started, later ones (restarts, moves, more replicas) start whatever its dependencies do.
 *
 * A link is a dependency on its provider being started, but a bounded one: its address is there before the provider is, so
 * starting first is untidy and not wrong, and two services that link each other must both come up.
 */
export function planGate(index: ClusterIndex, service: Service, tasks: readonly Task[]): Gate {
  const spec = service.spec;
  if (spec === undefined || (spec.dependsOn.length === 0 && spec.links.length === 0)) return open;
  const startedBefore = tasks.some(
    (task) => task.serviceVersion === service.version && (index.view.taskStatuses.get(task.id)?.startedAtMs ?? 0) > 0,
  );
  if (startedBefore) return open;
  const waits: string[] = [];
  let bounded = true;
  for (const { service: name, condition, required } of spec.dependsOn) {
    const unmet = unmetCondition(index, service.stack, name, condition);
    if (unmet === undefined) continue;
    waits.push(unmet);
    if (required) bounded = false;
  }
  // Under several aliases it is one provider.
  for (const name of new Set(spec.links.map(({ service: provider }) => provider))) {
    if (spec.dependsOn.some((dependency) => dependency.service === name)) continue;
    const unmet = unmetCondition(index, service.stack, name, DependencyCondition.DEPENDENCY_CONDITION_STARTED);
    if (unmet !== undefined) waits.push(unmet);
  }
  return { waitsFor: waits.join(", "), bounded };
}

/** What is missing, for people; undefined when the condition holds. A service that wants no tasks has nothing to wait for. */
function unmetCondition(
  index: ClusterIndex,
  stack: string,
  name: string,
  condition: DependencyCondition,
): string | undefined {
  const dependency = serviceNamed(index, stack, name);
  if (dependency === undefined) return `${name} to be deployed`;
  const seats = seatsOf(index, dependency).filter(({ wanted }) => wanted);
  if (seats.length === 0) return undefined;
  switch (condition) {
    case DependencyCondition.DEPENDENCY_CONDITION_STARTED: {
      const started = seats.some(
        (seat) =>
          isComplete(index, dependency, seat) ||
          [...seat.good, ...seat.stale].some(
            (task) => observedState(index.view, task) === TaskState.TASK_STATE_RUNNING,
          ),
      );
      return started ? undefined : `${name} to start`;
    }
    case DependencyCondition.DEPENDENCY_CONDITION_HEALTHY: {
      const up = seats.some((seat) =>
        [...seat.good, ...seat.stale].some((task) => isUp(index.view.taskStatuses.get(task.id))),
      );
      return up ? undefined : `${name} to be healthy`;
    }
    case DependencyCondition.DEPENDENCY_CONDITION_COMPLETED:
      return seats.every((seat) => completed(index, seat.ended)) ? undefined : `${name} to complete`;
    default:
      return condition satisfies never;
  }

  function completed(within: ClusterIndex, ended: readonly Task[]): boolean {
    return ended.some(
      (task) =>
        task.serviceVersion === dependency?.version &&
        observedState(within.view, task) === TaskState.TASK_STATE_COMPLETE,
    );
  }
}
