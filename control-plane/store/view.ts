import type { Change, Row, Table, TableName, Tables, View } from "./types.ts";

/** Changed in place: a change of a value need not look up its place again. */
interface MutableRow<T> extends Row<T> {
  value: T;
  revision: number;
}

class MutableTable<T> implements Table<T> {
  readonly rows = new Map<string, MutableRow<T>>();

  get size(): number {
    return this.rows.size;
  }
  get(id: string): T | undefined {
    return this.rows.get(id)?.value;
  }
  revisionOf(id: string): number {
    return this.rows.get(id)?.revision ?? 0;
  }
  row(id: string): Row<T> | undefined {
    return this.rows.get(id);
  }
  *entries(): Iterable<readonly [id: string, value: T]> {
    for (const [id, row] of this.rows) yield [id, row.value];
  }
  *values(): Iterable<T> {
    for (const row of this.rows.values()) yield row.value;
  }
}

/** A value as it is; undefined: deleted. */
export type Entry = {
  readonly [N in TableName]: {
    readonly table: N;
    readonly id: string;
    readonly value: Tables[N] | undefined;
    /** Of its last change; undefined: the one that the view comes to. */
    readonly revision?: number;
    readonly row?: Row<Tables[N]> | undefined;
  };
}[TableName];

type Listener = (changes: readonly Change[], revision: number) => void;

/** A view and those who listen to it. Only who made it applies to it. */
export class MutableView {
  readonly tables = {
    stacks: new MutableTable<Tables["stacks"]>(),
    services: new MutableTable<Tables["services"]>(),
    serviceStatuses: new MutableTable<Tables["serviceStatuses"]>(),
    networks: new MutableTable<Tables["networks"]>(),
    blocks: new MutableTable<Tables["blocks"]>(),
    nodes: new MutableTable<Tables["nodes"]>(),
    nodeStatuses: new MutableTable<Tables["nodeStatuses"]>(),
    sessions: new MutableTable<Tables["sessions"]>(),
    tasks: new MutableTable<Tables["tasks"]>(),
    taskStatuses: new MutableTable<Tables["taskStatuses"]>(),
    volumeHomes: new MutableTable<Tables["volumeHomes"]>(),
    blobs: new MutableTable<Tables["blobs"]>(),
    tokens: new MutableTable<Tables["tokens"]>(),
    members: new MutableTable<Tables["members"]>(),
    memberSessions: new MutableTable<Tables["memberSessions"]>(),
    allocations: new MutableTable<Tables["allocations"]>(),
  } satisfies { [N in TableName]: MutableTable<Tables[N]> };
  readonly view: View;
  #revision = 0;
  readonly #listeners = new Set<Listener>();
  readonly #waiters = new Set<{ readonly revision: number; readonly wake: () => void }>();

  constructor() {
    // The one place where the view's revision is live: everything else of it is the tables themselves.
    this.view = Object.defineProperty({ ...this.tables, revision: 0 }, "revision", {
      get: () => this.#revision,
      enumerable: true,
    });
  }

  get revision(): number {
    return this.#revision;
  }

  subscribe(listener: Listener): Disposable {
    this.#listeners.add(listener);
    return { [Symbol.dispose]: () => void this.#listeners.delete(listener) };
  }

  /** Brings the view to a revision with everything that changed since; then calls the listeners, then those who wait. */
  apply(entries: readonly Entry[], revision: number): void {
    const changes: Change[] = [];
    for (const entry of entries) {
      const change = this.#applyOne(entry, entry.revision ?? revision);
      if (change !== undefined) changes.push(change);
    }
    this.#revision = revision;
    if (changes.length > 0) for (const listener of this.#listeners) listener(changes, revision);
    for (const waiter of this.#waiters) if (waiter.revision <= revision) waiter.wake();
  }

  /** Brings the view to what is listed, and nothing else, at that revision: the difference is one batch. */
  replace(listed: readonly Entry[], revision: number): void {
    const kept = new Set(listed.map(({ table, id }) => `${table}/${id}`));
    const entries: Entry[] = [];
    for (const table of Object.keys(this.tables) as TableName[]) {
      for (const id of this.tables[table].rows.keys()) {
        if (!kept.has(`${table}/${id}`)) entries.push({ table, id, value: undefined, revision });
      }
    }
    // Of an etcd that went back in time the same revision may be another value.
    const back = revision < this.#revision;
    for (const entry of listed) {
      if (back || this.tables[entry.table].revisionOf(entry.id) !== entry.revision) entries.push(entry);
    }
    this.apply(entries, revision);
  }

  /** Resolves once the view has reached the revision; rejects with the signal's reason. */
  async reached(revision: number, signal: AbortSignal): Promise<void> {
    if (this.#revision >= revision) return;
    signal.throwIfAborted();
    await new Promise<void>((resolve, reject) => {
      const done = (settle: () => void) => {
        this.#waiters.delete(waiter);
        signal.removeEventListener("abort", stop);
        settle();
      };
      const stop = () => done(() => reject(signal.reason));
      const waiter = { revision, wake: () => done(resolve) };
      signal.addEventListener("abort", stop, { once: true });
      this.#waiters.add(waiter);
    });
  }

  #applyOne({ table, id, value, row: known }: Entry, revision: number): Change | undefined {
    // One table at a time: the compiler cannot follow that table and value agree.
    const rows: Map<string, MutableRow<unknown>> = this.tables[table].rows;
    const row = known !== undefined && known.revision >= 0 ? (known as MutableRow<unknown>) : rows.get(id);
    const before = row?.value;
    if (value === undefined) {
      if (row === undefined) return undefined;
      rows.delete(id);
      row.revision = -1;
    } else if (row === undefined) rows.set(id, { value, revision });
    else {
      row.value = value;
      row.revision = revision;
    }
    return { table, id, before, after: value } as Change;
  }
}
