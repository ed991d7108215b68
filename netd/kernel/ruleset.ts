import { createHash } from "node:crypto";
import { defaultPorts } from "../../lib/net/ports.ts";

// Interface groups: all that the ruleset needs to know of a device.
/** Host sides of the containers' veth pairs. */
export const containerGroup = 42;
/** VXLAN devices. */
export const overlayGroup = 43;
/** Devices on their way out: deleted together, since each deletion of its own waits for a grace period. */
export const doomedGroup = 44;

export const tableName = "embassy";
/** Containers' gateway and name server, the same on every host. */
export const gatewayAddress = "169.254.42.1";

/*
 * Marks, told apart by their top byte. They live within one pass through the ruleset, except the return mark, which a
 * connection keeps.
 */
/** | VNI: the network an address belongs to. */
export const networkMarkBase = 0x76000000;
/** | n: backend number n was chosen. */
export const slotMarkBase = 0x77000000;
/** | host: replies go back by the host that took the connection in. */
export const returnMarkBase = 0x78000000;
const markByte = "0xff000000";

const hex = (mark: number) => `0x${mark.toString(16)}`;

/** Numbers of slots for which there is a chooser: every count up to 64, then two that are filled by repeating backends. */
export const slotCounts: readonly number[] = [...Array.from({ length: 64 }, (_, n) => n + 1), 1024, 8192];

/** The chain that chooses one of `count` slots. */
export const chooserOf = (count: number) => `rr${count}`;

const sets = {
  hosts: "type ipv4_addr",
  pools: "type ipv4_addr; flags interval",
  vip_pool: "type ipv4_addr; flags interval",
  netdevs: "type ifname . mark",
  eps: "type ifname . ipv4_addr",
  members: "type ipv4_addr . mark",
  links: "type ipv4_addr . ipv4_addr . inet_proto . inet_service",
  allow: "type ipv4_addr . ipv4_addr . inet_proto . inet_service",
  outbound: "type ipv4_addr",
} as const;

const maps = {
  subnets: "type ipv4_addr : mark; flags interval",
  vteps: "type ether_addr : mark",
  vipnet: "type ipv4_addr : mark",
  svc: "type ipv4_addr : verdict",
  be: "type ipv4_addr . mark : ipv4_addr",
  hairpin: "type ipv4_addr . ipv4_addr : ipv4_addr",
  resource: "type ipv4_addr . mark : ipv4_addr",
  pub: "type inet_proto . inet_service : verdict",
  pub_be: "type inet_proto . inet_service . mark : ipv4_addr . inet_service",
  pub_ip: "type ipv4_addr . inet_proto . inet_service : verdict",
  pub_ip_be: "type ipv4_addr . inet_proto . inet_service . mark : ipv4_addr . inet_service",
} as const;

export type SetName = keyof typeof sets | keyof typeof maps;
export const setNames: readonly SetName[] = [...Object.keys(sets), ...Object.keys(maps)] as SetName[];

const ours = `{ ${containerGroup}, ${overlayGroup} }`;
const ownPorts = Object.values(defaultPorts)
  .map(({ protocol, port }) => `${protocol} . ${port}`)
  .join(", ");
const clearMark = `meta mark & 0xfe000000 == ${hex(networkMarkBase)} meta mark set 0`;

/*
 * Chains in the order in which a packet meets them. Only the first packet of a connection passes the nat chains and,
 * past "established", the policy: the cost of a packet does not grow with networks, services or endpoints.
 */
