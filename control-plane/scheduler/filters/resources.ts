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
        return `${formatAmount(dimension, amount)} ${nameOf(state, dimension)} needed, ${formatAmount(dimension, free)} free`;
      })
      .join("; ");
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
    .map(({ dimension }) => nameOf(state, dimension))
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
