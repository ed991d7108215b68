import { newId } from "../../../lib/ids/ids.ts";
import { ReconcileLoop } from "../../../lib/reconcile/loop.ts";
import { DesiredState, NodeStatus, type Service, type Task } from "../../../proto/gen/embassy/v1/state.ts";
import { countedOn } from "../../domain/disruption.ts";
import type { ClusterIndex } from "../../domain/index.ts";
import { isGlobal } from "../../domain/scheduler-facts.ts";
import { servicesOfNodes } from "../../domain/service-tasks.ts";
import { serviceFullName } from "../../domain/tasks.ts";
import type { Change, Write } from "../../store/types.ts";
import { aborted, type ControllerDeps, commitFenced, isStaleView, staleViewDelayMs } from "../deps.ts";
import { rollbackWrites, vipsOf } from "../update/rollback.ts";
import { planService, type ServicePlan, type TaskAction } from "./plan.ts";

const resyncIntervalMs = 30_000;

/** Keeps every service's tasks as planService wants them, until the signal is aborted. */
export async function runServices(deps: ControllerDeps, signal: AbortSignal): Promise<void> {
  const { index, clock, log } = deps;
  await using loop: ReconcileLoop = new ReconcileLoop({
    name: "services",
    log,
    concurrency: 8,
    keys: () => [...index.view.services.entries()].map(([id]) => id),
    resyncIntervalMs,
    reconcile: async (serviceId, stopped) => {
      const service = index.view.services.get(serviceId);
      if (service === undefined) return;
      const nowMs = clock.nowMs();
      const plan = planService(index, service, nowMs);
      const { actions, wakeAtMs, fails } = plan;
      if (wakeAtMs !== undefined) loop.markAfter(serviceId, Math.max(1, wakeAtMs - nowMs));
      const writes = writesOf(index, service, plan, nowMs, newId);
      if (writes.length === 0) return;
      for (const action of actions) log.debug("service action", { serviceId, service: service.spec?.name, ...action });
      try {
        await commitFenced(deps, writes, expectedBy(index, service, plan, writes), stopped);
        if (fails !== undefined) {
          const { version, stable } = service;
          const name = serviceFullName(service);
          log.warn("update rolled back", { serviceId, service: name, version, to: stable?.version, why: fails.why });
        }
      } catch (error) {
        if (!isStaleView(error)) throw error;
        loop.markAfter(serviceId, staleViewDelayMs);
      }
    },
  });
  using _ = index.subscribe((changes) => {
    for (const change of changes) for (const serviceId of servicesTouched(index, change)) loop.mark(serviceId);
  });
  loop.markAll();
  await aborted(signal);
}

/** Services whose plan may differ after the change. */
function* servicesTouched(index: ClusterIndex, change: Change): Iterable<string> {
  switch (change.table) {
    case "services":
      yield change.id;
      if (change.after !== undefined) yield* dependents(index, change.after);
      return;
    case "tasks": {
      const serviceId = (change.after ?? change.before)?.serviceId;
      if (serviceId !== undefined) yield serviceId;
      return;
    }
    case "taskStatuses": {
      const service = index.view.services.get(index.view.tasks.get(change.id)?.serviceId ?? "");
      if (service === undefined) return;
      yield service.id;
      if (change.before?.state !== change.after?.state || change.before?.health !== change.after?.health) {
        yield* dependents(index, service);
      }
      return;
    }
    case "nodeStatuses":
      if (differsInImages(change)) return;
      for (const { id } of servicesOfNodes(index, [change.id])) yield id;
      return;
    case "nodes":
      for (const { id } of servicesOfNodes(index, [change.id])) yield id;
      return;
    case "members":
      // Roles of nodes, and so constraints.
      if (change.before?.address !== change.after?.address) yield* globalServices(index);
      return;
    default:
      return;
  }
}

/** Is it only that the node holds other images, which nothing here looks at? A stack that brings new ones changes that of many nodes. */
function differsInImages({ before, after }: Extract<Change, { table: "nodeStatuses" }>): boolean {
  if (before === undefined || after === undefined || before.images.join() === after.images.join()) return false;
  const rest = (status: NodeStatus) => NodeStatus.encode({ ...status, images: [] }).finish();
  return Buffer.compare(rest(before), rest(after)) === 0;
}

function* globalServices(index: ClusterIndex): Iterable<string> {
  for (const service of index.view.services.values()) if (isGlobal(service)) yield service.id;
}

/** Services whose start may wait for this one. */
function* dependents(index: ClusterIndex, provider: Service): Iterable<string> {
  const name = provider.spec?.name;
  for (const { id, spec } of index.servicesOfStack(provider.stack)) {
    if (
      spec?.dependsOn.some(({ service }) => service === name) ||
      spec?.links.some(({ service }) => service === name)
    ) {
      yield id;
    }
  }
}

