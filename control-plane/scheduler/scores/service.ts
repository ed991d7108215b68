import type { Score } from "./score.ts";

/** Each task of the service that the node already has: spreads replicas over nodes. */
export const service: Score = {
  name: "service",
  varies: "node",
  applies: () => true,
  points: (_state, group, node) => group.service.countOn(node) * (group.binpack ? 200 : 1_000),
  nodes: (group) => group.service.counts.keys(),
};
