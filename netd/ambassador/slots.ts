import { chooserOf, slotCounts, slotMarkBase } from "../kernel/ruleset.ts";

export interface Slots<T> {
  /** The chain that chooses one. */
  readonly chooser: string;
  /** Mark that the chooser sets, and the backend that it stands for. */
  readonly slots: readonly { readonly mark: number; readonly backend: T }[];
}

/**
 * Lays backends out over the slots of the smallest chooser that holds them all; a chooser that is larger is filled by
 * repeating them in order, so that their shares differ by one slot at most. Pure. undefined without backends.
 */
export function slotsOf<T>(backends: readonly T[]): Slots<T> | undefined {
  if (backends.length === 0) return undefined;
  const most = slotCounts.at(-1) ?? 0;
  const count = slotCounts.find((size) => size >= backends.length) ?? most;
  const slots = [];
  for (let n = 0; n < count; n++) {
    const backend = backends[n % backends.length];
    if (backend !== undefined) slots.push({ mark: slotMarkBase + n, backend });
  }
  return { chooser: `jump ${chooserOf(count)}`, slots };
}
