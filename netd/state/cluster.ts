import type {
  NetEndpoint,
  NetHost,
  NetNetwork,
  NetService,
  NetworkState,
} from "../../proto/gen/embassy/v1/dispatcher.ts";

/** What one message changed, by id, with what was there before. */
export interface Changes {
  /** Something that everything depends on changed: pools, or who this host is. */
  readonly settings: boolean;
  readonly hosts: ReadonlyMap<string, NetHost | undefined>;
  readonly networks: ReadonlyMap<string, NetNetwork | undefined>;
  readonly services: ReadonlyMap<string, NetService | undefined>;
  readonly endpoints: ReadonlyMap<string, NetEndpoint | undefined>;
}

export interface ClusterSettings {
  readonly nodeId: string;
  readonly clusterId: string;
  /** CIDR. */
  readonly vipPool: string;
  /** CIDRs that every subnet lies in. */
  readonly addressPools: readonly string[];
}

const noSettings: ClusterSettings = { nodeId: "", clusterId: "", vipPool: "", addressPools: [] };

/**
 * The network state as this host was told of it: tables by id, and the indexes that keep the cost of a change apart from
 * the size of the cluster. Snapshots and deltas take one path: a snapshot is a delta that also removes what it lacks.
 */
export class ClusterState {
  settings: ClusterSettings = noSettings;
  /** 0 before the first message. */
  revision = 0;
  readonly hosts = new Map<string, NetHost>();
  readonly networks = new Map<string, NetNetwork>();
  readonly services = new Map<string, NetService>();
  readonly endpoints = new Map<string, NetEndpoint>();
  readonly #endpointsOfService = new Map<string, Set<string>>();
  readonly #servicesOfNetwork = new Map<string, Set<string>>();
  readonly #consumersOfService = new Map<string, Set<string>>();
  readonly #networksOfHost = new Map<string, Set<string>>();
  /** Services that are published on every host. */
  readonly #publishing = new Set<string>();

