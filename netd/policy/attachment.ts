import { EndpointMode } from "../../proto/gen/embassy/v1/stack.ts";
import { addressIn } from "../ambassador/service.ts";
import { gatewayAddress } from "../kernel/ruleset.ts";
import { element, formatVeth, type Item } from "../plan/items.ts";
import {
  type Attachment,
  blockGateway,
  containerMac,
  defaultMtu,
  hostDevice,
  mtuOf,
  networkMark,
  type View,
} from "../plan/view.ts";
import { planHostPorts, protocolName } from "../publish/ports.ts";

/**
 * A task of this host: the way to it, and what it may do. Pure.
 *
 * A link is a capability: on an isolated network (icc false) an unlinked pair simply has no element. On an open network a
 * task is a member, and members reach each other's addresses and VIPs. All is enforced here, on the consumer's host.
 */
export function planAttachment(view: View, attachment: Attachment): Item[] {
  const first = attachment.addresses[0];
  if (first === undefined) return [];
  return [
    ...planWay(view, attachment, first.address),
    ...planRights(view, attachment),
    ...planHostPorts(view, attachment),
  ];
}

/** The MTU of a task's device: the smallest of its networks. */
export function attachmentMtu(view: View, attachment: Attachment): number {
  const mtus = attachment.addresses.map(({ networkId }) => view.cluster.networks.get(networkId));
  const known = mtus.filter((network) => network !== undefined).map((network) => mtuOf(view, network));
  // A network that is being removed may be gone before its tasks are.
  return known.length === 0 ? defaultMtu(view) : Math.min(...known);
}

function planWay(view: View, attachment: Attachment, firstAddress: string): Item[] {
  const device = hostDevice(attachment.taskId);
  const why = `task ${attachment.taskId}`;
  const mac = containerMac(firstAddress);
  const items: Item[] = [
    { kind: "link", key: device, value: formatVeth({ mtu: attachmentMtu(view, attachment) }), why },
    { kind: "sysctl", key: `net/ipv4/conf/${device}/route_localnet`, value: "1", why: "ports published on 127.0.0.1" },
  ];
  for (const { networkId, address } of attachment.addresses) {
    const block = view.cluster.ownBlocks(networkId)[0];
    const source = block === undefined ? "" : ` src ${blockGateway(block)}`;
    items.push(
      { kind: "neighbour", key: `${address} ${device}`, value: mac, why },
      { kind: "route", key: `main ${address}/32`, value: `dev ${device}${source}`, why },
      element("eps", [device, address], "", why),
    );
  }
  return items;
}

function planRights(view: View, attachment: Attachment): Item[] {
  const { cluster } = view;
  const items: Item[] = [];
  const task = `task ${attachment.taskId}`;
  // Any of a task's addresses speaks for the task: its connections to VIPs come from the first, whatever the network.
  const addresses = attachment.addresses.map(({ address }) => address);
  const networks = attachment.addresses
    .map(({ networkId }) => cluster.networks.get(networkId))
    .filter((network) => network !== undefined);

  for (const network of networks) {
    if (network.isolated) continue;
    const why = `${task}, member of network ${network.stack}_${network.name}`;
    for (const address of addresses) items.push(element("members", [address, networkMark(network)], "", why));
  }
  if (networks.some(({ internal }) => !internal)) {
    for (const address of addresses)
      items.push(element("outbound", [address], "", `${task}, not on internal networks only`));
  }
  for (const from of addresses) {
    for (const to of addresses) {
      // Answering itself directly, a task would not know the connection: the reply has to come back here.
      items.push(element("hairpin", [from, to], gatewayAddress, `${task} to itself`));
    }
  }
  for (const { networkId, address } of attachment.addresses) {
    const network = cluster.networks.get(networkId);
    if (network === undefined) continue;
    for (const from of addresses) {
      if (from === address) continue;
      items.push(
        element("resource", [from, networkMark(network)], address, `${task} in ${network.stack}_${network.name}`),
      );
    }
  }
  for (const link of cluster.services.get(attachment.serviceId)?.links ?? []) {
    const provider = cluster.services.get(link.serviceId);
    if (provider === undefined) continue;
    const why = `${task}, linked to ${provider.stack}_${provider.name}`;
    for (const { networkId, vip } of provider.networks) {
      const network = networks.find(({ id }) => id === networkId);
      if (!network?.isolated) continue;
      const direct = provider.endpointMode === EndpointMode.ENDPOINT_MODE_DNSRR;
      const targets = direct
        ? cluster.endpointsOf(provider.id).map((endpoint) => addressIn(endpoint, networkId))
        : [vip];
      for (const target of targets) {
        if (target === undefined || target === "") continue;
        for (const { port, protocol } of provider.exposed) {
          for (const address of addresses) {
            const key = [address, target, protocolName(protocol), port];
            items.push(element(direct ? "allow" : "links", key, "", why));
          }
        }
      }
    }
  }
  return items;
}
