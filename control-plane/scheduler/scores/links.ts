import type { Score } from "./score.ts";

/** Up to 500 points off where linked services already run: the share of the links' bytes that would stay on the node. */
export const links: Score = {
  name: "links",
  varies: "node",
  applies: (group) => group.links.length > 0,
  points(_state, group, node) {
    let all = 0;
    let local = 0;
    for (const { service, bytesPerSecond } of group.links) {
      all += bytesPerSecond;
      if (service.countOn(node) > 0) local += bytesPerSecond;
    }
    return local === 0 ? 0 : -Math.round((500 * local) / all);
  },
  *nodes(group) {
    for (const { service } of group.links) yield* service.counts.keys();
  },
};
