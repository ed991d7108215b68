import type { Clock } from "../../lib/clock/clock.ts";
import { asClusterError, ClusterError } from "../../lib/errors/errors.ts";
import type { Log } from "../../lib/log/log.ts";
import { Compare, RangeRequest, type RequestOp, TxnRequest } from "../../proto/gen/etcd/rpc.ts";
import type { EtcdClient } from "./client.ts";
import { checkWrites, conflictOf } from "./commit.ts";
import { isLeaseGone, Leases } from "./leases.ts";
import { decodeEntry, entry, type Leader, leaderOf, listAll, listKeys } from "./list.ts";
import { noStoreMetrics, type StoreMetrics } from "./metrics.ts";
import { type Codecs, keyOf, leaderKey, placeOf } from "./schema.ts";
import type { Change, CommitOptions, Store, View, Write } from "./types.ts";
import { type Entry, MutableView } from "./view.ts";
import { type WatchedRevision, watchOnce } from "./watch.ts";

export interface EtcdStoreDeps {
  readonly client: EtcdClient;
  readonly codecs: Codecs;
  readonly log: Log;
  readonly clock: Clock;
  readonly metrics?: StoreMetrics;
}

export interface EtcdStoreOptions {
  /** How often the keys are listed and compared with the view. Default 10 minutes. */
  readonly verifyIntervalMs?: number;
}

/** How long a commit waits for the view to reach it. */
const viewDeadlineMs = 5_000;
const minRetryMs = 50;
const maxRetryMs = 1_000;

/** The state in etcd. Opened with `EtcdStore.open`. */
export class EtcdStore implements Store, AsyncDisposable {
  readonly #deps: EtcdStoreDeps;
  readonly #options: EtcdStoreOptions;
  readonly #metrics: StoreMetrics;
  readonly #view = new MutableView();
  readonly #leases: Leases;
  readonly #stop = new AbortController();
  readonly #leaderListeners = new Set<() => void>();
  /** Deleted keys and the revisions of their deletion, while a verification is under way. */
  #deleted: Map<string, number> | undefined;
  /** Aborted when the watch is found to have missed something. */
  #missed = new AbortController();
  #leader: Leader | undefined;
  #fence: bigint | undefined;
  #aliveMs: number;
  #connected = false;
  #loops: Promise<unknown> = Promise.resolve();

  private constructor(deps: EtcdStoreDeps, options: EtcdStoreOptions) {
    this.#deps = deps;
    this.#options = options;
    this.#metrics = deps.metrics ?? noStoreMetrics;
    this.#leases = new Leases(deps.client);
    this.#aliveMs = deps.clock.monotonicMs();
  }

  /** Lists everything and begins to watch. Throws what `listAll` throws; `unavailable` when etcd is not reached in time. */
  static async open(deps: EtcdStoreDeps, signal: AbortSignal, options: EtcdStoreOptions = {}): Promise<EtcdStore> {
    const store = new EtcdStore(deps, options);
    await store.#list("start", signal);
    store.#loops = Promise.all([store.#watch(store.#stop.signal), store.#verifyAgain(store.#stop.signal)]);
    return store;
  }

  get view(): View {
    return this.#view.view;
  }

  subscribe(listener: (changes: readonly Change[], revision: number) => void): Disposable {
    return this.#view.subscribe(listener);
  }

  /** Since when etcd has said nothing on the watch: milliseconds. It is asked to say something every few seconds. */
  get silentMs(): number {
    return this.#deps.clock.monotonicMs() - this.#aliveMs;
  }

  /** Is the watch up, so that the view is current? */
  get connected(): boolean {
    return this.#connected;
  }

  /** Who holds the election key, as of the view's revision. */
  get leader(): Leader | undefined {
    return this.#leader;
  }

