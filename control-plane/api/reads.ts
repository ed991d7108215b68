import { compareTexts } from "../../lib/words/compare.ts";
import type {
  ListNetworksResponse,
  ListNodesResponse,
  ListServicesResponse,
  ListStacksResponse,
  ListTasksRequest,
  ListTasksResponse,
} from "../../proto/gen/embassy/v1/api.ts";
import { Availability, type Block, type NodeSpec, type Task } from "../../proto/gen/embassy/v1/state.ts";
import { KeptTasks } from "../domain/disruption.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { serviceProgress, taskView } from "../domain/progress.ts";
import { roleOf } from "../domain/scheduler-facts.ts";
import { leftBehind, seatsOf } from "../domain/service-tasks.ts";
import {
  hasEnded,
  isLive,
  isUp,
  observedState,
  observedStatus,
  serviceFullName,
  slotName,
  taskName,
} from "../domain/tasks.ts";
import { resolveNode, servicesOf } from "./resolve.ts";
import { updatesOf } from "./revisions.ts";

// Reads of the view in memory: no round trip to the store. Lists are in order of the names that users see.

const by =
  <T>(key: (entry: T) => string) =>
  (a: T, b: T): number =>
    compareTexts(key(a), key(b));

export function listStacks(index: ClusterIndex): ListStacksResponse {
  return {
    stacks: index.stackNames().map((name) => {
      const record = index.stack(name);
      return {
        name,
        revision: record?.revision ?? 0,
        deployedAtMs: record?.deployedAtMs ?? 0,
        deployedBy: record?.deployedBy ?? "",
        services: record?.spec?.services.length ?? 0,
        spec: record?.spec,
      };
    }),
  };
}

export function listServices(index: ClusterIndex, stack: string): ListServicesResponse {
  const services = stack === "" ? [...index.view.services.values()] : index.servicesOfStack(stack);
  return {
    services: services.sort(by(serviceFullName)).map((service) => {
      const { desired, completed } = serviceProgress(index, service);
      // Of any version: during an update the old tasks still serve.
      const up = index.tasksOfService(service.id).filter((task) => isUp(observedStatus(index.view, task)));
      return { service, status: index.view.serviceStatuses.get(service.id), desired, running: up.length, completed };
    }),
  };
}

export function listTasks(index: ClusterIndex, request: ListTasksRequest, nowMs: number): ListTasksResponse {
  const node = request.node === "" ? undefined : resolveNode(index, request.node);
  const services = servicesOf(index, request);
  const left = new Set(
    services.flatMap((service) => seatsOf(index, service).flatMap((seat) => leftBehind(seat, index)?.id ?? [])),
  );
  const chosen = services
    .flatMap(({ id }) => index.tasksOfService(id))
    .filter((task) => {
      if (node !== undefined && task.nodeId !== node.id) return false;
      return request.all || left.has(task.id) || !hasEnded(observedState(index.view, task));
    });
  const shown = new Set(chosen.map(({ serviceId }) => serviceId));
  const kept = new KeptTasks(index);
  return {
    tasks: chosen.sort(byPlace(index)).map((task) => taskView(index, task, left.has(task.id), kept)),
    nowMs,
    updates: updatesOf(index, services.filter(({ id }) => shown.has(id)).sort(by(serviceFullName))),
  };
}

/** By stack, service, and slot or node; of one slot the newest first. */
function byPlace({ view }: ClusterIndex): (a: Task, b: Task) => number {
  const service = by<Task>(({ stack, serviceName }) => `${stack}_${serviceName}`);
  const node = by<Task>((task) => slotName(view, task));
  const id = by<Task>((task) => task.id);
  return (a, b) => service(a, b) || a.slot - b.slot || (a.slot === 0 ? node(a, b) : 0) || b.epoch - a.epoch || id(a, b);
}

/** How far the nodes' netds have come. */
export interface NetworkProgress {
  /** Newest revision that was sent to the node's netd, and newest that it has applied; undefined when it has no stream here. */
  networkProgress(nodeId: string): { readonly target: number; readonly acked: number } | undefined;
}

export function listNodes(index: ClusterIndex, progress: NetworkProgress): ListNodesResponse {
  const nodes = [...index.view.nodes.values()].sort(by(({ name }) => name));
  const kept = new KeptTasks(index);
  return {
    nodes: nodes.map((spec) => {
      const network = progress.networkProgress(spec.id);
      return {
        spec,
        status: index.nodeStatus(spec.id),
        // A task that has failed stays wanted for as long as it is remembered.
        tasks: index.tasksOfNode(spec.id).filter((task) => isLive(index.view, task)).length,
        networkRevision: network?.acked ?? 0,
        networkTarget: network?.target ?? 0,
        role: roleOf(index.view, spec, index.nodeStatus(spec.id)),
        kept: keptOn(index, spec, kept),
      };
    }),
  };
}

/** "s_web.1 and 1 more go on: s_web has to keep 2 up (x-disruption.min_available), and has 2"; "": nothing holds the node's drain. */
function keptOn(index: ClusterIndex, { id, availability, taints }: NodeSpec, kept: KeptTasks): string {
  if (availability !== Availability.AVAILABILITY_DRAIN && taints.length === 0) return "";
  const tasks = index.tasksOfNode(id).filter((task) => kept.why(task) !== "");
  const [first, ...more] = tasks.sort(byPlace(index));
  if (first === undefined) return "";
  const others = more.length === 0 ? " goes" : ` and ${more.length} more go`;
  return `${taskName(index.view, first)}${others} on: ${kept.why(first)}`;
}

export function listNetworks(index: ClusterIndex): ListNetworksResponse {
  const networks = [...index.view.networks.values()].sort(by(({ stack, spec }) => `${stack}_${spec?.name}`));
  return {
    networks: networks.map((network) => ({
      network,
      blocks: [...index.blockIdsOfNetwork(network.id)]
        .map((id) => index.view.blocks.get(id))
        .filter((block): block is Block => block !== undefined)
        .sort(by(({ cidr }) => cidr)),
    })),
  };
}
