import type { ClusterState } from "../state/cluster.ts";
import type { Score } from "./score.ts";

/** How full the node is (spread) or how empty (binpack), 0 to 2,000: see `NodeTable.fullness`. */
export const load: Score = {
  name: "load",
  varies: "load",
  applies: () => true,
  points: (state, group, node) => loadPoints(state, node.index, group.binpack),
};

/** The same by the node's index, for the index. */
export function loadPoints(state: ClusterState, index: number, binpack: boolean): number {
  const full = state.table.fullness(index);
  return binpack ? 2_000 - full : full;
}
