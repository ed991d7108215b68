import { parseBytes } from "../../lib/units/bytes.ts";
import {
  type Affinity,
  type ContainerSpec,
  DependencyCondition,
  EndpointMode,
  type Mount as MountSpec,
  MountType,
  OnNodeLoss,
  PlacementStrategy,
  Protocol,
  PublishMode,
  PullPolicy,
  type ResourceAmount,
  RestartCondition,
  type ServiceSpec,
  StackSpec,
  UpdateFailureAction,
  UpdateOrder,
} from "../../proto/gen/embassy/v1/stack.ts";
import { taintEffects } from "../taints.ts";
import { unsupported } from "./cluster.ts";
import { type Diagnostic, Report, sortDiagnostics } from "./diagnostics.ts";
import type { Mount, Network, Service, Stack, UpdateConfig } from "./model.ts";
import type { Position } from "./source.ts";
import { parseTmpfs } from "./tmpfs.ts";
import type { Path } from "./tree.ts";

/** The message, or everything in the stack that the cluster has no place for (at least one, in the order of the files). */
export type ConvertResult =
  | { readonly ok: true; readonly spec: StackSpec }
  | { readonly ok: false; readonly errors: readonly Diagnostic[] };

/** What conversion needs of a loaded stack. */
export interface Convertible {
  readonly stack: Stack;
  readonly contents: ReadonlyMap<string, Uint8Array>;
  readonly positionOf: (path: Path) => Position | undefined;
}

/** What the model holds and this version's cluster does not run, each an error with its place, in the order of the files. */
export function notInCluster({ stack, positionOf }: Omit<Convertible, "contents">): readonly Diagnostic[] {
  const report = new Report();
  for (const { path, message } of unsupported(stack)) {
    report.error("not-in-cluster", path, positionOf(path), message);
  }
  return sortDiagnostics(report.errors);
}

/**
 * The message that the control plane takes, from a loaded stack. Pure. What the model holds and this version's cluster does
 * not run is an error with its place: nothing is left out in silence.
 */
export function convertStack({ stack, contents, positionOf }: Convertible): ConvertResult {
  const errors = notInCluster({ stack, positionOf });
  if (errors.length > 0) return { ok: false, errors };
  const blobs = (section: "configs" | "secrets") =>
    Object.entries(stack[section]).map(([name, item]) => ({
      name,
      content: Buffer.from(contents.get(`${section}.${name}`) ?? []),
      labels: item.labels ?? {},
    }));
  const spec = StackSpec.fromPartial({
    name: stack.name,
    services: Object.entries(stack.services).map(([name, service]) => serviceSpec(name, service, stack)),
    networks: Object.entries(stack.networks).map(([name, network]) => networkSpec(name, network)),
    configs: blobs("configs"),
    secrets: blobs("secrets"),
  });
  return { ok: true, spec };
}

function networkSpec(name: string, network: Network) {
  return {
    name,
    subnet: network.ipam?.config?.[0]?.subnet ?? "",
    internal: network.internal,
    isolated: network.driver_opts?.icc === false,
    mtu: network.driver_opts?.mtu ?? 0,
    external: network.external,
    externalName: network.external ? network.name : "",
    labels: network.labels ?? {},
  };
}

type Partial<T> = T extends { fromPartial: (value: infer P) => unknown } ? P : never;
type ServicePartial = NonNullable<Partial<typeof StackSpec>["services"]>[number];

