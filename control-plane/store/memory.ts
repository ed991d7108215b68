import { ClusterError } from "../../lib/errors/errors.ts";
import { checkWrites, conflictOf } from "./commit.ts";
import type { Change, CommitOptions, Leadership, Store, View, Write } from "./types.ts";
import { type Entry, MutableView } from "./view.ts";

/** What unit tests can do to a memory store beside what the interface says. */
export interface MemoryStore extends Store {
  /** Ends a lease as if its time had passed: its values go, in one revision. */
  expireLease(lease: bigint): void;
  /** Does this member hold the election key? Fenced commits conflict when not. True at first. */
  leading: boolean;
}

/** The store's semantics without etcd, for unit tests: same conflicts, revisions and change events. Starts at revision 1. */
export function createMemoryStore(): MemoryStore {
  return new Memory();
}

class Memory implements MemoryStore {
  leading = true;
  readonly #view = new MutableView();
  readonly #leases = new Map<bigint, Set<string>>();
  #lastLease = 0n;

  constructor() {
    this.#view.apply([], 1);
  }

  get view(): View {
    return this.#view.view;
  }

  subscribe(listener: (changes: readonly Change[], revision: number) => void): Disposable {
    return this.#view.subscribe(listener);
  }

  async commit(writes: readonly Write[], options: CommitOptions = {}): Promise<number> {
    options.signal?.throwIfAborted();
    checkWrites(writes);
    // As with etcd, nothing has happened yet when the caller goes on.
    await Promise.resolve();
    const tables = this.#view.tables;
    if (options.fenced === true && !this.leading) throw conflictOf("leader");
    for (const { table, id, revision } of comparisons(writes, options)) {
      if (tables[table].revisionOf(id) !== revision) throw conflictOf(`${table}/${id}`);
    }
    for (const { lease } of writes) {
      if (lease !== undefined && !this.#leases.has(lease)) throw conflictOf(`lease/${lease}`);
    }
    const revision = this.#view.revision + 1;
    const effective = writes.filter(
      ({ table, id, value }) => value !== undefined || tables[table].get(id) !== undefined,
    );
    if (effective.length === 0) return this.#view.revision;
    for (const { table, id, lease, value } of effective) {
      const key = `${table}/${id}`;
      for (const keys of this.#leases.values()) keys.delete(key);
      if (lease !== undefined && value !== undefined) this.#leases.get(lease)?.add(key);
    }
    this.#view.apply(effective.map((write): Entry => ({ ...write, revision })) as Entry[], revision);
    return revision;
  }

  async grantLease(_ttlMs: number): Promise<bigint> {
    await Promise.resolve();
    this.#lastLease += 1n;
    this.#leases.set(this.#lastLease, new Set());
    return this.#lastLease;
  }

  async keepAlive(lease: bigint): Promise<boolean> {
    await Promise.resolve();
    return this.#leases.has(lease);
  }

  async revokeLease(lease: bigint): Promise<void> {
    await Promise.resolve();
    this.expireLease(lease);
  }

  expireLease(lease: bigint): void {
    const keys = this.#leases.get(lease);
    if (keys === undefined) return;
    this.#leases.delete(lease);
    if (keys.size === 0) return;
    const revision = this.#view.revision + 1;
    const entries = [...keys].map((key) => {
      const [table, ...id] = key.split("/");
      return { table, id: id.join("/"), value: undefined, revision } as Entry;
    });
    this.#view.apply(entries, revision);
  }
}

function* comparisons(writes: readonly Write[], options: CommitOptions) {
  for (const { table, id, ifRevision } of writes) {
    if (ifRevision !== undefined) yield { table, id, revision: ifRevision };
  }
  yield* options.expect ?? [];
}

/** A leadership that is won at once and kept until `depose`, for unit tests. */
export function createMemoryLeadership(store: MemoryStore, member: string): Leadership & { depose(): void } {
  let term = new AbortController();
  store.leading = false;
  return {
    leader: () => (store.leading ? member : ""),
    depose() {
      store.leading = false;
      term.abort(new ClusterError("deposed", { code: "unavailable" }));
    },
    async run(lead, signal) {
      while (!signal.aborted) {
        term = new AbortController();
        store.leading = true;
        await lead(AbortSignal.any([term.signal, signal]));
        store.leading = false;
      }
    },
  };
}
