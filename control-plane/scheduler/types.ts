/**
 * What the scheduler is told and what it answers: plain readonly data, no types of the wire or of the store.
 * Amounts are integers below 2^53; anything absent means "none" or "no limit", as each field says.
 */

/** Amounts of what a node has or a task reserves. Memory is bytes, CPU thousandths of a core. */
export interface Resources {
  readonly milliCpus: number;
  readonly memoryBytes: number;
  /** Of a node: how many it allows, absent for no limit. Of a task: how many it reserves, absent for none. */
  readonly pids?: number | undefined;
  /** Counted things a node announces (GPUs, licences) and a task reserves, by kind. */
  readonly generic?: Readonly<Record<string, number>> | undefined;
}

/** `pause`: keeps its tasks, takes none. `drain`: takes none, and its controller moves those that it has. */
export type Availability = "active" | "pause" | "drain";

/** `no-schedule` and `no-execute` keep tasks off that do not tolerate them; `prefer-no-schedule` only costs points. */
export interface Taint {
  readonly key: string;
  readonly value?: string | undefined;
  readonly effect: "no-schedule" | "prefer-no-schedule" | "no-execute";
}

/** Matches taints by key (absent: every key), value (absent: every value) and effect (absent: every effect). */
export interface Toleration {
  readonly key?: string | undefined;
  readonly value?: string | undefined;
  readonly effect?: Taint["effect"] | undefined;
}

export interface SchedulerNode {
  readonly id: string;
  readonly hostname: string;
  /** What `node.role` compares with: "manager" or "worker". */
  readonly role: string;
  /** OCI names: "linux", "amd64". */
  readonly os: string;
  readonly arch: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly availability: Availability;
  /** Its session is alive. Tasks of a node that is not ready keep counting until they are removed. */
  readonly ready: boolean;
  readonly capacity: Resources;
  readonly taints?: readonly Taint[] | undefined;
  /** Its disk is nearly full: takes no new tasks but those that may run nowhere else. */
  readonly diskPressure?: boolean | undefined;
  /** Images that it holds, by the same names as `TaskGroup.image`. */
  readonly images?: readonly string[] | undefined;
  /** Ports that programs of the host have: no task is given them. */
  readonly busyPorts?: readonly BusyHostPort[] | undefined;
}

/** A port of a node that a program of its host has. */
export interface BusyHostPort {
  readonly port: number;
  readonly protocol: "tcp" | "udp";
  /** Where it listens; absent: at every address, or it is not known where. */
  readonly address?: string | undefined;
  /** The program, for people. */
  readonly by: string;
}

export interface Platform {
  /** Empty: any. */
  readonly os: string;
  /** Empty: any. */
  readonly arch: string;
}

/** Where `port: 0` without a range looks for a port. */
export const defaultPortRange: readonly [number, number] = [49_000, 49_900];

/** A port of the node itself that a task takes. */
export interface HostPort {
  /** 1-65535; 0: any free one of `range`. */
  readonly port: number;
  readonly protocol: "tcp" | "udp";
  /** The address of the node to take it at; absent: at all of them. */
  readonly address?: string | undefined;
  /** First and last port to choose from when `port` is 0; default `defaultPortRange`. The lowest free one is given. */
  readonly range?: readonly [number, number] | undefined;
}

/** Spread the service's tasks evenly over the values of a node attribute; several are nested, in order. */
export interface SpreadPreference {
  /** A node attribute: "node.labels.zone", "node.hostname", "node.platform.arch". */
  readonly over: string;
  /** Wanted share per value, relative to each other; a value not named gets `otherShare`. Absent: equal shares. */
  readonly shares?: Readonly<Record<string, number>> | undefined;
  /** Share of each value that `shares` does not name; default 1. */
  readonly otherShare?: number | undefined;
  /**
   * Hard: a task never goes where the value would then have more than this many tasks above the emptiest value that the
   * service could use. Nodes without the attribute are left out. From 1.
   */
  readonly maxSkew?: number | undefined;
}

