import type { ClusterState } from "../state/cluster.ts";
import type { GroupRecord, SpreadLevel } from "../state/records.ts";
import { factFilters } from "./index.ts";

/** The fewest tasks of the service in any domain that the group may use, by looking at every node. */
export function scanFloor(state: ClusterState, group: GroupRecord, level: SpreadLevel): number {
  let floor = Number.POSITIVE_INFINITY;
  for (const node of state.nodes.values()) {
    if (!level.space.present(level.space.of(node))) continue;
    if (!factFilters.every((filter) => filter.passes(state, group, node))) continue;
    floor = Math.min(floor, group.service.countIn(level.space, node));
  }
  return floor === Number.POSITIVE_INFINITY ? 0 : floor;
}
