import type { Clock } from "../../lib/clock/clock.ts";
import { asClusterError, ClusterError, messageOf } from "../../lib/errors/errors.ts";
import type { Log } from "../../lib/log/log.ts";
import { TxnResponse } from "../../proto/gen/etcd/rpc.ts";
import type { EtcdClient } from "./client.ts";
import { checkWrites, conflictOf } from "./commit.ts";
import { isLeaseGone, Leases } from "./leases.ts";
import { decodeEntry, entry, type Leader, leaderOf, listAll, listKeys } from "./list.ts";
import { noStoreMetrics, type StoreMetrics } from "./metrics.ts";
import { OwnWrites } from "./own-writes.ts";
import { RequestBuffers } from "./request-buffers.ts";
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
/** After a doubt about own writes, how long tasks are watched again: the first time, and at most, as doubts go on. */
const minDoubtMs = 10_000;
const maxDoubtMs = 600_000;
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
  /** Aborted to watch anew from where the view is. */
  #again = new AbortController();
  /** While this member leads: tasks are not watched, since nobody else writes them. */
  #ownWrites: OwnWrites | undefined;
  #doubtMs = minDoubtMs;
  #undoubtedMs = 0;
  /** Commits under way that write tasks, and the keys of what else they write. */
  readonly #requests = new RequestBuffers();
  readonly #taskCommits = new Map<OwnCommit, ReadonlySet<string>>();
  /** What the watch has told and may be a part of one of them. */
  readonly #parts = new Set<Part>();
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

  /**
   * The create-revision that fenced commits compare the election key with, once the view has reached it; undefined: they conflict.
   * Only fenced commits write tasks, so that with a fence all of them are this store's own.
   */
  setFence(createRevision: bigint | undefined): void {
    this.#fence = createRevision;
    if (createRevision === undefined) this.#watchTasks();
    else this.#leaveTasksOut();
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
    this.#fence = undefined;
    this.#watchTasks();
    this.#leases[Symbol.dispose]();
    await this.#loops;
  }

  async #commit(writes: readonly Write[], options: CommitOptions): Promise<number> {
    options.signal?.throwIfAborted();
    const comparisons = comparisonsOf(options, this.#fence);
    this.#leaveTasksOut();
    const take = (bytes: number) => this.#requests.take(bytes);
    const own: OwnCommit = { writes, ...encodeTransaction(writes, comparisons, this.#deps.codecs, take) };
    const [first] = writes;
    const firstKey = first === undefined ? "" : keyOf(first.table, first.id);
    this.#own.set(firstKey, own);
    if (writes.some(({ table }) => table === "tasks")) this.#taskCommits.set(own, keysWithoutTasks(writes));
    try {
      return await this.#transact(own, comparisons, options);
    } finally {
      if (this.#own.get(firstKey) === own) this.#own.delete(firstKey);
      this.#settle(own, undefined);
      // Of one without an answer parts may still be on their way.
      if (own.answered === true) this.#requests.giveBack(own.request);
    }
  }

  async #transact(own: OwnCommit, comparisons: readonly Comparison[], options: CommitOptions): Promise<number> {
    const { request, writes } = own;
    const answer = await transact(this.#deps.client, request, options.signal).catch((error: unknown) => {
      if (isTwice(error)) checkWrites(writes);
      // The one other failure that is the caller's and not etcd's: it wrote under a lease that has ended.
      const lease = writes.find((write) => write.lease !== undefined)?.lease;
      const gone = lease !== undefined && error instanceof Error && isLeaseGone(error.cause);
      // It may have happened, and its answer is not to come.
      if (!gone) this.#doubtOwnWrites("the outcome of a commit is not known");
      throw gone ? conflictOf(`lease/${lease}`) : error;
    });
    own.answered = true;
    const { succeeded, revision: made } = decodeOutcome(answer);
    const revision = Number(made);
    this.#settle(own, succeeded ? revision : undefined);
    if (!succeeded) {
      const subject = subjectOf(writes, comparisons, answer);
      if (subject === "leader" || subject.startsWith("tasks/")) this.#doubtOwnWrites(`${subject} is not as it was`);
      throw conflictOf(subject);
    }
    // Without a change there is no event that would bring the view to the answer's revision.
    if (!writes.some(({ value }) => value !== undefined) && !hasDeleted(answer)) return this.#view.revision;
    this.#applyOwn(writes, revision);
    await this.#untilInView(revision, options.signal);
    return revision;
  }

  /** What the watch told meanwhile is this commit's if it is of its revision, or else another's. */
  #settle(own: OwnCommit, made: number | undefined): void {
    this.#taskCommits.delete(own);
    for (const part of this.#parts) {
      if (!part.commits.delete(own)) continue;
      if (part.revision !== made && part.commits.size > 0) continue;
      this.#parts.delete(part);
      if (part.revision !== made) this.#ownWrites?.add(part.revision, part.entries);
    }
  }

  #applyOwn(writes: readonly Write[], revision: number): void {
    if (this.#ownWrites === undefined) return;
    for (const { table, id, value } of writes) {
      if (value === undefined) this.#deleted?.set(keyOf(table, id), revision);
    }
    this.#ownWrites.add(revision, writes);
  }

  /** From now on what own commits have written of tasks is known by their answers. */
  #leaveTasksOut(): void {
    // What a commit under way has written may have been answered already.
    if (this.#fence === undefined || this.#ownWrites !== undefined || this.#taskCommits.size > 0) return;
    if (this.#deps.clock.monotonicMs() < this.#undoubtedMs) return;
    this.#ownWrites = new OwnWrites({
      revision: () => this.#view.revision,
      apply: (entries, revision) => this.#view.apply(entries, revision),
      onGap: () => this.#doubtOwnWrites("a revision is missing"),
    });
    this.#again.abort();
  }

  /** Tasks come by the watch again, from where the view is. */
  #watchTasks(): void {
    if (this.#ownWrites === undefined) return;
    this.#ownWrites[Symbol.dispose]();
    this.#ownWrites = undefined;
    this.#parts.clear();
    this.#again.abort();
  }

  #doubtOwnWrites(why: string): void {
    if (this.#ownWrites === undefined) return;
    this.#deps.log.info("tasks are watched for a while", { why, forMs: this.#doubtMs });
    this.#undoubtedMs = this.#deps.clock.monotonicMs() + this.#doubtMs;
    this.#doubtMs = Math.min(2 * this.#doubtMs, maxDoubtMs);
    this.#watchTasks();
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
    // What is told of later revisions may be of a history that is no more.
    this.#doubtOwnWrites(why);
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
        this.#again = new AbortController();
        const ownWrites = this.#ownWrites;
        gap = await watchOnce({
          client,
          clock,
          from: this.#view.revision + 1,
          signal,
          again: this.#again.signal,
          withoutTasks: ownWrites !== undefined,
          onAlive: () => {
            this.#aliveMs = clock.monotonicMs();
            this.#connected = true;
            retryMs = minRetryMs;
          },
          // One that left tasks out tells no whole revisions when they are no longer to be left out.
          onRevision: (watched) => ownWrites === this.#ownWrites && this.#apply(watched),
          interrupt: this.#missed.signal,
        });
        if (gap === undefined) continue;
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
    const ownWrites = this.#ownWrites;
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
    // What it says of the leader may have begun another watch, which brings it again.
    if (ownWrites !== this.#ownWrites) return;
    if (ownWrites === undefined) {
      this.#view.apply(entries, revision);
      return;
    }
    // Of a commit that writes tasks too it is a part, and the answer brings all.
    const commits = this.#mayBeOf(entries);
    if (commits.size === 0) ownWrites.add(revision, entries);
    else this.#parts.add({ revision, entries, commits });
  }

  /** Commits under way that write tasks and some of this too. */
  #mayBeOf(entries: readonly Entry[]): Set<OwnCommit> {
    const commits = new Set<OwnCommit>();
    for (const [commit, keys] of this.#taskCommits) {
      if (keys.size > 0 && entries.some(({ table, id }) => keys.has(keyOf(table, id)))) commits.add(commit);
    }
    return commits;
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
  answered?: boolean;
}

/** What a watch without tasks has told of one revision, and the commits of which it may be a part. */
interface Part {
  readonly revision: number;
  readonly entries: readonly Entry[];
  readonly commits: Set<OwnCommit>;
}

function keysWithoutTasks(writes: readonly Write[]): ReadonlySet<string> {
  const keys = new Set<string>();
  for (const { table, id } of writes) if (table !== "tasks") keys.add(keyOf(table, id));
  return keys;
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
