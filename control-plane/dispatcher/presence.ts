import type { Clock } from "../../lib/clock/clock.ts";
import { newId } from "../../lib/ids/ids.ts";
import type { Log } from "../../lib/log/log.ts";
import type { Store } from "../store/types.ts";

export interface PresenceDeps {
  readonly store: Pick<Store, "commit" | "grantLease" | "keepAlive" | "revokeLease">;
  readonly clock: Clock;
  readonly log: Log;
  readonly member: string;
  /** Of a node's session. The member's own lease is shorter, so that a member cut off from the store is lost before its nodes are. */
  readonly nodeLeaseTtlMs: number;
}

const retryMs = 200;

/** Shows that this member renews its nodes' leases. A new incarnation after each time when it could not. */
export class Presence {
  readonly #deps: PresenceDeps;
  readonly #listeners = new Set<(incarnation: string) => void>();
  readonly #first = Promise.withResolvers<void>();
  #incarnation = "";

  constructor(deps: PresenceDeps) {
    this.#deps = deps;
  }

  /** Empty until registered for the first time. */
  get incarnation(): string {
    return this.#incarnation;
  }

  /** Resolves once registered for the first time. */
  async ready(): Promise<void> {
    await this.#first.promise;
  }

  /** Calls back after each registration but the first. */
  onChange(listener: (incarnation: string) => void): void {
    this.#listeners.add(listener);
  }

  /** Keeps this member registered until the signal is aborted. */
  async run(signal: AbortSignal): Promise<void> {
    const { store, clock, log, member, nodeLeaseTtlMs } = this.#deps;
    const ttlMs = Math.max(2_000, Math.floor((nodeLeaseTtlMs * 0.6) / 1_000) * 1_000);
    while (!signal.aborted) {
      let lease: bigint | undefined;
      try {
        lease = await store.grantLease(ttlMs);
        const incarnation = newId();
        const value = { name: member, incarnation };
        await store.commit([{ table: "memberSessions", id: member, value, lease }], { signal });
        this.#incarnation = incarnation;
        this.#first.resolve();
        for (const listener of this.#listeners) listener(incarnation);
        await this.#keep(lease, ttlMs / 4, signal);
        if (!signal.aborted) log.warn("lost this member's lease", { member });
      } catch (error) {
        if (signal.aborted) break;
        log.warn("cannot register this member", { member, retryInMs: retryMs, error });
        await clock.sleep(retryMs, signal).catch(() => undefined);
      }
      // Gone at once: the nodes' grace to reconnect elsewhere begins now and not when the lease would have ended.
      if (signal.aborted && lease !== undefined) await store.revokeLease(lease).catch(() => undefined);
    }
  }

  /** Returns once the lease is gone or the signal aborted. A store that does not answer says nothing about the lease. */
  async #keep(lease: bigint, intervalMs: number, signal: AbortSignal): Promise<void> {
    const { store, clock, log } = this.#deps;
    while (!signal.aborted) {
      await clock.sleep(intervalMs, signal).catch(() => undefined);
      if (signal.aborted) return;
      try {
        if (!(await store.keepAlive(lease))) return;
      } catch (error) {
        log.debug("cannot renew this member's lease now", { error });
      }
    }
  }
}
