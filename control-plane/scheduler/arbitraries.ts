import * as fc from "fast-check";
import { aGroup, aNode, mebibyte, someTasks } from "./builders.ts";
import { Scheduler } from "./scheduler.ts";
import type {
  Affinity,
  Availability,
  HostPort,
  SchedulerNode,
  SpreadPreference,
  Strategy,
  TaskGroup,
  Toleration,
  VolumeUse,
} from "./types.ts";

/** Random clusters and loads for property tests: small, and crowded enough that every rule gets to refuse. */
export const runs = Number(process.env["EMBASSY_FUZZ_RUNS"] ?? "0");

/** Runs of a property: its own number by default, or `EMBASSY_FUZZ_RUNS`. The seed is fixed for the former. */
export function effort(byDefault: number): { numRuns: number; seed?: number } {
  return runs > 0 ? { numRuns: runs } : { numRuns: byDefault, seed: 20_260_801 };
}

const zone = fc.constantFrom("a", "b", "c", undefined);
const rack = fc.constantFrom("1", "2", undefined);

/** Events of one run; some faults need hundreds. */
export const mostCommands = runs > 0 ? 300 : 80;

function labels(values: Readonly<Record<string, string | undefined>>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(values).filter((entry): entry is [string, string] => entry[1] !== undefined),
  );
}

export function nodeArbitrary(id: string): fc.Arbitrary<SchedulerNode> {
  return fc
    .record({
      zone,
      rack,
      availability: fc.constantFrom<Availability>("active", "active", "active", "active", "pause", "drain"),
      ready: fc.constantFrom(true, true, true, true, true, false),
      cpus: fc.constantFrom(1, 2, 4),
      gibibytes: fc.constantFrom(1, 4, 8),
      pids: fc.constantFrom(undefined, 100),
      gpus: fc.constantFrom(0, 0, 2),
      arch: fc.constantFrom("amd64", "amd64", "arm64"),
      taint: fc.constantFrom(
        undefined,
        undefined,
        undefined,
        "no-schedule" as const,
        "no-execute" as const,
        "prefer-no-schedule" as const,
      ),
      value: fc.constantFrom(undefined, "x"),
      image: fc.boolean(),
      diskPressure: fc.constantFrom(false, false, false, true),
      busyPort: fc.constantFrom(
        undefined,
        undefined,
        undefined,
        { port: 80 },
        { port: 81 },
        { port: 80, address: "10.0.0.5" },
      ),
    })
    .map((r) =>
      aNode(id, {
        labels: labels({ zone: r.zone, rack: r.rack }),
        availability: r.availability,
        ready: r.ready,
        arch: r.arch,
        diskPressure: r.diskPressure,
        busyPorts: r.busyPort === undefined ? undefined : [{ ...r.busyPort, protocol: "tcp", by: "sshd" }],
        images: r.image ? ["app:1"] : [],
        taints: r.taint === undefined ? undefined : [{ key: "dedicated", effect: r.taint, value: r.value }],
        capacity: {
          milliCpus: r.cpus * 1_000,
          memoryBytes: r.gibibytes * 1_024 * mebibyte,
          pids: r.pids,
          generic: r.gpus > 0 ? { gpu: r.gpus } : undefined,
        },
      }),
    );
}

const constraints = fc.constantFrom<readonly string[]>(
  [],
  [],
  [],
  ["node.labels.zone == a"],
  ["node.labels.zone in (a, b)"],
  ["node.labels.zone exists", "node.labels.rack != 1"],
  ["node.labels.rack >= 2"],
  ["node.hostname =~ ^n[0-4]$"],
);

const spread = fc.constantFrom<readonly SpreadPreference[]>(
  [],
  [],
  [{ over: "node.labels.zone" }],
  [{ over: "node.labels.zone", shares: { a: 3 } }],
  [{ over: "node.labels.zone", maxSkew: 1 }],
  [{ over: "node.labels.zone", maxSkew: 1 }],
  [{ over: "node.labels.zone", maxSkew: 2 }, { over: "node.labels.rack" }],
  [{ over: "node.labels.zone" }, { over: "node.labels.rack", maxSkew: 1 }],
  [{ over: "node.labels.zone", shares: { a: 2, b: 0 }, otherShare: 0.5 }, { over: "node.hostname" }],
);

