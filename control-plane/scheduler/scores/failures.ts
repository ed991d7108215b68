import type { Score } from "./score.ts";

/** 500 points for each recent failure of this version on this node, up to 4,000. */
export const failures: Score = {
  name: "failures",
  varies: "node",
  applies: (group) => group.failures.size > 0,
  points: (_state, group, node) => Math.min(group.failures.get(node.index) ?? 0, 8) * 500,
  nodes: (group) => group.failures.keys(),
};
