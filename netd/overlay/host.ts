import { element, type Item } from "../plan/items.ts";
import { ingressNetworks, overlayDevice, returnMarks, type View, vtepMac } from "../plan/view.ts";
import { returnPriority } from "./base.ts";

/**
 * What this host has to know of every host of the cluster, by host id: who may send VXLAN, and, while something is
 * published, the way back to the host that a client came in by. Pure.
 */
export function planHosts(view: View): Map<string, Item[]> {
  const { cluster } = view;
  const plans = new Map<string, Item[]>();
  const marks = returnMarks(cluster.hosts.values());
  const way = ingressNetworks(cluster)[0];
  for (const host of cluster.hosts.values()) {
    const items = [element("hosts", [host.underlayAddress], "", `host ${host.name}`)];
    plans.set(host.id, items);
    const mark = marks.get(host.id);
    if (way === undefined || cluster.self === undefined || mark === undefined || host.id === cluster.settings.nodeId)
      continue;
    const device = overlayDevice(way);
    const why = `replies to clients that came in by ${host.name}`;
    items.push(
      element("vteps", [vtepMac(host.underlayAddress)], String(mark), why),
      { kind: "route", key: `${mark} default`, value: `via ${host.underlayAddress} dev ${device} onlink`, why },
      { kind: "rule", key: `${returnPriority} fwmark 0x${mark.toString(16)}`, value: `lookup ${mark}`, why },
    );
  }
  return plans;
}
