import { imageFingerprint } from "../../lib/images/reference.ts";
import { isEveryAddress } from "../../lib/net/host-ip.ts";
import {
  PlacementStrategy,
  Protocol,
  PublishMode,
  type ResourceAmount,
  type ServiceSpec,
  type SpreadRule,
} from "../../proto/gen/embassy/v1/stack.ts";
import {
  Availability,
  type NodeSpec,
  NodeState,
  type NodeStatus,
  type Service,
  type Task,
} from "../../proto/gen/embassy/v1/state.ts";
import type {
  Platform,
  Affinity as SchedulerAffinity,
  Availability as SchedulerAvailability,
  SchedulerNode,
  SpreadPreference,
  TaskGroup,
} from "../scheduler/index.ts";
import type { View } from "../store/types.ts";
import type { ClusterIndex } from "./index.ts";
import { schedulerTaint, schedulerToleration } from "./taints.ts";

const availabilities: Record<Availability, SchedulerAvailability> = {
  [Availability.AVAILABILITY_ACTIVE]: "active",
  [Availability.AVAILABILITY_PAUSE]: "pause",
  [Availability.AVAILABILITY_DRAIN]: "drain",
};

/** What `node.role` is: a host is a manager's when a member of the control plane has its address, or its name. */
export function roleOf(view: Pick<View, "members">, spec: NodeSpec, status: NodeStatus | undefined): NodeRole {
  const { underlayAddress = "", agentAddress = "" } = status?.description ?? {};
  const own = new Set([underlayAddress, hostOf(agentAddress)]);
  for (const { name, address } of view.members.values()) {
    if (name === spec.name || (address !== "" && own.has(hostOf(address)))) return "manager";
  }
  return "worker";
}

export type NodeRole = "manager" | "worker";

function hostOf(address: string): string {
  return address.slice(0, address.lastIndexOf(":"));
}

/** A node as the scheduler and constraints see it. What it has not said of itself counts as nothing. */
export function schedulerNode(
  view: Pick<View, "members">,
  spec: NodeSpec,
  status: NodeStatus | undefined,
): SchedulerNode {
  const description = status?.description;
  return {
    id: spec.id,
    hostname: spec.name,
    role: roleOf(view, spec, status),
    os: description?.os ?? "",
    arch: description?.arch ?? "",
    labels: spec.labels,
    availability: availabilities[spec.availability],
    ready: status?.state === NodeState.NODE_STATE_READY,
    capacity: {
      milliCpus: description?.milliCpus ?? 0,
      memoryBytes: description?.memoryBytes ?? 0,
      pids: (description?.pids ?? 0) > 0 ? description?.pids : undefined,
      generic: description?.generic,
    },
    images: status?.images.map(String),
    diskPressure: (status?.diskProblem ?? "") !== "",
    taints: spec.taints.length > 0 ? spec.taints.map(schedulerTaint) : undefined,
    busyPorts:
      status === undefined || status.busyPorts.length === 0
        ? undefined
        : status.busyPorts.map(({ port, protocol, listensAt, by }) => ({
            port,
            protocol: protocol === Protocol.PROTOCOL_UDP ? "udp" : "tcp",
            address: isEveryAddress(listensAt) ? undefined : listensAt,
            by: by || "a program of the host",
          })),
  };
}

/** "os/arch"; either may be empty, for any. */
export function parsePlatform(text: string): Platform {
  const [os = "", arch = ""] = text.split("/");
  return { os, arch };
}

function amount(reserved: ResourceAmount | undefined): TaskGroup["reservations"] {
  return {
    milliCpus: reserved?.milliCpus ?? 0,
    memoryBytes: reserved?.memoryBytes ?? 0,
    pids: (reserved?.pids ?? 0) > 0 ? reserved?.pids : undefined,
    generic: reserved?.generic,
  };
}

/** Id of the scheduler's group for tasks of one version of a service. */
export function groupId(task: Pick<Task, "serviceId" | "serviceVersion">): string {
  return `${task.serviceId}@${task.serviceVersion}`;
}

