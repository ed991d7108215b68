import { lastOfEach } from "./normalize.ts";
import type { Type } from "./schema.ts";
import type { Entry, MapTree, Tree } from "./tree.ts";

/**
 * Lays a later file's canonical tree over an earlier one: mappings merge key by key, lists append (an item with the key
 * of an earlier one takes its place), commands and scalars are replaced, `!reset` removes and `!override` replaces.
 * Neither argument is changed; without `base` only the tags take effect.
 */
export function merge(base: Tree | undefined, over: Tree, type: Type): Tree | undefined {
  if (over.tag === "reset") return undefined;
  if (base === undefined || over.tag === "override" || base.kind !== over.kind) return withoutTags(over);
  if (over.kind === "scalar" || base.kind === "scalar") return over;
  if (over.kind === "list" && base.kind === "list") {
    if (type.kind === "list" && type.merge === "replace") return withoutTags(over);
    const fresh = over.items.map(withoutTags).filter((item) => item !== undefined);
    const items = [...base.items, ...fresh];
    return {
      ...over,
      items: type.kind === "list" && type.unique !== undefined ? lastOfEach(items, type.unique) : items,
    };
  }
  if (over.kind === "map" && base.kind === "map") {
    if (type.kind === "object" && type.replaces?.(base, over) === true) return withoutTags(over);
    return mergeMaps(base, over, type);
  }
  return withoutTags(over);
}

function mergeMaps(base: MapTree, over: MapTree, type: Type): MapTree {
  const entries = new Map<string, Entry>(base.entries);
  for (const [name, entry] of over.entries) {
    const value = merge(entries.get(name)?.value, entry.value, typeBelow(type, name));
    if (value === undefined) entries.delete(name);
    else entries.set(name, { key: entry.key, value });
  }
  return { ...over, entries };
}

const ANYTHING: Type = { kind: "any", accepts: "anything" };

function typeBelow(type: Type, name: string): Type {
  if (type.kind === "record") return type.value;
  if (type.kind === "object") return (Object.hasOwn(type.keys, name) ? type.keys[name]?.type : undefined) ?? ANYTHING;
  return ANYTHING;
}

/** Takes out what `!reset` marks, and the marks. The tree itself when it has none. */
function withoutTags(tree: Tree): Tree | undefined {
  if (tree.tag === "reset") return undefined;
  if (tree.kind === "scalar") return tree.tag === undefined ? tree : untagged(tree);
  if (tree.kind === "list") {
    const items = tree.items.map(withoutTags);
    const same = tree.tag === undefined && items.every((item, index) => item === tree.items[index]);
    return same ? tree : untagged({ ...tree, items: items.filter((item) => item !== undefined) });
  }
  let same = tree.tag === undefined;
  const entries = new Map<string, Entry>();
  for (const [name, entry] of tree.entries) {
    const value = withoutTags(entry.value);
    if (value !== entry.value) same = false;
    if (value !== undefined) entries.set(name, value === entry.value ? entry : { key: entry.key, value });
  }
  return same ? tree : untagged({ ...tree, entries });
}

function untagged<T extends Tree>(tree: T): T {
  const { tag: _, ...rest } = tree;
  return rest as T;
}
