import type { Score } from "./score.ts";

/** A domain with no share at all costs as if it had this one. */
export const leastShare = 1e-3;

/** Tasks of the service in the node's domain per share of that domain, for each level; outer levels weigh more. */
export const spread: Score = {
  name: "spread",
  varies: "domain",
  applies: (group) => group.spread.length > 0,
  points(_state, group, node) {
    let sum = 0;
    for (const { space, shareOf, weight } of group.spread) {
      const share = Math.max(shareOf(space.value(space.of(node))), leastShare);
      sum += Math.round((weight * (group.service.countIn(space, node) + 1)) / share);
    }
    return sum;
  },
};
