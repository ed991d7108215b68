import { formatAddress, nthAddress, parseAddress, parseCidr } from "../../lib/cidr/cidr.ts";
import type { NetHost, NetNetwork } from "../../proto/gen/embassy/v1/dispatcher.ts";
import type { PublishedPort } from "../../proto/gen/embassy/v1/stack.ts";
import type { TaskAddress } from "../../proto/gen/embassy/v1/state.ts";
import { networkMarkBase, returnMarkBase } from "../kernel/ruleset.ts";
import type { Claim } from "../publish/claims.ts";
import type { ClusterState } from "../state/cluster.ts";

/** A task of this host and what it has been given. */
export interface Attachment {
  readonly taskId: string;
  readonly serviceId: string;
  readonly slot: number;
  /** In the order in which the task's networks were asked for: the first is where its connections come from. */
  readonly addresses: readonly TaskAddress[];
  readonly hostPorts: readonly PublishedPort[];
  /** Path that pins the network namespace. */
  readonly netns: string;
  /** Resolvers that its names from outside the cluster are asked of; empty: the host's. */
  readonly resolvers: readonly string[];
}

/** What planners see: the network state, and what is known of this host alone. */
export interface View {
  readonly cluster: ClusterState;
  readonly attachments: ReadonlyMap<string, Attachment>;
  /** Of the device that has this host's underlay address. */
  readonly underlayMtu: number;
  /** Is the port claimed, and not a program's of the host? */
  readonly mayPublish: (claim: Claim) => boolean;
}

/** Bytes that VXLAN over IPv4 adds to a packet. */
const vxlanOverhead = 50;

export const overlayDevice = (network: { readonly vni: number }): string => `emb${network.vni}`;
export const hostDevice = (taskId: string): string => `ev${taskId.slice(0, 11)}`;

export const networkMark = (network: { readonly vni: number }): number => networkMarkBase + network.vni;

/** Of a network that names none. */
export const defaultMtu = (view: View): number => view.underlayMtu - vxlanOverhead;

export const mtuOf = (view: View, network: NetNetwork): number => (network.mtu === 0 ? defaultMtu(view) : network.mtu);

function macOf(prefix: string, address: string): string {
  const bytes = address.split(".").map((byte) => Number(byte).toString(16).padStart(2, "0"));
  return `${prefix}:${bytes.join(":")}`;
}

/** The address of a host's VXLAN devices, known to every other host without being told. */
export const vtepMac = (underlayAddress: string): string => macOf("02:76", underlayAddress);

/** The container's own, from its first address: unique in the cluster, as programs that make ids of it expect. */
export const containerMac = (address: string): string => macOf("02:65", address);

/** The address that this host has in a block of its own. */
export const blockGateway = (cidr: string): string => formatAddress(nthAddress(parseCidr(cidr), 1));

/** Services that this host publishes and the networks that it does so over, by VNI. Their first serves all replies. */
export function ingressNetworks(cluster: ClusterState): NetNetwork[] {
  const networks = new Set<NetNetwork>();
  for (const serviceId of cluster.publishing) {
    for (const { networkId } of cluster.services.get(serviceId)?.networks ?? []) {
      const network = cluster.networks.get(networkId);
      if (network !== undefined) networks.add(network);
    }
  }
  return [...networks].sort((a, b) => a.vni - b.vni);
}

/**
 * The mark, and routing table, of replies that go back by that host: from the low 24 bits of its underlay address, so
 * that it outlives changes of the list of hosts; of hosts that would share one, the higher address takes the next free.
 */
export function returnMarks(hosts: Iterable<NetHost>): Map<string, number> {
  const marks = new Map<string, number>();
  const taken = new Set<number>();
  const sorted = [...hosts].map((host) => ({ id: host.id, address: parseAddress(host.underlayAddress) }));
  sorted.sort((a, b) => a.address - b.address || (a.id < b.id ? -1 : 1));
  for (const { id, address } of sorted) {
    let low = address % 0x1000000;
    while (taken.has(low)) low = (low + 1) % 0x1000000;
    taken.add(low);
    marks.set(id, returnMarkBase + low);
  }
  return marks;
}
