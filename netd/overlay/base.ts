import { gatewayAddress, returnMarkBase } from "../kernel/ruleset.ts";
import { element, type Item } from "../plan/items.ts";
import { ingressNetworks, type View } from "../plan/view.ts";

// Priorities of the routing rules; replies of published connections have one rule a host between the two.
const skipPriority = 7600;
export const returnPriority = 7601;
const lostPriority = 7602;
const anyReturn = `fwmark 0x${returnMarkBase.toString(16)}/0xff000000`;

const sysctls: readonly (readonly [string, string, string])[] = [
  ["net/ipv4/ip_forward", "1", "containers are reached by routing"],
  ["net/ipv4/conf/all/rp_filter", "0", "clients of published ports come in by VXLAN"],
  ["net/ipv4/conf/default/rp_filter", "0", "clients of published ports come in by VXLAN"],
  ["net/ipv4/conf/all/send_redirects", "0", "two containers of one host are not neighbours"],
  ["net/ipv4/conf/default/send_redirects", "0", "two containers of one host are not neighbours"],
  // Connections to one backend, direct and through its VIP, share the backend's port space: 28,000 for this long.
  ["net/netfilter/nf_conntrack_tcp_timeout_time_wait", "30", "ports are used again soon"],
];

/** What a host needs whatever the networks. Pure. */
export function planBase(view: View): Item[] {
  const { vipPool, addressPools } = view.cluster.settings;
  const items: Item[] = sysctls.map(([key, value, why]) => ({ kind: "sysctl", key, value, why }));
  // Scope host: the kernel must never choose it as the source of what the host itself sends.
  items.push({ kind: "address", key: `${gatewayAddress}/32 lo`, value: "host", why: "containers' gateway" });
  for (const pool of addressPools) items.push(element("pools", [pool], "", "address pool"));
  if (vipPool !== "") items.push(element("vip_pool", [vipPool], "", "VIP pool"));
  if (ingressNetworks(view.cluster).length > 0) {
    const why = "replies of published connections";
    // One comparison for every other packet, however many hosts there are.
    items.push({ kind: "rule", key: `${skipPriority} not ${anyReturn}`, value: `goto ${lostPriority}`, why });
    items.push({
      kind: "rule",
      key: `${lostPriority} ${anyReturn}`,
      value: "unreachable",
      why: `${why} to a lost host`,
    });
  }
  return items;
}
