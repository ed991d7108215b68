import type { Filter } from "../filters/filter.ts";
import type { ClusterState } from "../state/cluster.ts";
import type { GroupRecord, NodeRecord } from "../state/records.ts";

/** Do the rules that look at the tasks of the node at this index let it pass? Resources first: they refuse most often. */
export function fits(state: ClusterState, group: GroupRecord, index: number): boolean {
  if (!state.table.fits(index, group.needs)) return false;
  const others = group.rules.nodeFilters;
  if (others.length === 0) return true;
  const node = state.byIndex[index] as NodeRecord;
  for (let i = 0; i < others.length; i++) if (!(others[i] as Filter).passes(state, group, node)) return false;
  return true;
}

/** Do the rules that look at the node's domain let it pass? */
export function fitsDomain(state: ClusterState, group: GroupRecord, node: NodeRecord): boolean {
  const rules = group.rules.domainFilters;
  for (let i = 0; i < rules.length; i++) if (!(rules[i] as Filter).passes(state, group, node)) return false;
  return true;
}
