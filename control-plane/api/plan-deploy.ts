import { createHash } from "node:crypto";
import {
  blocksOf,
  type Cidr,
  contains,
  formatAddress,
  formatCidr,
  nthAddress,
  overlaps,
  parseAddress,
  parseCidr,
  sizeOf,
} from "../../lib/cidr/cidr.ts";
import { ClusterError } from "../../lib/errors/errors.ts";
import { shareAddress } from "../../lib/net/host-ip.ts";
import { defaultPorts, type OwnPort } from "../../lib/net/ports.ts";
import {
  type BlobSpec,
  type NetworkSpec,
  OnNodeLoss,
  Protocol,
  type PublishedPort,
  PublishMode,
  ServiceSpec,
  StackSpec,
} from "../../proto/gen/embassy/v1/stack.ts";
import {
  Allocation,
  Network,
  Service,
  ServiceStatus,
  type ServiceVersion,
  StackRecord,
  UpdateState,
} from "../../proto/gen/embassy/v1/state.ts";
import { planRevision } from "../controllers/revisions/plan.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { isLive, serviceFullName } from "../domain/tasks.ts";
import { hasGoneBack, nextVersion, unplacedNow } from "../domain/updates.ts";
import { volumeExists } from "../domain/volumes.ts";
import type { CommitOptions, Write } from "../store/types.ts";
import { list } from "./resolve.ts";

export interface AddressSettings {
  /** CIDR that subnets are taken from. */
  readonly networkPool: string;
  /** Prefix length of a subnet. */
  readonly networkPrefix: number;
  /** CIDR that virtual addresses are taken from. */
  readonly vipPool: string;
  /** What clusterd and etcd listen on. */
  readonly listenedPorts: readonly OwnPort[];
}

export interface DeployPlan {
  /** Of the stack. */
  readonly revision: number;
  /** One transaction; none when everything is as deployed before. */
  readonly writes: readonly Write[];
  /** What the plan read and does not write. */
  readonly expect: NonNullable<CommitOptions["expect"]>;
  /** "service/web", "network/default", "config/page", "secret/key", sorted. */
  readonly created: readonly string[];
  readonly updated: readonly string[];
  readonly removed: readonly string[];
  readonly unchanged: readonly string[];
  /** Of those updated, those that are again to be what an update of them failed to make them. */
  readonly triedAgain: readonly string[];
}

export interface DeployRequestFacts {
  readonly by: string;
  readonly nowMs: number;
  readonly mintId: () => string;
  readonly settings: AddressSettings;
  /** Names a secret by its content, so that whoever reads the store cannot try out guesses: 64 hex digits. */
  readonly secretDigest: (content: Uint8Array) => string;
  /** The revision that this deploy brings back; not given: none. */
  readonly restores?: number;
}

/** Revisions of a stack that are kept, with all that is in their configs and secrets. */
const keptRevisions = 10;
const firstVni = 4096;
const lastVni = 16_777_215;
const firstPort = 49_000;
const lastPort = 49_900;
const allocationId = "cluster";

/**
 * What a deploy changes: the whole of it in one transaction. Pure but for the ids it is given a mint for. The specification
 * has been validated. Throws `conflict` (a port, subnet or network of another stack, or a port of the cluster itself, stands in
 * the way), `not-found` (an external network or volume), `exhausted` (no subnet, address or port is left).
 */
export function planDeploy(index: ClusterIndex, spec: StackSpec, facts: DeployRequestFacts): DeployPlan {
  return new DeployPlanner(index, spec, facts).plan();
}

