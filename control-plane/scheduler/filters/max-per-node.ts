import type { Filter } from "./filter.ts";

/** The node has fewer tasks of the service than the service allows on one node. */
export const maxPerNode: Filter = {
  kind: "max-per-node",
  looksAt: "node",
  applies: (group) => (group.spec.maxPerNode ?? 0) > 0,
  passes(_state, group, node) {
    const most = group.spec.maxPerNode;
    return most === undefined || most === 0 || group.service.countOn(node) < most;
  },
  reason: (_state, group) => ({
    kind: "max-per-node",
    text: `already ${group.spec.maxPerNode} of ${group.spec.name} on the node, the most allowed`,
    fix: "Raise max_replicas_per_node, or add a node.",
  }),
};