/** What has to be as it was when those are written. */
export function expectedBy(
  index: ClusterIndex,
  { id }: Service,
  plan: ServicePlan,
  writes: readonly Write[],
): { readonly table: "services" | "tasks"; readonly id: string; readonly revision: number }[] {
  const written = new Set(writes.filter(({ table }) => table === "tasks").map((write) => write.id));
  const counted = plan.spends ? countedOn(index, id, written) : [];
  // What writes the service compares it; the last transaction of a removal deletes it.
  if (writes.some(({ table }) => table === "services")) return counted;
  return [{ table: "services", id, revision: index.view.services.revisionOf(id) }, ...counted];
}

/** The writes that carry out a plan; each compares what the plan read of it. */
export function writesOf(
  index: ClusterIndex,
  service: Service,
  plan: ServicePlan,
  nowMs: number,
  mintId: () => string,
): Write[] {
  if (plan.fails !== undefined) return rollbackWrites(index, service, plan.fails, nowMs);
  const writes = taskWrites(index, service, plan.actions, nowMs, mintId);
  const { id, version } = service;
  const status = index.view.serviceStatuses.get(id);
  if (status === undefined || service.removed) return writes;
  const { updateState, updateMessage, converges } = plan;
  const isNews = status.updateState !== updateState || status.updateMessage !== updateMessage;
  if (plan.stays || converges || isNews) {
    const convergedVersion = converges ? version : status.convergedVersion;
    const vips = plan.stays ? vipsOf(service, status) : status.vips;
    const value = { ...status, vips, updateState, updateMessage, convergedVersion };
    const ifRevision = index.view.serviceStatuses.revisionOf(id);
    writes.push({ table: "serviceStatuses", id, value, ifRevision });
  }
  if (plan.stays) {
    const ifRevision = index.view.services.revisionOf(id);
    writes.push({ table: "services", id, value: { ...service, stable: undefined }, ifRevision });
  }
  return writes;
}

function taskWrites(
  index: ClusterIndex,
  service: Service,
  actions: readonly TaskAction[],
  nowMs: number,
  mintId: () => string,
): Write[] {
  const { view } = index;
  // Of several actions on one task the last counts: it is abandoned first and forgotten later.
  const writes = new Map<string, Write>();
  const put = (write: Write) => writes.set(`${write.table}/${write.id}`, write);
  const change = (taskId: string, value: Partial<Task> | undefined) => {
    const task = view.tasks.get(taskId);
    if (task === undefined) return;
    const ifRevision = view.tasks.revisionOf(taskId);
    put({ table: "tasks", id: taskId, value: value === undefined ? undefined : { ...task, ...value }, ifRevision });
    if (value === undefined && view.taskStatuses.get(taskId) !== undefined) {
      put({ table: "taskStatuses", id: taskId, value: undefined });
    }
  };
  for (const action of actions) {
    switch (action.kind) {
      case "create": {
        const task = newTask(service, action, nowMs, mintId());
        put({ table: "tasks", id: task.id, value: task, ifRevision: 0 });
        break;
      }
      case "start":
        change(action.taskId, { desired: DesiredState.DESIRED_STATE_RUNNING, waitsFor: "" });
        break;
      case "stop":
        // Nobody holds a task that was never given to a node.
        if (view.tasks.get(action.taskId)?.nodeId === "") change(action.taskId, undefined);
        else {
          const moved = action.moved === undefined ? {} : { moved: action.moved };
          change(action.taskId, { desired: DesiredState.DESIRED_STATE_SHUTDOWN, ...moved });
        }
        break;
      case "forget":
        change(action.taskId, undefined);
        break;
      case "forget-service":
        for (const { id } of index.tasksOfService(service.id)) change(id, undefined);
        put({ table: "serviceStatuses", id: service.id, value: undefined });
        put({
          table: "services",
          id: service.id,
          value: undefined,
          ifRevision: view.services.revisionOf(service.id),
        });
        break;
      default:
        action satisfies never;
    }
  }
  return [...writes.values()];
}

function newTask(service: Service, action: Extract<TaskAction, { kind: "create" }>, nowMs: number, id: string): Task {
  return {
    id,
    serviceId: service.id,
    stack: service.stack,
    serviceName: service.spec?.name ?? "",
    slot: action.seat.slot,
    serviceVersion: service.version,
    spec: service.spec,
    nodeId: "",
    desired: action.desired,
    epoch: action.epoch,
    createdAtMs: nowMs,
    unplaced: "",
    replaces: action.replaces,
    networkIds: service.networkIds,
    restarts: action.restarts,
    failures: action.failures,
    waitsFor: action.waitsFor,
    blobDigests: service.blobDigests,
    hostPorts: [],
    onlyNode: action.seat.onlyNode,
    preempts: [],
    preemptedBy: "",
    moved: "",
  };
}
