import { request } from "node:http";

/** What one request came to. */
interface Outcome {
  readonly sentAtMs: number;
  readonly endedAtMs: number;
  /** undefined: it succeeded */
  readonly error: string | undefined;
}

/**
 * Requests at a steady rate, over a new connection each, whatever became of those before: what users do while something
 * breaks. Disposing it stops it and waits for the last answers.
 */
export class SteadyRequests implements AsyncDisposable {
  readonly #outcomes: Outcome[] = [];
  readonly #pending = new Set<Promise<void>>();
  readonly #timer: NodeJS.Timeout;
  #sent = 0;

  /** Sends `perSecond` requests a second, to each url in turn. A request has one second. */
  constructor(urls: readonly string[], perSecond: number) {
    this.#timer = setInterval(() => {
      const sending = this.#send(urls[this.#sent++ % urls.length] ?? "").finally(() => this.#pending.delete(sending));
      this.#pending.add(sending);
    }, 1_000 / perSecond);
  }

  get succeeded(): number {
    return this.#outcomes.filter((outcome) => outcome.error === undefined).length;
  }

  /** The errors of failed requests, each with how often it came. */
  failures(): Record<string, number> {
    const counts: Record<string, number> = {};
    for (const { error } of this.#outcomes) if (error !== undefined) counts[error] = (counts[error] ?? 0) + 1;
    return counts;
  }

  /**
   * The longest time after `sinceMs` in which requests were sent and none of them succeeded: from the first request of a
   * row of failures until an answer came to a request sent after it. 0 when all succeeded.
   */
  longestOutageMs(sinceMs = 0): number {
    const inOrder = this.#outcomes.filter((o) => o.sentAtMs >= sinceMs).sort((a, b) => a.sentAtMs - b.sentAtMs);
    let longest = 0;
    let outageSince: number | undefined;
    for (const { sentAtMs, endedAtMs, error } of inOrder) {
      if (error !== undefined) outageSince ??= sentAtMs;
      const end = error === undefined ? endedAtMs : Math.max(endedAtMs, sentAtMs);
      if (outageSince !== undefined) longest = Math.max(longest, end - outageSince);
      if (error === undefined) outageSince = undefined;
    }
    return longest;
  }

  /** Resolves after that many more requests have succeeded. */
  async untilSucceeded(more: number, timeoutMs = 30_000): Promise<void> {
    const target = this.succeeded + more;
    const deadline = performance.now() + timeoutMs;
    while (this.succeeded < target) {
      if (performance.now() > deadline) {
        throw new Error(`only ${this.succeeded} of ${target} requests succeeded: ${JSON.stringify(this.failures())}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer);
    await Promise.all(this.#pending);
  }

  async #send(url: string): Promise<void> {
    const sentAtMs = performance.now();
    const error = await new Promise<string | undefined>((resolve) => {
      const sending = request(url, { agent: false, signal: AbortSignal.timeout(1_000) }, (response) => {
        response.resume();
        response.on("end", () => resolve(response.statusCode === 200 ? undefined : `status ${response.statusCode}`));
        response.on("error", (cause) => resolve(cause.message));
      });
      sending.on("error", (cause) => resolve(cause.message));
      sending.end();
    });
    this.#outcomes.push({ sentAtMs, endedAtMs: performance.now(), error });
  }
}