  /** Calls back when the election key has changed. */
  onLeaderChange(listener: () => void): Disposable {
    this.#leaderListeners.add(listener);
    return { [Symbol.dispose]: () => void this.#leaderListeners.delete(listener) };
  }

  /** The create-revision that fenced commits compare the election key with; undefined: they conflict. */
  setFence(createRevision: bigint | undefined): void {
    this.#fence = createRevision;
  }

  /** Resolves once the view has reached the revision. */
  async reached(revision: number, signal: AbortSignal): Promise<void> {
    await this.#view.reached(revision, signal);
  }

  async commit(writes: readonly Write[], options: CommitOptions = {}): Promise<number> {
    const startedMs = this.#deps.clock.monotonicMs();
    let outcome = "committed";
    try {
      return await this.#commit(writes, options);
    } catch (error) {
      outcome = asClusterError(error).code;
      throw error;
    } finally {
      this.#metrics.commit(outcome, (this.#deps.clock.monotonicMs() - startedMs) / 1000);
    }
  }

  async grantLease(ttlMs: number): Promise<bigint> {
    return await this.#leases.grant(ttlMs);
  }

  async keepAlive(lease: bigint): Promise<boolean> {
    return await this.#leases.keepAlive(lease);
  }

  async revokeLease(lease: bigint): Promise<void> {
    await this.#leases.revoke(lease);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort(new ClusterError("the store is closed", { code: "unavailable" }));
    this.#leases[Symbol.dispose]();
    await this.#loops;
  }

  async #commit(writes: readonly Write[], options: CommitOptions): Promise<number> {
    options.signal?.throwIfAborted();
    checkWrites(writes);
    const comparisons = comparisonsOf(writes, options, this.#fence);
    const request = TxnRequest.create({
      compare: comparisons.map(({ compare }) => compare),
      success: writes.map((write) => this.#operation(write)),
      failure: comparisons.map(({ compare }) => requestRange(compare.key)),
    });
    const { client } = this.#deps;
    const response = await client
      .call(({ kv }) => kv.txn.bind(kv), request, { signal: options.signal })
      .catch((error: unknown) => {
        // The one failure that is the caller's and not etcd's: it wrote under a lease that has ended.
        const lease = writes.find((write) => write.lease !== undefined)?.lease;
        const gone = lease !== undefined && error instanceof Error && isLeaseGone(error.cause);
        throw gone ? conflictOf(`lease/${lease}`) : error;
      });
    if (!response.succeeded) {
      const failed = comparisons.find(({ field, revision }, index) => {
        const found = response.responses[index]?.response;
        const [kv] = found?.$case === "responseRange" ? found.value.kvs : [];
        return (kv?.[field] ?? 0n) !== revision;
      });
      throw conflictOf(failed?.subject ?? "leader");
    }
    const changed = response.responses.some(
      ({ response: one }) =>
        one?.$case === "responsePut" || (one?.$case === "responseDeleteRange" && one.value.deleted > 0n),
    );
    // Without a change there is no event that would bring the view to the answer's revision.
    if (!changed) return this.#view.revision;
    const revision = Number(response.header?.revision ?? 0n);
    const late = AbortSignal.timeout(viewDeadlineMs);
    const signals = [late, this.#stop.signal, ...(options.signal === undefined ? [] : [options.signal])];
    await this.#view.reached(revision, AbortSignal.any(signals)).catch((cause: unknown) => {
      if (!late.aborted) throw cause;
      throw new ClusterError("the commit was made, but the watch does not deliver it", { code: "unavailable", cause });
    });
    return revision;
  }

  #operation(write: Write): RequestOp {
    const name = keyOf(write.table, write.id);
    const key = Buffer.from(name);
    if (write.value === undefined) {
      const value = { key, rangeEnd: Buffer.alloc(0), prevKv: false };
      return { request: { $case: "requestDeleteRange", value } };
    }
    // One table at a time: the compiler cannot follow that table and value agree.
    const codec: { encode(value: unknown, key: string): Buffer } = this.#deps.codecs[write.table] as never;
    const put = {
      key,
      value: codec.encode(write.value, name),
      lease: write.lease ?? 0n,
      prevKv: false,
      ignoreValue: false,
      ignoreLease: false,
    };
    return { request: { $case: "requestPut", value: put } };
  }

  /** Lists everything; the view becomes that, and its difference one batch of changes. */
  async #list(why: string, signal: AbortSignal): Promise<void> {
    const { client, codecs, log } = this.#deps;
    const startedMs = this.#deps.clock.monotonicMs();
    const listing = await listAll(client, codecs, log, signal);
    this.#view.replace(listing.entries, listing.revision);
    this.#setLeader(listing.leader);
    this.#aliveMs = this.#deps.clock.monotonicMs();
    this.#metrics.relisted(why);
    const tookMs = Math.round(this.#aliveMs - startedMs);
    log.info("state listed", { why, entries: listing.entries.length, revision: listing.revision, tookMs });
  }

