import type {
  ListNetworksResponse,
  ListNodesResponse,
  ListServicesResponse,
  ListStacksResponse,
  ListTasksRequest,
  ListTasksResponse,
} from "../../proto/gen/embassy/v1/api.ts";
import type { Block, Service, Task } from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { serviceProgress, taskView } from "../domain/progress.ts";
import { isComplete, type SeatTasks, seatsOf } from "../domain/service-tasks.ts";
import { hasEnded, isUp, isWanted, observedState, serviceFullName, taskName } from "../domain/tasks.ts";
import { resolveNode, resolveService } from "./resolve.ts";

// Reads of the view in memory: no round trip to the store. Lists are in order of the names that users see.

const by =
  <T>(key: (entry: T) => string) =>
  (a: T, b: T): number => {
    const [x, y] = [key(a), key(b)];
    return x < y ? -1 : x > y ? 1 : 0;
  };

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
      const { desired } = serviceProgress(index, service);
      // Of any version: during an update the old tasks still serve. One that has done its work counts, as it does for the stack.
      const running = seatsOf(index, service).reduce((sum, seat) => sum + runningOf(index, service, seat), 0);
      return { service, status: index.view.serviceStatuses.get(service.id), desired, running };
    }),
  };
}

function runningOf(index: ClusterIndex, service: Service, seat: SeatTasks): number {
  const up = [...seat.good, ...seat.stale, ...seat.going].filter(({ id }) => isUp(index.view.taskStatuses.get(id)));
  return up.length > 0 ? up.length : seat.wanted && isComplete(index, service, seat) ? 1 : 0;
}

export function listTasks(index: ClusterIndex, request: ListTasksRequest): ListTasksResponse {
  const node = request.node === "" ? undefined : resolveNode(index, request.node);
  const chosen = tasksOf(index, request).filter((task) => {
    if (node !== undefined && task.nodeId !== node.id) return false;
    return request.all || !hasEnded(observedState(index.view, task));
  });
  const key = (task: Task) => `${taskName(index.view, task)} ${String(task.epoch).padStart(12, "0")}`;
  return { tasks: chosen.sort(by(key)).map((task) => taskView(index, task)) };
}

function tasksOf(index: ClusterIndex, { stack, service }: ListTasksRequest): Task[] {
  if (service !== "") {
    const found =
      index.servicesOfStack(stack).find(({ spec }) => spec?.name === service) ?? resolveService(index, service);
    return index.tasksOfService(found.id);
  }
  if (stack !== "") return index.servicesOfStack(stack).flatMap(({ id }) => index.tasksOfService(id));
  return [...index.view.tasks.values()];
}

/** How far the nodes' netds have come. */
export interface NetworkProgress {
  /** Newest revision that was sent to the node's netd, and newest that it has applied; undefined when it has no stream here. */
  networkProgress(nodeId: string): { readonly target: number; readonly acked: number } | undefined;
}

export function listNodes(index: ClusterIndex, progress: NetworkProgress): ListNodesResponse {
  const nodes = [...index.view.nodes.values()].sort(by(({ name }) => name));
  return {
    nodes: nodes.map((spec) => {
      const network = progress.networkProgress(spec.id);
      return {
        spec,
        status: index.nodeStatus(spec.id),
        // A task that has failed stays wanted for as long as it is remembered.
        tasks: index.tasksOfNode(spec.id).filter((task) => isWanted(task) && !hasEnded(observedState(index.view, task)))
          .length,
        networkRevision: network?.acked ?? 0,
        networkTarget: network?.target ?? 0,
      };
    }),
  };
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
