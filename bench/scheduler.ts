import { loadavg } from "node:os";
import { performance } from "node:perf_hooks";
import { memoryUsage } from "node:process";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { ClusterIndex } from "../control-plane/domain/index.ts";
import { Scheduler, type SchedulerNode, type TaskGroup } from "../control-plane/scheduler/index.ts";
import { createMemoryStore } from "../control-plane/store/memory.ts";
import type { Write } from "../control-plane/store/types.ts";
import { Task } from "../proto/gen/embassy/v1/state.ts";
import { machine } from "./figures.ts";
import { clusterOf, loadOf, mebibyte, mixedGroup, roomyCluster, type Shape, tasksOf } from "./load.ts";

export const title = "How many placements a second does the scheduler decide, and what do its other answers cost?";

/** Decisions per second of others: swarmkit and Nomad on one 2-core machine, the rest as published. */
const peers = {
  same: {
    "1k/10k": "swarmkit 433k",
    "1k/100k": "swarmkit 301k",
    "10k/100k": "swarmkit 329k",
    "100k/100k": "swarmkit 260k",
  },
  mixed: {
    "1k/10k": "swarmkit 286k",
    "1k/100k": "swarmkit 242k",
    "10k/100k": "swarmkit 78k",
    "100k/100k": "swarmkit 4.1k",
  },
  "one-off": {
    "1k/10k": "swarmkit 12.9k",
    "1k/100k": "swarmkit 10.4k",
    "10k/100k": "swarmkit 3k",
    "100k/100k": "swarmkit 0.1-0.2k",
  },
  service: "Nomad 1.1: 6-7k; Kubernetes' tests ask 680-810; Godel 5k (published)",
  spread: "Nomad 1.1: 130-230",
  affinity: "Kubernetes: 60-90 (published)",
} as const;

/** mulberry32: the same numbers in every run. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  };
}

function schedulerWith(nodes: readonly SchedulerNode[], groups: readonly TaskGroup[]): Scheduler {
  const scheduler = new Scheduler({ explainLimit: 0 });
  for (const node of nodes) scheduler.upsertNode(node);
  for (const group of groups) scheduler.upsertGroup(group);
  return scheduler;
}

/** Builds the views that the shapes use, as they are in a running cluster; what that costs is in the table on building. */
function warmUp(scheduler: Scheduler): Scheduler {
  for (const zone of [undefined, "a", "b", "c"]) {
    const id = `warm-${zone}`;
    const constraints = zone === undefined ? undefined : [`node.labels.zone == ${zone}`];
    scheduler.upsertGroup({ id, service: id, name: id, reservations: { milliCpus: 1, memoryBytes: 1 }, constraints });
    scheduler.schedule([{ id, group: id }]);
    scheduler.removeTask(id);
  }
  return scheduler;
}

/** Seconds of this thread's CPU time: on a shared machine the wall clock mostly measures the neighbours. */
function timed<T>(action: () => T): { readonly value: T; readonly seconds: number } {
  const start = process.threadCpuUsage();
  const value = action();
  const { user, system } = process.threadCpuUsage(start);
  return { value, seconds: (user + system) / 1e6 };
}

/** Best of three, since the machine is shared; each over `times` fresh copies, since the thread's clock ticks in milliseconds. */
function best<T>(
  times: number,
  prepare: () => T,
  action: (prepared: T) => number,
): { readonly perSecond: number; readonly count: number } {
  let perSecond = 0;
  let count = 0;
  for (let i = 0; i < 3; i++) {
    const copies = Array.from({ length: times }, prepare);
    globalThis.gc?.();
    const { value, seconds } = timed(() => copies.reduce((sum, prepared) => sum + action(prepared), 0));
    perSecond = Math.max(perSecond, value / seconds);
    count = value / times;
  }
  return { perSecond, count };
}

interface Row {
  readonly what: string;
  readonly figure: string;
  readonly peers: string;
}

function short(value: number): string {
  if (value >= 1e6) return `${(value / 1e6).toFixed(2)}M`;
  if (value >= 1e3) return `${(value / 1e3).toFixed(value >= 1e5 ? 0 : 1)}k`;
  return value.toFixed(value >= 10 ? 0 : 2);
}

function print(heading: string, rows: readonly Row[]): void {
  const others = rows.some(({ peers: other }) => other !== "");
  console.log(`\n### ${heading}\n\nLoad average ${loadavg()[0]?.toFixed(1)} on ${machine()}\n`);
  console.log(`| what | figure |${others ? " others |" : ""}\n|---|---|${others ? "---|" : ""}`);
  for (const { what, figure, peers: other } of rows)
    console.log(`| ${what} | ${figure} |${others ? ` ${other} |` : ""}`);
}

