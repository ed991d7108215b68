import { nearest } from "../../lib/words/nearest.ts";
import type { Report } from "./diagnostics.ts";
import {
  Bad,
  type Fail,
  type ListType,
  type ObjectType,
  type RecordType,
  type ScalarType,
  type Type,
} from "./schema.ts";
import { describeKind, type Entry, type MapTree, type Path, type Tree } from "./tree.ts";

/** What normalising works with, besides the tree. */
export interface NormalizeContext {
  readonly report: Report;
  /** Makes a path of this machine absolute, relative to the directory of the file. */
  readonly absolute: (path: string) => string;
}

/**
 * Brings one file's tree into canonical form, before files are merged: short syntaxes become long ones, lists of pairs
 * become mappings, scalars get their typed values, paths become absolute. What does not fit its type is reported and left
 * out. What concerns the merged whole (keys that must be there, keys that are refused) is left to `finish`.
 */
export function normalize(tree: Tree, type: Type, path: Path, context: NormalizeContext): Tree | undefined {
  if (isBroken(tree)) return undefined;
  switch (type.kind) {
    case "any":
      return tree;
    case "scalar":
      return normalizeScalar(tree, type, path, context);
    case "list":
      return normalizeList(tree, type, path, context);
    case "record":
      return normalizeRecord(tree, type, path, context);
    case "object":
      return normalizeObject(tree, type, path, context);
    default:
      return type satisfies never;
  }
}

function normalizeScalar(tree: Tree, type: ScalarType, path: Path, context: NormalizeContext): Tree | undefined {
  if (tree.kind !== "scalar") return wrongKind(tree, type, path, context);
  if (tree.tag === "reset") return tree;
  if (tree.value === null && type.nullable !== true) return undefined;
  const value = type.parse(tree);
  if (value instanceof Bad) {
    const guess = type.values === undefined ? undefined : nearest(tree.text, type.values);
    report(context, path, tree, value, guess);
    return undefined;
  }
  return { ...tree, value: type.path === true ? context.absolute(String(value)) : value };
}

function normalizeList(tree: Tree, type: ListType, path: Path, context: NormalizeContext): Tree | undefined {
  if (tree.tag === "reset") return tree;
  if (tree.kind !== "list") {
    if (tree.kind === "scalar" && tree.value === null) return undefined;
    const short = type.short?.(tree);
    if (short instanceof Bad) return bad(context, path, tree, short);
    if (short === undefined) return wrongKind(tree, type, path, context);
    const list = normalizeList(short, type, path, context);
    return list === undefined || tree.tag === undefined ? list : { ...list, tag: tree.tag };
  }
  const items: Tree[] = [];
  for (const [index, item] of tree.items.entries()) {
    const below = [...path, index];
    if (item.kind === "scalar" && item.value === null) {
      context.report.error("type", below, item.at, "is an empty item of a list");
      items.push(broken(item));
      continue;
    }
    if (type.item.kind === "object" && item.kind === "scalar" && !isBroken(item) && type.item.short !== undefined) {
      const long = type.item.short(item);
      if (long instanceof Bad) {
        bad(context, below, item, long);
        items.push(broken(item));
      } else {
        for (const one of Array.isArray(long) ? (long as readonly Tree[]) : [long as Tree]) {
          const normal = normalize(one, type.item, below, context);
          items.push(normal ?? broken(item));
        }
      }
      continue;
    }
    items.push(normalize(item, type.item, below, context) ?? broken(item));
  }
  return { ...tree, items: type.unique === undefined ? items : lastOfEach(items, type.unique) };
}

/** Keeps the last item of each key, at the place of the first. */
export function lastOfEach(items: readonly Tree[], unique: (item: Tree) => string | undefined): Tree[] {
  const places = new Map<string, number>();
  const kept: Tree[] = [];
  for (const item of items) {
    const key = isBroken(item) ? undefined : unique(item);
    const place = key === undefined ? undefined : places.get(key);
    if (place !== undefined) kept[place] = item;
    else {
      if (key !== undefined) places.set(key, kept.length);
      kept.push(item);
    }
  }
  return kept;
}

function normalizeRecord(tree: Tree, type: RecordType, path: Path, context: NormalizeContext): Tree | undefined {
  if (tree.tag === "reset") return tree;
  let map: MapTree;
  if (tree.kind === "map") map = tree;
  else if (tree.kind === "scalar" && tree.value === null) map = { kind: "map", entries: new Map(), at: tree.at };
  else if (tree.kind === "list" && type.fromList !== undefined) {
    const converted = type.fromList(tree, failer(path, context));
    if (converted instanceof Bad) return bad(context, path, tree, converted);
    map = { ...converted, ...(tree.tag && { tag: tree.tag }) };
  } else return wrongKind(tree, type, path, context);

  const entries = new Map<string, Entry>();
  for (const [name, entry] of map.entries) {
    const below = [...path, name];
    const wrong = name.startsWith("x-") && type.value.kind === "object" ? undefined : type.key?.(name);
    if (wrong !== undefined) {
      context.report.error(
        "value",
        below,
        entry.key,
        wrong.message,
        wrong.hint === undefined ? {} : { hint: wrong.hint },
      );
      continue;
    }
    const value = normalize(nullAsEmpty(entry.value, type.value), type.value, below, context);
    if (value !== undefined) entries.set(name, { key: entry.key, value });
  }
  return { ...map, entries };
}

