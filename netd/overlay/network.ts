import type { NetHost, NetNetwork } from "../../proto/gen/embassy/v1/dispatcher.ts";
import { element, formatVxlan, type Item } from "../plan/items.ts";
import { blockGateway, mtuOf, networkMark, overlayDevice, type View, vtepMac } from "../plan/view.ts";

/**
 * A network on this host: its device, this host's blocks, and for every host that takes part one forwarding entry, one
 * neighbour and one route a block, whatever the number of endpoints. Pure. Empty while this host's own underlay address
 * is not known.
 *
 * A remote host's next hop is its underlay address, which is a neighbour on the VXLAN device too: a host needs no block
 * of a network to be reached in it.
 */
export function planNetwork(view: View, network: NetNetwork): Item[] {
  const { cluster } = view;
  const { self } = cluster;
  if (self === undefined) return [];
  const name = `${network.stack}_${network.name}`;
  const device = overlayDevice(network);
  const own = cluster.ownBlocks(network.id);
  const source = own[0] === undefined ? self.underlayAddress : blockGateway(own[0]);
  const local = self.underlayAddress;
  const items: Item[] = [
    {
      kind: "link",
      key: device,
      value: formatVxlan({ vni: network.vni, local, mtu: mtuOf(view, network), mac: vtepMac(local) }),
      why: `network ${name}`,
    },
    // Replies to what this host's own processes sent from 127.0.0.1 come in here.
    { kind: "sysctl", key: `net/ipv4/conf/${device}/route_localnet`, value: "1", why: "ports published on 127.0.0.1" },
    element("subnets", [network.subnet], String(networkMark(network)), `network ${name}`),
    element("netdevs", [device, networkMark(network)], "", `network ${name}`),
  ];
  for (const cidr of own) {
    const why = `this host's block of network ${name}`;
    items.push({ kind: "address", key: `${blockGateway(cidr)}/32 ${device}`, value: "global", why });
    // An address without a task: no loop by the default route.
    items.push({ kind: "route", key: `main ${cidr}`, value: "blackhole", why });
  }
  for (const host of peers(view, network)) {
    const why = `host ${host.name} in network ${name}`;
    const mac = vtepMac(host.underlayAddress);
    items.push({ kind: "fdb", key: `${mac} ${device}`, value: host.underlayAddress, why });
    items.push({ kind: "neighbour", key: `${host.underlayAddress} ${device}`, value: mac, why });
  }
  for (const { cidr, nodeId } of network.blocks) {
    const host = cluster.hosts.get(nodeId);
    if (host === undefined || nodeId === self.id) continue;
    items.push({
      kind: "route",
      key: `main ${cidr}`,
      value: `via ${host.underlayAddress} dev ${device} onlink src ${source}`,
      why: `block of host ${host.name} in network ${name}`,
    });
  }
  return items;
}

/** Other hosts that may send or receive in the network: who has a block, and every host while it serves a published port. */
function peers(view: View, network: NetNetwork): Iterable<NetHost> {
  const { cluster } = view;
  const ids = new Set(network.blocks.map(({ nodeId }) => nodeId));
  const published = [...cluster.servicesOfNetwork(network.id)].some(
    (id) => (cluster.services.get(id)?.ports.length ?? 0) > 0,
  );
  if (published) for (const id of cluster.hosts.keys()) ids.add(id);
  ids.delete(cluster.settings.nodeId);
  return [...ids].map((id) => cluster.hosts.get(id)).filter((host) => host !== undefined);
}
