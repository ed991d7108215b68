import type { NetService } from "../../proto/gen/embassy/v1/dispatcher.ts";
import { planAmbassador } from "../ambassador/service.ts";
import { planBase } from "../overlay/base.ts";
import { planHosts } from "../overlay/host.ts";
import { planNetwork } from "../overlay/network.ts";
import { planAttachment } from "../policy/attachment.ts";
import { planIngress } from "../publish/ports.ts";
import type { Changes } from "../state/cluster.ts";
import type { Item } from "./items.ts";
import type { View } from "./view.ts";

/**
 * The desired state is made of units, each a pure function of the view: "base", "hosts", "network <id>", "service <id>"
 * and "attachment <task>". "hosts" stands for one unit a host.
 */
export function planUnit(view: View, unit: string): Map<string, readonly Item[]> {
  const space = unit.indexOf(" ");
  const kind = space < 0 ? unit : unit.slice(0, space);
  const id = unit.slice(space + 1);
  const one = (items: readonly Item[]) => new Map([[unit, items]]);
  switch (kind) {
    case "base":
      return one(planBase(view));
    case "hosts":
      return new Map([...planHosts(view)].map(([host, items]) => [`host ${host}`, items]));
    case "network": {
      const network = view.cluster.networks.get(id);
      return one(network === undefined ? [] : planNetwork(view, network));
    }
    case "service": {
      const service = view.cluster.services.get(id);
      return one(service === undefined ? [] : [...planAmbassador(view, service), ...planIngress(view, service)]);
    }
    case "attachment": {
      const attachment = view.attachments.get(id);
      return one(attachment === undefined ? [] : planAttachment(view, attachment));
    }
    default:
      return new Map();
  }
}

/** Every unit that there is. */
export function allUnits(view: View): Set<string> {
  const units = new Set(["base", "hosts"]);
  for (const id of view.cluster.networks.keys()) units.add(`network ${id}`);
  for (const id of view.cluster.services.keys()) units.add(`service ${id}`);
  for (const id of view.attachments.keys()) units.add(`attachment ${id}`);
  return units;
}

/** The networks over which a service publishes ports, as one text. */
function publishedOver(service: NetService | undefined): string {
  return service === undefined || service.ports.length === 0
    ? ""
    : service.networks.map(({ networkId }) => networkId).join();
}

/**
 * The units that a change of the network state may alter. Pure; reads the state after the change. Its size goes with what
 * changed and with what this host holds of it, not with the cluster.
 */
export function unitsTouchedBy(view: View, changes: Changes): Set<string> {
  const { cluster } = view;
  const everything = changes.settings || changes.hosts.has(cluster.settings.nodeId);
  const units = everything ? allUnits(view) : new Set<string>();
  const networks = new Set<string>();
  const attachmentsOf = new Set<string>();
  let publishing = false;

  for (const id of changes.hosts.keys()) {
    units.add("hosts");
    publishing = true;
    for (const networkId of cluster.networksOfHost(id)) units.add(`network ${networkId}`);
  }
  for (const id of changes.networks.keys()) {
    units.add(`network ${id}`);
    networks.add(id);
    for (const service of cluster.servicesOfNetwork(id)) units.add(`service ${service}`);
  }
  for (const [id, was] of changes.services) {
    const is = cluster.services.get(id);
    units.add(`service ${id}`);
    attachmentsOf.add(id);
    for (const consumer of cluster.consumersOf(id)) attachmentsOf.add(consumer);
    if (publishedOver(was) !== publishedOver(is)) {
      publishing = true;
      for (const { networkId } of [...(was?.networks ?? []), ...(is?.networks ?? [])])
        units.add(`network ${networkId}`);
    }
  }
  for (const [id, was] of changes.endpoints) {
    for (const serviceId of new Set([was?.serviceId, cluster.endpoints.get(id)?.serviceId])) {
      if (serviceId === undefined) continue;
      units.add(`service ${serviceId}`);
      for (const consumer of cluster.consumersOf(serviceId)) attachmentsOf.add(consumer);
    }
  }
  if (publishing || (networks.size > 0 && [...cluster.publishing].length > 0)) {
    units.add("base").add("hosts");
    // Every host is a peer in a network that serves a published port.
    for (const serviceId of cluster.publishing) {
      for (const { networkId } of cluster.services.get(serviceId)?.networks ?? []) units.add(`network ${networkId}`);
    }
  }
  for (const { taskId, serviceId, addresses } of view.attachments.values()) {
    if (attachmentsOf.has(serviceId) || addresses.some(({ networkId }) => networks.has(networkId))) {
      units.add(`attachment ${taskId}`);
    }
  }
  return units;
}