  /** Takes a message in. Resolves to what it changed; an entry that is equal to the one known is no change. */
  apply(message: NetworkState): Changes {
    const { complete, removed } = message;
    const settings: ClusterSettings = {
      nodeId: message.nodeId || this.settings.nodeId,
      clusterId: message.clusterId || this.settings.clusterId,
      vipPool: message.vipPool || this.settings.vipPool,
      addressPools: message.addressPools.length > 0 ? message.addressPools : this.settings.addressPools,
    };
    const settingsChanged = !same(settings, this.settings);
    this.settings = settings;
    this.revision = message.revision;
    return {
      settings: settingsChanged,
      hosts: merge(this.hosts, message.hosts, idOf, complete, removed?.hosts ?? []),
      networks: merge(this.networks, message.networks, idOf, complete, removed?.networks ?? [], (id, was, is) => {
        for (const { nodeId } of was?.blocks ?? []) unlink(this.#networksOfHost, nodeId, id);
        for (const { nodeId } of is?.blocks ?? []) link(this.#networksOfHost, nodeId, id);
      }),
      services: merge(this.services, message.services, idOf, complete, removed?.services ?? [], (id, was, is) => {
        for (const { networkId } of was?.networks ?? []) unlink(this.#servicesOfNetwork, networkId, id);
        for (const { networkId } of is?.networks ?? []) link(this.#servicesOfNetwork, networkId, id);
        for (const { serviceId } of was?.links ?? []) unlink(this.#consumersOfService, serviceId, id);
        for (const { serviceId } of is?.links ?? []) link(this.#consumersOfService, serviceId, id);
        if (is !== undefined && is.ports.length > 0) this.#publishing.add(id);
        else this.#publishing.delete(id);
      }),
      endpoints: merge(
        this.endpoints,
        message.endpoints,
        ({ taskId }) => taskId,
        complete,
        removed?.endpoints ?? [],
        (id, was, is) => {
          if (was !== undefined) unlink(this.#endpointsOfService, was.serviceId, id);
          if (is !== undefined) link(this.#endpointsOfService, is.serviceId, id);
        },
      ),
    };
  }

  /** All of it as one complete message, entries by id. */
  snapshot(): NetworkState {
    const { nodeId, clusterId, vipPool, addressPools } = this.settings;
    return {
      revision: this.revision,
      complete: true,
      hosts: byId([...this.hosts.values()], idOf),
      networks: byId([...this.networks.values()], idOf),
      services: byId([...this.services.values()], idOf),
      endpoints: byId([...this.endpoints.values()], ({ taskId }) => taskId),
      removed: undefined,
      vipPool,
      nodeId,
      clusterId,
      addressPools: [...addressPools],
    };
  }

  /** This host, once the control plane has told of it. */
  get self(): NetHost | undefined {
    return this.hosts.get(this.settings.nodeId);
  }

  /** The service's endpoints, by slot, then task id. */
  endpointsOf(serviceId: string): NetEndpoint[] {
    const endpoints: NetEndpoint[] = [];
    for (const taskId of this.#endpointsOfService.get(serviceId) ?? []) {
      const endpoint = this.endpoints.get(taskId);
      if (endpoint !== undefined) endpoints.push(endpoint);
    }
    return endpoints.sort((a, b) => a.slot - b.slot || (a.taskId < b.taskId ? -1 : 1));
  }

  servicesOfNetwork(networkId: string): Iterable<string> {
    return this.#servicesOfNetwork.get(networkId) ?? [];
  }

  /** Services that link the service. */
  consumersOf(serviceId: string): Iterable<string> {
    return this.#consumersOfService.get(serviceId) ?? [];
  }

  /** Networks in which the host owns a block. */
  networksOfHost(nodeId: string): Iterable<string> {
    return this.#networksOfHost.get(nodeId) ?? [];
  }

  get publishing(): Iterable<string> {
    return this.#publishing;
  }

  /** CIDRs of the blocks that this host owns in the network, as the control plane orders them. */
  ownBlocks(networkId: string): string[] {
    const blocks = this.networks.get(networkId)?.blocks ?? [];
    return blocks.filter(({ nodeId }) => nodeId === this.settings.nodeId).map(({ cidr }) => cidr);
  }
}

const idOf = ({ id }: { readonly id: string }) => id;

function byId<T>(entries: T[], id: (entry: T) => string): T[] {
  return entries.sort((a, b) => (id(a) < id(b) ? -1 : 1));
}

// Entries are plain data made by one decoder, so that equal ones have equal text.
function same(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

function link(index: Map<string, Set<string>>, key: string, id: string): void {
  const ids = index.get(key);
  if (ids === undefined) index.set(key, new Set([id]));
  else ids.add(id);
}

function unlink(index: Map<string, Set<string>>, key: string, id: string): void {
  const ids = index.get(key);
  ids?.delete(id);
  if (ids?.size === 0) index.delete(key);
}

function merge<T>(
  table: Map<string, T>,
  set: readonly T[],
  id: (entry: T) => string,
  complete: boolean,
  removed: readonly string[],
  reindex: (id: string, was: T | undefined, is: T | undefined) => void = () => {},
): Map<string, T | undefined> {
  const changes = new Map<string, T | undefined>();
  const gone = new Set(removed);
  if (complete) {
    for (const key of table.keys()) gone.add(key);
    for (const entry of set) gone.delete(id(entry));
  }
  for (const key of gone) {
    const was = table.get(key);
    if (was === undefined) continue;
    table.delete(key);
    reindex(key, was, undefined);
    changes.set(key, was);
  }
  for (const entry of set) {
    const key = id(entry);
    const was = table.get(key);
    if (was !== undefined && same(was, entry)) continue;
    table.set(key, entry);
    reindex(key, was, entry);
    changes.set(key, was);
  }
  return changes;
}