  async #watch(signal: AbortSignal): Promise<void> {
    const { client, clock, log } = this.#deps;
    let retryMs = minRetryMs;
    let gap: string | undefined;
    while (!signal.aborted) {
      try {
        if (gap !== undefined) await this.#list(gap, signal);
        gap = await watchOnce({
          client,
          clock,
          from: this.#view.revision + 1,
          signal,
          onAlive: () => {
            this.#aliveMs = clock.monotonicMs();
            this.#connected = true;
            retryMs = minRetryMs;
          },
          onRevision: (watched) => this.#apply(watched),
          interrupt: this.#missed.signal,
        });
        log.warn("the watch has a gap, listing again", { why: gap });
        this.#missed = new AbortController();
      } catch (error) {
        this.#connected = false;
        if (signal.aborted) return;
        this.#metrics.rewatched();
        log.warn("the watch ended and is opened again", { error, from: this.#view.revision + 1, inMs: retryMs });
        await clock.sleep(retryMs, signal).catch(() => undefined);
        retryMs = Math.min(retryMs * 2, maxRetryMs);
      }
    }
  }

  #apply({ events, revision }: WatchedRevision): void {
    if (revision <= this.#view.revision) return;
    const entries: Entry[] = [];
    for (const { type, kv } of events) {
      if (kv === undefined) continue;
      const key = kv.key.toString();
      const deleted = type === 1;
      if (key === leaderKey) this.#setLeader(deleted ? undefined : leaderOf(kv));
      const place = placeOf(key);
      if (place === undefined) continue;
      if (deleted) {
        this.#deleted?.set(key, revision);
        entries.push(entry(place.table, place.id, undefined, revision));
        continue;
      }
      try {
        const value = decodeEntry(kv, this.#deps.codecs, this.#deps.log);
        if (value !== undefined) entries.push(value);
      } catch (error) {
        this.#deps.log.error("a secret in etcd cannot be opened and is left out", { key, error });
      }
    }
    this.#view.apply(entries, revision);
  }

  #setLeader(leader: Leader | undefined): void {
    if (leader?.createRevision === this.#leader?.createRevision) return;
    this.#leader = leader;
    for (const listener of this.#leaderListeners) listener();
  }

  /** etcd before 3.4.31 can lose a watch's events after a compaction: a slow comparison finds what no event told. */
  async #verifyAgain(signal: AbortSignal): Promise<void> {
    const intervalMs = this.#options.verifyIntervalMs ?? 600_000;
    while (!signal.aborted) {
      try {
        await this.#deps.clock.sleep(intervalMs, signal);
        await this.#verify(signal);
      } catch (error) {
        if (signal.aborted) return;
        this.#deps.log.warn("the view could not be compared with etcd", { error });
      }
    }
  }

  async #verify(signal: AbortSignal): Promise<void> {
    this.#deleted = new Map();
    try {
      const { kvs, revision } = await listKeys(this.#deps.client, signal);
      // What came later than the view is now is on its way.
      const seen = Math.min(revision, this.#view.revision);
      const missed: string[] = [];
      const listed = new Set<string>();
      for (const kv of kvs) {
        const key = kv.key.toString();
        listed.add(key);
        const place = placeOf(key);
        const changed = Number(kv.modRevision);
        if (place === undefined || changed > seen || (this.#deleted.get(key) ?? 0) > changed) continue;
        if (this.#view.tables[place.table].revisionOf(place.id) < changed) missed.push(key);
      }
      for (const [table, rows] of Object.entries(this.#view.tables)) {
        for (const [id, row] of rows.rows) {
          const key = keyOf(table as Write["table"], id);
          if (row.revision <= revision && !listed.has(key)) missed.push(key);
        }
      }
      if (missed.length === 0) return;
      this.#deps.log.error("the watch has missed changes", { count: missed.length, first: missed[0] });
      this.#missed.abort("missed changes");
    } finally {
      this.#deleted = undefined;
    }
  }
}

interface Comparison {
  readonly compare: Compare;
  readonly field: "modRevision" | "createRevision";
  readonly revision: bigint;
  readonly subject: string;
}

function comparisonsOf(writes: readonly Write[], options: CommitOptions, fence: bigint | undefined): Comparison[] {
  const comparisons: Comparison[] = [];
  if (options.fenced === true) {
    if (fence === undefined) throw conflictOf("leader");
    const targetUnion = { $case: "createRevision", value: fence } as const;
    const compare = Compare.create({ result: 0, target: 1, key: Buffer.from(leaderKey), targetUnion });
    comparisons.push({ compare, field: "createRevision", revision: fence, subject: "leader" });
  }
  const read = writes.flatMap(({ table, id, ifRevision }) =>
    ifRevision === undefined ? [] : [{ table, id, revision: ifRevision }],
  );
  for (const { table, id, revision } of [...read, ...(options.expect ?? [])]) {
    const value = BigInt(revision);
    const targetUnion = { $case: "modRevision", value } as const;
    const compare = Compare.create({ result: 0, target: 2, key: Buffer.from(keyOf(table, id)), targetUnion });
    comparisons.push({ compare, field: "modRevision", revision: value, subject: `${table}/${id}` });
  }
  return comparisons;
}

function requestRange(key: Buffer): RequestOp {
  return { request: { $case: "requestRange", value: RangeRequest.create({ key, keysOnly: true }) } };
}