const scales = [
  ["1k/10k", 1_000, 10_000],
  ["1k/100k", 1_000, 100_000],
  ["10k/100k", 10_000, 100_000],
  ["100k/100k", 100_000, 100_000],
] as const;

/** Placements a second of `schedule` alone, and with telling the tasks first. */
function shapes(): Row[] {
  const rows: Row[] = [];
  for (const shape of ["same", "mixed", "one-off"] as const) {
    for (const [scale, nodeCount, taskCount] of scales) {
      const nodes = roomyCluster(nodeCount, taskCount);
      const { groups, pending } = loadOf(shape, taskCount);
      const prepare = (): Scheduler => {
        const scheduler = schedulerWith(nodes, groups);
        warmUp(scheduler);
        for (const task of pending) scheduler.addTask(task);
        return scheduler;
      };
      const times = Math.ceil(100_000 / taskCount);
      const decided = best(times, prepare, (scheduler) => scheduler.schedule().placements.length);
      const told = best(
        times,
        () => warmUp(schedulerWith(nodes, groups)),
        (scheduler) => scheduler.schedule(pending).placements.length,
      );
      if (decided.count < taskCount) throw new Error(`${shape} ${scale}: only ${decided.count} of ${taskCount} placed`);
      rows.push({
        what: `${shape} ${scale}`,
        figure: `${short(decided.perSecond)}/s decided, ${short(told.perSecond)}/s told and decided`,
        peers: peers[shape][scale],
      });
    }
  }
  return rows;
}

/** Random sizes until the cluster is about 99 % full and most searches fail. */
function pressure(nodeCount: number, strategy: "spread" | "binpack"): Row {
  const next = random(7);
  const groups: TaskGroup[] = [];
  const nodes = clusterOf(nodeCount, 16_000, 65_536);
  let milliCpus = 0;
  for (let i = 0; milliCpus < nodeCount * 16_000 * 1.05; i++) {
    const size = 100 + Math.floor(next() * 4_000);
    milliCpus += size;
    groups.push({
      id: `p${i}@1`,
      service: `p${i}`,
      name: `p${i}`,
      strategy,
      reservations: { milliCpus: size, memoryBytes: (128 + Math.floor(next() * 15_000)) * mebibyte },
    });
  }
  const latencies = new Float64Array(groups.length);
  const scheduler = schedulerWith(nodes, groups);
  scheduler.schedule();
  let placed = 0;
  const decide = (from: number, to: number): void => {
    for (let i = from; i < to; i++) {
      const group = groups[i] as TaskGroup;
      const start = performance.now();
      placed += scheduler.schedule([{ id: group.service, group: group.id }]).placements.length;
      latencies[i] = performance.now() - start;
    }
  };
  const twoThirds = Math.floor((groups.length * 2) / 3);
  const begin = timed(() => decide(0, twoThirds));
  const end = timed(() => decide(twoThirds, groups.length));
  const used = groups.reduce(
    (sum, { id, reservations }) =>
      scheduler.isPlaced(id.split("@")[0] as string) ? sum + reservations.milliCpus : sum,
    0,
  );
  latencies.sort();
  return {
    what: `pressure, ${strategy}, ${short(nodeCount)} nodes, ${short(groups.length)} random sizes, CPU ${((100 * used) / (nodeCount * 16_000)).toFixed(1)} % full`,
    figure: `${short(twoThirds / begin.seconds)}/s, last third ${short((groups.length - twoThirds) / end.seconds)}/s, p99 ${percentile(latencies, 0.99)}, ${groups.length - placed} fit nowhere`,
    peers: "",
  };
}

function percentile(sorted: Float64Array, share: number): string {
  return micros(sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] as number);
}

function micros(milliseconds: number): string {
  return milliseconds >= 1 ? `${milliseconds.toFixed(2)} ms` : `${(milliseconds * 1_000).toFixed(1)} us`;
}

