interface Waiting {
  readonly urgency: number;
  readonly go: () => void;
}

/** Lets a bounded number of things happen at once; of those that wait the most urgent comes first, then the oldest. */
export class Semaphore {
  #free: number;
  readonly #waiting: Waiting[] = [];

  constructor(permits: number) {
    this.#free = permits;
  }

  /** Runs it when its turn has come. */
  async run<T>(urgency: number, work: () => Promise<T>): Promise<T> {
    if (this.#free > 0) this.#free--;
    else await new Promise<void>((go) => this.#enqueue({ urgency, go }));
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      // The permit goes from hand to hand, so that nobody who comes now is served first.
      if (next === undefined) this.#free++;
      else next.go();
    }
  }

  #enqueue(one: Waiting): void {
    const before = this.#waiting.findIndex(({ urgency }) => urgency < one.urgency);
    this.#waiting.splice(before < 0 ? this.#waiting.length : before, 0, one);
  }
}