function serviceSpec(name: string, service: Service, stack: Stack): ServicePartial {
  const { deploy } = service;
  const networks = Object.entries(service.networks).toSorted(
    ([nameA, a], [nameB, b]) => b.gw_priority - a.gw_priority || b.priority - a.priority || (nameA < nameB ? -1 : 1),
  );
  const own = service.container_name === undefined || service.container_name === name ? [] : [service.container_name];
  return {
    name,
    container: containerSpec(service, stack),
    mode:
      deploy.mode === "global"
        ? { $case: "global", value: {} }
        : { $case: "replicated", value: { replicas: deploy.replicas ?? 1 } },
    placement: {
      constraints: (deploy.placement?.constraints ?? []).map((constraint) => constraint.trim()),
      spread: (deploy.placement?.preferences ?? []).map(({ spread }) => spread),
      maxReplicasPerNode: deploy.placement?.max_replicas_per_node ?? 0,
      platforms: service.platform === undefined ? [] : [service.platform],
      spreadRules: (service["x-placement"]?.spread ?? []).map(({ over, shares, other_share, max_skew }) => ({
        over,
        shares: shares ?? {},
        otherShare: other_share ?? 1,
        maxSkew: max_skew ?? 0,
      })),
      affinities: [
        ...(service["x-placement"]?.affinity ?? []).map((one) => affinity(one, 1)),
        ...(service["x-placement"]?.anti_affinity ?? []).map((one) => affinity(one, -1)),
      ].filter(({ to }) => to?.$case !== "service" || Object.hasOwn(stack.services, to.value.service)),
      strategy:
        service["x-placement"]?.strategy === "binpack"
          ? PlacementStrategy.PLACEMENT_STRATEGY_BINPACK
          : PlacementStrategy.PLACEMENT_STRATEGY_SPREAD,
      tolerations: (service["x-placement"]?.tolerations ?? []).map(({ key, value, effect }) => ({
        key: key ?? "",
        value,
        effect: effect === undefined ? undefined : taintEffects.get(effect)?.effect,
      })),
    },
    resources: {
      limits: amount(deploy.resources?.limits),
      reservations: {
        ...amount(deploy.resources?.reservations),
        generic: Object.fromEntries(
          (deploy.resources?.reservations?.generic_resources ?? []).map(({ discrete_resource_spec: spec }) => [
            spec.kind,
            spec.value,
          ]),
        ),
      },
    },
    restart: {
      condition: RESTART[deploy.restart_policy.condition],
      delayMs: deploy.restart_policy.delay,
      maxAttempts: deploy.restart_policy.max_attempts,
      windowMs: deploy.restart_policy.window,
    },
    update: updatePolicy(deploy.update_config),
    rollback: updatePolicy(deploy.rollback_config),
    networks: networks.map(([network, { aliases }]) => ({
      network,
      aliases: [...new Set([...(aliases ?? []), ...own])],
    })),
    links: (service.links ?? []).map((link) => ({ service: link.service, alias: link.alias })),
    exposed: exposedPorts(service),
    ports: (service.ports ?? []).map((port) => ({
      target: port.target,
      published: port.published?.from ?? 0,
      protocol: PROTOCOL[port.protocol],
      mode: port.mode === "host" ? PublishMode.PUBLISH_MODE_HOST : PublishMode.PUBLISH_MODE_INGRESS,
      hostIp: port.host_ip ?? "",
      name: port.name ?? "",
    })),
    dependsOn: Object.entries(service.depends_on ?? {}).map(([dependency, { condition, required }]) => ({
      service: dependency,
      condition: CONDITION[condition],
      required,
    })),
    priority: service["x-priority"] ?? 0,
    ...(service["x-disruption"] !== undefined && { disruption: disruption(service["x-disruption"]) }),
    labels: deploy.labels ?? {},
    containerName: service.container_name ?? "",
    endpointMode: deploy.endpoint_mode === "dnsrr" ? EndpointMode.ENDPOINT_MODE_DNSRR : EndpointMode.ENDPOINT_MODE_VIP,
  };
}

/** `min_available`: "2" or "50%". */
function disruption({ min_available, rebalance }: { readonly min_available: string; readonly rebalance: boolean }) {
  const number = Number(min_available.replace("%", ""));
  return { ...(min_available.endsWith("%") ? { minAvailablePercent: number } : { minAvailable: number }), rebalance };
}

function affinity(
  { node, service, over, weight }: { node?: string; service?: string; over?: string; weight: number },
  sign: 1 | -1,
): Affinity {
  return {
    to:
      service === undefined
        ? { $case: "node", value: (node ?? "").trim() }
        : { $case: "service", value: { service, over: over ?? "node.id" } },
    weight: sign * weight,
  };
}

