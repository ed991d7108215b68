import { tolerates } from "../filters/taint.ts";
import type { Score } from "./score.ts";

/** Taints that only advise against. */
export const softTaint: Score = {
  name: "taint",
  varies: "facts",
  key: (group) => group.spec.tolerations,
  applies: () => true,
  points: (_state, group, node) =>
    (node.spec.taints ?? []).filter(
      (one) => one.effect === "prefer-no-schedule" && !tolerates(group.spec.tolerations, one),
    ).length * 800,
};

/** Generic resources that this group has no use for are kept for those that have. */
export const scarcity: Score = {
  name: "scarce",
  varies: "facts",
  key: ({ spec }) =>
    Object.entries(spec.reservations.generic ?? {}).flatMap(([kind, amount]) => (amount > 0 ? [kind] : [])),
  applies: () => true,
  points(_state, group, node) {
    const { generic } = node.spec.capacity;
    if (generic === undefined) return 0;
    const wanted = group.spec.reservations.generic ?? {};
    return Object.entries(generic).filter(([kind, amount]) => amount > 0 && !((wanted[kind] ?? 0) > 0)).length * 300;
  },
};

/** Ten points per unit of weight for each label affinity that matches. */
export const nodeAffinity: Score = {
  name: "node-affinity",
  varies: "facts",
  key: (group) => group.spec.affinities?.filter(({ kind }) => kind === "node"),
  applies: (group) => group.nodeAffinities.length > 0,
  points: (_state, group, node) =>
    group.nodeAffinities.reduce(
      (sum, { matches, weight }) => (matches(node.spec) ? sum - Math.round(weight * 10) : sum),
      0,
    ),
};
