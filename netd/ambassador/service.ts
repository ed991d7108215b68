import type { NetEndpoint, NetService } from "../../proto/gen/embassy/v1/dispatcher.ts";
import { EndpointMode } from "../../proto/gen/embassy/v1/stack.ts";
import { element, type Item } from "../plan/items.ts";
import { networkMark, type View } from "../plan/view.ts";
import { slotsOf } from "./slots.ts";

/**
 * The kernel ambassador of a service: on each of its networks its VIP, and the ready endpoints behind it. Pure. A VIP
 * without endpoints stays known, so that connections to it are refused at once and not sent anywhere.
 */
export function planAmbassador(view: View, service: NetService): Item[] {
  if (service.endpointMode === EndpointMode.ENDPOINT_MODE_DNSRR) return [];
  const { cluster } = view;
  const name = `${service.stack}_${service.name}`;
  const ready = cluster.endpointsOf(service.id).filter((endpoint) => endpoint.ready);
  const items: Item[] = [];
  for (const { networkId, vip } of service.networks) {
    const network = cluster.networks.get(networkId);
    if (network === undefined || vip === "") continue;
    items.push(element("vipnet", [vip], String(networkMark(network)), `service ${name}`));
    const backends = ready.map((endpoint) => addressIn(endpoint, networkId)).filter((address) => address !== undefined);
    const slots = slotsOf(backends);
    if (slots === undefined) continue;
    items.push(element("svc", [vip], slots.chooser, `service ${name}`));
    for (const { mark, backend } of slots.slots) {
      items.push(element("be", [vip, mark], backend, `service ${name}`));
    }
  }
  return items;
}

/** The endpoint's address on that network. */
export function addressIn(endpoint: NetEndpoint, networkId: string): string | undefined {
  return endpoint.addresses.find((address) => address.networkId === networkId)?.address;
}
