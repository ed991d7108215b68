/** The scheduler's public face: everything that the rest of the control plane may use. */
export { type Constraint, type ConstraintError, type ParsedConstraint, parseConstraint } from "./constraint/parse.ts";
export { tolerates } from "./filters/taint.ts";
export type { RebalanceMove, RebalanceOptions, RebalancePlan } from "./rebalance.ts";
export { Scheduler, type SchedulerOptions, type SchedulerSnapshot } from "./scheduler.ts";
export { applyChanges, type Change, type Move, type Outcome, simulate } from "./simulate.ts";
export type * from "./types.ts";
