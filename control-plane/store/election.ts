import type { Clock } from "../../lib/clock/clock.ts";
import { ClusterError } from "../../lib/errors/errors.ts";
import type { Log } from "../../lib/log/log.ts";
import { Compare, RangeRequest, type RequestOp, TxnRequest } from "../../proto/gen/etcd/rpc.ts";
import type { EtcdClient } from "./client.ts";
import type { EtcdStore } from "./etcd.ts";
import { leaderOf } from "./list.ts";
import { leaderKey } from "./schema.ts";
import type { Leadership } from "./types.ts";

export interface ElectionDeps {
  readonly client: EtcdClient;
  readonly store: EtcdStore;
  readonly clock: Clock;
  readonly log: Log;
}

export interface ElectionOptions {
  readonly member: string;
  /** Of this member's state directory: a key left by a process that died there is taken over at once. */
  readonly instance: string;
  readonly ttlMs: number;
}

const retryMs = 500;

/** One election key under a lease. Its create-revision is the fence that every write of the leader compares. */
export class Election implements Leadership {
  readonly #deps: ElectionDeps;
  readonly #options: ElectionOptions;
  readonly #value: string;

  constructor(deps: ElectionDeps, options: ElectionOptions) {
    this.#deps = deps;
    this.#options = options;
    this.#value = `${options.member}/${options.instance}`;
  }

  leader(): string {
    return this.#deps.store.leader?.holder.split("/")[0] ?? "";
  }

  async run(lead: (signal: AbortSignal) => Promise<void>, signal: AbortSignal): Promise<void> {
    const { clock, log } = this.#deps;
    while (!signal.aborted) {
      try {
        await this.#term(lead, signal);
      } catch (error) {
        if (signal.aborted) return;
        log.warn("leadership attempt failed", { error, retryInMs: retryMs });
        await clock.sleep(retryMs, signal).catch(() => undefined);
      }
    }
  }

  /** Waits for the key to be free, wins or loses; if won, leads until deposed. */
  async #term(lead: (signal: AbortSignal) => Promise<void>, signal: AbortSignal): Promise<void> {
    const { store, clock, log } = this.#deps;
    await this.#untilFree(signal);
    const startedMs = clock.monotonicMs();
    const lease = await store.grantLease(this.#options.ttlMs);
    try {
      const createRevision = await this.#claim(lease, signal);
      if (createRevision === undefined) return;
      const deposed = new AbortController();
      const depose = (why: string) => {
        if (deposed.signal.aborted) return;
        store.setFence(undefined);
        log.info("leadership ended", { why });
        deposed.abort(new ClusterError(why, { code: "unavailable", subject: "leader" }));
      };
      const stop = () => depose("this member stops");
      signal.addEventListener("abort", stop, { once: true });
      using _ = store.onLeaderChange(() => {
        if (store.leader?.createRevision !== createRevision) depose("the election key is another's or gone");
      });
      try {
        signal.throwIfAborted();
        // What earlier leaders wrote is in the view before this one plans anything.
        const late = AbortSignal.timeout(this.#options.ttlMs / 2);
        await store.reached(Number(createRevision), AbortSignal.any([late, signal]));
        store.setFence(createRevision);
        log.info("leadership won", { fence: createRevision.toString() });
        const renewing = this.#renew(lease, startedMs, depose, deposed.signal);
        try {
          await lead(deposed.signal);
          depose("leading ended by itself");
        } catch (error) {
          if (!deposed.signal.aborted) throw error;
        } finally {
          depose("leading failed");
          await renewing;
        }
      } finally {
        signal.removeEventListener("abort", stop);
      }
    } finally {
      // The next leader need not wait for the lease to run out.
      await store.revokeLease(lease).catch(() => undefined);
    }
  }

  async #untilFree(signal: AbortSignal): Promise<void> {
    const { store } = this.#deps;
    for (;;) {
      signal.throwIfAborted();
      const leader = store.leader;
      if (leader === undefined) return;
      if (leader.holder === this.#value) {
        await this.#remove(leader.createRevision);
        return;
      }
      const changed = Promise.withResolvers<void>();
      const stop = () => changed.reject(signal.reason);
      signal.addEventListener("abort", stop, { once: true });
      using _ = store.onLeaderChange(() => changed.resolve());
      try {
        await changed.promise;
      } finally {
        signal.removeEventListener("abort", stop);
      }
    }
  }

  /** Removes the key that an earlier process of this state directory left. */
  async #remove(createRevision: bigint): Promise<void> {
    const remove = { key: Buffer.from(leaderKey), rangeEnd: Buffer.alloc(0), prevKv: false };
    await this.#transact(createRevision, { request: { $case: "requestDeleteRange", value: remove } });
  }

  /** The key's create-revision when it is ours now; undefined when another was first. */
  async #claim(lease: bigint, signal: AbortSignal): Promise<bigint | undefined> {
    const put = {
      key: Buffer.from(leaderKey),
      value: Buffer.from(this.#value),
      lease,
      prevKv: false,
      ignoreValue: false,
      ignoreLease: false,
    };
    try {
      return await this.#transact(0n, { request: { $case: "requestPut", value: put } });
    } catch (error) {
      // It may have happened all the same: look, and never just try again.
      signal.throwIfAborted();
      const request = RangeRequest.create({ key: Buffer.from(leaderKey) });
      const { kvs } = await this.#deps.client.call(({ kv }) => kv.range.bind(kv), request, { signal });
      const [kv] = kvs;
      if (kv === undefined || kv.lease !== lease) throw error;
      return leaderOf(kv).createRevision;
    }
  }

  async #transact(createRevision: bigint, operation: RequestOp): Promise<bigint | undefined> {
    const targetUnion = { $case: "createRevision", value: createRevision } as const;
    const compare = [Compare.create({ result: 0, target: 1, key: Buffer.from(leaderKey), targetUnion })];
    const request = TxnRequest.create({ compare, success: [operation] });
    const response = await this.#deps.client.call(({ kv }) => kv.txn.bind(kv), request);
    return response.succeeded ? response.header?.revision : undefined;
  }

  /**
   * Renews the lease each third of its TTL. Two thirds of the TTL after the last renewal that is known to have
   * succeeded was sent, this member is deposed by its own clock: before etcd gives the key to another.
   */
  async #renew(lease: bigint, grantedMs: number, depose: (why: string) => void, signal: AbortSignal): Promise<void> {
    const { store, clock, log } = this.#deps;
    const { ttlMs } = this.#options;
    let renewedMs = grantedMs;
    const leftMs = () => (ttlMs * 2) / 3 - (clock.monotonicMs() - renewedMs);
    let timer: NodeJS.Timeout;
    const check = () => {
      if (leftMs() <= 0) depose("the lease could not be renewed in time");
      else timer = setTimeout(check, leftMs());
    };
    timer = setTimeout(check, leftMs());
    try {
      while (!signal.aborted) {
        const sentMs = clock.monotonicMs();
        try {
          if (!(await store.keepAlive(lease))) depose("the lease is gone");
          else renewedMs = sentMs;
        } catch (error) {
          log.warn("the leader's lease was not renewed", { error });
        }
        await clock.sleep(ttlMs / 3, signal).catch(() => undefined);
      }
    } finally {
      clearTimeout(timer);
    }
  }
}