/** A wish: positive weight attracts, negative repels. -100 to 100. */
export type Affinity =
  | { readonly kind: "node"; readonly constraint: string; readonly weight: number }
  | {
      readonly kind: "service";
      /** Service id whose tasks attract or repel. */
      readonly service: string;
      /** Attribute that says what "together" means: "node.id" or "node.labels.zone". */
      readonly over: string;
      readonly weight: number;
    };

/** `spread`: least reserved node first. `binpack`: fullest node that still fits first. */
export type Strategy = "spread" | "binpack";

/** Measured traffic of this service with another. */
export interface LinkTraffic {
  readonly service: string;
  readonly bytesPerSecond: number;
}

export interface VolumeUse {
  /** `SchedulerVolume.id`. */
  readonly volume: string;
  readonly readOnly?: boolean | undefined;
}

export interface SchedulerVolume {
  readonly id: string;
  /** For explanations. */
  readonly name: string;
  /** Its data lies on this node, so its users go there. Absent: reachable from every node. */
  readonly homeNode?: string | undefined;
  /** `single-writer`: at most one placed task uses it without `readOnly`. */
  readonly access: "shared" | "single-writer";
}

/** One version of one service: everything that its tasks have in common. */
export interface TaskGroup {
  /** Unique per service and version, as "<service id>@<version>". */
  readonly id: string;
  /** Service id. All versions of a service count together for spread, `maxPerNode` and budgets. */
  readonly service: string;
  /** For explanations: "shop_web". */
  readonly name: string;
  readonly reservations: Resources;
  /** Any of these; absent or empty: every platform. */
  readonly platforms?: readonly Platform[] | undefined;
  /** All must hold; the grammar is in constraint/parse.ts. */
  readonly constraints?: readonly string[] | undefined;
  /** Absent or 0: no limit. */
  readonly maxPerNode?: number | undefined;
  readonly ports?: readonly HostPort[] | undefined;
  readonly volumes?: readonly VolumeUse[] | undefined;
  readonly tolerations?: readonly Toleration[] | undefined;
  readonly spread?: readonly SpreadPreference[] | undefined;
  readonly affinities?: readonly Affinity[] | undefined;
  /** Absent: the cluster's, `SchedulerOptions.strategy`. */
  readonly strategy?: Strategy | undefined;
  /** As in `SchedulerNode.images`. */
  readonly image?: string | undefined;
  readonly links?: readonly LinkTraffic[] | undefined;
  /** Higher goes first and may preempt lower; default 0. */
  readonly priority?: number | undefined;
  /**
   * Disruption budget: preemption leaves at least this many of the service's tasks that are not `down`, rebalancing so many in
   * place; default 0.
   */
  readonly minAvailable?: number | undefined;
  /**
   * Groups with the same gang are placed all together, every pending task of them, or not at all. Preemption may later stop one
   * task of it, as of any group: `minAvailable` keeps them.
   */
  readonly gang?: string | undefined;
}

/**
 * When it is a waiting task's turn among those of its priority: the one that has waited longest goes first. What began to wait at
 * the same time goes by its group's name, then by slot, then by `onlyNode`, and only then by arrival.
 */
export interface Turn {
  /** When it began to wait. */
  readonly sinceMs: number;
  readonly slot: number;
}

export interface SchedulerTask {
  readonly id: string;
  /** `TaskGroup.id`, told before by `upsertGroup`. */
  readonly group: string;
  /** For explanations: "shop_web.2". Absent: the id. */
  readonly name?: string | undefined;
  /** Where it is; absent: it waits to be placed. */
  readonly node?: string | undefined;
  /** May run on this node only (a global service's task; one whose data is there). */
  readonly onlyNode?: string | undefined;
  /** Of a placed task: the numbers given for `TaskGroup.ports`, in that order. Absent: as stated, none for port 0. */
  readonly ports?: readonly number[] | undefined;
  /** Of a placed task: rebalancing leaves it alone (cooldown, being updated). Preemption does not look at it. */
  readonly pinned?: boolean | undefined;
  /** It does not serve (yet), so that for `minAvailable` it is as if it were not there; also of one that waits, for when it is placed. */
  readonly down?: boolean | undefined;
  /** Of one that waits: it takes room that there is, and nobody is stopped for it. */
  readonly patient?: boolean | undefined;
  /** Of one that waits. Absent: by arrival, before all that have one. */
  readonly turn?: Turn | undefined;
  /** Comes back in the placement: the caller's own record of the task, so that it need not look for it. */
  readonly handle?: unknown;
}

