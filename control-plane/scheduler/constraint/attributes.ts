import type { SchedulerNode } from "../types.ts";

/** What a constraint, a spread preference or an affinity can look at, as one line for error messages. */
export const attributeNames =
  "node.id, node.hostname, node.role, node.platform.os, node.platform.arch, node.labels.<key>";

/** Reads one attribute of a node; undefined when the node has no such label. */
export type Attribute = (node: SchedulerNode) => string | undefined;

const fixed: Readonly<Record<string, Attribute>> = {
  "node.id": (node) => node.id,
  "node.hostname": (node) => node.hostname,
  "node.role": (node) => node.role,
  "node.platform.os": (node) => node.os,
  "node.platform.arch": (node) => node.arch,
};

const labelPrefix = "node.labels.";

/** The reader of an attribute by name; undefined when there is no attribute of this name. Label keys keep their case. */
export function attributeOf(name: string): Attribute | undefined {
  const lower = name.toLowerCase();
  if (Object.hasOwn(fixed, lower)) return fixed[lower];
  if (!lower.startsWith(labelPrefix) || name.length === labelPrefix.length) return undefined;
  const key = name.slice(labelPrefix.length);
  return (node) => (Object.hasOwn(node.labels, key) ? node.labels[key] : undefined);
}