/** One task ends, its replacement is placed: each alone, as in a running cluster. */
function churn(nodeCount: number, taskCount: number, shape: Shape): Row {
  const { groups, pending } = loadOf(shape, taskCount);
  const scheduler = schedulerWith(roomyCluster(nodeCount, taskCount), groups);
  scheduler.schedule(pending);
  const next = random(3);
  const alive = pending.map(({ id, group }) => ({ id, group }));
  const rounds = 20_000;
  const latencies = new Float64Array(rounds);
  for (let i = 0; i < rounds; i++) {
    const victim = Math.floor(next() * alive.length);
    const old = alive[victim] as (typeof alive)[number];
    const replacement = { id: `${old.id}'`, group: old.group };
    alive[victim] = replacement;
    const start = performance.now();
    scheduler.removeTask(old.id);
    scheduler.schedule([replacement]);
    latencies[i] = performance.now() - start;
  }
  latencies.sort();
  return {
    what: `churn, ${shape} ${short(nodeCount)}/${short(taskCount)}: one task ends, one is placed`,
    figure: `p50 ${percentile(latencies, 0.5)}, p99 ${percentile(latencies, 0.99)}, worst ${percentile(latencies, 1)}`,
    peers: "",
  };
}

/** One-off tasks placed one at a time at 100k nodes: the latency of a single decision. */
function oneOffLatency(nodeCount: number, count: number): Row {
  const { groups, pending } = loadOf("one-off", count);
  const scheduler = schedulerWith(roomyCluster(nodeCount, count), groups);
  for (const task of pending.slice(0, 1_000)) scheduler.schedule([task]);
  const latencies = new Float64Array(count - 1_000);
  for (const [i, task] of pending.slice(1_000).entries()) {
    const start = performance.now();
    scheduler.schedule([task]);
    latencies[i] = performance.now() - start;
  }
  latencies.sort();
  return {
    what: `one-off, one task a call, ${short(nodeCount)} nodes`,
    figure: `p50 ${percentile(latencies, 0.5)}, p99 ${percentile(latencies, 0.99)}, p99.9 ${percentile(latencies, 0.999)}`,
    peers: "",
  };
}

/** Node events at 100k nodes, each followed by one decision. */
function nodeEvents(nodeCount: number): Row[] {
  const { groups, pending } = loadOf("mixed", 20_000);
  const nodes = roomyCluster(nodeCount, nodeCount * 4);
  const scheduler = schedulerWith(nodes, groups);
  scheduler.schedule(pending);
  let extra = 0;
  const measure = (what: string, event: (i: number) => void): Row => {
    const latencies = new Float64Array(2_000);
    for (let i = 0; i < latencies.length; i++) {
      const group = groups[i % groups.length] as TaskGroup;
      const start = performance.now();
      event(i);
      scheduler.schedule([{ id: `extra-${extra++}`, group: group.id }]);
      latencies[i] = performance.now() - start;
    }
    latencies.sort();
    return {
      what: `${what}, then one decision, ${short(nodeCount)} nodes`,
      figure: `p50 ${percentile(latencies, 0.5)}, p99 ${percentile(latencies, 0.99)}`,
      peers: "",
    };
  };
  const at = (i: number): SchedulerNode => nodes[(i * 37) % nodes.length] as SchedulerNode;
  return [
    measure("node drained", (i) => scheduler.upsertNode({ ...at(i), availability: "drain" })),
    measure("node activated", (i) => scheduler.upsertNode(at(i))),
    measure("label changed", (i) =>
      scheduler.upsertNode({ ...at(i), labels: { ...at(i).labels, zone: "abc"[(i + 1) % 3] as string } }),
    ),
    measure("node left", (i) => scheduler.removeNode(at(i).id)),
    measure("node joined", (i) => scheduler.upsertNode(at(i))),
  ];
}

function buildAndMemory(nodeCount: number, taskCount: number): Row[] {
  const nodes = roomyCluster(nodeCount, taskCount);
  const { groups, pending } = loadOf("mixed", taskCount);
  globalThis.gc?.();
  const empty = heap();
  const { value: scheduler, seconds } = timed(() => schedulerWith(nodes, groups));
  const index = timed(() => scheduler.schedule([{ id: "first", group: (groups[1] as TaskGroup).id }]));
  globalThis.gc?.();
  const withNodes = heap();
  scheduler.schedule(pending);
  globalThis.gc?.();
  const withTasks = heap();
  const what = `${short(nodeCount)} nodes, ${short(taskCount)} tasks`;
  return [
    { what: `telling ${what.split(",")[0]} and ${groups.length} groups`, figure: micros(seconds * 1_000), peers: "" },
    {
      what: `first index over ${what.split(",")[0]} and one decision`,
      figure: micros(index.seconds * 1_000),
      peers: "",
    },
    {
      what: `memory per node, ${what} (with one view)`,
      figure: `${Math.round((withNodes - empty) / nodeCount)} B`,
      peers: "",
    },
    {
      what: `memory per task, ${what} (with the views of the load)`,
      figure: `${Math.round((withTasks - withNodes) / taskCount)} B`,
      peers: "",
    },
  ];
}