function updatePolicy(config: UpdateConfig) {
  return {
    parallelism: config.parallelism,
    delayMs: config.delay,
    order: ORDER[config.order],
    failureAction: FAILURE_ACTION[config.failure_action],
    monitorMs: config.monitor,
    maxFailureRatio: config.max_failure_ratio,
  };
}

const ORDER = {
  "stop-first": UpdateOrder.UPDATE_ORDER_STOP_FIRST,
  "start-first": UpdateOrder.UPDATE_ORDER_START_FIRST,
} as const;
const FAILURE_ACTION = {
  pause: UpdateFailureAction.UPDATE_FAILURE_ACTION_PAUSE,
  continue: UpdateFailureAction.UPDATE_FAILURE_ACTION_CONTINUE,
  rollback: UpdateFailureAction.UPDATE_FAILURE_ACTION_ROLLBACK,
} as const;
const PROTOCOL = { tcp: Protocol.PROTOCOL_TCP, udp: Protocol.PROTOCOL_UDP } as const;
const RESTART = {
  any: RestartCondition.RESTART_CONDITION_ANY,
  "on-failure": RestartCondition.RESTART_CONDITION_ON_FAILURE,
  none: RestartCondition.RESTART_CONDITION_NONE,
} as const;
const CONDITION = {
  service_started: DependencyCondition.DEPENDENCY_CONDITION_STARTED,
  service_healthy: DependencyCondition.DEPENDENCY_CONDITION_HEALTHY,
  service_completed_successfully: DependencyCondition.DEPENDENCY_CONDITION_COMPLETED,
} as const;
const ON_NODE_LOSS = {
  wait: OnNodeLoss.ON_NODE_LOSS_WAIT,
  recreate: OnNodeLoss.ON_NODE_LOSS_RECREATE,
};

const PULL: Readonly<Record<string, PullPolicy>> = {
  always: PullPolicy.PULL_POLICY_ALWAYS,
  never: PullPolicy.PULL_POLICY_NEVER,
  missing: PullPolicy.PULL_POLICY_MISSING,
};

function amount(
  resources: { cpus?: number; memory?: number; pids?: number } | undefined,
): Omit<ResourceAmount, "generic"> {
  return {
    milliCpus: resources?.cpus ?? 0,
    memoryBytes: resources?.memory ?? 0,
    pids: Math.max(0, resources?.pids ?? 0),
  };
}

/** Ports of `expose` once each, in their order. */
function exposedPorts(service: Service): ServiceSpec["exposed"] {
  const ports = new Map<string, ServiceSpec["exposed"][number]>();
  for (const range of service.expose ?? []) {
    for (let port = range.from; port <= range.to; port++)
      ports.set(`${port}/${range.protocol}`, { port, protocol: PROTOCOL[range.protocol] });
  }
  return [...ports.values()];
}

type ContainerPartial = NonNullable<ServicePartial["container"]>;

