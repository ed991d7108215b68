import type { Clock } from "../../lib/clock/clock.ts";
import { asClusterError, ClusterError, messageOf } from "../../lib/errors/errors.ts";
import type { Log } from "../../lib/log/log.ts";
import { TxnResponse } from "../../proto/gen/etcd/rpc.ts";
import type { EtcdClient } from "./client.ts";
import { checkWrites, conflictOf } from "./commit.ts";
import { isLeaseGone, Leases } from "./leases.ts";
import { decodeEntry, entry, type Leader, leaderOf, listAll, listKeys } from "./list.ts";
import { noStoreMetrics, type StoreMetrics } from "./metrics.ts";
import { type Codecs, keyOf, leaderKey, placeOf } from "./schema.ts";
import { type Comparison, decodeOutcome, type EncodedTransaction, encodeTransaction, transact } from "./transaction.ts";
import type { Change, CommitOptions, Store, View, Write } from "./types.ts";
import { type Entry, MutableView } from "./view.ts";
import { type WatchedRevision, watchOnce } from "./watch.ts";
import type { WatchedEvent } from "./watch-response.ts";

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
  /** Commits under way, by the key of their first write: what the watch brings back of one need not be decoded. */
  readonly #own = new Map<string, OwnCommit>();
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
    const comparisons = comparisonsOf(options, this.#fence);
    const own = { writes, ...encodeTransaction(writes, comparisons, this.#deps.codecs) };
    const [first] = writes;
    const firstKey = first === undefined ? "" : keyOf(first.table, first.id);
    this.#own.set(firstKey, own);
    try {
      return await this.#transact(own, comparisons, options);
    } finally {
      if (this.#own.get(firstKey) === own) this.#own.delete(firstKey);
    }
  }

  async #transact(
    { request, writes }: OwnCommit,
    comparisons: readonly Comparison[],
    options: CommitOptions,
  ): Promise<number> {
    const answer = await transact(this.#deps.client, request, options.signal).catch((error: unknown) => {
      if (isTwice(error)) checkWrites(writes);
      // The one other failure that is the caller's and not etcd's: it wrote under a lease that has ended.
      const lease = writes.find((write) => write.lease !== undefined)?.lease;
      const gone = lease !== undefined && error instanceof Error && isLeaseGone(error.cause);
      throw gone ? conflictOf(`lease/${lease}`) : error;
    });
    const { succeeded, revision: made } = decodeOutcome(answer);
    if (!succeeded) throw conflictOf(subjectOf(writes, comparisons, answer));
    // Without a change there is no event that would bring the view to the answer's revision.
    if (!writes.some(({ value }) => value !== undefined) && !hasDeleted(answer)) return this.#view.revision;
    const revision = Number(made);
    await this.#untilInView(revision, options.signal);
    return revision;
  }

  async #untilInView(revision: number, signal: AbortSignal | undefined): Promise<void> {
    if (this.#view.revision >= revision) return;
    const late = new AbortController();
    const timer = setTimeout(() => late.abort(), viewDeadlineMs);
    try {
      const signals = [late.signal, this.#stop.signal, ...(signal === undefined ? [] : [signal])];
      await this.#view.reached(revision, AbortSignal.any(signals));
    } catch (cause) {
      if (!late.signal.aborted) throw cause;
      throw new ClusterError("the commit was made, but the watch does not deliver it", { code: "unavailable", cause });
    } finally {
      clearTimeout(timer);
    }
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
    if (revision <= this.#view.revision || events.length === 0) return;
    const own = this.#own.get((events[0] as WatchedEvent).key);
    const entries: Entry[] = [];
    // The events of a transaction come in the order of its operations.
    let next = 0;
    for (const event of events) {
      const same = own === undefined ? -1 : indexOfSame(own, event, next);
      if (own !== undefined && same >= 0) {
        next = same + 1;
        entries.push(own.writes[same] as Write);
        continue;
      }
      const entry = this.#decode(event);
      if (entry !== undefined) entries.push(entry);
    }
    this.#view.apply(entries, revision);
  }

  /** What an event says; undefined for keys of no table and for what cannot be read. */
  #decode(event: WatchedEvent): Entry | undefined {
    const { key, deleted, revision } = event;
    if (key === leaderKey) {
      const { value, createRevision } = event;
      this.#setLeader(deleted ? undefined : leaderOf({ value, createRevision: BigInt(createRevision) }));
    }
    if (deleted) {
      const place = placeOf(key);
      if (place === undefined) return undefined;
      this.#deleted?.set(key, revision);
      return entry(place.table, place.id, undefined, revision);
    }
    try {
      return decodeEntry(key, event.value, revision, this.#deps.codecs, this.#deps.log);
    } catch (error) {
      this.#deps.log.error("a secret in etcd cannot be opened and is left out", { key, error });
      return undefined;
    }
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

/** What is written while it is under way. */
interface OwnCommit extends EncodedTransaction {
  readonly writes: readonly Write[];
}

/** Which of the commit's writes from `next` on has just the event's key and value; -1: none. */
function indexOfSame({ writes, request, places }: OwnCommit, event: WatchedEvent, next: number): number {
  if (event.deleted) return -1;
  for (let i = next; i < writes.length; i++) {
    if (!event.hasKeyOf(request, places[4 * i] ?? 0, places[4 * i + 1] ?? 0)) continue;
    const valueTo = places[4 * i + 3] ?? 0;
    return valueTo > 0 && event.hasValueOf(request, places[4 * i + 2] ?? 0, valueTo) ? i : -1;
  }
  return -1;
}

/** etcd looks for it in each transaction, so that no commit needs to beforehand. */
function isTwice(error: unknown): boolean {
  return error instanceof Error && messageOf(error.cause).includes("duplicate key");
}

/** What a commit compares beside its writes' own places. */
function comparisonsOf({ fenced = false, expect = [] }: CommitOptions, fence: bigint | undefined): Comparison[] {
  const comparisons: Comparison[] = [];
  if (fenced) {
    if (fence === undefined) throw conflictOf("leader");
    comparisons.push({ table: "leader", id: "", field: "createRevision", revision: fence });
  }
  for (const { table, id, revision } of expect) comparisons.push({ table, id, field: "modRevision", revision });
  return comparisons;
}

/** Of a refused transaction what has changed: the leader, or the first comparison that the answer shows to fail. */
function subjectOf(writes: readonly Write[], comparisons: readonly Comparison[], answer: Buffer): string {
  const { responses } = TxnResponse.decode(answer);
  const compared = [...writes.flatMap(ownComparison), ...comparisons];
  const failed = compared.filter(({ field, revision }, index) => {
    const found = responses[index]?.response;
    const [kv] = found?.$case === "responseRange" ? found.value.kvs : [];
    return (kv?.[field] ?? 0n) !== BigInt(revision);
  });
  const first = failed.find(({ table }) => table === "leader") ?? failed[0];
  return first === undefined || first.table === "leader" ? "leader" : `${first.table}/${first.id}`;
}

function ownComparison({ table, id, ifRevision }: Write): readonly Comparison[] {
  return ifRevision === undefined ? [] : [{ table, id, field: "modRevision", revision: ifRevision }];
}

function hasDeleted(answer: Buffer): boolean {
  return TxnResponse.decode(answer).responses.some(
    ({ response }) => response?.$case === "responseDeleteRange" && response.value.deleted > 0n,
  );
}
