import type { ClusterState } from "../state/cluster.ts";
import type { GroupRecord, NodeRecord } from "../state/records.ts";
import { memoryDimension } from "../state/table.ts";
import type { Filter } from "./filter.ts";

/** Every amount reserved is free on the node. */
export const resources: Filter = {
  kind: "resources",
  looksAt: "node",
  passes: (state, group, node) => state.table.fits(node.index, group.needs),
  reason(state, group, node) {
    const lacking = group.needs.filter(({ dimension, amount }) => amount > state.freeOf(node, dimension));
    const text = lacking
      .map(({ dimension, amount }) => {
        const free = Math.max(0, state.freeOf(node, dimension));
        const there = isAbsent(state, node, dimension) ? "none there" : `${formatAmount(dimension, free)} free`;
        return `${formatAmount(dimension, amount)} ${nameOf(state, dimension)} needed, ${there}`;
      })
      .join("; ");
    const absent = lacking.filter(({ dimension }) => isAbsent(state, node, dimension));
    if (absent.length > 0) {
      const kinds = absent.map(({ dimension }) => nameOf(state, dimension)).join(" and ");
      const fix = `Give node ${node.spec.hostname} ${kinds} (noded --generic-resource), or do without the reservation.`;
      return { kind: "resources", text, fix };
    }
    const more = lacking
      .map(
        ({ dimension, amount }) =>
          `${formatAmount(dimension, amount - Math.max(0, state.freeOf(node, dimension)))} ${nameOf(state, dimension)}`,
      )
      .join(" and ");
    return {
      kind: "resources",
      text,
      fix: `Free ${more} on node ${node.spec.hostname}, or lower the reservation.`,
    };
  },
};

/** The resources that the node is short of, as a name for nodes that lack the same. */
export function lackingOn(state: ClusterState, group: GroupRecord, node: NodeRecord): string {
  return group.needs
    .filter(({ dimension, amount }) => amount > state.freeOf(node, dimension))
    .map(({ dimension }) => `${isAbsent(state, node, dimension) ? "any " : ""}${nameOf(state, dimension)}`)
    .join();
}

/**
 * How far the node is from holding the group, as a share of what is needed: 0 when it fits, 0.5 when half of one resource
 * is lacking.
 */
export function shortage(state: ClusterState, group: GroupRecord, node: NodeRecord): number {
  let sum = 0;
  for (const { dimension, amount } of group.needs) {
    sum += Math.max(0, amount - Math.max(0, state.freeOf(node, dimension))) / amount;
  }
  return sum;
}

/** Is it of a kind that the node has not announced? */
function isAbsent(state: ClusterState, node: NodeRecord, dimension: number): boolean {
  const kind = state.dimensions[dimension] as string;
  return kind.startsWith("generic/") && !(node.spec.capacity.generic?.[kind.slice("generic/".length)] ?? 0);
}

function nameOf(state: ClusterState, dimension: number): string {
  const kind = state.dimensions[dimension] as string;
  return kind === "cpu" ? "CPU" : kind.replace("generic/", "");
}

function formatAmount(dimension: number, amount: number): string {
  if (dimension === 0) return amount % 1_000 === 0 ? `${amount / 1_000}` : `${amount}m`;
  if (dimension !== memoryDimension) return `${amount}`;
  for (const [unit, size] of memoryUnits) {
    if (amount >= size) return `${Number((Math.floor((amount / size) * 10) / 10).toFixed(1))} ${unit}`;
  }
  return `${amount} B`;
}

const memoryUnits: readonly (readonly [string, number])[] = [
  ["GiB", 2 ** 30],
  ["MiB", 2 ** 20],
  ["KiB", 2 ** 10],
];