const affinities = fc.constantFrom<readonly Affinity[]>(
  [],
  [],
  [{ kind: "node", constraint: "node.labels.zone == b", weight: 50 }],
  [{ kind: "service", service: "s0", over: "node.id", weight: -60 }],
  [{ kind: "service", service: "s1", over: "node.labels.zone", weight: 80 }],
  [
    { kind: "service", service: "s0", over: "node.labels.zone", weight: -100 },
    { kind: "service", service: "s2", over: "node.id", weight: 100 },
  ],
);

const tolerations = fc.constantFrom<readonly Toleration[] | undefined>(
  undefined,
  undefined,
  [{ key: "dedicated" }],
  [{ key: "dedicated", value: "x" }],
  [{ effect: "no-schedule" }],
  [{}],
);

const volumeUses = fc.constantFrom<readonly VolumeUse[] | undefined>(
  undefined,
  undefined,
  undefined,
  undefined,
  [{ volume: "home" }],
  [{ volume: "single" }],
  [{ volume: "single", readOnly: true }],
  [{ volume: "shared" }, { volume: "single" }],
  [{ volume: "single-home" }],
);

const tcp = { protocol: "tcp", range: [80, 82] } as const;
const ports = fc.constantFrom<readonly HostPort[] | undefined>(
  undefined,
  undefined,
  undefined,
  [{ port: 80, ...tcp }],
  [{ port: 81, ...tcp }],
  [{ port: 0, ...tcp }],
  [
    { port: 0, ...tcp },
    { port: 80, ...tcp },
  ],
  [{ port: 80, protocol: "udp" }],
  [{ port: 80, address: "10.0.0.5", ...tcp }],
  [
    { port: 80, address: "10.0.0.6", ...tcp },
    { port: 0, address: "10.0.0.5", ...tcp },
  ],
);

export interface GroupLimits {
  /** Leaves out what makes one decision depend on others beyond what is placed: priorities and gangs. */
  readonly plain?: boolean;
}

export function groupArbitrary(index: number, limits: GroupLimits = {}): fc.Arbitrary<TaskGroup> {
  return fc
    .record({
      service: fc.constantFrom(`s${index}`, `s${index}`, "s0"),
      milliCpus: fc.constantFrom(0, 100, 300, 700, 1_500),
      mebibytes: fc.constantFrom(0, 64, 300, 900),
      pids: fc.constantFrom(0, 0, 40),
      gpus: fc.constantFrom(undefined, undefined, 0, 1),
      constraints,
      spread,
      affinities,
      maxPerNode: fc.constantFrom(0, 0, 1, 2),
      ports,
      volumes: volumeUses,
      tolerations,
      platform: fc.constantFrom(undefined, undefined, "amd64"),
      strategy: fc.constantFrom(undefined, "binpack" as const, "spread" as const),
      image: fc.constantFrom(undefined, "app:1"),
      link: fc.constantFrom(undefined, undefined, "s0", "s2"),
      priority: fc.constantFrom(0, 0, 0, -5, 5, 10),
      minAvailable: fc.constantFrom(0, 0, 1, 2),
      gang: fc.constantFrom(undefined, undefined, undefined, undefined, "g1"),
    })
    .map((r) =>
      aGroup(r.service, {
        id: `${r.service}@${index}`,
        name: `${r.service}v${index}`,
        reservations: {
          milliCpus: r.milliCpus,
          memoryBytes: r.mebibytes * mebibyte,
          pids: r.pids,
          generic: r.gpus === undefined ? undefined : { gpu: r.gpus },
        },
        constraints: r.constraints,
        spread: r.spread,
        affinities: r.affinities,
        maxPerNode: r.maxPerNode,
        ports: r.ports,
        volumes: r.volumes,
        tolerations: r.tolerations,
        platforms: r.platform === undefined ? undefined : [{ os: "linux", arch: r.platform }],
        strategy: r.strategy,
        image: r.image,
        links: r.link === undefined ? undefined : [{ service: r.link, bytesPerSecond: 1_000 }],
        priority: limits.plain === true ? 0 : r.priority,
        minAvailable: r.minAvailable,
        gang: limits.plain === true ? undefined : r.gang,
      }),
    );
}