function heap(): number {
  const { heapUsed, arrayBuffers } = memoryUsage();
  return heapUsed + arrayBuffers;
}

/** Workloads that make others slow, at 5k nodes and 20k tasks. */
function preferences(): Row[] {
  const nodes = roomyCluster(5_000, 20_000);
  const row = (what: string, others: string, change: (group: TaskGroup, i: number) => TaskGroup, each = 100): Row => {
    const groups = Array.from({ length: 20_000 / each }, (_, i) =>
      change({ ...mixedGroup(i), constraints: undefined, ports: undefined }, i),
    );
    const pending = groups.flatMap((group) => tasksOf(group, each));
    const { perSecond, count } = best(
      5,
      () => {
        const scheduler = schedulerWith(nodes, groups);
        for (const task of pending) scheduler.addTask(task);
        return scheduler;
      },
      (scheduler) => scheduler.schedule().placements.length,
    );
    return {
      what: `${what}, 5k/20k`,
      figure: `${short(perSecond)}/s${count < 20_000 ? ` (${count} placed)` : ""}`,
      peers: others,
    };
  };
  return [
    row("no preference", peers.service, (group) => group),
    row("spread over 3 zones", peers.spread, (group) => ({ ...group, spread: [{ over: "node.labels.zone" }] })),
    row("spread over zones, then 50 racks", peers.spread, (group) => ({
      ...group,
      spread: [{ over: "node.labels.zone" }, { over: "node.labels.rack" }],
    })),
    row("spread with shares 3:1:1", peers.spread, (group) => ({
      ...group,
      spread: [{ over: "node.labels.zone", shares: { a: 3 } }],
    })),
    row("maxSkew 1 over 50 racks", peers.spread, (group) => ({
      ...group,
      spread: [{ over: "node.labels.rack", maxSkew: 1 }],
    })),
    row("affinity to a service in the zone", peers.affinity, (group, i) => ({
      ...group,
      affinities: [{ kind: "service", service: `s${(i + 7) % 200}`, over: "node.labels.zone", weight: 50 }],
    })),
    row("anti-affinity to a service in the rack", peers.affinity, (group, i) => ({
      ...group,
      affinities: [{ kind: "service", service: `s${(i + 199) % 200}`, over: "node.labels.rack", weight: -50 }],
    })),
    row("anti-affinity to a service on the node", peers.affinity, (group, i) => ({
      ...group,
      affinities: [{ kind: "service", service: `s${(i + 199) % 200}`, over: "node.id", weight: -50 }],
    })),
    row("affinity to a label", peers.affinity, (group) => ({
      ...group,
      affinities: [{ kind: "node", constraint: "node.labels.zone == b", weight: 30 }],
    })),
    row("link locality to one service", "", (group, i) => ({
      ...group,
      links: [{ service: `s${(i + 199) % 200}`, bytesPerSecond: 1e6 }],
    })),
    row("binpack", peers.service, (group) => ({ ...group, strategy: "binpack" })),
    row("binpack, one-off", peers.service, (group) => ({ ...group, strategy: "binpack" }), 1),
    row("gangs of 100", "", (group, i) => ({ ...group, gang: `g${i}` })),
  ];
}

function answers(): Row[] {
  const nodes = clusterOf(5_000, 2_000, 4_096);
  const low: TaskGroup = {
    id: "low@1",
    service: "low",
    name: "low",
    reservations: { milliCpus: 500, memoryBytes: 512 * mebibyte },
  };
  const high: TaskGroup = {
    id: "high@1",
    service: "high",
    name: "high",
    priority: 10,
    reservations: { milliCpus: 1_000, memoryBytes: 512 * mebibyte },
  };
  const huge: TaskGroup = {
    id: "huge@1",
    service: "huge",
    name: "huge",
    reservations: { milliCpus: 4_000, memoryBytes: 512 * mebibyte },
  };
  const scheduler = schedulerWith(nodes, [low, high, huge]);
  scheduler.schedule(tasksOf(low, 20_000));
  const preempted = timed(() => scheduler.schedule(tasksOf(high, 200)));
  const explaining = Scheduler.restore(scheduler.snapshot());
  const nowhere = timed(() => explaining.schedule(tasksOf(huge, 1)));
  const repeated = (count: number, action: (i: number) => void): string => {
    const { seconds } = timed(() => {
      for (let i = 0; i < count; i++) action(i);
    });
    return micros((seconds * 1_000) / count);
  };
  const why = repeated(50, () => explaining.explain("huge.1"));
  const placedWhy = repeated(50, (i) => explaining.explain(`low.${777 + i}`));
  const not = repeated(5_000, (i) => explaining.whyNot("huge@1", `node-${i}`));
  const fork = timed(() => explaining.fork());
  return [
    {
      what: "preemption, 5k nodes full of 20k tasks",
      figure: `${micros((preempted.seconds * 1_000) / preempted.value.placements.length)} each`,
      peers: "",
    },
    {
      what: "task that fits nowhere: decision and explanation, 5k nodes",
      figure: micros(nowhere.seconds * 1_000),
      peers: "",
    },
    { what: "explain a waiting task, 5k nodes", figure: why, peers: "" },
    { what: "explain a placed task (top candidates), 5k nodes", figure: placedWhy, peers: "" },
    { what: "whyNot", figure: not, peers: "" },
    { what: "fork for a simulation, 5k nodes and 20k tasks", figure: micros(fork.seconds * 1_000), peers: "" },
  ];
}

