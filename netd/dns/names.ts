import type { NetEndpoint, NetService } from "../../proto/gen/embassy/v1/dispatcher.ts";
import { EndpointMode, Protocol } from "../../proto/gen/embassy/v1/stack.ts";
import type { ClusterState } from "../state/cluster.ts";

/** A task that asks: what it is attached to decides what it sees. */
export interface Asker {
  readonly serviceId: string;
  /** The first is the default route; of two networks with one name in them, the first answers. */
  readonly networkIds: readonly string[];
  /** Whom to ask what is none of the cluster's; empty: the host's resolvers. */
  readonly resolvers: readonly string[];
}

export interface ServiceRecord {
  readonly target: string;
  readonly port: number;
}

/** What a name comes to. `elsewhere`: it is none of the cluster's. An empty list: the name exists, without such a record. */
export type Resolution =
  | { readonly kind: "addresses"; readonly addresses: readonly string[]; readonly rotate: boolean }
  | { readonly kind: "pointer"; readonly name: string }
  | { readonly kind: "services"; readonly records: readonly ServiceRecord[] }
  | { readonly kind: "missing" }
  | { readonly kind: "elsewhere" };

const missing: Resolution = { kind: "missing" };
const elsewhere: Resolution = { kind: "elsewhere" };

/** A service as one asker sees it: on the network that both are on. */
interface Seen {
  readonly service: NetService;
  readonly networkId: string;
  readonly vip: string;
}

/**
 * The names that tasks see. Pure over the network state it is given: services, aliases of their networks and, for who
 * linked, aliases of links; `tasks.<name>`, `<slot>.<name>`, each also with `.<stack>`; PTR for VIPs and tasks; SRV for
 * named ports. What is kept is thrown away by `changed()`.
 */
export class Names {
  readonly #state: ClusterState;
  /** Network -> name -> ids of the services that have it there. */
  #byNetwork = new Map<string, Map<string, string[]>>();
  #stacks: Set<string> | undefined;
  #owners: Map<string, string> | undefined;

  constructor(state: ClusterState) {
    this.#state = state;
  }

  /** The state has changed: answers may be others from now on. */
  changed(): void {
    this.#byNetwork = new Map();
    this.#stacks = undefined;
    this.#owners = undefined;
  }

