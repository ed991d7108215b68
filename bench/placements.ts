import { readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { defaultControllerSettings } from "../control-plane/controllers/deps.ts";
import { SchedulerFeed } from "../control-plane/controllers/scheduling/feed.ts";
import { runScheduling } from "../control-plane/controllers/scheduling/loop.ts";
import { planCommit } from "../control-plane/controllers/scheduling/plan.ts";
import { ClusterIndex } from "../control-plane/domain/index.ts";
import type { SchedulerNode, TaskGroup } from "../control-plane/scheduler/index.ts";
import { EtcdClient } from "../control-plane/store/client.ts";
import { Election } from "../control-plane/store/election.ts";
import { type TestEtcd, testEtcd } from "../control-plane/store/etcd.testing.ts";
import type { EtcdStore } from "../control-plane/store/etcd.ts";
import { decodeOutcome, transact } from "../control-plane/store/transaction.ts";
import type { Change, Write } from "../control-plane/store/types.ts";
import { systemClock } from "../lib/clock/clock.ts";
import { silentLog } from "../lib/log/log.ts";
import {
  ContainerSpec,
  Placement,
  PublishedPort,
  PublishMode,
  Resources,
  ServiceSpec,
} from "../proto/gen/embassy/v1/stack.ts";
import { DesiredState, NodeDescription, NodeSpec, NodeState, NodeStatus, Task } from "../proto/gen/embassy/v1/state.ts";
import { TxnRequest } from "../proto/gen/etcd/rpc.ts";
import { format, median } from "./figures.ts";
import { loadOf, roomyCluster } from "./load.ts";

export const title =
  "How many placements a second does the leader commit to etcd, against etcd alone with the same bytes?";

const nodeCount = 10_000;
/** Of which half are placed by a leader that has just begun, and half by one that has placed as many before. */
const taskCount = 200_000;
const perTransaction = 2_000;

function nodeWrites(node: SchedulerNode): Write[] {
  const { id, hostname, os, arch, capacity } = node;
  const { milliCpus, memoryBytes } = capacity;
  const description = NodeDescription.create({ os, arch, milliCpus, memoryBytes });
  return [
    { table: "nodes", id, value: NodeSpec.create({ id, name: hostname, labels: node.labels }) },
    {
      table: "nodeStatuses",
      id,
      value: NodeStatus.create({ id, state: NodeState.NODE_STATE_READY, description }),
    },
  ];
}

/** The group's service as a stack file would have it. */
function specOf(group: TaskGroup): ServiceSpec {
  const { milliCpus, memoryBytes } = group.reservations;
  const none = { milliCpus: 0, memoryBytes: 0, pids: 0, generic: {} };
  return ServiceSpec.create({
    name: group.name,
    container: ContainerSpec.create({
      image: `registry.example.org/shop/${group.name}:1.27.3`,
      command: ["serve", "--listen", ":8080"],
      environment: { LOG_LEVEL: "info", DATABASE: "postgres://db.shop:5432/shop" },
    }),
    mode: { $case: "replicated", value: { replicas: 100 } },
    resources: Resources.create({ reservations: { ...none, milliCpus, memoryBytes } }),
    placement: Placement.create({ constraints: [...(group.constraints ?? [])] }),
    ports: (group.ports ?? []).map(({ port }) =>
      PublishedPort.create({ target: 8_080, published: port, mode: PublishMode.PUBLISH_MODE_HOST }),
    ),
  });
}

/** Nodes, and tasks that wait. */
function* stateBefore(): Iterable<Write> {
  for (const node of roomyCluster(nodeCount, taskCount)) yield* nodeWrites(node);
  const { groups, pending } = loadOf("mixed", taskCount);
  const specs = new Map(groups.map((group) => [group.id, specOf(group)]));
  for (const { id, group } of pending) {
    const [serviceId = "", slot = ""] = id.split(".");
    const task = Task.create({
      id: `${serviceId.padEnd(12, "x")}${slot.padStart(8, "0")}`,
      serviceId,
      serviceName: serviceId,
      serviceVersion: 1,
      stack: "shop",
      slot: Number(slot),
      desired: DesiredState.DESIRED_STATE_RUNNING,
      createdAtMs: 1_700_000_000_000,
    });
    // As the controllers' tasks do, all of a version share it: `create` would copy it.
    const value = { ...task, spec: specs.get(group) };
    yield { table: "tasks", id: value.id, value };
  }
}

/** A client that keeps the transactions that go through it, in memory taken beforehand, so that they do not make the collector run. */
class RecordingClient extends EtcdClient {
  sent: Buffer[] = [];
  onSend: () => void = () => undefined;
  #arena = Buffer.alloc(taskCount * 800, 1);

  constructor({ directory }: TestEtcd) {
    super({ endpoints: [directory.settings.clientListen], identity: directory.identity, log: silentLog });
  }

  override async call<Request, Response>(
    pick: Parameters<typeof EtcdClient.prototype.call<Request, Response>>[0],
    request: Request,
    options?: Parameters<typeof EtcdClient.prototype.call<Request, Response>>[2],
  ): Promise<Response> {
    const bytes = bytesOf(request);
    if (bytes !== undefined) {
      const kept = this.#arena.subarray(0, bytes.copy(this.#arena));
      if (kept.length < bytes.length) throw new Error("there is no room to keep the transactions");
      this.#arena = this.#arena.subarray(kept.length);
      this.sent.push(kept);
      this.onSend();
    }
    return await super.call(pick, request, options);
  }
}

/** Of a transaction. That of the election, alone not encoded already, is without its lease: another etcd would not know it. */
function bytesOf(request: unknown): Buffer | undefined {
  if (Buffer.isBuffer(request)) return request;
  if (typeof request !== "object" || request === null || !("compare" in request && "success" in request))
    return undefined;
  const { compare, success, failure } = request as TxnRequest;
  const withoutLease = success.map(({ request: one }) =>
    one?.$case === "requestPut" ? { request: { ...one, value: { ...one.value, lease: 0n } } } : { request: one },
  );
  return Buffer.from(TxnRequest.encode({ compare, success: withoutLease, failure }).finish());
}

/** Seconds that half of the tasks took, and what it took of two processors. */
interface Lap {
  readonly seconds: number;
  readonly ownCpuSeconds: number;
  readonly etcdCpuSeconds: number;
}

type Run = readonly [first: Lap, second: Lap];

/** Begins now; `half` and `end` are called once each. */
function stopwatch({ supervisor }: TestEtcd): { half(): void; end(): Run } {
  const read = () => ({ ms: performance.now(), own: process.cpuUsage(), etcd: cpuSecondsOf(supervisor.pid) });
  const lap = (from: ReturnType<typeof read>, to: ReturnType<typeof read>): Lap => ({
    seconds: (to.ms - from.ms) / 1_000,
    ownCpuSeconds: (to.own.user + to.own.system - from.own.user - from.own.system) / 1e6,
    etcdCpuSeconds: to.etcd - from.etcd,
  });
  const begun = read();
  let between = begun;
  return {
    half: () => {
      between = read();
    },
    end: () => [lap(begun, between), lap(between, read())],
  };
}

/** Fields 14 and 15 of /proc/PID/stat, in ticks of 10 ms. */
function cpuSecondsOf(pid: number): number {
  const text = readFileSync(`/proc/${pid}/stat`, "utf8");
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

interface Recorded {
  readonly run: Run;
  readonly before: readonly Buffer[];
  readonly placing: readonly Buffer[];
}

/** What places tasks: `commits` in flight by the scheduler and the store alone, or the leader's own loop. */
type Way = { readonly kind: "store"; readonly commits: number } | { readonly kind: "controller" };

/** Lets the product place all tasks in an etcd of its own. The time is from the first transaction until the view has half of them, and all. */
async function product(way: Way): Promise<Recorded> {
  await using etcd = await testEtcd();
  using client = new RecordingClient(etcd);
  await using store = await etcd.store(client);
  using index = new ClusterIndex(store);
  const writes = [...stateBefore()];
  for (let start = 0; start < writes.length; start += 250) await store.commit(writes.slice(start, start + 250));
  const measured = async (place: (done: Promise<void>) => Promise<void>): Promise<Recorded> => {
    const before = client.sent;
    client.sent = [];
    let watch: ReturnType<typeof stopwatch> | undefined;
    const done = allPlaced(index, () => watch?.half());
    client.onSend = () => {
      watch ??= stopwatch(etcd);
    };
    globalThis.gc?.();
    const ended = done.then(() => watch?.end());
    await place(done);
    const run = await ended;
    if (run === undefined) throw new Error("nothing was placed");
    return { run, before, placing: client.sent };
  };
  if (way.kind === "store") return await measured(async () => await placeWithStore(index, store, way.commits));
  return await asLeader(client, store, async () => {
    const deps = { store, index, log: silentLog, clock: systemClock, settings: defaultControllerSettings };
    return await measured(async (done) => {
      const stop = new AbortController();
      const placing = runScheduling(deps, stop.signal);
      await done;
      stop.abort();
      await placing;
    });
  });
}

/** Resolves when no task in the view waits, and says so when half of them do. */
async function allPlaced(index: ClusterIndex, onHalf: () => void): Promise<void> {
  let waiting = taskCount;
  const done = Promise.withResolvers<void>();
  const count = (changes: readonly Change[]) => {
    const before = waiting;
    for (const { table, before, after } of changes) {
      if (table === "tasks" && before?.nodeId === "" && after !== undefined && after.nodeId !== "") waiting--;
    }
    if (waiting <= taskCount / 2 && before > taskCount / 2) onHalf();
    if (waiting === 0) done.resolve();
  };
  using _ = index.subscribe(count);
  await done.promise;
}

async function placeWithStore(index: ClusterIndex, store: EtcdStore, commits: number): Promise<void> {
  const feed = new SchedulerFeed(index, silentLog);
  using _ = index.subscribe((changes) => void feed.apply(changes));
  const place = async () => {
    for (;;) {
      const { placements } = feed.scheduler.schedule([], { mostPlacements: perTransaction });
      if (placements.length === 0) return;
      const plan = planCommit(index, placements, defaultControllerSettings.blockPrefix);
      const hold = feed.hold(placements, plan.placed);
      await store.commit(plan.writes, { expect: plan.expect });
      feed.release(hold);
    }
  };
  await Promise.all(Array.from({ length: commits }, place));
}

async function asLeader<T>(client: EtcdClient, store: EtcdStore, lead: () => Promise<T>): Promise<T> {
  const deps = { client, store, clock: systemClock, log: silentLog };
  const election = new Election(deps, { member: "m1", instance: "i1", ttlMs: 60_000 });
  const stop = new AbortController();
  const led = Promise.withResolvers<T>();
  const running = election.run(async () => {
    await lead().then(led.resolve, led.reject);
    stop.abort();
  }, stop.signal);
  try {
    return await led.promise;
  } finally {
    await running;
  }
}

/** Sends the same transactions to an etcd that has seen the same ones before, encoded beforehand, answers left unread. */
async function raw({ before, placing }: Recorded, inFlight: number): Promise<Run> {
  await using etcd = await testEtcd();
  using client = etcd.client();
  for (const request of before) await transact(client, request);
  const answers: Buffer[] = [];
  globalThis.gc?.();
  const watch = stopwatch(etcd);
  let next = 0;
  const send = async () => {
    for (let i = next++; i < placing.length; i = next++) {
      answers.push(await transact(client, placing[i] as Buffer));
      if (answers.length === Math.ceil(placing.length / 2)) watch.half();
    }
  };
  await Promise.all(Array.from({ length: inFlight }, send));
  const run = watch.end();
  const refused = answers.filter((answer) => !decodeOutcome(answer).succeeded).length;
  if (refused > 0) throw new Error(`etcd refused ${refused} of ${placing.length} transactions`);
  return run;
}

/** "/dev/vda (ext4)" */
function diskOf(directory: string): string {
  const mounts = readFileSync("/proc/self/mounts", "utf8").trim().split("\n");
  const found = mounts
    .map((line) => line.split(" "))
    .filter(([, at = ""]) => directory === at || directory.startsWith(at === "/" ? "/" : `${at}/`))
    .sort(([, a = ""], [, b = ""]) => a.length - b.length)
    .at(-1);
  return `${found?.[0]} (${found?.[2]})`;
}

const ways: readonly { readonly what: string; readonly way: Way; readonly inFlight: number }[] = [
  { what: "scheduler and store, 1 in flight", way: { kind: "store", commits: 1 }, inFlight: 1 },
  { what: "scheduler and store, 4 in flight", way: { kind: "store", commits: 4 }, inFlight: 4 },
  { what: "scheduler and store, 8 in flight", way: { kind: "store", commits: 8 }, inFlight: 8 },
  { what: "the leader's loop, fenced", way: { kind: "controller" }, inFlight: 4 },
];

/** `--runs N`, default 5; `--only TEXT`, the ways that have it in their name. The sides take turns; each run has a new etcd. */
export async function run(args: readonly string[]): Promise<void> {
  setFlagsFromString("--expose-gc");
  globalThis.gc = runInNewContext("gc") as NonNullable<typeof globalThis.gc>;
  const runs = Number(args[args.indexOf("--runs") + 1] ?? 5) || 5;
  console.log(
    `${nodeCount} nodes, ${taskCount} tasks, ${perTransaction} placements a transaction; etcd on ${diskOf(tmpdir())}\n`,
  );
  console.log("| what | placements/s | runs | etcd alone | runs | ratio | own CPU s | etcd CPU s |");
  console.log("|---|---|---|---|---|---|---|---|");
  const only = args.includes("--only") ? (args[args.indexOf("--only") + 1] ?? "") : "";
  for (const { what, way, inFlight } of ways.filter((one) => one.what.includes(only))) {
    const ours: Run[] = [];
    const theirs: Run[] = [];
    let bytes = 0;
    for (let i = 0; i < runs; i++) {
      const recorded = await product(way);
      ours.push(recorded.run);
      theirs.push(await raw(recorded, inFlight));
      bytes = recorded.placing.reduce((sum, request) => sum + request.length, 0) / recorded.placing.length;
    }
    const halves = [`the first ${taskCount / 2}`, "as many more"] as const;
    for (const [half, name] of halves.entries()) {
      const laps = (of: readonly Run[]) => of.map((run) => run[half] as Lap);
      const rates = (of: readonly Run[]) => laps(of).map(({ seconds }) => taskCount / 2 / seconds);
      const both = (pick: (lap: Lap) => number) =>
        `${format(median(laps(ours).map(pick)))} / ${format(median(laps(theirs).map(pick)))}`;
      const cells = [
        `${what}: ${name} (${Math.round(bytes / 1024)} KiB each)`,
        format(median(rates(ours))),
        rates(ours).map(format).join(" "),
        format(median(rates(theirs))),
        rates(theirs).map(format).join(" "),
        format(median(rates(ours).map((rate, i) => rate / (rates(theirs)[i] as number)))),
        both(({ ownCpuSeconds }) => ownCpuSeconds),
        both(({ etcdCpuSeconds }) => etcdCpuSeconds),
      ];
      console.log(`| ${cells.join(" | ")} |`);
    }
  }
}