function containerSpec(service: Service, stack: Stack): ContainerPartial {
  const health = service.healthcheck;
  return {
    image: qualifyImage(service.image),
    entrypoint: service.entrypoint ?? [],
    entrypointSet: service.entrypoint !== undefined,
    command: service.command ?? [],
    commandSet: service.command !== undefined,
    environment: service.environment,
    workingDir: service.working_dir ?? "",
    user: service.user ?? "",
    groupAdd: service.group_add ?? [],
    hostname: service.hostname ?? "",
    tty: service.tty,
    stdinOpen: service.stdin_open,
    init: service.init,
    readOnly: service.read_only,
    capAdd: service.cap_add ?? [],
    capDrop: service.cap_drop ?? [],
    allowNewPrivileges: (service.security_opt ?? []).some((option) => /^no-new-privileges[:=]false$/.test(option)),
    ulimits: Object.entries(service.ulimits ?? {}).map(([name, { soft, hard }]) => ({ name, soft, hard })),
    sysctls: service.sysctls ?? {},
    shmBytes: service.shm_size,
    stopSignal: service.stop_signal ?? "",
    // 0 would mean the default.
    stopGraceMs: Math.max(1, service.stop_grace_period),
    mounts: [
      ...(service.volumes ?? []).map((mount) => mountSpec(mount, stack)),
      ...(service.tmpfs ?? []).map(tmpfsSpec),
    ],
    configs: (service.configs ?? []).map(blobMount),
    secrets: (service.secrets ?? []).map(blobMount),
    ...(health !== undefined && {
      healthcheck: {
        test: health.disable ? ["NONE"] : (health.test ?? []),
        intervalMs: health.interval ?? 0,
        timeoutMs: health.timeout ?? 0,
        retries: health.retries ?? 0,
        startPeriodMs: health.start_period ?? 0,
        startIntervalMs: health.start_interval ?? 0,
      },
    }),
    extraHosts: Object.entries(service.extra_hosts ?? {}).flatMap(([name, addresses]) =>
      addresses.map((address) => ({ name, address })),
    ),
    dns: service.dns ?? [],
    dnsSearch: service.dns_search ?? [],
    dnsOptions: service.dns_opt ?? [],
    labels: service.labels,
    annotations: service.annotations ?? {},
    pullPolicy: PULL[service.pull_policy] ?? PullPolicy.PULL_POLICY_MISSING,
    platform: service.platform ?? "",
    log: logConfig(service),
    oomScoreAdj: service.oom_score_adj,
  } satisfies ContainerPartial & { [P in keyof ContainerSpec]?: unknown };
}

function logConfig(service: Service): { maxBytes: number; maxFiles: number } {
  const options = service.logging?.options ?? {};
  return { maxBytes: parseBytes(options["max-size"] ?? "0") ?? 0, maxFiles: Number(options["max-file"] ?? 0) };
}

function blobMount(grant: NonNullable<Service["configs"]>[number]) {
  return {
    source: grant.source,
    target: grant.target ?? "",
    uid: Number(grant.uid),
    gid: Number(grant.gid),
    mode: grant.mode,
  };
}

function mountSpec(mount: Mount, stack: Stack): { [P in keyof MountSpec]?: MountSpec[P] } {
  const { target, read_only: readOnly } = mount;
  if (mount.type === "tmpfs") {
    return {
      type: MountType.MOUNT_TYPE_TMPFS,
      target,
      readOnly,
      tmpfsBytes: mount.tmpfs?.size ?? 0,
      tmpfsMode: mount.tmpfs?.mode ?? 0,
    };
  }
  if (mount.type === "bind") {
    return {
      type: MountType.MOUNT_TYPE_BIND,
      source: mount.source ?? "",
      target,
      readOnly,
      createHostPath: mount.bind?.create_host_path ?? false,
    };
  }
  const volume = stack.volumes[mount.source ?? ""];
  const onNodeLoss = ON_NODE_LOSS[volume?.["x-on-node-loss"] ?? "wait"];
  const external = volume?.external ?? false;
  return { type: MountType.MOUNT_TYPE_VOLUME, source: volume?.name ?? "", target, readOnly, onNodeLoss, external };
}

/** `/run:size=64m,mode=1777`; other options are refused before. */
function tmpfsSpec(line: string): { [P in keyof MountSpec]?: MountSpec[P] } {
  const { target, size, mode, readOnly } = parseTmpfs(line);
  return { type: MountType.MOUNT_TYPE_TMPFS, target, readOnly, tmpfsBytes: size, tmpfsMode: mode };
}

/** `nginx` is `docker.io/library/nginx:latest`, as Docker has it; anything fuller stays as it is. */
export function qualifyImage(image: string): string {
  const slash = image.indexOf("/");
  const first = slash === -1 ? "" : image.slice(0, slash);
  const hasRegistry = first.includes(".") || first.includes(":") || first === "localhost";
  const path = hasRegistry ? image : `docker.io/${slash === -1 ? "library/" : ""}${image}`;
  const name = path.slice(path.lastIndexOf("/") + 1);
  return name.includes(":") || name.includes("@") ? path : `${path}:latest`;
}