/** What the tasks of one version of a service have in common for the scheduler. */
export function taskGroup(
  index: Pick<ClusterIndex, "servicesDrawnTo" | "view">,
  task: Pick<Task, "serviceId" | "serviceVersion" | "stack" | "spec">,
): TaskGroup {
  const spec: ServiceSpec | undefined = task.spec;
  const placement = spec?.placement;
  const platforms = [...(placement?.platforms ?? [])];
  if ((spec?.container?.platform ?? "") !== "") platforms.push(spec?.container?.platform ?? "");
  return {
    id: groupId(task),
    service: nameInScheduler(task.stack, spec?.name ?? ""),
    name: `${task.stack}_${spec?.name ?? ""}`,
    reservations: amount(spec?.resources?.reservations),
    image: String(imageFingerprint(spec?.container?.image ?? "")),
    platforms: platforms.map(parsePlatform),
    constraints: placement?.constraints ?? [],
    maxPerNode: placement?.maxReplicasPerNode ?? 0,
    spread: [
      ...(placement?.spread ?? []).map((over) => ({ over })),
      ...(placement?.spreadRules ?? []).map(spreadPreference),
    ],
    affinities: affinitiesOf(index, task),
    ...importanceOf(index.view.services.get(task.serviceId)?.spec ?? spec),
    strategy: placement?.strategy === PlacementStrategy.PLACEMENT_STRATEGY_BINPACK ? "binpack" : undefined,
    tolerations:
      placement !== undefined && placement.tolerations.length > 0
        ? placement.tolerations.map(schedulerToleration)
        : undefined,
    ports: (spec?.ports ?? [])
      .filter(({ mode }) => mode === PublishMode.PUBLISH_MODE_HOST)
      .map(({ published, protocol, hostIp }) => ({
        port: published,
        protocol: protocol === Protocol.PROTOCOL_UDP ? "udp" : "tcp",
        address: isEveryAddress(hostIp) ? undefined : hostIp,
      })),
  };
}

/** What holds for all versions of a service, so that a change replaces none of its tasks. */
export function importanceOf(spec: ServiceSpec | undefined): Pick<TaskGroup, "priority" | "minAvailable"> {
  const { minAvailable = 0, minAvailablePercent = 0 } = spec?.disruption ?? {};
  const replicas = spec?.mode?.$case === "replicated" ? spec.mode.value.replicas : 0;
  return {
    priority: spec?.priority ?? 0,
    minAvailable: Math.max(minAvailable, Math.ceil((minAvailablePercent * replicas) / 100)),
  };
}

/** By its name, so that others can be drawn to it before and after it is removed and deployed anew. */
function nameInScheduler(stack: string, service: string): string {
  return `${stack}/${service}`;
}

function spreadPreference({ over, shares, otherShare, maxSkew }: SpreadRule): SpreadPreference {
  const uneven = Object.keys(shares).length > 0;
  return {
    over,
    shares: uneven ? shares : undefined,
    otherShare: uneven ? otherShare : undefined,
    maxSkew: maxSkew > 0 ? maxSkew : undefined,
  };
}

/**
 * What the tasks are drawn to or kept from. What one service wants of another the other wants of it, or it would depend on which of
 * them is placed first. Whoever holds it asks again when a service's affinities change.
 */
function affinitiesOf(
  index: Pick<ClusterIndex, "servicesDrawnTo">,
  { stack, spec }: Pick<Task, "stack" | "spec">,
): readonly SchedulerAffinity[] | undefined {
  const name = spec?.name ?? "";
  const affinities: SchedulerAffinity[] = [];
  for (const { to, weight } of spec?.placement?.affinities ?? []) {
    if (to?.$case === "node") affinities.push({ kind: "node", constraint: to.value, weight });
    else if (to?.$case === "service") {
      const service = nameInScheduler(stack, to.value.service);
      affinities.push({ kind: "service", service, over: to.value.over, weight });
    }
  }
  for (const other of index.servicesDrawnTo(stack, name)) {
    const service = nameInScheduler(stack, other.spec?.name ?? "");
    for (const { to, weight } of other.spec?.placement?.affinities ?? []) {
      if (to?.$case !== "service" || to.value.service !== name || other.spec?.name === name) continue;
      affinities.push({ kind: "service", service, over: to.value.over, weight });
    }
  }
  return affinities.length > 0 ? affinities : undefined;
}

/** Is it a global service? */
export function isGlobal(service: Service): boolean {
  return service.spec?.mode?.$case === "global";
}
