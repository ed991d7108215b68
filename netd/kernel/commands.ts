import type { Action } from "../plan/diff.ts";
import { needsNewDevice } from "../plan/diff.ts";
import { gatewayMac, type Item } from "../plan/items.ts";
import { isOverlayDevice, routeProtocol } from "./observe.ts";
import { containerGroup, doomedGroup, overlayGroup, tableName } from "./ruleset.ts";

/** Which device a new veth's other end goes to, or what there is already that only needs its name. */
export type VethSource =
  | { readonly kind: "prepared"; readonly device: string }
  | { readonly kind: "namespace"; readonly path: string };

/** Commands for a plan, by the tool that runs them and when. */
export interface Commands {
  /** Keys and values of kernel settings that concern no device of ours: first. */
  readonly settings: readonly Item[];
  /** For `ip`, in order: then. */
  readonly ipSet: readonly string[];
  /** Once the devices are there. */
  readonly deviceSettings: readonly Item[];
  readonly bridgeSet: readonly string[];
  /** For `nft -i`: one line, one transaction; empty when there is nothing to do. */
  readonly nft: string;
  readonly bridgeRemove: readonly string[];
  /** For `ip`, in order: last. */
  readonly ipRemove: readonly string[];
}

/** Translates a plan. `vethOf` says how a missing veth pair comes to be; without an answer it is not made. */
export function commandsOf(actions: readonly Action[], vethOf: (device: string) => VethSource | undefined): Commands {
  const settings: Item[] = [];
  const deviceSettings: Item[] = [];
  const ipSet: string[] = [];
  const bridgeSet: string[] = [];
  const bridgeRemove: string[] = [];
  const ipRemove: string[] = [];
  const changed = new Map<string, string[]>();
  const added = new Map<string, string[]>();
  const removed = new Map<string, string[]>();
  let doomed = false;
  for (const action of actions) {
    const { item } = action;
    const found = action.do === "set" ? action.found : undefined;
    switch (item.kind) {
      case "sysctl":
        if (action.do === "set") (item.key.startsWith("net/ipv4/conf/e") ? deviceSettings : settings).push(item);
        break;
      case "link":
        if (action.do === "set") ipSet.push(...setLink(item, found, vethOf));
        else {
          doomed = true;
          ipRemove.push(`link set dev ${item.key} down group ${doomedGroup}`);
        }
        break;
      case "fdb": {
        const [mac, device] = split(item.key);
        if (action.do === "set") bridgeSet.push(`fdb replace ${mac} dev ${device} dst ${item.value} self permanent`);
        else bridgeRemove.push(`fdb del ${mac} dev ${device} dst ${item.value} self permanent`);
        break;
      }
      case "element": {
        const [set, key] = split(item.key);
        if (found !== undefined || action.do === "remove") push(action.do === "remove" ? removed : changed, set, key);
        if (action.do === "set") push(added, set, item.value === "" ? key : `${key} : ${item.value}`);
        break;
      }
      case "rule":
        if (action.do === "remove" || found !== undefined) {
          const old = found ?? item;
          (action.do === "remove" ? ipRemove : ipSet).push(ruleCommand("del", old));
        }
        if (action.do === "set") ipSet.push(ruleCommand("add", item));
        break;
      case "address":
      case "neighbour":
      case "route":
        if (action.do === "set") ipSet.push(setCommand(item));
        else ipRemove.push(removeCommand(item));
        break;
      default:
        item satisfies never;
    }
  }
  if (doomed) ipRemove.push(`link delete group ${doomedGroup}`);
  const statements = [
    ...elementStatements("delete", changed),
    ...elementStatements("add", added),
    ...elementStatements("delete", removed),
  ];
  return { settings, ipSet, deviceSettings, bridgeSet, nft: statements.join("; "), bridgeRemove, ipRemove };
}

function push(lists: Map<string, string[]>, key: string, value: string): void {
  const known = lists.get(key);
  if (known === undefined) lists.set(key, [value]);
  else known.push(value);
}

function elementStatements(verb: "add" | "delete", sets: ReadonlyMap<string, readonly string[]>): string[] {
  return [...sets].map(([set, keys]) => `${verb} element inet ${tableName} ${set} { ${keys.join(", ")} }`);
}

function split(key: string): [string, string] {
  const space = key.indexOf(" ");
  return [key.slice(0, space), key.slice(space + 1)];
}

function setLink(item: Item, found: Item | undefined, vethOf: (device: string) => VethSource | undefined): string[] {
  const [, mac = "", mtu = ""] = /mac (\S+) mtu (\d+)/.exec(item.value) ?? [];
  const overlay = isOverlayDevice(item.key);
  const group = overlay ? overlayGroup : containerGroup;
  // addrgenmode: no IPv6 address of its own, through which a container could reach this host.
  const up = [`link set dev ${item.key} addrgenmode none`, `link set dev ${item.key} up`];
  if (found !== undefined && !needsNewDevice(item.value, found.value)) {
    // A new address makes the kernel forget the device's neighbours: set only when it differs.
    const address = found.value.includes(`mac ${mac} `) ? "" : ` address ${mac}`;
    return [`link set dev ${item.key} mtu ${mtu}${address} group ${group}`, ...up];
  }
  const remake = found === undefined ? [] : [`link del ${item.key}`];
  if (overlay) {
    const [, vni = "", local = ""] = /^vxlan (\d+) local (\S+)/.exec(item.value) ?? [];
    return [
      ...remake,
      `link add name ${item.key} address ${mac} mtu ${mtu} group ${group} type vxlan id ${vni} dstport 4789 local ${local} nolearning`,
      ...up,
    ];
  }
  const source = vethOf(item.key);
  if (source === undefined) return remake;
  if (source.kind === "prepared") {
    return [...remake, `link set dev ${source.device} name ${item.key} mtu ${mtu} group ${group}`, ...up];
  }
  return [
    ...remake,
    `link add ${item.key} address ${gatewayMac} mtu ${mtu} group ${group} type veth peer name eth0 mtu ${mtu} netns ${source.path}`,
    ...up,
  ];
}

function ruleCommand(verb: "add" | "del", item: Item): string {
  const [priority, selector] = split(item.key);
  return `rule ${verb} pref ${priority} ${selector} ${item.value} protocol ${routeProtocol}`;
}

type IpItem = Extract<Item, { kind: "address" | "neighbour" | "route" }>;

function setCommand(item: IpItem): string {
  const [first, rest] = split(item.key);
  switch (item.kind) {
    case "address":
      return `addr replace ${first} dev ${rest}${item.value === "global" ? "" : ` scope ${item.value}`}`;
    case "neighbour":
      return `neigh replace ${first} lladdr ${item.value} dev ${rest} nud permanent`;
    case "route": {
      const target = item.value === "blackhole" ? `blackhole ${rest}` : `${rest} ${item.value}`;
      return `route replace ${target} table ${first} proto ${routeProtocol}`;
    }
    default:
      return item satisfies never;
  }
}

function removeCommand(item: IpItem): string {
  const [first, rest] = split(item.key);
  switch (item.kind) {
    case "address":
      return `addr del ${first} dev ${rest}`;
    case "neighbour":
      return `neigh del ${first} dev ${rest}`;
    case "route":
      return `route del ${item.value === "blackhole" ? "blackhole " : ""}${rest} table ${first} proto ${routeProtocol}`;
    default:
      return item satisfies never;
  }
}
