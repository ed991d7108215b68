import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { effort, groupArbitrary, nodeArbitrary, volumes } from "../arbitraries.ts";
import { aGroup, aNode, mebibyte } from "../builders.ts";
import { PlacementIndex } from "../index/index.ts";
import { Scheduler } from "../scheduler.ts";
import { factScores } from "../scores/index.ts";
import { ClusterState } from "../state/cluster.ts";
import type { GroupRecord } from "../state/records.ts";
import type { SchedulerNode, SchedulerVolume, TaskGroup } from "../types.ts";
import { factFilters } from "./index.ts";

interface Case {
  readonly node?: Partial<SchedulerNode>;
  readonly group?: Partial<TaskGroup>;
  readonly volume?: SchedulerVolume;
  /** Tasks of another group already on the node. */
  readonly others?: Partial<TaskGroup>;
  /** Another node. */
  readonly b?: Partial<SchedulerNode>;
}

/** What `whyNot` says of a node "a" for a group "web". */
function refusals({ node, group, volume, others, b }: Case): readonly (readonly [string, string, string])[] {
  const scheduler = new Scheduler();
  scheduler.upsertNode(aNode("a", node));
  scheduler.upsertNode(aNode("b", b));
  if (volume !== undefined) scheduler.upsertVolume(volume);
  const web = aGroup("web", group);
  scheduler.upsertGroup(web);
  if (others !== undefined) {
    const other = aGroup("db", others);
    scheduler.upsertGroup(other);
    scheduler.addTask({ id: "db.1", group: other.id, node: "a" });
  }
  return scheduler.whyNot(web.id, "a").reasons.map(({ kind, text, fix }) => [kind, text, fix]);
}

const volume = (overrides: Partial<SchedulerVolume>): SchedulerVolume => ({
  id: "v",
  name: "data",
  access: "shared",
  ...overrides,
});

describe("filters and scores that look at facts", () => {
  it("look at no more of a group than their keys say: groups that share a view are treated alike", () => {
    let shared = 0;
    fc.assert(
      fc.property(groupArbitrary(0), groupArbitrary(1), fc.nat(30), nodeArbitrary("n1"), (one, other, n, spec) => {
        const fields = Object.keys(one) as (keyof TaskGroup)[];
        const field = fields[n % fields.length] as keyof TaskGroup;
        const state = new ClusterState({ strategy: "spread", seed: 0 });
        const index = new PlacementIndex(state);
        for (const volume of volumes) state.upsertVolume(volume);
        const node = state.upsertNode(spec);
        const [a, b] = [one, { ...one, [field]: other[field], id: "changed@1" }].map((group) => {
          const record = state.upsertGroup(group);
          index.prepare(record);
          return record;
        }) as [GroupRecord, GroupRecord];
        if (a.rules.view !== b.rules.view) return;
        shared++;
        const seen = (group: GroupRecord): unknown => [
          factFilters.map((filter) => filter.passes(state, group, node)),
          factScores.map((score) => score.points(state, group, node)),
        ];
        expect([field, seen(b)]).toEqual([field, seen(a)]);
      }),
      effort(1_000),
    );
    expect(shared).toBeGreaterThan(100);
  });
});

it("a nearly full disk keeps away what could run elsewhere, and nothing that could not", () => {
  const scheduler = new Scheduler();
  scheduler.upsertNode(aNode("a", { diskPressure: true }));
  const web = aGroup("web");
  scheduler.upsertGroup(web);
  scheduler.addTask({ id: "bound", group: web.id, onlyNode: "a" });
  scheduler.addTask({ id: "free", group: web.id });
  const { placements, unplaced } = scheduler.schedule();
  expect(placements.map(({ task, node }) => [task, node])).toEqual([["bound", "a"]]);
  expect(unplaced.map(({ tasks, explanation }) => [tasks, explanation.summary])).toEqual([
    [["free"], "1 node: disk is nearly full"],
  ]);
  expect(scheduler.whyNot(web.id, "a", true).reasons).toEqual([]);
  scheduler.upsertNode(aNode("a"));
  expect(scheduler.schedule().placements.map(({ task }) => task)).toEqual(["free"]);
});

