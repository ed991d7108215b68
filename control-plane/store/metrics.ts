/** What the store tells whoever counts. */
export interface StoreMetrics {
  /** A commit was answered after that time. `outcome`: committed, conflict, unavailable, or another error's code. */
  commit(outcome: string, seconds: number): void;
  /** The view was listed anew, and why. */
  relisted(why: string): void;
  /** The watch was opened anew. */
  rewatched(): void;
}

export const noStoreMetrics: StoreMetrics = { commit() {}, relisted() {}, rewatched() {} };
