import type { Score } from "./score.ts";

/** Tasks of the other service that count at most. */
const mostCounted = 10;

/** Ten points per unit of weight for each task of the other service in the node's domain, up to ten tasks. */
export const serviceAffinity: Score = {
  name: "affinity",
  varies: "domain",
  applies: (group) => group.serviceAffinities.some(({ space }) => space !== undefined),
  points(_state, group, node) {
    let sum = 0;
    for (const { service, space, weight } of group.serviceAffinities) {
      if (space !== undefined) sum -= Math.round(weight * 10) * Math.min(service.countIn(space, node), mostCounted);
    }
    return sum;
  },
};

/** The same where together means on one node. */
export const nodeServiceAffinity: Score = {
  name: "affinity-on-node",
  varies: "node",
  applies: (group) => group.serviceAffinities.some(({ space }) => space === undefined),
  points(_state, group, node) {
    let sum = 0;
    for (const { service, space, weight } of group.serviceAffinities) {
      if (space === undefined) sum -= Math.round(weight * 10) * Math.min(service.countOn(node), mostCounted);
    }
    return sum;
  },
  *nodes(group) {
    for (const { service, space } of group.serviceAffinities) if (space === undefined) yield* service.counts.keys();
  },
};
