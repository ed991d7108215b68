import {
  NetEndpoint,
  NetHost,
  NetNetwork,
  NetService,
  type NetworkState,
} from "../../../proto/gen/embassy/v1/dispatcher.ts";
import type { ClusterIndex } from "../index.ts";
import { endpointItem, hostItem, networkItem, networksOfNode, serviceItem } from "./items.ts";
import { emptyTouched, type ItemKind, itemKinds, type Touched, touchNetwork } from "./touched.ts";

/** What is the same in every network state of the cluster. */
export interface NetworkSettings {
  readonly clusterId: string;
  /** CIDR. */
  readonly vipPool: string;
  /** CIDRs that every subnet given by the cluster lies in. */
  readonly addressPools: readonly string[];
}

interface ItemTypes {
  hosts: NetHost;
  networks: NetNetwork;
  services: NetService;
  endpoints: NetEndpoint;
}
type ItemsOf = { [K in ItemKind]: ItemTypes[K][] };

const compute: {
  [K in ItemKind]: (
    index: ClusterIndex,
    receiver: string,
    networks: ReadonlySet<string>,
    id: string,
  ) => ItemTypes[K] | undefined;
} = { hosts: hostItem, networks: networkItem, services: serviceItem, endpoints: endpointItem };

const codecs: { [K in ItemKind]: { encode(item: ItemTypes[K]): { finish(): Uint8Array } } } = {
  hosts: NetHost,
  networks: NetNetwork,
  services: NetService,
  endpoints: NetEndpoint,
};

/**
 * What one host has been told, so that a change costs what it alters for this host. `complete` and `delta` return what to
 * send; a host that applied everything returned so far holds exactly `networkStateFor` of the view's revision.
 */
export class NetworkStateTracker {
  readonly #index: ClusterIndex;
  readonly #nodeId: string;
  readonly #settings: NetworkSettings;
  #networks: ReadonlySet<string> = new Set();
  // Encoded items by id: equal bytes, nothing to say.
  readonly #told: { readonly [K in ItemKind]: Map<string, string> } = {
    hosts: new Map(),
    networks: new Map(),
    services: new Map(),
    endpoints: new Map(),
  };

  constructor(index: ClusterIndex, nodeId: string, settings: NetworkSettings) {
    this.#index = index;
    this.#nodeId = nodeId;
    this.#settings = settings;
  }

  /** Everything, as the first message of a stream. */
  complete(): NetworkState {
    for (const kind of itemKinds) this.#told[kind].clear();
    this.#networks = networksOfNode(this.#index, this.#nodeId);
    const { items } = emptyTouched();
    items.hosts.add(this.#nodeId);
    for (const networkId of this.#networks) touchNetwork(this.#index, networkId, items);
    return this.#state(items, true);
  }

  /** The change since what was returned before; undefined when this host need not know. */
  delta(touched: Touched): NetworkState | undefined {
    let { items } = touched;
    if (touched.members.has(this.#nodeId)) {
      const networks = networksOfNode(this.#index, this.#nodeId);
      const before = this.#networks;
      const changed = [
        ...[...networks].filter((id) => !before.has(id)),
        ...[...before].filter((id) => !networks.has(id)),
      ];
      this.#networks = networks;
      if (changed.length > 0) {
        items = {
          hosts: new Set(items.hosts),
          networks: new Set(items.networks),
          services: new Set(items.services),
          endpoints: new Set(items.endpoints),
        };
        for (const networkId of changed) touchNetwork(this.#index, networkId, items);
      }
    }
    const state = this.#state(items, false);
    return isEmpty(state) ? undefined : state;
  }

  /** Does the host have the task among its endpoints, as far as it has been told? */
  knowsEndpoint(taskId: string): boolean {
    return this.#told.endpoints.has(taskId);
  }

  #state(touched: Touched["items"], complete: boolean): NetworkState {
    const set: ItemsOf = { hosts: [], networks: [], services: [], endpoints: [] };
    const removed: { [K in ItemKind]: string[] } = { hosts: [], networks: [], services: [], endpoints: [] };
    for (const kind of itemKinds) this.#compare(kind, touched[kind], set[kind], removed[kind]);
    return {
      revision: this.#index.view.revision,
      complete,
      ...set,
      removed,
      vipPool: this.#settings.vipPool,
      nodeId: this.#nodeId,
      clusterId: this.#settings.clusterId,
      addressPools: [...this.#settings.addressPools],
    };
  }

  #compare<K extends ItemKind>(kind: K, ids: Iterable<string>, set: ItemTypes[K][], removed: string[]): void {
    const told = this.#told[kind];
    for (const id of [...ids].sort()) {
      const item = compute[kind](this.#index, this.#nodeId, this.#networks, id);
      if (item === undefined) {
        if (told.delete(id)) removed.push(id);
        continue;
      }
      const encoded = Buffer.from(codecs[kind].encode(item).finish()).toString("latin1");
      if (told.get(id) === encoded) continue;
      told.set(id, encoded);
      set.push(item);
    }
  }
}

function isEmpty({ hosts, networks, services, endpoints, removed }: NetworkState): boolean {
  return [
    hosts,
    networks,
    services,
    endpoints,
    removed?.hosts,
    removed?.networks,
    removed?.services,
    removed?.endpoints,
  ].every((list) => (list?.length ?? 0) === 0);
}

/** The complete network state of one node at the view's revision. */
export function networkStateFor(index: ClusterIndex, nodeId: string, settings: NetworkSettings): NetworkState {
  return new NetworkStateTracker(index, nodeId, settings).complete();
}
