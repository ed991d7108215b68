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

export const factFilters: readonly Filter[] = filters.filter(({ looksAt }) => looksAt === "facts");
export const domainFilters: readonly Filter[] = filters.filter(({ looksAt }) => looksAt === "domain");
export const nodeFilters: readonly Filter[] = filters.filter(({ looksAt }) => looksAt === "node");
