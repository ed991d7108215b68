import { compareTexts } from "../../lib/words/compare.ts";
import { canBeLeftOut } from "./cluster.ts";
import type { Report } from "./diagnostics.ts";
import { isBroken } from "./normalize.ts";
import type { Fail, Key, ObjectType, Type } from "./schema.ts";
import { formatPath, type MapTree, type Path, plainOf, type Tree } from "./tree.ts";

/**
 * The items of a finished list with their indexes in the file. A list that had an item with errors has a hole there, so that
 * what is said about the others names their own places.
 */
export function* numbered<T>(items: readonly T[] | undefined): Generator<readonly [number, T]> {
  for (const [index, item] of (items ?? []).entries()) if (item !== undefined) yield [index, item];
}

/**
 * Turns a merged canonical tree into plain values: defaults filled in, keys of objects in the order of the key table, names
 * of records ascending. Reports keys that must be there and are not, and keys that are refused. What lacks a key that it
 * needs, or has a wrong value there, is undefined: left out of mappings, a hole in lists (see `numbered`).
 *
 * @param tolerated keys (by name or by path) that are left out with a warning when they are refused or not run by this
 *   version's cluster, because the caller asked for it
 */
export function finish(tree: Tree, type: Type, path: Path, report: Report, tolerated: ReadonlySet<string>): unknown {
  if (isBroken(tree)) return undefined;
  switch (type.kind) {
    case "any":
      return plainOf(tree);
    case "scalar":
      return tree.kind === "scalar" ? tree.value : undefined;
    case "list":
      return tree.kind === "list"
        ? tree.items.map((item, index) => finish(item, type.item, [...path, index], report, tolerated))
        : [];
    case "record": {
      if (tree.kind !== "map") return {};
      const result: Record<string, unknown> = {};
      for (const name of [...tree.entries.keys()].toSorted(compareTexts)) {
        const entry = tree.entries.get(name);
        if (entry !== undefined)
          define(result, name, finish(entry.value, type.value, [...path, name], report, tolerated));
      }
      return result;
    }
    case "object":
      return tree.kind === "map" ? finishObject(tree, type, path, report, tolerated) : {};
    default:
      return type satisfies never;
  }
}

function finishObject(
  tree: MapTree,
  type: ObjectType,
  path: Path,
  report: Report,
  tolerated: ReadonlySet<string>,
): Record<string, unknown> | undefined {
  const result: Record<string, unknown> = {};
  for (const [name, key] of Object.entries(type.keys)) {
    const entry = tree.entries.get(name);
    if (entry === undefined || isBroken(entry.value)) {
      if (key.default !== undefined) result[name] = structuredClone(key.default);
    } else if (isTolerated(name, path, tolerated) && !type.required.includes(name) && canBeLeftOut([...path, name])) {
      report.warn([...path, name], entry.key, "is not used, as asked: this version's cluster does not run it yet");
      if (key.default !== undefined) result[name] = structuredClone(key.default);
    } else if (key.decision === "honoured") {
      const value = finish(entry.value, key.type, [...path, name], report, tolerated);
      if (value !== undefined) result[name] = value;
    } else {
      refuse(tree, name, key, path, report, tolerated);
    }
  }
  for (const name of [...tree.entries.keys()]
    .filter((key) => key.startsWith("x-") && !Object.hasOwn(type.keys, key))
    .toSorted(compareTexts)) {
    const entry = tree.entries.get(name);
    if (entry !== undefined) define(result, name, plainOf(entry.value));
  }
  let isWhole = true;
  for (const name of type.required) {
    const entry = tree.entries.get(name);
    if (entry === undefined) report.error("missing", path, tree.at, `needs ${name}, which is not given`);
    if (entry === undefined || isBroken(entry.value)) isWhole = false;
  }
  if (!isWhole) return undefined;
  const fail: Fail = (at, message, hint, below = []) =>
    report.error("conflict", [...path, ...below], at.at, message, hint === undefined ? {} : { hint });
  type.check?.(tree, fail);
  return result;
}

function isTolerated(name: string, path: Path, tolerated: ReadonlySet<string>): boolean {
  return tolerated.size > 0 && (tolerated.has(name) || tolerated.has(formatPath([...path, name])));
}

function refuse(
  tree: MapTree,
  name: string,
  key: Key,
  path: Path,
  report: Report,
  tolerated: ReadonlySet<string>,
): void {
  const entry = tree.entries.get(name);
  if (entry === undefined) return;
  const at = entry.key;
  const full = [...path, name];
  const instead = `Instead: ${key.instead}.`;
  if (key.replacedBy !== undefined && tree.entries.has(key.replacedBy)) {
    report.warn(full, at, `is not used: ${key.why}; the service runs what ${key.replacedBy} names`);
  } else if (isTolerated(name, path, tolerated)) {
    report.warn(full, at, `is not used, as asked: ${key.why}`);
  } else {
    const how = key.decision === "later" ? "is not supported yet" : "is not supported";
    report.error(key.decision === "later" ? "unsupported-later" : "unsupported", full, at, `${how}: ${key.why}`, {
      hint: instead,
    });
  }
}

/** Sets a key that a file chose, `__proto__` included, as plain data. */
function define(target: Record<string, unknown>, name: string, value: unknown): void {
  if (name !== "__proto__") target[name] = value;
  else Object.defineProperty(target, name, { value, enumerable: true, configurable: true, writable: true });
}