export const volumes = [
  { id: "home", name: "data", homeNode: "n1", access: "shared" },
  { id: "single", name: "one", access: "single-writer" },
  { id: "shared", name: "all", access: "shared" },
  { id: "single-home", name: "here", homeNode: "n2", access: "single-writer" },
] as const;

/** One event that the control plane would tell of. Numbers pick from what there is, modulo its count. */
export type Command =
  | { readonly kind: "node"; readonly spec: SchedulerNode }
  | { readonly kind: "lose"; readonly node: number }
  | {
      readonly kind: "ask";
      readonly group: number;
      readonly count: number;
      readonly onlyNode: number | undefined;
      /** Of their turn; without one they have none. */
      readonly sinceMs: number | undefined;
    }
  | { readonly kind: "end"; readonly task: number }
  | { readonly kind: "fail"; readonly group: number; readonly node: number; readonly count: number }
  | {
      readonly kind: "regroup";
      readonly group: number;
      readonly milliCpus: number;
      readonly minAvailable: number;
      /** Of a group that has one. */
      readonly priority: number;
    }
  /** The group goes with its tasks; it returns when it is asked for. */
  | { readonly kind: "forget"; readonly group: number }
  | { readonly kind: "move-volume"; readonly node: number }
  | { readonly kind: "schedule" };

export const commandArbitrary: fc.Arbitrary<Command> = fc.oneof(
  {
    weight: 3,
    arbitrary: fc
      .integer({ min: 0, max: 8 })
      .chain((n) => nodeArbitrary(`n${n}`).map((spec) => ({ kind: "node" as const, spec }))),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("lose" as const), node: fc.nat(8) }) },
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constant("ask" as const),
      group: fc.nat(5),
      count: fc.integer({ min: 1, max: 5 }),
      onlyNode: fc.constantFrom(undefined, undefined, undefined, undefined, 1, 3),
      sinceMs: fc.constantFrom(undefined, undefined, 1, 2),
    }),
  },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant("end" as const), task: fc.nat(100) }) },
  {
    weight: 1,
    arbitrary: fc.record({ kind: fc.constant("fail" as const), group: fc.nat(5), node: fc.nat(8), count: fc.nat(6) }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant("regroup" as const),
      group: fc.nat(5),
      milliCpus: fc.constantFrom(50, 200, 1_000),
      minAvailable: fc.nat(2),
      priority: fc.constantFrom(-5, 5, 10),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("forget" as const), group: fc.nat(5) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("move-volume" as const), node: fc.nat(8) }) },
  { weight: 4, arbitrary: fc.constant({ kind: "schedule" as const }) },
);

/** A random cluster with its load placed; groups have the ids s0, s1 and s2. */
export const clusterArbitrary = fc
  .record({
    nodes: fc.tuple(...[0, 1, 2, 3, 4, 5].map((i) => nodeArbitrary(`n${i}`))),
    groups: fc.tuple(...[0, 1, 2].map((i) => groupArbitrary(i).map((group) => ({ ...group, id: `s${i}` })))),
    strategy: fc.constantFrom<Strategy>("spread", "binpack"),
    counts: fc.tuple(fc.nat(5), fc.nat(5), fc.nat(5)),
    bound: fc.boolean(),
  })
  .map(({ nodes, groups, strategy, counts, bound }) => () => {
    const scheduler = new Scheduler({ strategy });
    for (const node of nodes) scheduler.upsertNode(node);
    for (const volume of volumes) scheduler.upsertVolume(volume);
    for (const group of groups) scheduler.upsertGroup(group);
    for (const [i, group] of groups.entries()) scheduler.schedule(someTasks(group, counts[i] as number));
    // The last one also has a task for each node, as a global service does.
    const group = groups[2] as TaskGroup;
    if (bound) scheduler.schedule(nodes.map(({ id }) => ({ id: `bound ${id}`, group: group.id, onlyNode: id })));
    return scheduler;
  });
