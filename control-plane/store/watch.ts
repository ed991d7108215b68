import type { Clock } from "../../lib/clock/clock.ts";
import { ClusterError } from "../../lib/errors/errors.ts";
import { RangeRequest, WatchCreateRequest, type WatchRequest } from "../../proto/gen/etcd/rpc.ts";
import { type EtcdClient, etcdError } from "./client.ts";
import { prefixEnd } from "./list.ts";
import { rootPrefix, tasksPrefix } from "./schema.ts";
import type { WatchAnswer, WatchedEvent } from "./watch-response.ts";

/** All that changed at one revision. */
export interface WatchedRevision {
  readonly revision: number;
  readonly events: readonly WatchedEvent[];
}

export interface WatchOptions {
  readonly client: EtcdClient;
  readonly clock: Clock;
  /** First revision wanted. */
  readonly from: number;
  readonly signal: AbortSignal;
  /** Whole revisions, ascending. The next watch begins after the last of them and nowhere else. */
  readonly onRevision: (watched: WatchedRevision) => void;
  /** Aborted when something is known to be missing: the watch resolves with its reason, a text. */
  readonly interrupt: AbortSignal;
  /** Aborted when another watch is to take its place: it resolves with undefined. */
  readonly again: AbortSignal;
  /** Of all keys but those of tasks. */
  readonly withoutTasks: boolean;
  /** Something was heard from etcd. */
  readonly onAlive: () => void;
}

const askIntervalMs = 5_000;
const silenceMs = 15_000;

/**
 * One watch over everything of ours, or all but tasks. Resolves with why when there is a gap that only a new list closes: revisions
 * compacted away, or an etcd that went back in time (restored from a backup). Rejects when the stream ends for any other
 * reason, or is silent although it is asked for a sign of life.
 *
 * Progress notifications serve as that sign only: etcd before 3.4.25 may send one ahead of events that it has not yet
 * delivered, so their revision says nothing.
 */
export async function watchOnce(options: WatchOptions): Promise<string | undefined> {
  const { client, clock, from, signal } = options;
  signal.throwIfAborted();
  const stream = client.watch();
  const ended = Promise.withResolvers<string | undefined>();
  const stop = () => ended.reject(signal.reason);
  signal.addEventListener("abort", stop, { once: true });
  const { interrupt } = options;
  const missed = () => ended.resolve(String(interrupt.reason));
  if (interrupt.aborted) missed();
  interrupt.addEventListener("abort", missed, { once: true });
  const { again } = options;
  const replaced = () => ended.resolve(undefined);
  if (again.aborted) replaced();
  again.addEventListener("abort", replaced, { once: true });
  let heardMs = clock.monotonicMs();
  const ask = setInterval(() => {
    if (clock.monotonicMs() - heardMs > silenceMs) {
      ended.reject(new ClusterError("the watch is silent", { code: "unavailable", subject: "etcd" }));
      return;
    }
    stream.write({ requestUnion: { $case: "progressRequest", value: {} } });
  }, askIntervalMs);
  const gather = new Gatherer(options.onRevision);
  stream.on("data", (response: WatchAnswer) => {
    heardMs = clock.monotonicMs();
    options.onAlive();
    if (response.canceled) {
      if (response.compactRevision > 0) ended.resolve(`compacted at revision ${response.compactRevision}`);
      else ended.reject(etcdError(new Error(`watch cancelled: ${response.cancelReason}`)));
    } else if (response.created) {
      checkNotBehind(options, response.revision).then((gap) => gap !== undefined && ended.resolve(gap), ended.reject);
    } else {
      gather.add(response.events, response.fragment);
    }
  });
  stream.on("error", (error) => ended.reject(etcdError(error)));
  stream.on("end", () => ended.reject(etcdError(new Error("the watch stream ended"))));
  const create = WatchCreateRequest.create({
    key: Buffer.from(rootPrefix),
    rangeEnd: options.withoutTasks ? Buffer.from(tasksPrefix) : prefixEnd(rootPrefix),
    startRevision: BigInt(from),
    progressNotify: true,
    fragment: true,
  });
  stream.write({ requestUnion: { $case: "createRequest", value: create } } satisfies WatchRequest);
  try {
    return await ended.promise;
  } finally {
    clearInterval(ask);
    signal.removeEventListener("abort", stop);
    interrupt.removeEventListener("abort", missed);
    again.removeEventListener("abort", replaced);
    stream.removeAllListeners("data");
    stream.cancel();
  }
}

/**
 * Puts the parts of a large response together and gives out one revision at a time. etcd cuts between any two events, also of one
 * revision.
 */
export class Gatherer {
  readonly #onRevision: (watched: WatchedRevision) => void;
  #pending: WatchedEvent[] = [];

  constructor(onRevision: (watched: WatchedRevision) => void) {
    this.#onRevision = onRevision;
  }

  /** `more`: the response goes on. */
  add(events: readonly WatchedEvent[], more: boolean): void {
    for (const event of events) this.#pending.push(event);
    if (more || this.#pending.length === 0) return;
    const all = this.#pending;
    this.#pending = [];
    let start = 0;
    for (let i = 1; i <= all.length; i++) {
      const { revision } = all[start] as WatchedEvent;
      if (all[i]?.revision === revision) continue;
      this.#onRevision({ revision, events: i - start === all.length ? all : all.slice(start, i) });
      start = i;
    }
  }
}

/** A watch from a revision that etcd has yet to reach would wait in silence: is etcd older than what we have seen? */
async function checkNotBehind({ client, from, signal }: WatchOptions, revision: number): Promise<string | undefined> {
  if (revision >= from - 1) return undefined;
  // That member may only lag behind; this read goes through the leader.
  const request = RangeRequest.create({ key: Buffer.from(rootPrefix), keysOnly: true });
  const { header } = await client.call(({ kv }) => kv.range.bind(kv), request, { signal });
  const newest = Number(header?.revision ?? 0n);
  return newest >= from - 1 ? undefined : `etcd went back from revision ${from - 1} to ${newest}`;
}
