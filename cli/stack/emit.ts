import { createHash } from "node:crypto";
import { Document, visit } from "yaml";
import { stack as stackType } from "./keys/stack.ts";
import type { Stack } from "./model.ts";
import type { Type } from "./schema.ts";

/**
 * The model as a stack file in canonical form: long syntaxes, defaults written out, keys in the order of the key table.
 * Loading the text (in the same environment, for values that are taken from it) gives the same model.
 */
export function formatStack(stack: Stack, format: "yaml" | "json"): string {
  const plain = stackFile(stack);
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

/** Plain values of the canonical stack file. */
export function stackFile(stack: Stack): Record<string, unknown> {
  const written = write(stack, stackType) as Record<string, unknown>;
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

function write(value: unknown, type: Type): unknown {
  switch (type.kind) {
    case "any":
      return escaped(value);
    case "scalar":
      return value === null ? null : escaped(type.format(value));
    case "list":
      return (value as unknown[]).map((item) => write(item, type.item));
    case "record":
      return mapValues(value as Record<string, unknown>, (item) => write(item, type.value));
    case "object": {
      const given = value as Record<string, unknown>;
      const result: Record<string, unknown> = {};
      for (const [name, key] of Object.entries(type.keys))
        if (given[name] !== undefined) result[name] = write(given[name], key.type);
      for (const [name, item] of Object.entries(given))
        if (!Object.hasOwn(type.keys, name)) result[name] = escaped(item);
      return result;
    }
    default:
      return type satisfies never;
  }
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
