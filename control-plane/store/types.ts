import type {
  Allocation,
  Block,
  JoinToken,
  Member,
  MemberSession,
  Network,
  NodeSession,
  NodeSpec,
  NodeStatus,
  Service,
  ServiceStatus,
  StackRecord,
  Task,
  TaskStatus,
  VolumeHome,
} from "../../proto/gen/embassy/v1/state.ts";

/**
 * A config's or secret's content, under `<kind>/<sha256>`; secrets are encrypted at rest and plain in here. A secret's
 * digest is keyed, as the plain one of a weak secret tells what it is.
 */
export interface StoredBlob {
  readonly kind: "config" | "secret";
  readonly sha256: string;
  readonly content: Buffer;
}

/** What each table holds. The id is the key below the table's prefix. */
export interface Tables {
  /** `<name>/<revision>` */
  stacks: StackRecord;
  /** service id */
  services: Service;
  /** service id */
  serviceStatuses: ServiceStatus;
  /** network id */
  networks: Network;
  /** `<network id>/<address>-<prefix length>` */
  blocks: Block;
  /** node id */
  nodes: NodeSpec;
  /** node id */
  nodeStatuses: NodeStatus;
  /** node id; goes with its lease */
  sessions: NodeSession;
  /** task id */
  tasks: Task;
  /** task id */
  taskStatuses: TaskStatus;
  /** `<volume>/<seat>` */
  volumeHomes: VolumeHome;
  /** `config/<sha256>` or `secret/<sha256>` */
  blobs: StoredBlob;
  /** token id */
  tokens: JoinToken;
  /** member name; goes with its lease, seconds after the member does */
  memberSessions: MemberSession;
  /** `cluster`, the only row */
  allocations: Allocation;
  /** member name; goes with its lease, minutes after the member does */
  members: Member;
}
export type TableName = keyof Tables;

/** A value's place in a table. */
export interface Row<T> {
  readonly value: T;
  /** The store revision of its last change; -1 once it is deleted. */
  readonly revision: number;
}

/** One table of the in-memory view. Values are never mutated: a change is a new value. */
export interface Table<T> {
  get(id: string): T | undefined;
  /** The store revision of the value's last change; 0 when there is none. For `Write.ifRevision`. */
  revisionOf(id: string): number;
  /** Value and revision by one look. It changes with them: a handle, for `Write.row`. */
  row(id: string): Row<T> | undefined;
  entries(): Iterable<readonly [id: string, value: T]>;
  values(): Iterable<T>;
  readonly size: number;
}

export type View = { readonly [N in TableName]: Table<Tables[N]> } & {
  /** Everything up to this store revision is in the view, and nothing after it. */
  readonly revision: number;
};

export type Change = {
  readonly [N in TableName]: {
    readonly table: N;
    readonly id: string;
    readonly before: Tables[N] | undefined;
    /** undefined: deleted */
    readonly after: Tables[N] | undefined;
  };
}[TableName];

export type Write = {
  readonly [N in TableName]: {
    readonly table: N;
    readonly id: string;
    /** undefined: delete */
    readonly value: Tables[N] | undefined;
    /** Only if the value's last change is this revision; 0: only if there is none. */
    readonly ifRevision?: number;
    /** The value goes when the lease does. */
    readonly lease?: bigint;
    /** Of this table and id, by an author who has it at hand: the view need not look for it again. */
    readonly row?: Row<Tables[N]> | undefined;
  };
}[TableName];

export interface CommitOptions {
  /** Further values that the plan read: unchanged since, or the commit conflicts. */
  readonly expect?: readonly { readonly table: TableName; readonly id: string; readonly revision: number }[];
  /** Also compare the election key, so that only the present leader can write. */
  readonly fenced?: boolean;
  readonly signal?: AbortSignal;
}

/** The cluster's state: a whole copy in memory that one watch keeps current, and transactions. */
export interface Store {
  readonly view: View;
  /**
   * Calls back after each revision is in the view, in order, with its changes. After a gap (compaction) the difference
   * between the old and the new view comes as one batch. Callbacks must not throw.
   */
  subscribe(listener: (changes: readonly Change[], revision: number) => void): Disposable;
  /**
   * Makes all writes in one transaction, or none. Resolves with its revision, once the view has reached it. Throws
   * `conflict` (a comparison failed; subject: the first key that differs, or "leader" when fenced and deposed),
   * `unavailable` (etcd not reached: it may or may not have happened; read again and compare), `exhausted` (no space).
   */
  commit(writes: readonly Write[], options?: CommitOptions): Promise<number>;
  /** A lease of that many milliseconds (etcd rounds up to seconds). */
  grantLease(ttlMs: number): Promise<bigint>;
  /** Renews it; resolves false when it is gone. */
  keepAlive(lease: bigint): Promise<boolean>;
  revokeLease(lease: bigint): Promise<void>;
}

/** Leadership as controllers see it. */
export interface Leadership {
  /** Runs `lead` each time this member is elected; the signal is aborted when it is deposed or its own clock says so. */
  run(lead: (signal: AbortSignal) => Promise<void>, signal: AbortSignal): Promise<void>;
  /** The present leader's member name, or "". */
  leader(): string;
}
