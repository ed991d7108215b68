import type { Log } from "../log/log.ts";

export interface LoopOptions {
  /** Names the loop in logs. */
  readonly name: string;
  readonly log: Log;
  /** Brings one key to its desired state. Called for one key at a time unless `concurrency` says otherwise, never twice at once for the same key. */
  readonly reconcile: (key: string, signal: AbortSignal) => Promise<void>;
  /** Every key there is; all are marked each `resyncIntervalMs`, so that a missed event costs time and not correctness. */
  readonly keys?: () => Iterable<string>;
  readonly resyncIntervalMs?: number;
  /** Keys worked on at once. Default 1. */
  readonly concurrency?: number;
  /** First delay after a failed pass; doubles up to `maxRetryMs`. Default 100. */
  readonly minRetryMs?: number;
  /** Default 5,000. */
  readonly maxRetryMs?: number;
}

/**
 * The one loop shape: a queue of keys, so that two changes to one key are one pass; a failed pass is logged and tried
 * again with a growing, capped delay, and never ends the loop.
 */
export class ReconcileLoop implements AsyncDisposable {
  readonly #options: LoopOptions;
  readonly #queue = new Set<string>();
  readonly #running = new Map<string, Promise<void>>();
  readonly #retries = new Map<string, { delayMs: number; timer: NodeJS.Timeout }>();
  readonly #later = new Map<string, { atMs: number; timer: NodeJS.Timeout }>();
  readonly #stop = new AbortController();
  readonly #concurrency: number;
  #resync: NodeJS.Timeout | undefined;
  #idle: (() => void)[] = [];

  constructor(options: LoopOptions) {
    this.#options = options;
    this.#concurrency = options.concurrency ?? 1;
    if (options.keys !== undefined && options.resyncIntervalMs !== undefined) {
      this.#resync = setInterval(() => this.markAll(), options.resyncIntervalMs);
      this.#resync.unref();
    }
  }

  /** Asks for a pass over the key, soon. Marking a key that is being worked on asks for one more pass. */
  mark(key: string): void {
    if (this.#stop.signal.aborted) return;
    this.#queue.add(key);
    // Later in this turn, so that the marks of one burst of events are one pass.
    queueMicrotask(() => this.#pump());
  }

  /** Asks for a pass over every key. */
  markAll(): void {
    for (const key of this.#options.keys?.() ?? []) this.mark(key);
  }

  /** Asks for a pass over the key after that time; of several such requests the earliest counts. */
  markAfter(key: string, delayMs: number): void {
    if (this.#stop.signal.aborted) return;
    const atMs = performance.now() + delayMs;
    const known = this.#later.get(key);
    if (known !== undefined) {
      if (known.atMs <= atMs) return;
      clearTimeout(known.timer);
    }
    const timer = setTimeout(() => {
      this.#later.delete(key);
      this.mark(key);
    }, delayMs);
    this.#later.set(key, { atMs, timer });
  }

  /** Resolves once nothing is queued, running or waiting for a retry. */
  async idle(): Promise<void> {
    if (this.#isIdle()) return;
    await new Promise<void>((resolve) => this.#idle.push(resolve));
  }

  /** Takes no more keys and waits for the passes under way. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort(new Error(`loop ${this.#options.name} stopped`));
    clearInterval(this.#resync);
    this.#queue.clear();
    for (const { timer } of this.#retries.values()) clearTimeout(timer);
    for (const { timer } of this.#later.values()) clearTimeout(timer);
    this.#retries.clear();
    this.#later.clear();
    await Promise.allSettled(this.#running.values());
  }

  #isIdle(): boolean {
    return this.#queue.size === 0 && this.#running.size === 0 && this.#retries.size === 0;
  }

  #pump(): void {
    for (const key of this.#queue) {
      if (this.#running.size >= this.#concurrency) return;
      if (this.#running.has(key)) continue;
      this.#queue.delete(key);
      const pass = this.#pass(key).finally(() => {
        this.#running.delete(key);
        this.#pump();
        if (this.#isIdle()) {
          const waiting = this.#idle;
          this.#idle = [];
          for (const resolve of waiting) resolve();
        }
      });
      this.#running.set(key, pass);
    }
  }

  async #pass(key: string): Promise<void> {
    const { name, log, reconcile, minRetryMs = 100, maxRetryMs = 5_000 } = this.#options;
    const previous = this.#retries.get(key);
    if (previous !== undefined) clearTimeout(previous.timer);
    try {
      await reconcile(key, this.#stop.signal);
      this.#retries.delete(key);
    } catch (error) {
      if (this.#stop.signal.aborted) return;
      const delayMs = previous === undefined ? minRetryMs : Math.min(previous.delayMs * 2, maxRetryMs);
      log.warn("pass failed", { loop: name, key, retryInMs: delayMs, error });
      const timer = setTimeout(() => this.mark(key), delayMs);
      this.#retries.set(key, { delayMs, timer });
    }
  }
}