describe("each filter refuses for its reason, and says what would help", () => {
  it.each<readonly [string, Case, readonly [string, string, string]]>([
    ["a node that is down", { node: { ready: false } }, ["not-ready", "node is down", "Bring node a back."]],
    ["a drained node", { node: { availability: "drain" } }, ["availability", "node is drained", "Activate node a."]],
    ["a paused node", { node: { availability: "pause" } }, ["availability", "node is paused", "Activate node a."]],
    [
      "a full disk",
      { node: { diskPressure: true } },
      ["disk-pressure", "disk is nearly full", "Free disk space on node a."],
    ],
    [
      "another platform",
      { group: { platforms: [{ os: "linux", arch: "arm64" }] } },
      [
        "platform",
        "platform linux/arm64 needed, node is linux/amd64",
        "Use an image for linux/amd64, or add a node of linux/arm64.",
      ],
    ],
    [
      "a constraint",
      { group: { constraints: ["node.role == manager"] } },
      [
        "constraint",
        "constraint node.role == manager not met",
        'Node a has node.role "worker": change it, or relax node.role == manager.',
      ],
    ],
    [
      "a taint",
      { node: { taints: [{ key: "gpu", value: "yes", effect: "no-schedule" }] } },
      ["taint", "taint gpu=yes:no-schedule not tolerated", "Tolerate gpu=yes:no-schedule, or remove it from node a."],
    ],
    [
      "a taint that also evicts, tolerated with another value",
      {
        node: { taints: [{ key: "gpu", value: "a100", effect: "no-execute" }] },
        group: { tolerations: [{ key: "gpu", value: "t4" }, { effect: "no-schedule" }, { key: "cpu" }] },
      },
      ["taint", "taint gpu=a100:no-execute not tolerated", "Tolerate gpu=a100:no-execute, or remove it from node a."],
    ],
    [
      "a volume elsewhere",
      { group: { volumes: [{ volume: "v" }] }, volume: volume({ homeNode: "b" }) },
      ["volume", "volume data lives on node b", "Make room on node b, or move the volume."],
    ],
    [
      "a volume with a writer",
      {
        group: { volumes: [{ volume: "v" }] },
        volume: volume({ access: "single-writer" }),
        others: { volumes: [{ volume: "v" }] },
      },
      ["volume", "volume data is written by db.1", "Stop db.1, or mount the volume read-only."],
    ],
    [
      "a taken port",
      { group: { ports: [{ port: 53, protocol: "udp" }] }, others: { ports: [{ port: 53, protocol: "udp" }] } },
      ["host-port", "port 53/udp held by db.1", "Publish another port, or stop db.1."],
    ],
    [
      "a port of a program of the host",
      {
        group: { ports: [{ port: 22, protocol: "tcp" }] },
        node: { busyPorts: [{ port: 22, protocol: "tcp", by: "sshd (pid 7)" }] },
      },
      ["host-port", "port 22 held by sshd (pid 7)", "Publish another port, or stop sshd (pid 7)."],
    ],
    [
      "a port at one address that a task has at all of them",
      {
        group: { ports: [{ port: 80, protocol: "tcp", address: "10.0.0.5" }] },
        others: { ports: [{ port: 80, protocol: "tcp" }] },
      },
      ["host-port", "port 80 at 10.0.0.5 held by db.1", "Publish another port, or stop db.1."],
    ],
    [
      "a port at all addresses that a program has at one",
      {
        group: { ports: [{ port: 80, protocol: "tcp" }] },
        node: { busyPorts: [{ port: 80, protocol: "tcp", address: "127.0.0.1", by: "nginx (pid 8)" }] },
      },
      ["host-port", "port 80 held by nginx (pid 8)", "Publish another port, or stop nginx (pid 8)."],
    ],
    [
      "a port at the address where a task has it",
      {
        group: { ports: [{ port: 80, protocol: "udp", address: "10.0.0.5" }] },
        others: {
          ports: ["10.0.0.4", "10.0.0.5", "10.0.0.6"].map((address) => ({ port: 80, protocol: "udp", address })),
        },
      },
      ["host-port", "port 80/udp at 10.0.0.5 held by db.1", "Publish another port, or stop db.1."],
    ],
    [
      "a range of one at all addresses, of which the group has the port at one itself",
      {
        group: {
          ports: [
            { port: 80, protocol: "tcp", address: "10.0.0.5" },
            { port: 0, protocol: "tcp", range: [80, 80] },
          ],
        },
      },
      ["host-port", "no free port in 80-80", "Widen the port range, or add a node."],
    ],
    [
      "a range that programs of the host have",
      {
        group: { ports: [{ port: 0, protocol: "tcp", range: [80, 80] }] },
        node: { busyPorts: [{ port: 80, protocol: "tcp", by: "nginx (pid 8)" }] },
      },
      ["host-port", "no free port in 80-80", "Widen the port range, or add a node."],
    ],
    [
      "a port of a range that is used up",
      {
        group: { ports: [{ port: 0, protocol: "tcp", range: [80, 80] }] },
        others: { ports: [{ port: 80, protocol: "tcp" }] },
      },
      ["host-port", "no free port in 80-80", "Widen the port range, or add a node."],
    ],
    [
      "two ports of a range of one",
      { group: { ports: [0, 0].map((port) => ({ port, protocol: "tcp", range: [80, 80] })) } },
      ["host-port", "no free port in 80-80", "Widen the port range, or add a node."],
    ],
    [
      "CPU",
      { group: { reservations: { milliCpus: 4_000, memoryBytes: 0 } }, others: {} },
      ["resources", "4 CPU needed, 3750m free", "Free 250m CPU on node a, or lower the reservation."],
    ],
    [
      "pids",
      {
        node: { capacity: { milliCpus: 1, memoryBytes: 1, pids: 100 } },
        group: { reservations: { milliCpus: 0, memoryBytes: 0, pids: 200 } },
      },
      ["resources", "200 pids needed, 100 free", "Free 100 pids on node a, or lower the reservation."],
    ],
    [
      "memory",
      { group: { reservations: { milliCpus: 0, memoryBytes: 8_000 * mebibyte } }, others: {} },
      ["resources", "7.8 GiB memory needed, 7.7 GiB free", "Free 64 MiB memory on node a, or lower the reservation."],
    ],
    [
      "a generic resource",
      {
        group: { reservations: { milliCpus: 0, memoryBytes: 0, generic: { gpu: 2 } } },
        node: { capacity: { milliCpus: 1, memoryBytes: 1, generic: { gpu: 1 } } },
      },
      ["resources", "2 gpu needed, 1 free", "Free 1 gpu on node a, or lower the reservation."],
    ],
    [
      "a generic resource that the node has none of",
      { group: { reservations: { milliCpus: 0, memoryBytes: 0, generic: { gpu: 2 } } } },
      [
        "resources",
        "2 gpu needed, none there",
        "Give node a gpu (noded --generic-resource), or do without the reservation.",
      ],
    ],
    [
      "the most tasks of the service",
      { group: { service: "db", maxPerNode: 1 }, others: {} },
      ["max-per-node", "already 1 of web on the node, the most allowed", "Raise max_replicas_per_node, or add a node."],
    ],
    [
      "a zone above maxSkew",
      {
        node: { labels: { zone: "a" } },
        b: { labels: { zone: "b" } },
        group: { service: "db", spread: [{ over: "node.labels.zone", maxSkew: 1 }] },
        others: {},
      },
      [
        "max-skew",
        "node.labels.zone a would have 2 tasks, the emptiest 0: more than maxSkew 1",
        "Make room where node.labels.zone has fewer tasks, or raise maxSkew.",
      ],
    ],
    [
      "a missing label under maxSkew",
      { group: { spread: [{ over: "node.labels.zone", maxSkew: 1 }] } },
      ["max-skew", "node.labels.zone is missing", "Label node a, or drop maxSkew."],
    ],
  ])("%s", (_name, given, expected) => {
    expect(refusals(given)).toEqual([expected]);
  });

  it.each<readonly [string, Case]>([
    [
      "a tolerated taint",
      { node: { taints: [{ key: "gpu", effect: "no-schedule" }] }, group: { tolerations: [{ key: "gpu" }] } },
    ],
    [
      "a taint tolerated by effect, and one by anything",
      {
        node: {
          taints: [
            { key: "gpu", effect: "no-schedule" },
            { key: "old", value: "yes", effect: "no-execute" },
          ],
        },
        group: { tolerations: [{ effect: "no-schedule" }, {}] },
      },
    ],
    [
      "a zone above maxSkew when the emptiest takes no tasks",
      {
        node: { labels: { zone: "a" } },
        b: { labels: { zone: "b" }, availability: "drain" },
        group: { service: "db", spread: [{ over: "node.labels.zone", maxSkew: 1 }] },
        others: {},
      },
    ],
    ["a taint that only advises", { node: { taints: [{ key: "gpu", effect: "prefer-no-schedule" }] } }],
    [
      "any of several platforms",
      {
        group: {
          platforms: [
            { os: "linux", arch: "arm64" },
            { os: "linux", arch: "" },
          ],
        },
      },
    ],
    [
      "a read-only use of a written volume",
      {
        group: { volumes: [{ volume: "v", readOnly: true }] },
        volume: volume({ access: "single-writer" }),
        others: { volumes: [{ volume: "v" }] },
      },
    ],
    [
      "the same port of another protocol",
      { group: { ports: [{ port: 53, protocol: "tcp" }] }, others: { ports: [{ port: 53, protocol: "udp" }] } },
    ],
    [
      "the same port at another address than tasks and programs have it",
      {
        group: {
          ports: [
            { port: 80, protocol: "tcp", address: "10.0.0.5" },
            { port: 80, protocol: "tcp", address: "10.0.0.7" },
            { port: 0, protocol: "tcp", address: "10.0.0.8", range: [80, 80] },
          ],
        },
        others: { ports: [{ port: 80, protocol: "tcp", address: "10.0.0.6" }] },
        node: { busyPorts: [{ port: 80, protocol: "tcp", address: "127.0.0.1", by: "nginx (pid 8)" }] },
      },
    ],
    [
      "exactly what is free",
      { group: { reservations: { milliCpus: 3_750, memoryBytes: 7_936 * mebibyte } }, others: {} },
    ],
  ])("lets pass: %s", (_name, given) => {
    expect(refusals(given)).toEqual([]);
  });
});
