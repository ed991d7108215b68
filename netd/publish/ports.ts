import type { NetService } from "../../proto/gen/embassy/v1/dispatcher.ts";
import { Protocol, type PublishedPort } from "../../proto/gen/embassy/v1/stack.ts";
import { addressIn } from "../ambassador/service.ts";
import { slotsOf } from "../ambassador/slots.ts";
import { element, type Item } from "../plan/items.ts";
import type { Attachment, View } from "../plan/view.ts";

export const protocolName = (protocol: Protocol): string => (protocol === Protocol.PROTOCOL_UDP ? "udp" : "tcp");

/** Ports that a service publishes on every host, each leading to its ready endpoints wherever they are. Pure. */
export function planIngress(view: View, service: NetService): Item[] {
  const backends: string[] = [];
  for (const endpoint of view.cluster.endpointsOf(service.id)) {
    if (!endpoint.ready) continue;
    // The first network of the service: the one that the endpoint answers from.
    for (const { networkId } of service.networks) {
      const address = addressIn(endpoint, networkId);
      if (address === undefined) continue;
      backends.push(address);
      break;
    }
  }
  return service.ports.flatMap((port) => planPort(port, backends, `service ${service.stack}_${service.name}`));
}

/** Ports that a task publishes on its own host only. Pure. */
export function planHostPorts(attachment: Attachment): Item[] {
  const address = attachment.addresses[0]?.address;
  if (address === undefined) return [];
  return attachment.hostPorts.flatMap((port) => planPort(port, [address], `task ${attachment.taskId}`));
}

function planPort(port: PublishedPort, backends: readonly string[], who: string): Item[] {
  const slots = slotsOf(backends);
  if (slots === undefined || port.published === 0) return [];
  const anywhere = port.hostIp === "" || port.hostIp === "0.0.0.0";
  const key = [...(anywhere ? [] : [port.hostIp]), protocolName(port.protocol), port.published];
  const why = `${who}, port ${port.published}`;
  return [
    element(anywhere ? "pub" : "pub_ip", key, slots.chooser, why),
    ...slots.slots.map(({ mark, backend }) =>
      element(anywhere ? "pub_be" : "pub_ip_be", [...key, mark], `${backend} . ${port.target}`, why),
    ),
  ];
}
