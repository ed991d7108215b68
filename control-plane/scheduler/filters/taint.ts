import type { Taint, Toleration } from "../types.ts";
import type { Filter } from "./filter.ts";

/** No taint that keeps tasks off without a toleration for it. `prefer-no-schedule` is a score. */
export const taint: Filter = {
  kind: "taint",
  looksAt: "facts",
  key: (group) => group.spec.tolerations,
  passes(_state, group, node) {
    const { taints } = node.spec;
    if (taints === undefined || taints.length === 0) return true;
    return taints.every((one) => one.effect === "prefer-no-schedule" || tolerates(group.spec.tolerations, one));
  },
  reason(_state, group, node) {
    const failed = (node.spec.taints ?? []).find(
      (one) => one.effect !== "prefer-no-schedule" && !tolerates(group.spec.tolerations, one),
    );
    const name = failed === undefined ? "" : formatTaint(failed);
    return {
      kind: "taint",
      text: `taint ${name} not tolerated`,
      fix: `Tolerate ${name}, or remove it from node ${node.spec.hostname}.`,
    };
  },
};

/** Does any toleration match the taint? */
export function tolerates(tolerations: readonly Toleration[] | undefined, one: Taint): boolean {
  return (tolerations ?? []).some(
    ({ key, value, effect }) =>
      (key === undefined || key === one.key) &&
      (value === undefined || value === (one.value ?? "")) &&
      (effect === undefined || effect === one.effect),
  );
}

function formatTaint({ key, value, effect }: Taint): string {
  return `${key}${value === undefined ? "" : `=${value}`}:${effect}`;
}
