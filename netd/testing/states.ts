import { NetEndpoint, NetHost, NetNetwork, NetService, NetworkState } from "../../proto/gen/embassy/v1/dispatcher.ts";

/** A test's picture of the cluster, from which each host's network state is made. */
export class StateBuilder {
  revision = 0;
  readonly hosts = new Map<string, NetHost>();
  readonly networks = new Map<string, NetNetwork>();
  readonly services = new Map<string, NetService>();
  readonly endpoints = new Map<string, NetEndpoint>();

  host(id: string, underlayAddress: string): this {
    this.hosts.set(id, NetHost.fromPartial({ id, name: id, underlayAddress }));
    return this;
  }

  /** A /20 of 10.96.0.0/12 by its number, with the n-th /27 for the n-th host. */
  network(id: string, number: number, hosts: readonly string[], more: Partial<NetNetwork> = {}): this {
    const first = 96 + (number >> 4);
    const third = (number & 15) << 4;
    const blocks = hosts.map((nodeId, n) => ({ nodeId, cidr: `10.${first}.${third + (n >> 3)}.${(n & 7) * 32}/27` }));
    const network = {
      id,
      stack: "app",
      name: id,
      vni: 4096 + number,
      subnet: `10.${first}.${third}.0/20`,
      blocks,
      ...more,
    };
    this.networks.set(id, NetNetwork.fromPartial(network));
    return this;
  }

  service(id: string, vips: Readonly<Record<string, string>>, more: Partial<NetService> = {}): this {
    const networks = Object.entries(vips).map(([networkId, vip]) => ({ networkId, vip, aliases: [] }));
    this.services.set(id, NetService.fromPartial({ id, stack: "app", name: id, networks, ...more }));
    return this;
  }

  endpoint(
    taskId: string,
    serviceId: string,
    nodeId: string,
    addresses: Readonly<Record<string, string>>,
    more: Partial<NetEndpoint> = {},
  ): this {
    const list = Object.entries(addresses).map(([networkId, address]) => ({ networkId, address }));
    const endpoint = { taskId, serviceId, nodeId, slot: 1, ready: true, addresses: list, ...more };
    this.endpoints.set(taskId, NetEndpoint.fromPartial(endpoint));
    return this;
  }

  /** The whole state, for one host. */
  for(nodeId: string): NetworkState {
    return NetworkState.fromPartial({
      revision: ++this.revision,
      complete: true,
      nodeId,
      clusterId: "testcluster2",
      vipPool: "10.112.0.0/16",
      addressPools: ["10.96.0.0/12"],
      hosts: [...this.hosts.values()],
      networks: [...this.networks.values()],
      services: [...this.services.values()],
      endpoints: [...this.endpoints.values()],
    });
  }
}
