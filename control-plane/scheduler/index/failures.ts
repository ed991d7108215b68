import type { GroupRecord, Need } from "../state/records.ts";

/** Least needs remembered; sizes at random leave a staircase of some twenty. */
const most = 32;

/**
 * Needs that fitted on no node of a view. Whatever needs as much or more fits nowhere either, until something is freed;
 * without this a full cluster is searched in vain for every new size.
 */
export class KnownFailures {
  #needs: (readonly Need[])[] = [];
  #gains = -1;

  /** Is the group known to fit nowhere, as of this count of `ClusterState.gains`? */
  covers(group: GroupRecord, gains: number): boolean {
    if (this.#gains !== gains) {
      this.#needs.length = 0;
      this.#gains = gains;
      return false;
    }
    for (let i = 0; i < this.#needs.length; i++) {
      if (atLeast(group.needs, this.#needs[i] as readonly Need[])) return true;
    }
    return false;
  }

  /** The group fits nowhere, for want of resources alone. */
  add(group: GroupRecord): void {
    this.#needs = this.#needs.filter((known) => !atLeast(known, group.needs));
    if (this.#needs.length < most) this.#needs.push(group.needs);
  }
}

/** Is each amount of `less` needed by `more` as well, and as much of it? */
function atLeast(more: readonly Need[], less: readonly Need[]): boolean {
  for (let i = 0; i < less.length; i++) {
    const { dimension, amount } = less[i] as Need;
    let found = false;
    for (let j = 0; !found && j < more.length; j++) {
      const need = more[j] as Need;
      found = need.dimension === dimension && need.amount >= amount;
    }
    if (!found) return false;
  }
  return true;
}