/** Decisions of the mixed shapes with each placement committed to the store in memory, under its indexes and a watcher. */
async function withStore(nodeCount: number, taskCount: number): Promise<Row[]> {
  const { groups, pending } = loadOf("mixed", taskCount);
  const scheduler = schedulerWith(roomyCluster(nodeCount, taskCount), groups);
  const store = createMemoryStore();
  using index = new ClusterIndex(store);
  let seen = 0;
  using _ = store.subscribe((changes) => {
    seen += changes.length;
  });
  const batches = (tasks: readonly Task[]): Write[][] => {
    const writes: Write[] = tasks.map((task) => ({ table: "tasks", id: task.id, value: task }));
    return Array.from({ length: Math.ceil(writes.length / 1_000) }, (_, i) => writes.slice(i * 1_000, (i + 1) * 1_000));
  };
  for (const batch of batches(pending.map(({ id, group }) => Task.create({ id, serviceId: group }))))
    await store.commit(batch);
  for (const task of pending) scheduler.addTask(task);
  const start = process.threadCpuUsage();
  for (let left = taskCount; left > 0; ) {
    const { placements } = scheduler.schedule([], { mostPlacements: 1_000 });
    const placed = placements.map(({ task, node }) => Task.create({ ...index.view.tasks.get(task), nodeId: node }));
    for (const batch of batches(placed)) await store.commit(batch);
    left -= placements.length;
  }
  const { user, system } = process.threadCpuUsage(start);
  if (seen !== 2 * taskCount) throw new Error(`the watcher saw ${seen} changes, not ${2 * taskCount}`);
  return [
    {
      what: `mixed ${short(nodeCount)}/${short(taskCount)}, committed to the store in memory, 1,000 a transaction`,
      figure: `${short(taskCount / ((user + system) / 1e6))}/s`,
      peers: "swarmkit 10-17k (100k tasks, with its store)",
    },
  ];
}

const sections: Readonly<Record<string, () => void | Promise<void>>> = {
  shapes: () => print("Placements a second by shape of load (nodes/tasks), best of 3", shapes()),
  pressure: () =>
    print("Nearly full, sizes at random, one task a call", [
      pressure(1_000, "spread"),
      pressure(10_000, "spread"),
      pressure(10_000, "binpack"),
    ]),
  latency: () =>
    print("Latency", [
      oneOffLatency(100_000, 50_000),
      churn(10_000, 100_000, "mixed"),
      churn(10_000, 100_000, "same"),
      churn(100_000, 100_000, "one-off"),
      ...nodeEvents(10_000),
      ...nodeEvents(100_000),
    ]),
  build: () =>
    print("Index build and memory", [...buildAndMemory(10_000, 100_000), ...buildAndMemory(100_000, 100_000)]),
  preferences: () => print("Preferences at 5k nodes", preferences()),
  store: async () => print("With the store in memory", await withStore(10_000, 100_000)),
  answers: () => print("Preemption and explanations", answers()),
};

/** Prints every table, or those named. Takes about two minutes on two cores. */
export async function run(args: readonly string[]): Promise<void> {
  setFlagsFromString("--expose-gc");
  globalThis.gc = runInNewContext("gc") as NonNullable<typeof globalThis.gc>;
  for (const [name, section] of Object.entries(sections)) if (args.length === 0 || args.includes(name)) await section();
}

if (import.meta.main) await run(process.argv.slice(2));
