/**
 * Work that several callers may want at the same time, done once per key. A caller's signal takes only that caller away; the
 * work is aborted when the last one has gone.
 */
export class Flights<Result> {
  readonly #flights = new Map<
    string,
    { waiting: number; readonly stop: AbortController; readonly result: Promise<Result> }
  >();

  /** Keys under way. */
  keys(): readonly string[] {
    return [...this.#flights.keys()];
  }

  /** Joins the work of that key, or begins it. Rejects with what it throws, or with the signal's reason. */
  async join(
    key: string,
    signal: AbortSignal | undefined,
    work: (signal: AbortSignal) => Promise<Result>,
  ): Promise<Result> {
    signal?.throwIfAborted();
    let flight = this.#flights.get(key);
    if (flight === undefined || flight.stop.signal.aborted) {
      const stop = new AbortController();
      const begun = { waiting: 0, stop, result: work(stop.signal) };
      const land = () => {
        if (this.#flights.get(key) === begun) this.#flights.delete(key);
      };
      begun.result.then(land, land);
      this.#flights.set(key, begun);
      flight = begun;
    }
    flight.waiting += 1;
    let leave = () => {};
    const left = new Promise<never>((_, reject) => {
      leave = () => reject(signal?.reason);
      signal?.addEventListener("abort", leave, { once: true });
    });
    try {
      return await (signal === undefined ? flight.result : Promise.race([flight.result, left]));
    } finally {
      signal?.removeEventListener("abort", leave);
      flight.waiting -= 1;
      if (flight.waiting === 0) flight.stop.abort(signal?.reason);
    }
  }
}

/** Lets at most `limit` pieces of work run at once; the others wait in order. */
export class Gate {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(limit: number) {
    this.#free = limit;
  }

  async run<Result>(work: () => Promise<Result>): Promise<Result> {
    if (this.#free > 0) this.#free -= 1;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#free += 1;
      else next();
    }
  }
}
