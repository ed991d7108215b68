import type { NetService } from "../../proto/gen/embassy/v1/dispatcher.ts";
import { Protocol, type PublishedPort } from "../../proto/gen/embassy/v1/stack.ts";
import { addressIn } from "../ambassador/service.ts";
import { slotsOf } from "../ambassador/slots.ts";
import { element, type Item } from "../plan/items.ts";
import type { Attachment, View } from "../plan/view.ts";
import { type Claim, claimOf } from "./claims.ts";

export const protocolName = (protocol: Protocol): string => (protocol === Protocol.PROTOCOL_UDP ? "udp" : "tcp");

/** What the service or the task of a unit publishes on this host, busy or not. Pure. */
export function claimsOf(view: View, unit: string): Claim[] {
  const [kind, id = ""] = unit.split(" ");
  if (kind === "service") return (view.cluster.services.get(id)?.ports ?? []).map(claimOf);
  if (kind === "attachment") return (view.attachments.get(id)?.hostPorts ?? []).map(claimOf);
  return [];
}

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
  return service.ports.flatMap((port) => planPort(view, port, backends, `service ${service.stack}_${service.name}`));
}

/** Ports that a task publishes on its own host only. Pure. */
export function planHostPorts(view: View, attachment: Attachment): Item[] {
  const address = attachment.addresses[0]?.address;
  if (address === undefined) return [];
  return attachment.hostPorts.flatMap((port) => planPort(view, port, [address], `task ${attachment.taskId}`));
}

function planPort(view: View, port: PublishedPort, backends: readonly string[], who: string): Item[] {
  const slots = slotsOf(backends);
  if (port.published === 0 || !view.mayPublish(claimOf(port))) return [];
  const anywhere = port.hostIp === "" || port.hostIp === "0.0.0.0";
  const key = [...(anywhere ? [] : [port.hostIp]), protocolName(port.protocol), port.published];
  const why = `${who}, port ${port.published}`;
  const set = anywhere ? "pub" : "pub_ip";
  // The socket that holds the port would take the connection, only to reset it.
  if (slots === undefined) return [element(set, key, "goto refuse", why)];
  return [
    element(set, key, slots.chooser, why),
    ...slots.slots.map(({ mark, backend }) =>
      element(anywhere ? "pub_be" : "pub_ip_be", [...key, mark], `${backend} . ${port.target}`, why),
    ),
  ];
}