export interface Placement {
  readonly task: string;
  /** See `SchedulerTask`. */
  readonly handle?: unknown;
  readonly node: string;
  /** Port numbers given, in the order of `TaskGroup.ports`. */
  readonly ports: readonly number[];
  /**
   * Tasks to stop first, in order. The scheduler already counts them as gone: what they held, later placements may get, on this
   * node or (a single-writer volume) on any.
   */
  readonly preempts: readonly string[];
}

/** Why a node cannot take a task. */
export type ReasonKind =
  | "not-ready"
  | "availability"
  | "disk-pressure"
  | "only-node"
  | "platform"
  | "constraint"
  | "taint"
  | "volume"
  | "max-per-node"
  | "host-port"
  | "resources"
  | "max-skew";

export interface Reason {
  readonly kind: ReasonKind;
  /** For people, without the node: "512 MiB memory needed, 300 MiB free". */
  readonly text: string;
  /** One sentence: what would make it fit. */
  readonly fix: string;
  /** What stands for the texts of several nodes that differ in no more than a name or a number: "port 80 taken". */
  readonly together?: string | undefined;
}

export interface ReasonCount {
  readonly kind: ReasonKind;
  /** Of all of them, or of the one that lacks least of the same resources. */
  readonly text: string;
  readonly count: number;
  /** The same count by node class (attributes that nodes share), most frequent first. */
  readonly classes: readonly { readonly class: string; readonly count: number }[];
}

/** The node that lacks least, everything that it lacks, and what would make the task fit there. */
export interface NearestMiss {
  readonly node: string;
  readonly hostname: string;
  readonly reasons: readonly Reason[];
}

/** Why a group's next task fits nowhere. */
export interface Explanation {
  readonly group: string;
  /** "3 nodes: constraint node.labels.zone == a not met; 2: 512 MiB memory needed, 300 MiB free". */
  readonly summary: string;
  /** Nodes looked at. */
  readonly nodes: number;
  /** Each node counts once, under the first filter that refuses it; most frequent first. */
  readonly reasons: readonly ReasonCount[];
  /** Absent when there is no node at all. */
  readonly nearest?: NearestMiss | undefined;
}

export interface Unplaced {
  readonly group: string;
  readonly tasks: readonly string[];
  readonly explanation: Explanation;
}

export interface ScheduleResult {
  /** In the order decided: priority first, then group by group in the order of turns. */
  readonly placements: readonly Placement[];
  /** Looked at in this call and not placed. They wait, and are looked at again once something could unblock them. */
  readonly unplaced: readonly Unplaced[];
}

/** One term of a node's cost: points, lower is better, negative where the node is wanted. */
export interface ScoreTerm {
  readonly name: string;
  readonly points: number;
}

export interface Candidate {
  readonly node: string;
  readonly hostname: string;
  /** Sum of the terms. */
  readonly cost: number;
  readonly terms: readonly ScoreTerm[];
}

/** Answer to "why (not) there": all filters that refuse, and the cost it would have. */
export interface NodeVerdict {
  readonly node: string;
  readonly fits: boolean;
  /** Every refusing filter, not only the first. */
  readonly reasons: readonly Reason[];
  readonly candidate: Candidate;
}

/** Answer to "why is it where it is, or nowhere". */
export interface TaskExplanation {
  readonly task: string;
  /** Set when the task is placed. */
  readonly node?: string | undefined;
  /** How many nodes would take the task now (its own place counted as free). */
  readonly fitting: number;
  /** The best of those, best first. */
  readonly candidates: readonly Candidate[];
  /** Why the other nodes would not take it; of a task that waits, its summary says why that is so. */
  readonly explanation: Explanation;
}
