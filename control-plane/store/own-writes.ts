import type { Entry } from "./view.ts";

export interface OwnWritesDeps {
  /** The revision that the view is at. */
  readonly revision: () => number;
  /** Brings the view to the next revision. */
  readonly apply: (entries: readonly Entry[], revision: number) => void;
  /** Called once: a later revision is known, and the one before it has not been told for a while. */
  readonly onGap: () => void;
}

/** How long a revision may be missing behind which another one is known. Answers of commits under way come out of order by less. */
const gapMs = 500;

/**
 * Puts revisions in order that two sources tell: a watch that leaves tasks out, and the answers to this member's own commits, which are
 * all that writes tasks while it leads. etcd counts up by one with every transaction, so that nothing is missing between two neighbours.
 */
export class OwnWrites implements Disposable {
  readonly #deps: OwnWritesDeps;
  readonly #told = new Map<number, readonly Entry[]>();
  #gap: NodeJS.Timeout | undefined;

  constructor(deps: OwnWritesDeps) {
    this.#deps = deps;
  }

  /** All that a revision has written. The first to tell a revision is believed. */
  add(revision: number, entries: readonly Entry[]): void {
    const { revision: reached, apply, onGap } = this.#deps;
    if (revision <= reached() || this.#told.has(revision)) return;
    this.#told.set(revision, entries);
    const before = reached();
    for (let next = before + 1; this.#told.has(next); next++) {
      const following = this.#told.get(next) ?? [];
      this.#told.delete(next);
      apply(following, next);
    }
    if (this.#told.size > 0 && reached() === before) {
      this.#gap ??= setTimeout(onGap, gapMs);
      return;
    }
    clearTimeout(this.#gap);
    this.#gap = this.#told.size === 0 ? undefined : setTimeout(onGap, gapMs);
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#gap);
    this.#told.clear();
  }
}
