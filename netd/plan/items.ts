import type { SetName } from "../kernel/ruleset.ts";

/**
 * One thing that has to be in the kernel. Kind and key say which, the value what it has to be: two items with one key are
 * the same thing in two versions. `why` is for people.
 */
export type Item =
  | { readonly kind: "sysctl"; readonly key: string; readonly value: string; readonly why: string }
  /** Key: name. Value: see formatVxlan and formatVeth. */
  | { readonly kind: "link"; readonly key: string; readonly value: string; readonly why: string }
  /** Key: "<address>/<prefix> <device>". Value: scope. */
  | { readonly kind: "address"; readonly key: string; readonly value: string; readonly why: string }
  /** Key: "<IP> <device>". Value: MAC. */
  | { readonly kind: "neighbour"; readonly key: string; readonly value: string; readonly why: string }
  /** Key: "<MAC> <device>". Value: underlay address. */
  | { readonly kind: "fdb"; readonly key: string; readonly value: string; readonly why: string }
  /** Key: "<table> <destination>". Value: "blackhole", or "[via <IP> ]dev <device>[ onlink][ src <IP>]". */
  | { readonly kind: "route"; readonly key: string; readonly value: string; readonly why: string }
  /** Key: "<priority> <selector>". Value: action. */
  | { readonly kind: "rule"; readonly key: string; readonly value: string; readonly why: string }
  /** Key: "<set> <element>". Value: what the map gives, empty for a set. */
  | { readonly kind: "element"; readonly key: string; readonly value: string; readonly why: string };

export type ItemKind = Item["kind"];

/** What tells an item from every other. */
export const idOf = (item: { readonly kind: string; readonly key: string }): string => `${item.kind} ${item.key}`;

/** The device without which the item cannot be, if there is one: the kernel takes the item away with it. */
export function deviceOf(item: Item): string | undefined {
  switch (item.kind) {
    case "address":
    case "neighbour":
    case "fdb":
      return item.key.slice(item.key.indexOf(" ") + 1);
    case "route":
      return / ?dev (\S+)/.exec(item.value)?.[1];
    case "sysctl":
      return /^net\/ipv4\/conf\/((?:emb|ev)[^/]+)\//.exec(item.key)?.[1];
    case "link":
    case "rule":
    case "element":
      return undefined;
    default:
      return item satisfies never;
  }
}

export interface Vxlan {
  readonly vni: number;
  readonly local: string;
  readonly mtu: number;
  readonly mac: string;
}
export const formatVxlan = ({ vni, local, mac, mtu }: Vxlan): string =>
  `vxlan ${vni} local ${local} port 4789 nolearning mac ${mac} mtu ${mtu}`;

export interface Veth {
  readonly mtu: number;
}
export const formatVeth = ({ mtu }: Veth): string => `veth mac ${gatewayMac} mtu ${mtu}`;

/** The gateway's, as every container sees it. */
export const gatewayMac = "ee:ee:ee:ee:ee:ee";

export const element = (set: SetName, parts: readonly (string | number)[], value: string, why: string): Item => ({
  kind: "element",
  key: `${set} ${parts.join(" . ")}`,
  value,
  why,
});