/** `networks: {back: }` is `networks: {back: {}}`. */
function nullAsEmpty(tree: Tree, type: Type): Tree {
  if (tree.kind !== "scalar" || tree.value !== null || tree.tag !== undefined) return tree;
  return type.kind === "object" || type.kind === "record" ? { kind: "map", entries: new Map(), at: tree.at } : tree;
}

function normalizeObject(tree: Tree, type: ObjectType, path: Path, context: NormalizeContext): Tree | undefined {
  if (tree.tag === "reset") return tree;
  if (tree.kind === "scalar" && tree.value === null) return { kind: "map", entries: new Map(), at: tree.at };
  if (tree.kind === "scalar" && type.short !== undefined) {
    const long = type.short(tree);
    if (long instanceof Bad) return bad(context, path, tree, long);
    if (!Array.isArray(long)) return normalize(long as Tree, type, path, context);
  }
  if (tree.kind !== "map") return wrongKind(tree, type, path, context);
  const map = type.prepare?.(tree, failer(path, context)) ?? tree;
  const entries = new Map<string, Entry>();
  for (const [name, entry] of map.entries) {
    const below = [...path, name];
    const known = Object.hasOwn(type.keys, name) ? type.keys[name] : undefined;
    if (known === undefined) {
      if (extension(name, entry, type, below, context)) entries.set(name, entry);
      continue;
    }
    const isAbsent = entry.value.kind === "scalar" && entry.value.value === null && entry.value.tag === undefined;
    const value = normalize(entry.value, known.type, below, context) ?? (isAbsent ? undefined : broken(entry.value));
    if (value !== undefined) entries.set(name, { key: entry.key, value });
  }
  const result: MapTree = { ...map, entries };
  return type.localise?.(result, context.absolute) ?? result;
}

/** Stands where a value was that has been reported: nobody should call it missing. */
function broken(tree: Tree): Tree {
  return { kind: "scalar", value: undefined, text: "", at: tree.at };
}

/** Whether a value was reported and taken out. */
export function isBroken(tree: Tree): boolean {
  return tree.kind === "scalar" && tree.value === undefined;
}

/** Whether an unknown key is one of the x- keys that Compose lets everyone have; if not, it is reported. */
function extension(name: string, entry: Entry, type: ObjectType, path: Path, context: NormalizeContext): boolean {
  const ours = Object.keys(type.keys).filter((key) => key.startsWith("x-"));
  if (name.startsWith("x-") && type.extensions) {
    if (/^x-(clusterctl|embassy)-/.test(name)) {
      context.report.error("unknown-key", path, entry.key, "is kept for this product, and is no key that it knows");
      return false;
    }
    const guess = ours.find(
      (key) => key !== name && nearest(name, [key]) !== undefined && Math.abs(key.length - name.length) <= 1,
    );
    if (guess !== undefined && guess[2] === name[2]) {
      context.report.warn(path, entry.key, "is kept and not used, like every unknown key that begins with x-", {
        suggestion: guess,
      });
    }
    return true;
  }
  const old = OLD_KEYS[name];
  const names = Object.keys(type.keys);
  const suggestion = old === undefined ? nearest(name, names) : undefined;
  const hint =
    old ?? (suggestion === undefined && names.length <= 12 ? `Keys here are ${names.join(", ")}.` : undefined);
  context.report.error("unknown-key", path, entry.key, "is not a key that exists here", {
    ...(hint !== undefined && { hint }),
    ...(suggestion !== undefined && { suggestion }),
  });
  return false;
}

/** Keys of files from before the Compose specification, and where they went. */
const OLD_KEYS: Readonly<Record<string, string>> = {
  net: "Old files had it; write network_mode, or networks.",
  log_driver: "Old files had it; write logging.driver.",
  log_opt: "Old files had it; write logging.options.",
  dockerfile: "Old files had it; build the image first, and name it with image.",
  volume_driver: "Old files had it; name the volume under the top-level volumes, with its driver.",
  memory: "Write mem_limit, or deploy.resources.limits.memory.",
  mem_swap_limit: "It is spelt memswap_limit.",
  env: "Write environment.",
};

function wrongKind(tree: Tree, type: Type, path: Path, context: NormalizeContext): undefined {
  context.report.error("type", path, tree.at, `takes ${type.accepts}, and found ${describeKind(tree)}`);
  return undefined;
}

function bad(context: NormalizeContext, path: Path, tree: Tree, failure: Bad): undefined {
  report(context, path, tree, failure, undefined);
  return undefined;
}

function report(context: NormalizeContext, path: Path, tree: Tree, failure: Bad, suggestion: string | undefined): void {
  context.report.error("value", path, tree.at, failure.message, {
    ...(failure.hint !== undefined && { hint: failure.hint }),
    ...(suggestion !== undefined && { suggestion }),
  });
}

function failer(path: Path, context: NormalizeContext): Fail {
  return (tree: Tree, message: string, hint?: string, below: Path = []) => {
    context.report.error("value", [...path, ...below], tree.at, message, hint === undefined ? {} : { hint });
  };
}
