import type { ClusterState } from "../state/cluster.ts";
import type { GroupRecord, NodeRecord, SpreadLevel } from "../state/records.ts";
import type { Filter } from "./filter.ts";

/** Placing here leaves no domain more than `maxSkew` tasks above the emptiest domain that the group could use. */
export const maxSkew: Filter = {
  kind: "max-skew",
  looksAt: "domain",
  hangsOn: ["facts", "service"],
  applies: (group) => group.spread.some((level) => level.maxSkew !== Number.POSITIVE_INFINITY),
  passes: (state, group, node) => group.spread.every((level) => keepsSkew(state, group, level, node)),
  reason(state, group, node) {
    const level = group.spread.find((one) => !keepsSkew(state, group, one, node)) as SpreadLevel;
    const domain = level.space.of(node);
    if (!level.space.present(domain)) {
      return {
        kind: "max-skew",
        text: `${level.over} is missing`,
        fix: `Label node ${node.spec.hostname}, or drop maxSkew.`,
      };
    }
    const count = group.service.countIn(level.space, node);
    const floor = state.floors.floor(group, level);
    return {
      kind: "max-skew",
      text: `${level.over} ${level.space.value(domain)} would have ${count + 1} tasks, the emptiest ${floor}: more than maxSkew ${level.maxSkew}`,
      fix: `Make room where ${level.over} has fewer tasks, or raise maxSkew.`,
      together: `${level.over} would have more than maxSkew ${level.maxSkew} tasks above the emptiest`,
    };
  },
};

function keepsSkew(state: ClusterState, group: GroupRecord, level: SpreadLevel, node: NodeRecord): boolean {
  if (level.maxSkew === Number.POSITIVE_INFINITY) return true;
  if (!level.space.present(level.space.of(node))) return false;
  return group.service.countIn(level.space, node) + 1 - state.floors.floor(group, level) <= level.maxSkew;
}
