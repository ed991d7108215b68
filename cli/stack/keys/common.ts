import { looseText, text } from "../scalars.ts";
import type { Fail } from "../schema.ts";
import { Bad, type ListType, list, type RecordType, record, type ScalarType, scalarType } from "../schema.ts";
import { describeKind, type Entry, type ListTree, type MapTree, type ScalarTree, scalar, type Tree } from "../tree.ts";
import { splitWords } from "./words.ts";

/** Names of services, networks and the like, as the Compose specification has them. */
export const NAME_PATTERN = /^[a-zA-Z0-9._-]+$/;

/** `KEY=value` lines in place of a mapping; a line without `=` is a key without a value. */
export function pairsFromList(separators: readonly string[]): NonNullable<RecordType["fromList"]> {
  return (tree: ListTree, fail: Fail) => {
    const entries = new Map<string, Entry>();
    for (const [index, item] of tree.items.entries()) {
      if (item.kind !== "scalar" || item.value === null) {
        fail(item, `takes KEY${separators[0]}VALUE, and found ${describeKind(item)}`, undefined, [index]);
        continue;
      }
      const cut = firstOf(item.text, separators);
      const key = cut === -1 ? item.text : item.text.slice(0, cut);
      const rest = cut === -1 ? undefined : item.text.slice(cut + 1);
      entries.set(key, {
        key: item.at,
        value: rest === undefined ? scalar(null, item.at, "") : scalar(rest, item.at, rest),
      });
    }
    return { kind: "map", entries, at: tree.at };
  };
}

function firstOf(value: string, separators: readonly string[]): number {
  for (const separator of separators) {
    const at = value.indexOf(separator);
    if (at !== -1) return at;
  }
  return -1;
}

function pairKey(what: string): (key: string) => Bad | undefined {
  return (key) =>
    key === "" || /[\s=\0]/.test(key) ? new Bad(`${JSON.stringify(key)} cannot name ${what}`) : undefined;
}

/** A value that may be absent: null in the model. */
export function nullable(accepts: string): ScalarType<string | null> {
  return scalarType<string | null>({
    accepts,
    nullable: true,
    parse: (tree) => (tree.value === null ? null : tree.text),
    // Printed as null by the printer, which knows that a key without a value is written so.
    format: (value) => value ?? "",
  });
}

/** Environment variables: null means "take it from the environment the file is loaded in". */
export function environment(): RecordType<Record<string, string | null>> {
  return record(nullable("text, a number, a boolean or nothing"), {
    accepts: "a mapping of variables, or a list of KEY=VALUE",
    key: pairKey("an environment variable"),
    fromList: pairsFromList(["="]),
  });
}

/** Labels, annotations, build arguments and the like: a key without a value has an empty one. */
export function labels(accepts = "a mapping of labels, or a list of KEY=VALUE"): RecordType<Record<string, string>> {
  return record(
    scalarType<string>({
      accepts: "text, a number or a boolean",
      nullable: true,
      parse: (tree) => (tree.value === null ? "" : tree.text),
      format: (value) => value,
    }),
    {
      accepts,
      key: (key) => (key === "" ? new Bad("a label needs a name") : undefined),
      fromList: pairsFromList(["="]),
    },
  );
}

/** Options of a driver: a mapping of texts. */
export function options(accepts = "a mapping of options"): RecordType<Record<string, string>> {
  return record(looseText(), { accepts });
}

/** A command line: a list as it is, or text split into words as a shell would, but not run by one. */
export function command(): ListType<string[]> {
  return list(looseText("text"), {
    accepts: "a list of words, or one line",
    merge: "replace",
    short: (tree) => {
      if (tree.kind === "map") return undefined;
      const words = splitWords(tree.text);
      if (words instanceof Bad) return words;
      return { kind: "list", items: words.map((word) => scalar(word, tree.at, word)), at: tree.at };
    },
  });
}

/** One text or a list of them. */
export function textOrList(accepts: string, item: ScalarType<string> = text()): ListType<string[]> {
  return list(item, { accepts, short: single, unique: byValue });
}

/** A list of texts in which a value counts once. */
export function texts(item: ScalarType<string> = text(), accepts = "a list"): ListType<string[]> {
  return list(item, { accepts, unique: byValue });
}

