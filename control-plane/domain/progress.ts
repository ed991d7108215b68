import type { ServiceProgress, StackProgress, TaskView } from "../../proto/gen/embassy/v1/api.ts";
import { Protocol, type PublishedPort, PublishMode } from "../../proto/gen/embassy/v1/stack.ts";
import { NodeState, type Service, type Task, TaskState, UpdateState } from "../../proto/gen/embassy/v1/state.ts";
import { KeptTasks } from "./disruption.ts";
import type { ClusterIndex } from "./index.ts";
import {
  hasFailed,
  isComplete,
  isSatisfied,
  lastEnded,
  restartOf,
  runsSince,
  type SeatTasks,
  seatsOf,
} from "./service-tasks.ts";
import { isUp, observedStatus } from "./tasks.ts";
import { goesBack } from "./updates.ts";
import { awaitsNode } from "./volumes.ts";

const mostProblems = 10;

/**
 * A task with all that is known of it. `newest`: it is the newest of its slot, so that what comes next hangs on it; `kept`: of the same
 * index, for who asks for many.
 */
export function taskView(index: ClusterIndex, task: Task, newest: boolean, kept = new KeptTasks(index)): TaskView {
  const service = newest ? index.view.services.get(task.serviceId) : undefined;
  const next = service !== undefined && hasFailed(index, task) ? restartOf(index, service, task) : undefined;
  const status = observedStatus(index.view, task);
  const awaits = awaitsNode(index, task);
  return {
    task: awaits === undefined ? task : { ...task, unplaced: awaits },
    status: awaits === undefined ? status : { ...status, message: awaits },
    nodeName: index.view.nodes.get(task.nodeId)?.name ?? "",
    retryAtMs: next?.kind === "restart" ? next.atMs : 0,
    gaveUp: next?.kind === "never" ? next.why : "",
    kept: kept.why(task),
  };
}

/** Does it wait for another service, or run without having passed its health check? */
function isHeldBack(index: ClusterIndex, task: Task): boolean {
  const status = observedStatus(index.view, task);
  return task.waitsFor !== "" || (status.state === TaskState.TASK_STATE_RUNNING && !isUp(status));
}

/**
 * How far a service is from what it wants. Its problems are the tasks that failed or have no node, then those that wait or
 * are not healthy.
 */
export function serviceProgress(
  index: ClusterIndex,
  service: Service,
  seats: readonly SeatTasks[] = seatsOf(index, service),
): ServiceProgress {
  const status = index.view.serviceStatuses.get(service.id);
  const wanted = seats.filter((seat) => seat.wanted);
  const unsatisfied = wanted.filter((seat) => !isSatisfied(index, service, seat));
  const count = (tasks: (seat: SeatTasks) => readonly Task[]) =>
    seats.reduce((sum, seat) => sum + tasks(seat).length, 0);
  const old =
    count(({ stale }) => stale) +
    count(({ going }) => going) +
    count((seat) => (seat.wanted ? seat.good.slice(1) : seat.good));
  const problems: Task[] = [];
  // No failures yet: they come after those that are, so that they never push one out.
  const waiting: Task[] = [];
  const newest = new Set<Task>();
  for (const seat of unsatisfied) {
    const newestEnded = lastEnded(seat);
    if (newestEnded !== undefined) newest.add(newestEnded);
    const last = newestEnded ?? (seat.good.length > 0 ? seat.ended.at(-1) : undefined);
    if (last?.serviceVersion === service.version && hasFailed(index, last)) problems.push(last);
    else if (newestEnded !== undefined && awaitsNode(index, newestEnded) !== undefined) problems.push(newestEnded);
    problems.push(...seat.good.filter(({ unplaced }) => unplaced !== ""));
    waiting.push(...seat.good.filter((task) => task.unplaced === "" && isHeldBack(index, task)));
  }
  const newestFirst = (a: Task, b: Task) => b.createdAtMs - a.createdAtMs || a.slot - b.slot;
  problems.sort(newestFirst);
  problems.push(...waiting.sort(newestFirst));
  return {
    name: service.spec?.name ?? "",
    version: service.version,
    desired: wanted.length,
    running: wanted.length - unsatisfied.length,
    old,
    problems: problems.slice(0, mostProblems).map((task) => taskView(index, task, newest.has(task))),
    oldRunning: count(({ stale }) =>
      stale.filter((task) => task.serviceVersion !== service.version && isUp(observedStatus(index.view, task))),
    ),
    completed: wanted.filter((seat) => isComplete(index, service, seat)).length,
    updateState: status?.updateState ?? UpdateState.UPDATE_STATE_NONE,
    updateMessage: status?.updateMessage ?? "",
    rollback: service.rollback,
    waitsOn: unsatisfied.some(({ good }) => good.some(({ waitsFor }) => waitsFor !== ""))
      ? (service.spec?.dependsOn ?? []).flatMap((one) => (one.required ? [one.service] : []))
      : [],
    revertsAfterMs: goesBack(service) ? Math.max(1, service.spec?.update?.monitorMs ?? 0) : 0,
  };
}

const anywhere = (hostIp: string) => (hostIp === "0.0.0.0" ? "" : hostIp);

/** The ports that the service publishes on every host but those on which a program has them, and which that is. */
function portWarnings({ view }: ClusterIndex, service: Service): string[] {
  const ports = (view.serviceStatuses.get(service.id)?.ports ?? []).filter(
    ({ mode }) => mode === PublishMode.PUBLISH_MODE_INGRESS,
  );
  if (ports.length === 0) return [];
  const warnings: string[] = [];
  for (const { id, state, busyPorts } of view.nodeStatuses.values()) {
    if (state !== NodeState.NODE_STATE_READY) continue;
    for (const { port, protocol, hostIp, by } of busyPorts) {
      const isOne = (one: PublishedPort) =>
        one.published === port && one.protocol === protocol && anywhere(one.hostIp) === hostIp;
      if (!ports.some(isOne)) continue;
      const name = view.nodes.get(id)?.name ?? id;
      const udp = protocol === Protocol.PROTOCOL_UDP ? "/udp" : "";
      warnings.push(
        `${name} does not publish port ${port}${udp} of ${service.spec?.name}: ${by || "a program of the host"} listens there`,
      );
    }
  }
  return warnings.sort();
}

/**
 * How far a stack is from what was deployed. Services that are being removed count as old tasks, and are listed as long as
 * they have any; one that has gone back is not what was deployed; `removed` only once no service and no network of the stack is left.
 */
export function stackProgress(index: ClusterIndex, stack: string): StackProgress {
  const revision = index.stack(stack)?.revision ?? 0;
  const services = index.servicesOfStack(stack);
  const progress = services
    .map((service) => {
      const seats = seatsOf(index, service);
      const runs = runsSince(index, service, seats) !== undefined;
      return { runs, progress: serviceProgress(index, service, seats) };
    })
    .sort((a, b) => (a.progress.name < b.progress.name ? -1 : 1));
  const present = progress.every(({ runs }) => runs);
  return {
    revision,
    services: progress.map((one) => one.progress),
    converged: revision > 0 && present,
    warnings: revision > 0 && present ? services.flatMap((service) => portWarnings(index, service)) : [],
    removed: revision === 0 && services.length === 0 && index.networksOfStack(stack).length === 0,
  };
}
