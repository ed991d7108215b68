import { attributeOf } from "../constraint/attributes.ts";
import type { Filter } from "./filter.ts";

/** Every placement constraint holds. */
export const constraint: Filter = {
  kind: "constraint",
  looksAt: "facts",
  key: (group) => group.constraints.map(({ text }) => text),
  passes: (_state, group, node) => group.constraints.every((one) => one.matches(node.spec)),
  reason(_state, group, node) {
    const failed = group.constraints.find((one) => !one.matches(node.spec));
    const actual = failed === undefined ? undefined : attributeOf(failed.attribute)?.(node.spec);
    return {
      kind: "constraint",
      text: `constraint ${failed?.text} not met`,
      fix: `Node ${node.spec.hostname} has ${actual === undefined ? `no ${failed?.attribute}` : `${failed?.attribute} "${actual}"`}: change it, or relax ${failed?.text}.`,
    };
  },
};