/** A scalar in place of a list is a list of one. */
export function single(tree: ScalarTree | MapTree): Tree | undefined {
  return tree.kind === "scalar" ? { kind: "list", items: [tree], at: tree.at } : undefined;
}

/** Identity of an item by its typed value, so that `CAP_NET_ADMIN` is `NET_ADMIN`. */
export function byValue(item: Tree): string | undefined {
  return item.kind === "scalar" ? JSON.stringify(item.value) : undefined;
}

/** Identity of an item by some of its keys; none for an item that has none of them. */
export function byKeys(...keys: readonly string[]): (item: Tree) => string | undefined {
  return (item) => {
    if (item.kind !== "map") return undefined;
    const values = keys
      .map((key) => item.entries.get(key)?.value)
      .map((value) => (value?.kind === "scalar" ? value.value : undefined));
    return values.every((value) => value === undefined) ? undefined : JSON.stringify(values);
  };
}

/** Rejects what an address is not. */
export function isIpv4(value: string): boolean {
  return (
    /^(\d{1,3})(\.\d{1,3}){3}$/.test(value) &&
    value.split(".").every((part) => Number(part) <= 255 && String(Number(part)) === part)
  );
}

/** Loose check of IPv6 syntax: eight groups, or fewer around one `::`. */
export function isIpv6(value: string): boolean {
  if (!/^[0-9a-fA-F:.]+$/.test(value) || !value.includes(":")) return false;
  const halves = value.split("::");
  if (halves.length > 2) return false;
  let groups = 0;
  for (const half of halves) {
    if (half === "") continue;
    const parts = half.split(":");
    for (const [index, part] of parts.entries()) {
      if (part.includes(".")) {
        if (index !== parts.length - 1 || !isIpv4(part)) return false;
        groups += 2;
      } else {
        if (!/^[0-9a-fA-F]{1,4}$/.test(part)) return false;
        groups += 1;
      }
    }
  }
  return halves.length === 2 ? groups <= 7 : groups === 8;
}

/** An IPv4 address in dotted form. */
export function ipv4(): ScalarType<string> {
  return text("an IPv4 address", (value) =>
    isIpv4(value) ? undefined : new Bad(`takes an IPv4 address, and found ${JSON.stringify(value)}`),
  );
}

/** An IPv4 or IPv6 address. */
export function ipAddress(): ScalarType<string> {
  return text("an IP address", (value) =>
    isIpv4(value) || isIpv6(value) ? undefined : new Bad(`takes an IP address, and found ${JSON.stringify(value)}`),
  );
}

/** An IPv4 network such as 10.20.0.0/16, with no bit set behind its prefix. */
export function cidr4(): ScalarType<string> {
  const accepts = "an IPv4 network such as 10.20.0.0/16";
  return text(accepts, (value) => {
    const parsed = parseCidr4(value);
    if (parsed === undefined) return new Bad(`takes ${accepts}, and found ${JSON.stringify(value)}`);
    if (parsed.base !== parsed.address)
      return new Bad(`${value} has bits set behind its prefix`, `Write ${formatIpv4(parsed.base)}/${parsed.prefix}.`);
    return undefined;
  });
}

/** An IPv4 network as numbers: the address as written, first and last address, prefix length. */
export interface Cidr4 {
  readonly address: number;
  readonly base: number;
  readonly last: number;
  readonly prefix: number;
}

/** Undefined when the text is no IPv4 network. */
export function parseCidr4(value: string): Cidr4 | undefined {
  const match = /^([\d.]+)\/(\d{1,2})$/.exec(value);
  const address = match?.[1] ?? "";
  const prefix = Number(match?.[2] ?? 33);
  if (match === null || prefix > 32 || !isIpv4(address)) return undefined;
  const number = ipv4Number(address);
  const size = 2 ** (32 - prefix);
  const base = Math.floor(number / size) * size;
  return { address: number, base, last: base + size - 1, prefix };
}

/** The address as an unsigned 32-bit number; the text must be an IPv4 address. */
export function ipv4Number(address: string): number {
  return address.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);
}

/** Inverse of `ipv4Number`. */
export function formatIpv4(value: number): string {
  return [24, 16, 8, 0].map((shift) => Math.floor(value / 2 ** shift) % 256).join(".");
}
