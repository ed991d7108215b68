import type { Clock } from "../../lib/clock/clock.ts";
import type { Log } from "../../lib/log/log.ts";
import type { Store } from "../store/types.ts";

/** A timer that is later than this tells that this process was stopped or starved: the silence may be its own. */
const mostLateMs = 100;
const lookAgainMs = 500;

export type VigilStep =
  | { readonly kind: "wait"; readonly forMs: number }
  /** Its record says that it is quiet from now on; look again after that time. */
  | { readonly kind: "mark"; readonly forMs: number };

/**
 * What follows from a node's silence of that length, seen by a timer that came that late: at half of its lease it is quiet.
 * A heartbeat that is late for once comes before that, and of nodes that are cut off at the same moment all are quiet before
 * the first lease ends. A late timer says nothing: what the node has sent may wait to be read. Pure.
 */
export function planVigil(
  { silentMs, lateMs, quiet }: { readonly silentMs: number; readonly lateMs: number; readonly quiet: boolean },
  leaseTtlMs: number,
): VigilStep {
  if (silentMs < leaseTtlMs / 2) return { kind: "wait", forMs: leaseTtlMs / 2 - silentMs };
  if (quiet) return { kind: "wait", forMs: lookAgainMs };
  if (lateMs > mostLateMs) return { kind: "wait", forMs: mostLateMs };
  return { kind: "mark", forMs: lookAgainMs };
}

export interface VigilsDeps {
  readonly store: Pick<Store, "view" | "commit">;
  readonly clock: Clock;
  readonly log: Log;
  readonly leaseTtlMs: number;
}

/**
 * Says in the records of nodes' sessions whether the nodes are quiet: one vigil a node, which goes on when the node's
 * stream has ended, until the record is gone or another's.
 */
export class Vigils implements Disposable {
  readonly #deps: VigilsDeps;
  readonly #vigils = new Map<string, Vigil>();

  constructor(deps: VigilsDeps) {
    this.#deps = deps;
  }

  /** The session's record is in the store, not quiet, under that lease. */
  begin(nodeId: string, sessionId: string, lease: bigint): void {
    this.#vigils.get(nodeId)?.[Symbol.dispose]();
    this.#vigils.set(nodeId, new Vigil(this.#deps, nodeId, sessionId, lease));
  }

  /** The session gave a sign of life. */
  heard(nodeId: string, sessionId: string): void {
    const vigil = this.#vigils.get(nodeId);
    if (vigil?.sessionId === sessionId) vigil.heard();
  }

  /** The node's record in the store is that session's, or gone. */
  recordChanged(nodeId: string, sessionId: string | undefined): void {
    const vigil = this.#vigils.get(nodeId);
    if (vigil === undefined || vigil.sessionId === sessionId) return;
    vigil[Symbol.dispose]();
    this.#vigils.delete(nodeId);
  }

  [Symbol.dispose](): void {
    for (const vigil of this.#vigils.values()) vigil[Symbol.dispose]();
    this.#vigils.clear();
  }
}

class Vigil implements Disposable {
  readonly sessionId: string;
  readonly #deps: VigilsDeps;
  readonly #nodeId: string;
  readonly #lease: bigint;
  readonly #stop = new AbortController();
  #heardMs: number;
  /** What the record says, and what it should say. */
  #quiet = false;
  #wanted = false;
  #writing = false;

  constructor(deps: VigilsDeps, nodeId: string, sessionId: string, lease: bigint) {
    this.#deps = deps;
    this.#nodeId = nodeId;
    this.sessionId = sessionId;
    this.#lease = lease;
    this.#heardMs = deps.clock.monotonicMs();
    void this.#keep();
  }

  heard(): void {
    this.#heardMs = this.#deps.clock.monotonicMs();
    if (this.#wanted || this.#quiet) void this.#say(false);
  }

  [Symbol.dispose](): void {
    this.#stop.abort();
  }

  async #keep(): Promise<void> {
    const { clock, leaseTtlMs } = this.#deps;
    const { signal } = this.#stop;
    for (let forMs = leaseTtlMs / 2; ; ) {
      const dueMs = clock.monotonicMs() + forMs;
      await clock.sleep(Math.ceil(forMs), signal).catch(() => undefined);
      if (signal.aborted) return;
      const nowMs = clock.monotonicMs();
      const seen = { silentMs: nowMs - this.#heardMs, lateMs: nowMs - dueMs, quiet: this.#quiet };
      const step = planVigil(seen, leaseTtlMs);
      if (step.kind === "mark") void this.#say(true);
      forMs = step.forMs;
    }
  }

  /** Writes down whether the node is quiet. What fails is tried again when the vigil looks next, or the node is heard next. */
  async #say(quiet: boolean): Promise<void> {
    this.#wanted = quiet;
    if (this.#writing) return;
    this.#writing = true;
    const { store, log } = this.#deps;
    const { sessions } = store.view;
    try {
      while (this.#quiet !== this.#wanted && !this.#stop.signal.aborted) {
        const record = sessions.get(this.#nodeId);
        if (record?.sessionId !== this.sessionId) return;
        const value = { ...record, quiet: this.#wanted };
        const ifRevision = sessions.revisionOf(this.#nodeId);
        await store.commit([{ table: "sessions", id: this.#nodeId, value, ifRevision, lease: this.#lease }]);
        this.#quiet = value.quiet;
      }
    } catch (error) {
      log.debug("cannot say whether a node is quiet", { nodeId: this.#nodeId, quiet: this.#wanted, error });
    } finally {
      this.#writing = false;
    }
  }
}
