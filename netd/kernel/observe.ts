import { readFile } from "node:fs/promises";
import { formatVeth, formatVxlan, gatewayMac, type Item, idOf } from "../plan/items.ts";
import { containerGroup, gatewayAddress, overlayGroup, setNames, tableName } from "./ruleset.ts";
import { runTool } from "./tools.ts";

/** Marks what is ours among routes and rules. */
export const routeProtocol = 76;

export const isOverlayDevice = (name: string): boolean => /^emb\d{4,8}$/.test(name);
export const isHostDevice = (name: string): boolean => /^ev[a-z2-7]{11}$/.test(name);
/** On the host's side of a network namespace that is prepared and waits for its task, by the name of its pin. */
export const preparedDevice = (pin: string): string => `evp-${pin.slice(0, 11)}`;
const isOurs = (name: string) => isOverlayDevice(name) || isHostDevice(name);

export interface Observation {
  /** All that is ours, by id. */
  readonly items: Map<string, Item>;
  /** Chains and rules of the table, in a form that is equal for equal rulesets; empty without a table. */
  readonly ruleset: string;
}

const why = "found in the kernel";

/** Reads from the kernel everything that is ours. `sysctls`: the settings to read. */
export async function observe(sysctls: readonly string[]): Promise<Observation> {
  const json = async (program: string, ...args: string[]) => parse(await runTool(program, ["-j", "-N", ...args]));
  const [vxlans, veths, addresses, routes, neighbours, fdb, rules, table, settings] = await Promise.all([
    json("ip", "-d", "link", "show", "type", "vxlan"),
    json("ip", "-d", "link", "show", "type", "veth"),
    json("ip", "-4", "addr", "show"),
    json("ip", "-4", "route", "show", "table", "all", "proto", String(routeProtocol)),
    json("ip", "-4", "neigh", "show", "nud", "permanent"),
    parseAsync(runTool("bridge", ["-j", "fdb", "show"])),
    json("ip", "-d", "-4", "rule", "show"),
    observeTable(),
    Promise.all(sysctls.map(readSysctl)),
  ]);
  const items = new Map<string, Item>();
  const add = (item: Item) => items.set(idOf(item), item);
  for (const link of vxlans) addVxlan(link, add);
  for (const link of veths) addVeth(link, add);
  for (const link of addresses) addAddresses(link, add);
  for (const route of routes) addRoute(route, add);
  for (const entry of neighbours) {
    const device = text(entry["dev"]);
    if (isOurs(device))
      add({ kind: "neighbour", key: `${text(entry["dst"])} ${device}`, value: text(entry["lladdr"]), why });
  }
  for (const entry of fdb) {
    const device = text(entry["ifname"]);
    if (!isOverlayDevice(device) || entry["dst"] === undefined) continue;
    add({ kind: "fdb", key: `${text(entry["mac"])} ${device}`, value: text(entry["dst"]), why });
  }
  for (const rule of rules) addRule(rule, add);
  for (const item of table.elements) add(item);
  for (const item of settings) if (item !== undefined) add(item);
  return { items, ruleset: table.ruleset };
}

/** The MTU of the device that has the address; undefined when none has. */
export async function mtuOfAddress(address: string): Promise<number | undefined> {
  for (const link of parse(await runTool("ip", ["-j", "-4", "addr", "show"]))) {
    if (list(link["addr_info"]).some((info) => info["local"] === address)) return Number(link["mtu"]);
  }
  return undefined;
}

type Json = Readonly<Record<string, unknown>>;

const text = (value: unknown): string => (value === undefined ? "" : String(value));
const list = (value: unknown): readonly Json[] => (Array.isArray(value) ? (value as Json[]) : []);
const object = (value: unknown): Json => (typeof value === "object" && value !== null ? (value as Json) : {});

function parse(stdout: string): readonly Json[] {
  return stdout.trim() === "" ? [] : list(JSON.parse(stdout));
}

async function parseAsync(stdout: Promise<string>): Promise<readonly Json[]> {
  return parse(await stdout);
}

/** What is wrong with a device that has to be up and in its group, as a suffix that makes its value differ. */
function faults(link: Json, group: number): string {
  const flags = Array.isArray(link["flags"]) ? link["flags"] : [];
  return `${flags.includes("UP") ? "" : " down"}${text(link["group"]) === String(group) ? "" : ` group ${text(link["group"])}`}`;
}

function addVxlan(link: Json, add: (item: Item) => void): void {
  const name = text(link["ifname"]);
  if (!isOverlayDevice(name)) return;
  const data = object(object(link["linkinfo"])["info_data"]);
  const value = formatVxlan({
    vni: Number(data["id"]),
    local: text(data["local"]),
    mtu: Number(link["mtu"]),
    mac: text(link["address"]),
  });
  add({ kind: "link", key: name, value: value + faults(link, overlayGroup), why });
}

function addVeth(link: Json, add: (item: Item) => void): void {
  const name = text(link["ifname"]);
  if (!isHostDevice(name)) return;
  const value = formatVeth({ mtu: Number(link["mtu"]) }).replace(gatewayMac, text(link["address"]));
  add({ kind: "link", key: name, value: value + faults(link, containerGroup), why });
}

