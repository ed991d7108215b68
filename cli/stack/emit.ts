import { createHash } from "node:crypto";
import { Document, visit } from "yaml";
import { isUnused } from "./cluster.ts";
import { stack as stackType } from "./keys/stack.ts";
import type { Stack } from "./model.ts";
import type { ObjectType, Type } from "./schema.ts";

/**
 * The model as a stack file in canonical form: long syntaxes, defaults written out, keys in the order of the key table. A
 * default of what this version's cluster does not run is left out: it would look like a choice, and like a promise.
 * Loading the text (in the same environment, for values that are taken from it) gives the same model.
 */
export function formatStack(stack: Stack, format: "yaml" | "json"): string {
  const plain = fileOf(stack, isUnused);
  if (format === "json") return `${JSON.stringify(plain, null, 2)}\n`;
  // Aliases would save a few lines and make the text hard to read and to cut from.
  const document = new Document(plain, { aliasDuplicateObjects: false, version: "1.2" });
  visit(document, {
    Scalar(_, scalar) {
      if (typeof scalar.value === "string" && otherInYaml11.test(scalar.value)) scalar.type = "QUOTE_DOUBLE";
    },
  });
  return document.toString({ lineWidth: 0 });
}

/** Plain text that readers of YAML 1.1, which are many still, take for a boolean, a number, a date or a merge: quoted for them. */
const otherInYaml11 =
  /^(?:y|n|yes|no|on|off|<<|=|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?|[-+]?(?:0[bx])?[0-9a-f_]*_[0-9a-f_]*|[-+]?0b[01]+|\d{4}-\d{1,2}-\d{1,2}.*)$/i;

/** Plain values of the canonical stack file, with every default. */
export function stackFile(stack: Stack): Record<string, unknown> {
  return fileOf(stack, () => false);
}

/** Whether a value is left out, by its key path and the key's default. */
type Skips = (pattern: string, value: unknown, normal: unknown) => boolean;

function fileOf(stack: Stack, skips: Skips): Record<string, unknown> {
  const written = write(stack, stackType, "", skips) as Record<string, unknown>;
  for (const section of ["networks", "volumes", "configs", "secrets", "x-external-services"]) {
    const value = written[section];
    if (typeof value === "object" && value !== null && Object.keys(value).length === 0) delete written[section];
  }
  return written;
}

/** SHA-256 of each service's canonical form, hex: equal when a deploy would change nothing of it. By name. */
export function serviceHashes(stack: Stack): Map<string, string> {
  const services = stackFile(stack)["services"] as Record<string, unknown>;
  return new Map(
    Object.entries(services).map(([name, service]) => [
      name,
      createHash("sha256").update(JSON.stringify(service)).digest("hex"),
    ]),
  );
}

function write(value: unknown, type: Type, pattern: string, skips: Skips): unknown {
  switch (type.kind) {
    case "any":
      return escaped(value);
    case "scalar":
      return value === null ? null : escaped(type.format(value));
    case "list":
      return (value as unknown[]).map((item) => write(item, type.item, `${pattern}[]`, skips));
    case "record":
      return mapValues(value as Record<string, unknown>, (item) => write(item, type.value, `${pattern}.*`, skips));
    case "object":
      return writeObject(value as Record<string, unknown>, type, pattern, skips);
    default:
      return type satisfies never;
  }
}

function writeObject(given: Record<string, unknown>, type: ObjectType, pattern: string, skips: Skips) {
  const result: Record<string, unknown> = {};
  for (const [name, key] of Object.entries(type.keys)) {
    const value = given[name];
    const path = pattern === "" ? name : `${pattern}.${name}`;
    if (value === undefined || skips(path, value, key.default)) continue;
    const written = write(value, key.type, path, skips);
    if (key.type.kind === "object" && isEmpty(written) && !isEmpty(value)) continue;
    result[name] = written;
  }
  for (const [name, item] of Object.entries(given)) if (!Object.hasOwn(type.keys, name)) result[name] = escaped(item);
  return result;
}

function isEmpty(value: unknown): boolean {
  return Object.keys(value as object).length === 0;
}

/** A dollar sign would be read as a variable. */
function escaped(value: unknown): unknown {
  if (typeof value === "string") return value.replaceAll("$", "$$$$");
  if (Array.isArray(value)) return value.map(escaped);
  if (typeof value === "object" && value !== null) return mapValues(value as Record<string, unknown>, escaped);
  return value;
}

function mapValues(
  values: Readonly<Record<string, unknown>>,
  change: (value: unknown) => unknown,
): Record<string, unknown> {
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, change(value)]));
}