class DeployPlanner {
  readonly #index: ClusterIndex;
  readonly #spec: StackSpec;
  readonly #facts: DeployRequestFacts;
  readonly #allocator: Allocator;
  readonly #writes: Write[] = [];
  readonly #expect: { table: "networks" | "services" | "serviceStatuses"; id: string; revision: number }[] = [];
  readonly #outcome = {
    created: [] as string[],
    updated: [] as string[],
    removed: [] as string[],
    unchanged: [] as string[],
    triedAgain: [] as string[],
  };

  constructor(index: ClusterIndex, spec: StackSpec, facts: DeployRequestFacts) {
    this.#index = index;
    this.#spec = spec;
    this.#facts = facts;
    this.#allocator = new Allocator(index, facts.settings, spec.name);
  }

  plan(): DeployPlan {
    const { view } = this.#index;
    const newest = this.#index.stack(this.#spec.name);
    const networkIds = this.#networks();
    this.#externalVolumes();
    const blobs = this.#blobs();
    this.#services(networkIds, blobs);
    for (const list of Object.values(this.#outcome)) list.sort();
    // Contents travel in the blobs; the record says which they were.
    const kept = {
      ...this.#spec,
      configs: this.#spec.configs.map((blob) => this.#digestOnly("config", blob)),
      secrets: this.#spec.secrets.map((blob) => this.#digestOnly("secret", blob)),
    };
    if (
      this.#writes.length === 0 &&
      newest?.spec !== undefined &&
      canonical(StackSpec, newest.spec) === canonical(StackSpec, kept)
    ) {
      return { revision: newest.revision, writes: [], expect: [], ...this.#outcome };
    }
    // The leader may be about to: what is replaced now would never count.
    this.#writes.push(...planRevision(this.#index, this.#spec.name, this.#facts.nowMs).writes);
    const revision = (newest?.revision ?? 0) + 1;
    this.#writes.push({
      table: "stacks",
      id: `${this.#spec.name}/${revision}`,
      value: StackRecord.create({
        spec: kept,
        revision,
        deployedAtMs: this.#facts.nowMs,
        deployedBy: this.#facts.by,
        restores: this.#facts.restores ?? 0,
      }),
      // Of two deploys at the same time, one makes this revision and the other conflicts.
      ifRevision: 0,
    });
    for (const old of this.#index.stackRevisions(this.#spec.name).slice(0, 1 - keptRevisions)) {
      this.#writes.push({ table: "stacks", id: `${this.#spec.name}/${old.revision}`, value: undefined });
    }
    const allocation = this.#allocator.changed();
    if (allocation !== undefined) {
      const ifRevision = view.allocations.revisionOf(allocationId);
      this.#writes.push({ table: "allocations", id: allocationId, value: allocation, ifRevision });
    }
    return { revision, writes: this.#writes, expect: this.#expect, ...this.#outcome };
  }

  /** Ids of the networks by their name within the stack. */
  #networks(): Record<string, string> {
    const { view } = this.#index;
    const all = this.#index.networksOfStack(this.#spec.name);
    const present = new Map(
      all.filter(({ removed }) => !removed).map((network) => [network.spec?.name ?? "", network]),
    );
    const ids: Record<string, string> = {};
    for (const spec of this.#spec.networks) {
      if (spec.external) {
        const network = this.#externalNetwork(spec);
        ids[spec.name] = network.id;
        this.#expect.push({ table: "networks", id: network.id, revision: view.networks.revisionOf(network.id) });
        continue;
      }
      const known = present.get(spec.name) ?? all.find((network) => this.#isKeptFor(network, spec));
      present.delete(spec.name);
      if (known === undefined) {
        const id = this.#facts.mintId();
        const { vni, subnet } = this.#allocator.network(spec, this.#spec.name);
        const value = Network.create({ id, stack: this.#spec.name, spec, vni, subnet, mtu: spec.mtu });
        this.#writes.push({ table: "networks", id, value, ifRevision: 0 });
        this.#outcome.created.push(`network/${spec.name}`);
        ids[spec.name] = id;
        continue;
      }
      ids[spec.name] = known.id;
      this.#network(known, spec);
    }
    for (const network of present.values()) this.#removeNetwork(network);
    return ids;
  }

  /** Was it removed, and is kept as a service may go back to it, so that it can come again? */
  #isKeptFor({ id, removed, spec, subnet, mtu }: Network, wanted: NetworkSpec): boolean {
    return (
      removed &&
      spec?.name === wanted.name &&
      mtu === wanted.mtu &&
      ["", subnet].includes(wanted.subnet) &&
      this.#index
        .servicesOfNetwork(id)
        .some((service) => !service.removed && Object.values(service.stable?.networkIds ?? {}).includes(id))
    );
  }

  #network(known: Network, spec: NetworkSpec): void {
    const name = `network/${spec.name}`;
    const before = known.spec;
    const fixed = (spec.subnet !== "" && spec.subnet !== known.subnet) || spec.mtu !== known.mtu;
    if (fixed) {
      const what =
        spec.mtu === known.mtu ? `subnet (${known.subnet} to ${spec.subnet})` : `mtu (${known.mtu} to ${spec.mtu})`;
      throw new ClusterError(`the ${what} of network ${spec.name} cannot change while it exists`, {
        code: "conflict",
        subject: `networks.${spec.name}`,
        hint: `Remove the stack and deploy it again, or give the network another name.`,
      });
    }
    const same =
      !known.removed &&
      before?.internal === spec.internal &&
      before.isolated === spec.isolated &&
      before.subnet === spec.subnet &&
      sortedText(before.labels) === sortedText(spec.labels);
    if (same) {
      this.#outcome.unchanged.push(name);
      return;
    }
    const ifRevision = this.#index.view.networks.revisionOf(known.id);
    this.#writes.push({ table: "networks", id: known.id, value: { ...known, spec, removed: false }, ifRevision });
    this.#outcome[known.removed ? "created" : "updated"].push(name);
  }

  #removeNetwork(network: Network): void {
    const others = this.#index
      .servicesOfNetwork(network.id)
      .filter(({ stack, removed }) => stack !== network.stack && !removed);
    if (others.length > 0) {
      throw new ClusterError(
        `network ${network.spec?.name} is used by ${others.map(serviceFullName).sort().join(", ")}`,
        {
          code: "conflict",
          subject: `network/${network.stack}_${network.spec?.name}`,
          hint: "Remove those from the network first.",
        },
      );
    }
    const ifRevision = this.#index.view.networks.revisionOf(network.id);
    this.#writes.push({ table: "networks", id: network.id, value: { ...network, removed: true }, ifRevision });
    this.#outcome.removed.push(`network/${network.spec?.name}`);
  }

  #externalNetwork(spec: NetworkSpec): Network {
    const wanted = spec.externalName === "" ? spec.name : spec.externalName;
    const names: string[] = [];
    for (const network of this.#index.view.networks.values()) {
      if (network.removed) continue;
      const name = `${network.stack}_${network.spec?.name}`;
      if (name === wanted) return network;
      names.push(name);
    }
    throw new ClusterError(`external network ${wanted} does not exist`, {
      code: "not-found",
      subject: `networks.${spec.name}`,
      hint: list(names.sort(), "Deploy the stack that makes it first."),
    });
  }

  /** One that nobody has made would begin empty, where the stack counts on what is in it. */
  #externalVolumes(): void {
    for (const { name: service, container } of this.#spec.services) {
      for (const { source, external } of container?.mounts ?? []) {
        if (!external || volumeExists(this.#index, source, this.#spec.name)) continue;
        const names = new Set([...this.#index.view.volumeHomes.values()].map(({ volume }) => volume));
        throw new ClusterError(`external volume ${source} does not exist`, {
          code: "not-found",
          subject: `services.${service}.volumes`,
          hint: `${list([...names].sort(), "There is none.")} Deploy the stack that makes it first.`,
        });
      }
    }
  }

  /** Digests by "config/<name>" and "secret/<name>". */
  #blobs(): Record<string, string> {
    const digests: Record<string, string> = {};
    const newest = this.#index.stack(this.#spec.name)?.spec;
    for (const kind of ["config", "secret"] as const) {
      const present = kind === "config" ? newest?.configs : newest?.secrets;
      const isNamed = (sha256: string) =>
        present?.some(({ content }) => Buffer.from(content).toString("hex") === sha256);
      const before = new Map(present?.map(({ name, content }) => [name, Buffer.from(content).toString("hex")]));
      for (const { name, content } of kind === "config" ? this.#spec.configs : this.#spec.secrets) {
        const sha256 = this.#digest(kind, content);
        const known = before.get(name);
        const outcome = known === undefined ? "created" : known === sha256 ? "unchanged" : "updated";
        this.#outcome[outcome].push(`${kind}/${name}`);
        before.delete(name);
        digests[`${kind}/${name}`] = sha256;
        const id = `${kind}/${sha256}`;
        // One that is there and that this stack does not name may be about to be swept: it is written again.
        if (
          (this.#index.view.blobs.get(id) === undefined || isNamed(sha256) !== true) &&
          !this.#writes.some((write) => write.table === "blobs" && write.id === id)
        ) {
          this.#writes.push({ table: "blobs", id, value: { kind, sha256, content: Buffer.from(content) } });
        }
      }
      for (const name of before.keys()) this.#outcome.removed.push(`${kind}/${name}`);
    }
    return digests;
  }

  #digest(kind: "config" | "secret", content: Uint8Array): string {
    return kind === "secret" ? this.#facts.secretDigest(content) : createHash("sha256").update(content).digest("hex");
  }

  #digestOnly(kind: "config" | "secret", blob: BlobSpec): BlobSpec {
    return { ...blob, content: Buffer.from(this.#digest(kind, blob.content), "hex") };
  }

  #services(networkIds: Readonly<Record<string, string>>, blobs: Readonly<Record<string, string>>): void {
    const present = new Map(
      this.#index
        .servicesOfStack(this.#spec.name)
        .filter(({ removed }) => !removed)
        .map((service) => [service.spec?.name ?? "", service]),
    );
    // First what goes: its ports are free for what comes.
    const wanted = new Set(this.#spec.services.map(({ name }) => name));
    for (const [name, service] of present) {
      if (wanted.has(name)) continue;
      this.#allocator.release(service.id);
      const ifRevision = this.#index.view.services.revisionOf(service.id);
      this.#writes.push({ table: "services", id: service.id, value: { ...service, removed: true }, ifRevision });
      this.#outcome.removed.push(`service/${name}`);
    }
    for (const spec of this.#spec.services) {
      const known = present.get(spec.name);
      if (known !== undefined) this.#allocator.release(known.id);
    }
    for (const spec of this.#spec.services) this.#service(spec, present.get(spec.name), networkIds, blobs);
  }

  #service(
    spec: ServiceSpec,
    known: Service | undefined,
    networkIds: Readonly<Record<string, string>>,
    blobs: Readonly<Record<string, string>>,
  ): void {
    const { view } = this.#index;
    const id = known?.id ?? this.#facts.mintId();
    const keys = [
      ...(spec.container?.configs ?? []).map(({ source }) => `config/${source}`),
      ...(spec.container?.secrets ?? []).map(({ source }) => `secret/${source}`),
    ];
    const service = Service.create({
      id,
      stack: this.#spec.name,
      spec,
      version: 1,
      networkIds: pick(
        networkIds,
        spec.networks.map(({ network }) => network),
      ),
      blobDigests: pick(blobs, keys),
      createdAtMs: known?.createdAtMs ?? this.#facts.nowMs,
      moving: known?.moving ?? [],
    });
    const before = view.serviceStatuses.get(id);
    if (known !== undefined) {
      service.version = this.#versionOf(known, service);
      service.unplacedBefore =
        service.version === known.version ? known.unplacedBefore : unplacedNow(this.#index, known, service);
      service.stable = stableOf(known, before, service.version);
      if (isAsFailed(this.#index, known, service)) this.#outcome.triedAgain.push(`service/${spec.name}`);
    }
    const isAnother = service.version !== known?.version;
    const told = isAnother ? ServiceStatus.create() : before;
    const networks = [...Object.values(service.networkIds), ...Object.values(service.stable?.networkIds ?? {})];
    const status = ServiceStatus.create({
      serviceId: id,
      // What it may go back to keeps its addresses.
      vips: this.#allocator.vips([...new Set(networks)], before?.vips ?? {}),
      ports: this.#allocator.ports(spec, before?.ports ?? [], `${this.#spec.name}_${spec.name}`),
      updateState: told?.updateState ?? UpdateState.UPDATE_STATE_NONE,
      updateMessage: told?.updateMessage ?? "",
      convergedVersion: told?.convergedVersion ?? 0,
      rebalance: before?.rebalance,
    });
    const sameService = known !== undefined && canonical(Service, known) === canonical(Service, service);
    const sameStatus = before !== undefined && canonical(ServiceStatus, before) === canonical(ServiceStatus, status);
    if (!sameService) {
      this.#writes.push({ table: "services", id, value: service, ifRevision: view.services.revisionOf(id) });
    }
    if (!sameStatus) {
      this.#writes.push({
        table: "serviceStatuses",
        id,
        value: status,
        ifRevision: view.serviceStatuses.revisionOf(id),
      });
    }
    const outcome = known === undefined ? "created" : sameService && sameStatus ? "unchanged" : "updated";
    this.#outcome[outcome].push(`service/${spec.name}`);
  }

  /**
   * Tasks of another version are replaced, so that one that is as the service is to be keeps its version: of a service that goes
   * back in the middle of an update, those that it has not replaced yet stay. Otherwise a number that no task has, and so for
   * a version that was rolled back: it is tried again, and what failed before is not held against it.
   */
  #versionOf(known: Service, service: Service): number {
    const shape = shapeOf(service);
    if (shapeOf(known) === shape) return known.version;
    const tasks = this.#index.tasksOfService(known.id);
    const live = tasks.filter(
      (task) => isLive(this.#index.view, task) && task.serviceVersion !== known.rollback?.failedVersion,
    );
    const same = live.filter(({ spec, networkIds, blobDigests }) => {
      return spec !== undefined && shapeOf({ ...service, spec, networkIds, blobDigests }) === shape;
    });
    // Of two such, the one that a restart began is the later.
    return same.length > 0
      ? Math.max(...same.map(({ serviceVersion }) => serviceVersion))
      : nextVersion(this.#index, known);
  }
}

/** What the service goes back to when its update to the version fails: what it is, if it has converged so, else what it would go back to now. */
function stableOf(known: Service, status: ServiceStatus | undefined, version: number): ServiceVersion | undefined {
  if (version === known.version) return known.stable;
  // What it has gone back to had converged.
  if (status === undefined || (status.convergedVersion !== known.version && !hasGoneBack(known))) {
    return known.stable?.version === version ? undefined : known.stable;
  }
  const { spec, networkIds, blobDigests } = known;
  return { version: known.version, spec, networkIds, blobDigests, ports: status.ports };
}

/** Did an update of the service fail to make it what it is to be again? */
function isAsFailed(index: ClusterIndex, { stack, rollback }: Service, { spec }: Service): boolean {
  if (rollback === undefined || spec === undefined) return false;
  const failed = index.stackRevisions(stack).find(({ revision }) => revision === rollback.revision);
  const before = failed?.spec?.services.find(({ name }) => name === spec.name);
  return before !== undefined && canonical(ServiceSpec, before) === canonical(ServiceSpec, spec);
}

function pick(values: Readonly<Record<string, string>>, keys: readonly string[]): Record<string, string> {
  return Object.fromEntries([...new Set(keys)].sort().map((key) => [key, values[key] ?? ""]));
}

/** Text that is equal for equal messages, in whatever order their maps were filled. */
export function canonical<T>(codec: { toJSON(message: T): unknown }, message: T): string {
  return sortedText(codec.toJSON(message));
}

function sortedText(message: unknown): string {
  return JSON.stringify(message, (_, value: unknown) =>
    typeof value === "object" && value !== null && !Array.isArray(value)
      ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
      : value,
  );
}

/** What of a service its tasks are made from: as long as it is the same, they stay. */
function shapeOf(service: Service): string {
  const spec = service.spec;
  if (spec === undefined) return "";
  const mode: ServiceSpec["mode"] =
    spec.mode?.$case === "global" ? spec.mode : { $case: "replicated", value: { replicas: 0 } };
  const ports = spec.ports.filter((port) => port.mode === PublishMode.PUBLISH_MODE_HOST);
  const mounts = spec.container?.mounts.map((mount) => {
    return { ...mount, onNodeLoss: OnNodeLoss.ON_NODE_LOSS_WAIT, external: false };
  });
  const made = {
    ...spec,
    container: spec.container === undefined ? undefined : { ...spec.container, mounts: mounts ?? [] },
    mode,
    ports,
    containerName: "",
    restart: undefined,
    update: undefined,
    rollback: undefined,
    labels: {},
    dependsOn: [],
    exposed: [],
    priority: 0,
    disruption: undefined,
  };
  const ids = [service.networkIds, service.blobDigests].map(sortedText);
  return [canonical(ServiceSpec, made), ...ids].join("\n");
}

const protocolNames: Record<Protocol, string> = { [Protocol.PROTOCOL_TCP]: "tcp", [Protocol.PROTOCOL_UDP]: "udp" };

interface Taken {
  readonly port: PublishedPort;
  /** "<stack>_<service>" */
  readonly by: string;
}

/**
 * Who of the cluster listens on a port, by "<port>/<protocol>", on whatever host: where netd led one elsewhere, that program could
 * not be reached any more.
 */
function ownPorts({ view }: ClusterIndex, settings: AddressSettings): ReadonlyMap<string, string> {
  const own = new Map<string, string>();
  const add = ({ port, protocol, by }: OwnPort) => own.set(`${port}/${protocol}`, by);
  const told = (address: string, by: string) => {
    const port = Number(address.slice(address.lastIndexOf(":") + 1));
    if (port > 0) add({ port, protocol: "tcp", by });
  };
  for (const port of Object.values(defaultPorts)) add(port);
  for (const { address, name } of view.members.values()) told(address, `clusterd of manager ${name}`);
  for (const { description } of view.nodeStatuses.values()) {
    told(description?.agentAddress ?? "", defaultPorts.agent.by);
  }
  for (const port of settings.listenedPorts) add(port);
  return own;
}

/** Gives numbers and addresses that nobody has, each after the one given last, so that nothing is given again at once. */
class Allocator {
  readonly #index: ClusterIndex;
  readonly #settings: AddressSettings;
  readonly #allocation: Allocation;
  readonly #usedVnis = new Set<number>();
  readonly #usedSubnets: { readonly cidr: Cidr; readonly by: string }[] = [];
  readonly #usedVips = new Set<string>();
  readonly #ports = new Map<string, Taken[]>();
  readonly #ownPorts: ReadonlyMap<string, string>;
  #given = false;

  constructor(index: ClusterIndex, settings: AddressSettings, stack: string) {
    this.#index = index;
    this.#settings = settings;
    this.#ownPorts = ownPorts(index, settings);
    this.#allocation = { ...(index.view.allocations.get(allocationId) ?? Allocation.create()) };
    for (const network of index.view.networks.values()) {
      this.#usedVnis.add(network.vni);
      this.#usedSubnets.push({ cidr: parseCidr(network.subnet), by: `network ${network.stack}_${network.spec?.name}` });
    }
    for (const [id, status] of index.view.serviceStatuses.entries()) {
      for (const vip of Object.values(status.vips)) this.#usedVips.add(vip);
      const service = index.view.services.get(id);
      if (service === undefined || service.removed) continue;
      // What a service of another stack may go back to stays its own; within a stack a port may move on at once.
      const kept = service.stack === stack ? [] : (service.stable?.ports ?? []);
      this.#ports.set(
        id,
        [...status.ports, ...kept].map((port) => ({ port, by: serviceFullName(service) })),
      );
    }
  }

  /** The allocation row as it has to be written; undefined: nothing was given. */
  changed(): Allocation | undefined {
    return this.#given ? { ...this.#allocation, generation: this.#allocation.generation + 1 } : undefined;
  }

  /** The service's published ports are to be given anew. */
  release(serviceId: string): void {
    this.#ports.delete(serviceId);
  }

  network(spec: NetworkSpec, stack: string): { readonly vni: number; readonly subnet: string } {
    this.#given = true;
    const vni = next(this.#allocation.lastVni, firstVni, lastVni, (candidate) => !this.#usedVnis.has(candidate));
    if (vni === undefined)
      throw new ClusterError("every network number is in use", { code: "exhausted", subject: `networks.${spec.name}` });
    this.#usedVnis.add(vni);
    this.#allocation.lastVni = vni;
    const subnet = spec.subnet === "" ? this.#freeSubnet(spec) : this.#namedSubnet(spec);
    this.#usedSubnets.push({ cidr: parseCidr(subnet), by: `network ${stack}_${spec.name}` });
    return { vni, subnet };
  }

  #namedSubnet(spec: NetworkSpec): string {
    const cidr = parseCidr(spec.subnet);
    const others = [
      ...this.#usedSubnets,
      { cidr: parseCidr(this.#settings.vipPool), by: "the pool of virtual addresses" },
      { cidr: parseCidr("169.254.42.0/24"), by: "every container's gateway" },
    ];
    const clash = others.find((other) => overlaps(other.cidr, cidr));
    const host = [...this.#index.view.nodeStatuses.values()].find(({ description }) => {
      const address = description?.underlayAddress ?? "";
      return address !== "" && contains(cidr, parseAddress(address));
    });
    if (clash === undefined && host === undefined) return formatCidr(cidr);
    const with_ =
      clash === undefined
        ? `the address ${host?.description?.underlayAddress} of node ${host?.description?.hostname}`
        : `${formatCidr(clash.cidr)} of ${clash.by}`;
    throw new ClusterError(`subnet ${spec.subnet} overlaps ${with_}`, {
      code: "conflict",
      subject: `networks.${spec.name}.ipam.config[0].subnet`,
      hint: "Choose another subnet, or none: the cluster then gives a free one.",
    });
  }

  #freeSubnet(spec: NetworkSpec): string {
    const pool = parseCidr(this.#settings.networkPool);
    const free = (cidr: Cidr) => !this.#usedSubnets.some((used) => overlaps(used.cidr, cidr));
    let first: Cidr | undefined;
    const last = this.#allocation.lastSubnet === "" ? -1 : parseCidr(this.#allocation.lastSubnet).base;
    for (const cidr of blocksOf(pool, this.#settings.networkPrefix)) {
      if (!free(cidr)) continue;
      if (cidr.base > last) {
        first = cidr;
        break;
      }
      first ??= cidr;
    }
    if (first === undefined) {
      throw new ClusterError(
        `network pool ${this.#settings.networkPool} is full: ${this.#usedSubnets.length} networks`,
        {
          code: "exhausted",
          subject: `networks.${spec.name}`,
          hint: "Remove networks that nobody uses, name a subnet outside the pool, or run clusterd with a larger --network-pool.",
        },
      );
    }
    this.#allocation.lastSubnet = formatCidr(first);
    return formatCidr(first);
  }

  /** An address on each network: the one it has, or a new one. */
  vips(networkIds: readonly string[], present: Readonly<Record<string, string>>): Record<string, string> {
    const vips: Record<string, string> = {};
    for (const networkId of [...networkIds].sort()) vips[networkId] = present[networkId] ?? this.#newVip();
    return vips;
  }

  #newVip(): string {
    const pool = parseCidr(this.#settings.vipPool);
    // Neither the first nor the last: some programs take them for the network's and the broadcast address.
    const position = this.#allocation.lastVip === "" ? 0 : parseAddress(this.#allocation.lastVip) - pool.base;
    const n = next(
      position,
      1,
      sizeOf(pool) - 2,
      (candidate) => !this.#usedVips.has(formatAddress(nthAddress(pool, candidate))),
    );
    if (n === undefined) {
      throw new ClusterError(`no virtual address is left in ${this.#settings.vipPool}`, {
        code: "exhausted",
        hint: "Remove services that nobody uses, or run clusterd with a larger --vip-pool.",
      });
    }
    const vip = formatAddress(nthAddress(pool, n));
    this.#given = true;
    this.#usedVips.add(vip);
    this.#allocation.lastVip = vip;
    return vip;
  }

  /** The service's published ports with numbers; of mode host a port without one is given when its task is placed. */
  ports(spec: ServiceSpec, present: readonly PublishedPort[], by: string): PublishedPort[] {
    const given: PublishedPort[] = [];
    for (const port of spec.ports) {
      let published = port.published;
      if (published === 0 && port.mode === PublishMode.PUBLISH_MODE_INGRESS) {
        const kept = present.find(
          (one) =>
            one.target === port.target &&
            one.protocol === port.protocol &&
            one.mode === port.mode &&
            isGivenRange(one.published),
        );
        published =
          kept !== undefined && this.#clash({ ...port, published: kept.published }) === undefined
            ? kept.published
            : this.#freePort(port);
      }
      const full = { ...port, published };
      const clash = this.#clash(full);
      if (clash !== undefined && clash !== by) {
        throw new ClusterError(`port ${published}/${protocolNames[port.protocol]} is taken by ${clash}`, {
          code: "conflict",
          subject: `services.${spec.name}.ports`,
          hint: "Publish another port, or none: the cluster then gives one from 49000-49900.",
        });
      }
      given.push(full);
    }
    // Within one service the check between keys has been made; what it takes counts for the services after it.
    if (given.length > 0) this.#given = true;
    this.#ports.set(
      by,
      given.map((port) => ({ port, by })),
    );
    return given;
  }

  #freePort(port: PublishedPort): number {
    const found = next(
      this.#allocation.lastPort,
      firstPort,
      lastPort,
      (published) => this.#clash({ ...port, published }) === undefined,
    );
    if (found === undefined) {
      throw new ClusterError(`every port from ${firstPort} to ${lastPort} is taken`, {
        code: "exhausted",
        hint: "Name a published port outside that range.",
      });
    }
    this.#allocation.lastPort = found;
    return found;
  }

  /** Who has the port already. Two services of mode host may: the scheduler puts them on different nodes. */
  #clash(port: PublishedPort): string | undefined {
    if (port.published === 0) return undefined;
    const own = this.#ownPorts.get(`${port.published}/${protocolNames[port.protocol]}`);
    if (own !== undefined) return own;
    for (const taken of this.#ports.values()) {
      for (const other of taken) {
        const bothHost =
          port.mode === PublishMode.PUBLISH_MODE_HOST && other.port.mode === PublishMode.PUBLISH_MODE_HOST;
        if (
          !bothHost &&
          shareAddress(port.hostIp, other.port.hostIp) &&
          other.port.published === port.published &&
          other.port.protocol === port.protocol
        )
          return other.by;
      }
    }
    return undefined;
  }
}

function isGivenRange(port: number): boolean {
  return port >= firstPort && port <= lastPort;
}

/** The first number after `last` that is free, going round from `from` to `to`. */
function next(last: number, from: number, to: number, free: (candidate: number) => boolean): number | undefined {
  const size = to - from + 1;
  const start = last < from || last >= to ? 0 : last - from + 1;
  for (let i = 0; i < size; i++) {
    const candidate = from + ((start + i) % size);
    if (free(candidate)) return candidate;
  }
  return undefined;
}
