import type { Position } from "./source.ts";

/**
 * A YAML value with the place it was written at. Anchored values are shared, so a tree may be a graph without cycles:
 * nothing here is ever changed in place.
 */
export type Tree = ScalarTree | ListTree | MapTree;

/** `!reset` empties what earlier files say about the place, `!override` replaces it instead of merging. */
export type MergeTag = "reset" | "override";

export interface ScalarTree {
  readonly kind: "scalar";
  /** As read: string, number, boolean or null. After normalising: the typed value (milliseconds, bytes, ...). */
  readonly value: unknown;
  /** As written, after interpolation; what a string key takes, so that `1.10` stays `1.10`. */
  readonly text: string;
  readonly at: Position;
  readonly tag?: MergeTag;
}

export interface ListTree {
  readonly kind: "list";
  readonly items: readonly Tree[];
  readonly at: Position;
  readonly tag?: MergeTag;
}

export interface MapTree {
  readonly kind: "map";
  readonly entries: ReadonlyMap<string, Entry>;
  readonly at: Position;
  readonly tag?: MergeTag;
}

/** One key of a mapping and its value. */
export interface Entry {
  /** Where the key stands. */
  readonly key: Position;
  readonly value: Tree;
}

/** A path of keys and list indexes from the top of a stack file. */
export type Path = readonly (string | number)[];

/** `services.web.links[0]`; keys that hold a dot, a bracket or a space are quoted. */
export function formatPath(path: Path): string {
  let text = "";
  for (const part of path) {
    if (typeof part === "number") text += `[${part}]`;
    else if (/^[^\s.[\]"]+$/.test(part)) text += text === "" ? part : `.${part}`;
    else text += `[${JSON.stringify(part)}]`;
  }
  return text;
}

/** What people call the kind of a value. */
export function describeKind(tree: Tree): string {
  if (tree.kind === "list") return "a list";
  if (tree.kind === "map") return "a mapping";
  if (tree.value === null) return "nothing";
  if (typeof tree.value === "number") return `the number ${tree.text}`;
  if (typeof tree.value === "boolean") return `the boolean ${tree.text}`;
  return JSON.stringify(tree.text.length > 80 ? `${tree.text.slice(0, 77)}...` : tree.text);
}

/** A scalar that stands at a place. */
export function scalar(value: unknown, at: Position, text = String(value)): ScalarTree {
  return { kind: "scalar", value, text, at };
}

/** A mapping that stands at a place; each key stands where its value does. */
export function mapTree(entries: Iterable<readonly [string, Tree]>, at: Position): MapTree {
  const map = new Map<string, Entry>();
  for (const [key, value] of entries) map.set(key, { key: value.at, value });
  return { kind: "map", entries: map, at };
}

/** Turns plain values (objects, arrays, scalars) into a tree, all of it standing at one place. Undefined is left out. */
export function treeOf(value: unknown, at: Position): Tree {
  if (Array.isArray(value)) return { kind: "list", items: value.map((item) => treeOf(item, at)), at };
  if (typeof value === "object" && value !== null) {
    const entries = Object.entries(value).filter(([, item]) => item !== undefined);
    return mapTree(
      entries.map(([key, item]) => [key, treeOf(item, at)] as const),
      at,
    );
  }
  return scalar(value, at);
}

/** The plain value of a tree, as JSON would have it. Scalars give their value. */
export function plainOf(tree: Tree): unknown {
  if (tree.kind === "scalar") return tree.value;
  if (tree.kind === "list") return tree.items.map(plainOf);
  const result: Record<string, unknown> = Object.create(null) as Record<string, unknown>;
  for (const [key, entry] of tree.entries) result[key] = plainOf(entry.value);
  return result;
}
