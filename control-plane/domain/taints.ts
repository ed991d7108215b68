import { type Placement, TaintEffect, type Toleration } from "../../proto/gen/embassy/v1/stack.ts";
import type { NodeSpec, Taint } from "../../proto/gen/embassy/v1/state.ts";
import { type Taint as SchedulerTaint, type Toleration as SchedulerToleration, tolerates } from "../scheduler/index.ts";

const effects: Record<TaintEffect, SchedulerTaint["effect"]> = {
  [TaintEffect.TAINT_EFFECT_NO_SCHEDULE]: "no-schedule",
  [TaintEffect.TAINT_EFFECT_PREFER_NO_SCHEDULE]: "prefer-no-schedule",
  [TaintEffect.TAINT_EFFECT_NO_EXECUTE]: "no-execute",
};

/** A taint in the scheduler's words. */
export function schedulerTaint({ key, value, effect }: Taint): SchedulerTaint {
  return { key, value: value === "" ? undefined : value, effect: effects[effect] };
}

/** A toleration in the scheduler's words. */
export function schedulerToleration({ key, value, effect }: Toleration): SchedulerToleration {
  return { key: key === "" ? undefined : key, value, effect: effect === undefined ? undefined : effects[effect] };
}

/** Does the node have a taint of this effect that tasks of such a placement do not tolerate? */
export function repels(node: NodeSpec | undefined, effect: TaintEffect, placement: Placement | undefined): boolean {
  if (node === undefined || node.taints.length === 0) return false;
  const tolerations = (placement?.tolerations ?? []).map(schedulerToleration);
  return node.taints.some((taint) => taint.effect === effect && !tolerates(tolerations, schedulerTaint(taint)));
}

/** The taints of a node after some are removed and others set, by key and effect. */
export function changeTaints(
  taints: readonly Taint[],
  remove: readonly { readonly key: string; readonly effect?: TaintEffect | undefined }[],
  set: readonly Taint[],
): Taint[] {
  const name = ({ key, effect }: Taint) => `${key}:${effects[effect]}`;
  const kept = taints.filter(
    (taint) =>
      !remove.some(({ key, effect }) => key === taint.key && (effect === undefined || effect === taint.effect)),
  );
  const byName = new Map([...kept, ...set].map((taint) => [name(taint), taint]));
  return [...byName].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, taint]) => taint);
}