  /** Addresses of a name in lower case, without the last dot. */
  addresses(name: string, asker: Asker): Resolution {
    const direct = this.#find(name, asker);
    if (direct !== undefined) {
      const { service, networkId, vip } = direct;
      if (service.endpointMode === EndpointMode.ENDPOINT_MODE_DNSRR) {
        return { kind: "addresses", addresses: this.#ready(service.id, networkId), rotate: true };
      }
      return { kind: "addresses", addresses: vip === "" ? [] : [vip], rotate: false };
    }
    const dot = name.indexOf(".");
    if (dot === -1) return missing;
    const first = name.slice(0, dot);
    const seen = this.#find(name.slice(dot + 1), asker);
    if (seen !== undefined && first === "tasks") {
      return { kind: "addresses", addresses: this.#ready(seen.service.id, seen.networkId), rotate: true };
    }
    if (seen !== undefined && /^[1-9][0-9]{0,9}$/.test(first)) {
      const endpoints = this.#state.endpointsOf(seen.service.id).filter(({ slot }) => slot === Number(first));
      const addresses = endpoints.map((endpoint) => addressOn(endpoint, seen.networkId)).filter((a) => a !== undefined);
      return addresses.length === 0 ? missing : { kind: "addresses", addresses, rotate: false };
    }
    // Of a stack's own namespace, and unknown there: no resolver elsewhere knows better.
    return seen !== undefined || this.#isStack(name.slice(name.lastIndexOf(".") + 1)) ? missing : elsewhere;
  }

  /** The name of an address, if the asker shares a network with whose it is. */
  pointer(address: string, asker: Asker): Resolution {
    const owner = this.#owner(address);
    if (owner === undefined) return elsewhere;
    const endpoint = this.#state.endpoints.get(owner);
    const service = this.#state.services.get(endpoint?.serviceId ?? owner);
    const shared = service?.networks.some(({ networkId }) => asker.networkIds.includes(networkId)) ?? false;
    if (service === undefined || !shared) return missing;
    const slot = endpoint === undefined || endpoint.slot === 0 ? "" : `${endpoint.slot}.`;
    return { kind: "pointer", name: `${slot}${service.name}.${service.stack}` };
  }

  /** `_<port name>._<protocol>.<service>`: where each of its tasks has that port. */
  services(name: string, asker: Asker): Resolution {
    const match = /^_([^.]+)\._(tcp|udp)\.(.+)$/.exec(name);
    if (match === null)
      return this.addresses(name, asker).kind === "addresses" ? { kind: "services", records: [] } : elsewhere;
    const [, portName, protocol, serviceName = ""] = match;
    const seen = this.#find(serviceName, asker);
    if (seen === undefined) return elsewhere;
    const wanted = protocol === "udp" ? Protocol.PROTOCOL_UDP : Protocol.PROTOCOL_TCP;
    const port = seen.service.ports.find((one) => one.name.toLowerCase() === portName && one.protocol === wanted);
    if (port === undefined) return missing;
    const full = `${seen.service.name}.${seen.service.stack}`;
    const endpoints = this.#state.endpointsOf(seen.service.id).filter(({ ready, slot }) => ready && slot > 0);
    return {
      kind: "services",
      records: endpoints.map(({ slot }) => ({ target: `${slot}.${full}`, port: port.target })),
    };
  }

  /** The service that a name means to the asker: link alias first, then its own stack's, then what else is on its networks. */
  #find(name: string, asker: Asker): Seen | undefined {
    const own = this.#state.services.get(asker.serviceId);
    for (const link of own?.links ?? []) {
      if (link.alias.toLowerCase() !== name) continue;
      const seen = this.#seen(link.serviceId, asker);
      if (seen !== undefined) return seen;
    }
    for (const networkId of asker.networkIds) {
      const ids = this.#namesOf(networkId).get(name) ?? [];
      const candidates = ids.map((id) => this.#state.services.get(id)).filter((service) => service !== undefined);
      const chosen = candidates.find((service) => service.stack === own?.stack) ?? candidates[0];
      if (chosen !== undefined) return on(chosen, networkId);
    }
    return undefined;
  }

  #seen(serviceId: string, asker: Asker): Seen | undefined {
    const service = this.#state.services.get(serviceId);
    if (service === undefined) return undefined;
    const networkId = asker.networkIds.find((id) => service.networks.some((network) => network.networkId === id));
    return networkId === undefined ? undefined : on(service, networkId);
  }

  #namesOf(networkId: string): Map<string, string[]> {
    const known = this.#byNetwork.get(networkId);
    if (known !== undefined) return known;
    const names = new Map<string, string[]>();
    for (const id of [...this.#state.servicesOfNetwork(networkId)].sort()) {
      const service = this.#state.services.get(id);
      if (service === undefined) continue;
      const aliases = service.networks.find((network) => network.networkId === networkId)?.aliases ?? [];
      for (const name of new Set(
        [service.name, `${service.name}.${service.stack}`, ...aliases].map((n) => n.toLowerCase()),
      )) {
        const ids = names.get(name);
        if (ids === undefined) names.set(name, [id]);
        else ids.push(id);
      }
    }
    this.#byNetwork.set(networkId, names);
    return names;
  }

  #ready(serviceId: string, networkId: string): string[] {
    return this.#state
      .endpointsOf(serviceId)
      .filter(({ ready }) => ready)
      .map((endpoint) => addressOn(endpoint, networkId))
      .filter((address) => address !== undefined);
  }

  #isStack(name: string): boolean {
    this.#stacks ??= new Set([...this.#state.services.values()].map(({ stack }) => stack.toLowerCase()));
    return this.#stacks.has(name);
  }

  /** Id of the task or service that has the address. */
  #owner(address: string): string | undefined {
    if (this.#owners === undefined) {
      this.#owners = new Map();
      for (const service of this.#state.services.values()) {
        for (const { vip } of service.networks) if (vip !== "") this.#owners.set(vip, service.id);
      }
      for (const endpoint of this.#state.endpoints.values()) {
        for (const one of endpoint.addresses) this.#owners.set(one.address, endpoint.taskId);
      }
    }
    return this.#owners.get(address);
  }
}

function on(service: NetService, networkId: string): Seen {
  const vip = service.networks.find((network) => network.networkId === networkId)?.vip ?? "";
  return { service, networkId, vip };
}

function addressOn(endpoint: NetEndpoint, networkId: string): string | undefined {
  return endpoint.addresses.find((one) => one.networkId === networkId)?.address;
}
