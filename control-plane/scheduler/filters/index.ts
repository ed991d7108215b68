import { availability, diskPressure, readiness } from "./availability.ts";
import { constraint } from "./constraint.ts";
import type { Filter } from "./filter.ts";
import { hostPort } from "./host-port.ts";
import { maxPerNode } from "./max-per-node.ts";
import { maxSkew } from "./max-skew.ts";
import { platform } from "./platform.ts";
import { resources } from "./resources.ts";
import { taint } from "./taint.ts";
import { volumeHome, volumeWriter } from "./volume.ts";

/** Every rule, in the order in which a refused node is counted: what it is first, then what is placed on it. */
export const filters: readonly Filter[] = [
  readiness,
  availability,
  diskPressure,
  platform,
  constraint,
  taint,
  volumeHome,
  volumeWriter,
  maxPerNode,
  hostPort,
  resources,
  maxSkew,
];

const boundFilters = filters.filter(({ sparesBound }) => sparesBound !== true);

/** The rules for tasks that may run on any node, or on this one only. */
export function filtersFor(onlyNode: string | undefined): readonly Filter[] {
  return onlyNode === undefined ? filters : boundFilters;
}

/** Of a task that may run on one node only. */
export const boundFactFilters: readonly Filter[] = boundFilters.filter(({ looksAt }) => looksAt === "facts");
export const factFilters: readonly Filter[] = filters.filter(({ looksAt }) => looksAt === "facts");
export const domainFilters: readonly Filter[] = filters.filter(({ looksAt }) => looksAt === "domain");
export const nodeFilters: readonly Filter[] = filters.filter(({ looksAt }) => looksAt === "node");