const chains: Readonly<Record<string, readonly string[]>> = {
  refuse: ["meta l4proto tcp reject with tcp reset", "reject with icmpx type port-unreachable"],

  // A container speaks IPv4 from its own addresses, and never to a loopback address (the veth has route_localnet).
  guard: ["iifname . ip saddr @eps ip daddr != 127.0.0.0/8 accept", "drop"],
  raw_prerouting: [
    "type filter hook prerouting priority raw; policy accept;",
    `iifgroup ${containerGroup} goto guard`,
    `iifgroup ${overlayGroup} ip daddr 127.0.0.0/8 drop`,
    "udp dport 4789 ip saddr @hosts notrack",
  ],
  raw_output: ["type filter hook output priority raw; policy accept;", "udp dport 4789 ip daddr @hosts notrack"],

  balance: ["ip daddr vmap @svc", "dnat ip to ip daddr . meta mark map @be", "goto refuse"],
  vips: [
    "ct mark set ip daddr map @vipnet",
    "ip saddr . ip daddr . meta l4proto . th dport @links goto balance",
    "ip saddr . ct mark @members goto balance",
    "goto refuse",
  ],
  published: [
    `ip daddr ${gatewayAddress} return`,
    // Whatever a stack says: led elsewhere, the host's own programs could not be reached to take it back.
    `meta l4proto . th dport { ${ownPorts} } return`,
    "ip daddr . meta l4proto . th dport vmap @pub_ip",
    "dnat ip to ip daddr . meta l4proto . th dport . meta mark map @pub_ip_be",
    "meta l4proto . th dport vmap @pub",
    "dnat ip to meta l4proto . th dport . meta mark map @pub_be",
  ],
  nat_prerouting: [
    "type nat hook prerouting priority dstnat; policy accept;",
    `iifgroup ${containerGroup} ip daddr @vip_pool goto vips`,
    // Remembers which host a published connection came in by.
    `iifgroup ${overlayGroup} ip saddr != @pools ct mark set ether saddr map @vteps`,
    "fib daddr type local goto published",
  ],
  nat_output: ["type nat hook output priority -100; policy accept;", "fib daddr type local goto published"],
  // Replies of a published connection go back by the host that took it in.
  replies: [
    "type filter hook prerouting priority -90; policy accept;",
    `ct mark & ${markByte} == ${hex(returnMarkBase)} iifgroup ${containerGroup} ct direction reply meta mark set ct mark`,
  ],

  from_container: [
    "ct state invalid drop",
    // Masqueraded, it would look like a host's own VXLAN.
    "ip daddr @hosts udp dport 4789 drop",
    "ct status dnat accept",
    "ip saddr . ip daddr . meta l4proto . th dport @allow accept",
    "meta mark set ip daddr map @subnets",
    "ip saddr . meta mark @members meta mark set 0 accept",
    "meta mark set 0",
    "ip daddr @pools goto refuse",
    "ip daddr @vip_pool goto refuse",
    `ip saddr @outbound oifgroup != ${ours} accept`,
    "goto refuse",
  ],
  // The sender's host has enforced policy; here the packet only has to belong to the network it came in on.
  from_overlay: [
    "ct state invalid drop",
    `ct mark & ${markByte} == ${hex(returnMarkBase)} accept`,
    "meta mark set ip saddr map @subnets",
    "iifname . meta mark != @netdevs drop",
    "meta mark set ip daddr map @subnets",
    "iifname . meta mark @netdevs meta mark set 0 accept",
    "drop",
  ],
  from_outside: ["ct status dnat accept", "drop"],
  forward: [
    "type filter hook forward priority filter; policy accept;",
    "meta mark != 0 jump unmark",
    "ct state established,related accept",
    `iifgroup ${containerGroup} goto from_container`,
    `iifgroup ${overlayGroup} goto from_overlay`,
    `oifgroup ${ours} goto from_outside`,
  ],

  container_to_host: [
    "ct state established,related accept",
    `ip daddr ${gatewayAddress} meta l4proto . th dport { udp . 53, tcp . 53 } accept`,
    "meta l4proto icmp accept",
    "goto refuse",
  ],
  overlay_to_host: ["ct state established,related accept", "meta l4proto icmp accept", "goto refuse"],
  input: [
    "type filter hook input priority filter; policy accept;",
    "udp dport 4789 ip saddr != @hosts drop",
    `iifgroup ${containerGroup} goto container_to_host`,
    `iifgroup ${overlayGroup} goto overlay_to_host`,
  ],

  // A client reaches VIPs from its first address; the backend must see the one of the backend's network.
  vip_source: ["snat ip to ip saddr . ct mark map @resource"],
  dnat_source: [
    "ip saddr 127.0.0.0/8 masquerade",
    "ct original ip daddr @vip_pool goto vip_source",
    // A container that used a published port: the backend's host knows this host, not the container's network.
    `ip saddr @pools oifgroup ${overlayGroup} masquerade`,
    // Another host as the client: were the backend on it, it would get a packet from its own address, and drop it.
    `ip saddr @hosts fib saddr type != local oifgroup ${overlayGroup} masquerade`,
    `ip saddr @outbound oifgroup != ${ours} masquerade`,
  ],
  nat_postrouting: [
    "type nat hook postrouting priority srcnat; policy accept;",
    clearMark,
    "snat ip to ip saddr . ip daddr map @hairpin",
    "ct status dnat goto dnat_source",
    `ip saddr @outbound oifgroup != ${ours} masquerade`,
  ],
  // The outer packet inherits the mark: with the return mark it would be routed into the tunnel again.
  unmark: [`oifgroup ${overlayGroup} meta mark set 0`, clearMark],
};

function chooser(count: number): readonly string[] {
  return [`meta mark set numgen inc mod ${count} offset ${hex(slotMarkBase)}`];
}

function allChains(): [string, readonly string[]][] {
  return [
    ...slotCounts.map((count): [string, readonly string[]] => [chooserOf(count), chooser(count)]),
    ...Object.entries(chains),
  ];
}

const isHeader = (rule: string | undefined): rule is string => rule?.startsWith("type ") ?? false;

/**
 * One transaction that makes the table's sets, chains and rules what they have to be and keeps every element: loading it
 * again changes nothing that a packet could see.
 *
 * @param present Names of the table's chains in the kernel; those that are not part of the ruleset are deleted.
 */
export function rulesetText(present: readonly string[] = []): string {
  const at = `inet ${tableName}`;
  const lines = [`add table ${at}`];
  for (const [name, type] of Object.entries(sets)) lines.push(`add set ${at} ${name} { ${type}; }`);
  for (const [name, type] of Object.entries(maps)) lines.push(`add map ${at} ${name} { ${type}; }`);
  for (const [name, rules] of allChains()) {
    lines.push(isHeader(rules[0]) ? `add chain ${at} ${name} { ${rules[0]} }` : `add chain ${at} ${name}`);
    lines.push(`flush chain ${at} ${name}`);
  }
  for (const [name, rules] of allChains()) {
    for (const rule of rules) if (!isHeader(rule)) lines.push(`add rule ${at} ${name} ${rule}`);
  }
  const known = new Set(allChains().map(([name]) => name));
  const stale = present.filter((name) => !known.has(name));
  // They may lead to each other: all are emptied before one is deleted.
  for (const name of stale) lines.push(`flush chain ${at} ${name}`);
  for (const name of stale) lines.push(`delete chain ${at} ${name}`);
  return `${lines.join("\n")}\n`;
}

/** Changes when the ruleset does. */
export const rulesetVersion = createHash("sha256").update(rulesetText()).digest("hex").slice(0, 16);