function addAddresses(link: Json, add: (item: Item) => void): void {
  const device = text(link["ifname"]);
  for (const info of list(link["addr_info"])) {
    const address = text(info["local"]);
    if (!isOverlayDevice(device) && !(device === "lo" && address === gatewayAddress)) continue;
    const scope = { "0": "global", "253": "link", "254": "host" }[text(info["scope"])] ?? text(info["scope"]);
    add({ kind: "address", key: `${address}/${text(info["prefixlen"])} ${device}`, value: scope, why });
  }
}

function addRoute(route: Json, add: (item: Item) => void): void {
  const table = text(route["table"]) || "main";
  const destination = text(route["dst"]);
  const full = destination === "default" || destination.includes("/") ? destination : `${destination}/32`;
  const flags = Array.isArray(route["flags"]) ? route["flags"] : [];
  const gateway = route["gateway"] === undefined ? "" : `via ${text(route["gateway"])} `;
  const source = route["prefsrc"] === undefined ? "" : ` src ${text(route["prefsrc"])}`;
  // Type 6 is blackhole (RTN_BLACKHOLE).
  const value =
    route["type"] === undefined
      ? `${gateway}dev ${text(route["dev"])}${flags.includes("onlink") ? " onlink" : ""}${source}`
      : text(route["type"]) === "6"
        ? "blackhole"
        : `type ${text(route["type"])}`;
  add({ kind: "route", key: `${table} ${full}`, value, why });
}

function addRule(rule: Json, add: (item: Item) => void): void {
  if (text(rule["protocol"]) !== String(routeProtocol)) return;
  const mask = rule["fwmask"] === undefined ? "" : `/${text(rule["fwmask"])}`;
  const not = rule["not"] === undefined ? "" : "not ";
  // Action 7 is unreachable (FR_ACT_UNREACHABLE).
  const action =
    rule["goto"] !== undefined
      ? `goto ${text(rule["goto"])}`
      : rule["table"] !== undefined
        ? `lookup ${text(rule["table"])}`
        : text(rule["action"]) === "7"
          ? "unreachable"
          : `action ${text(rule["action"])}`;
  add({
    kind: "rule",
    key: `${text(rule["priority"])} ${not}fwmark ${text(rule["fwmark"])}${mask}`,
    value: action,
    why,
  });
}

async function readSysctl(key: string): Promise<Item | undefined> {
  try {
    return { kind: "sysctl", key, value: (await readFile(`/proc/sys/${key}`, "utf8")).trim(), why };
  } catch {
    // A device that is not there has no settings.
    return undefined;
  }
}

/** Names of the chains that the table has in the kernel; none without a table. */
export async function listChains(): Promise<string[]> {
  const chains = list(object(JSON.parse(await runTool("nft", ["-j", "list", "chains"])))["nftables"])
    .map((entry) => object(entry["chain"]))
    .filter((chain) => chain["family"] === "inet" && chain["table"] === tableName);
  return chains.map((chain) => text(chain["name"]));
}

const tableArgs = ["-j", "list", "table", "inet", tableName];

async function observeTable(): Promise<{ readonly ruleset: string; readonly elements: Item[] }> {
  let stdout: string;
  try {
    stdout = await runTool("nft", tableArgs);
  } catch (error) {
    if (String(error).includes("No such file or directory")) return { ruleset: "", elements: [] };
    throw error;
  }
  const elements: Item[] = [];
  const rules: unknown[] = [];
  for (const entry of list(object(JSON.parse(stdout))["nftables"])) {
    const set = object(entry["set"] ?? entry["map"]);
    if (set["name"] !== undefined) {
      const name = text(set["name"]);
      if (!setNames.some((known) => known === name)) continue;
      for (const one of Array.isArray(set["elem"]) ? set["elem"] : []) elements.push(elementOf(name, one));
      continue;
    }
    const { handle: _, ...rest } = object(entry["chain"] ?? entry["rule"]);
    if (rest["table"] !== undefined) rules.push(rest);
  }
  return { ruleset: JSON.stringify(rules), elements };
}

function elementOf(set: string, one: unknown): Item {
  const [key, value] = Array.isArray(one) ? [one[0] as unknown, one[1] as unknown] : [one, undefined];
  return {
    kind: "element",
    key: `${set} ${formatData(key)}`,
    value: value === undefined ? "" : formatData(value),
    why,
  };
}

/** nft's JSON of an element's key or data in the form that its own language has. */
function formatData(data: unknown): string {
  if (typeof data !== "object" || data === null) return String(data);
  const { concat, prefix, range, jump, goto, elem } = data as Json;
  if (elem !== undefined) return formatData(object(elem)["val"]);
  if (Array.isArray(concat)) return concat.map(formatData).join(" . ");
  if (prefix !== undefined) return `${text(object(prefix)["addr"])}/${text(object(prefix)["len"])}`;
  if (Array.isArray(range)) return range.map(formatData).join("-");
  if (jump !== undefined) return `jump ${text(object(jump)["target"])}`;
  if (goto !== undefined) return `goto ${text(object(goto)["target"])}`;
  return JSON.stringify(data);
}
