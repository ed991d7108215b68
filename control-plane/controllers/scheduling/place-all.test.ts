import { describe, expect, it } from "vitest";
import { systemClock } from "../../../lib/clock/clock.ts";
import { ClusterError } from "../../../lib/errors/errors.ts";
import { silentLog } from "../../../lib/log/log.ts";
import { Resources, ServiceSpec } from "../../../proto/gen/embassy/v1/stack.ts";
import { Availability, DesiredState, Network, Task } from "../../../proto/gen/embassy/v1/state.ts";
import { mounting, TestCluster } from "../../domain/testing.ts";
import type { CommitOptions, Write } from "../../store/types.ts";
import { type ControllerDeps, defaultControllerSettings } from "../deps.ts";
import { blocksNeeded } from "../ipam/plan.ts";
import { SchedulerFeed } from "./feed.ts";
import { placeAll, recountReasons, runScheduling } from "./loop.ts";

const reserved = { milliCpus: 10, memoryBytes: 0, pids: 0, generic: {} };
const spec = ServiceSpec.create({ name: "web", resources: Resources.create({ reservations: reserved }) });
/** What of it a node of 4 cores takes. */
const mostPerNode = 400;
const never = new AbortController().signal;

/** A cluster with many tasks that wait, of which each commit can be watched, and delayed. */
class Waiting extends TestCluster {
  readonly feed: SchedulerFeed;
  readonly commits: (readonly Write[])[] = [];
  /** Called before a commit is made, with how many came before. */
  before: (nth: number, writes: readonly Write[]) => Promise<void> | void = () => undefined;
  /** How often each task got a node. */
  readonly placed = new Map<string, number>();

  private constructor() {
    super();
    this.index.subscribe((changes) => {
      for (const { table, id, before, after } of changes) {
        if (table !== "tasks" || after === undefined || after.nodeId === (before?.nodeId ?? "")) continue;
        this.placed.set(id, (this.placed.get(id) ?? 0) + 1);
      }
    });
    this.feed = new SchedulerFeed(this.index, silentLog);
    this.index.subscribe((changes) => void this.feed.apply(changes));
  }

  static async of(count: number, networks: readonly Network[] = []): Promise<Waiting> {
    const cluster = new Waiting();
    await cluster.addNodes("a", "b", "c");
    const networkIds = Object.fromEntries(networks.map(({ id }) => [id, id]));
    const tasks = Array.from({ length: count }, (_, i) =>
      Task.create({
        id: `t${String(i).padStart(4, "0")}`,
        serviceId: "web",
        serviceVersion: 1,
        slot: i + 1,
        spec,
        networkIds,
        desired: DesiredState.DESIRED_STATE_RUNNING,
      }),
    );
    await cluster.store.commit([
      ...networks.map((value) => ({ table: "networks", id: value.id, value }) as const),
      ...tasks.map((value) => ({ table: "tasks", id: value.id, value }) as const),
    ]);
    return cluster;
  }

  async place(most = 200): Promise<boolean> {
    return await placeAll(this.#deps(), this.feed, never, most);
  }

  async recount(): Promise<boolean> {
    return await recountReasons(this.#deps(), this.feed, never);
  }

  async run(signal: AbortSignal): Promise<void> {
    await runScheduling(this.#deps(), signal, undefined, 1);
  }

  #deps(): ControllerDeps {
    const commit = async (writes: readonly Write[], options?: CommitOptions): Promise<number> => {
      this.commits.push(writes);
      await this.before(this.commits.length - 1, writes);
      return await this.store.commit(writes, options);
    };
    return {
      store: { view: this.store.view, commit },
      index: this.index,
      log: silentLog,
      clock: systemClock,
      settings: defaultControllerSettings,
    };
  }

  /** Tasks that have a node; throws when a node has more than it takes, or a task was given one twice. */
  count(): number {
    for (const id of ["a", "b", "c"]) expect(this.index.tasksOfNode(id).length).toBeLessThanOrEqual(mostPerNode);
    for (const [id, times] of this.placed) expect([id, times]).toEqual([id, 1]);
    return this.placed.size;
  }
}

const network = (id: string, subnet: string) => Network.create({ id, stack: "s", subnet, spec: { name: id } });

describe("placing many tasks", () => {
  it("has several commits under way, and writes each placement once", async () => {
    using cluster = await Waiting.of(1_200);
    let most = 0;
    let now = 0;
    cluster.before = async () => {
      most = Math.max(most, ++now);
      await new Promise((resolve) => setImmediate(resolve));
      now--;
    };
    expect(await cluster.place()).toBe(false);
    expect(most).toBe(4);
    expect(cluster.commits).toHaveLength(6);
    expect(cluster.count()).toBe(1_200);
    // Nothing is left to do, and no room: what comes now waits, with a reason.
    const late = Task.create({ id: "late", serviceId: "web", serviceVersion: 1, slot: 1_201, spec, desired: 1 });
    await cluster.store.commit([{ table: "tasks", id: "late", value: late }]);
    expect(await cluster.place()).toBe(false);
    expect(cluster.index.view.tasks.get("late")?.unplaced).toMatch(/3 nodes/);
  });

  it("tells the reasons of now where a node has changed and the task still does not fit, and writes nothing else", async () => {
    using cluster = await Waiting.of(1_203);
    await cluster.place();
    const told = () =>
      [...cluster.index.view.tasks.values()].filter(({ nodeId }) => nodeId === "").map((task) => task.unplaced);
    expect(told()).toEqual(Array(3).fill("3 nodes: 10m CPU needed, 0 free"));
    const made = cluster.commits.length;
    expect(await cluster.recount()).toBe(false);
    expect(cluster.commits).toHaveLength(made);
    await cluster.setAvailability("a", Availability.AVAILABILITY_PAUSE);
    await cluster.place();
    expect(await cluster.recount()).toBe(false);
    expect(told()).toEqual(Array(3).fill("2 nodes: 10m CPU needed, 0 free; 1: node is paused"));
    expect(cluster.commits.slice(made).map((writes) => writes.length)).toEqual([3]);
    // The node is another, and the reason the same.
    await cluster.setAvailability("b", Availability.AVAILABILITY_PAUSE);
    await cluster.setAvailability("a", Availability.AVAILABILITY_ACTIVE);
    await cluster.place();
    await cluster.recount();
    expect(cluster.commits).toHaveLength(made + 1);
    expect(cluster.count()).toBe(1_200);
  });

  it("keeps the reasons current by itself", async () => {
    using cluster = await Waiting.of(1_201);
    const until = async (why: string) => {
      const found = () => [...cluster.index.view.tasks.values()].some(({ unplaced }) => unplaced === why);
      const { promise, resolve } = Promise.withResolvers<void>();
      using _ = cluster.index.subscribe(() => {
        if (found()) resolve();
      });
      if (!found()) await promise;
    };
    const end = new AbortController();
    const running = cluster.run(end.signal);
    await until("3 nodes: 10m CPU needed, 0 free");
    await cluster.setAvailability("a", Availability.AVAILABILITY_PAUSE);
    await until("2 nodes: 10m CPU needed, 0 free; 1: node is paused");
    end.abort();
    await running;
  });

  it.each([0, 1, 3, 5])("makes good a conflict of commit %i in the next pass", async (nth) => {
    using cluster = await Waiting.of(1_200);
    cluster.before = async (now, writes) => {
      const one = writes[7];
      if (now !== nth || one?.table !== "tasks" || one.value === undefined) return;
      // Somebody else changes a task meanwhile.
      const known = cluster.index.view.tasks.get(one.id) ?? one.value;
      await cluster.store.commit([{ table: "tasks", id: one.id, value: { ...known, waitsFor: "db" } }]);
    };
    expect(await cluster.place()).toBe(true);
    expect(cluster.count()).toBeLessThanOrEqual(1_000);
    expect(await cluster.place()).toBe(false);
    expect(cluster.count()).toBe(1_200);
    const changed = [...cluster.index.view.tasks.values()].filter(({ waitsFor }) => waitsFor === "db");
    expect(changed).toHaveLength(1);
  });

  it.each([0, 2, 5])("stops when deposed at commit %i, and its successor places the rest", async (nth) => {
    using cluster = await Waiting.of(1_200);
    cluster.before = (now) => {
      if (now === nth) cluster.store.leading = false;
    };
    await expect(cluster.place()).rejects.toMatchObject({ code: "conflict", subject: "leader" });
    const before = cluster.count();
    expect(before).toBeLessThan(1_200);
    cluster.before = () => undefined;
    cluster.store.leading = true;
    expect(await cluster.place()).toBe(false);
    expect(cluster.count()).toBe(1_200);
  });

  it("gives a node each of its blocks once, before the tasks that count on it", async () => {
    using cluster = await Waiting.of(1_200, [network("n1", "10.96.0.0/20"), network("n2", "10.96.16.0/20")]);
    const blocks = () => [...cluster.index.view.blocks.values()];
    const of = (nodeId: string, networkId: string) =>
      blocks().filter((block) => block.nodeId === nodeId && block.networkId === networkId).length;
    const needed = (tasks: number) => blocksNeeded(tasks, defaultControllerSettings.blockPrefix);
    const short: string[] = [];
    cluster.index.subscribe(() => {
      for (const id of ["a", "b", "c"]) {
        const tasks = cluster.index.tasksOfNode(id).length;
        if (tasks > 0 && of(id, "n1") < needed(tasks)) short.push(`${id}: ${of(id, "n1")} for ${tasks}`);
      }
    });
    const late = Promise.withResolvers<void>();
    cluster.before = async (now) => {
      if (now === 0) await late.promise;
    };
    const placing = cluster.place();
    // The first commit, with the first blocks, has not happened; the others are for the same nodes.
    await new Promise((resolve) => setImmediate(resolve));
    expect(cluster.commits).toHaveLength(1);
    expect(blocks()).toEqual([]);
    late.resolve();
    expect(await placing).toBe(false);
    expect(cluster.count()).toBe(1_200);
    expect(short).toEqual([]);
    for (const id of ["a", "b", "c"]) {
      expect([of(id, "n1"), of(id, "n2")]).toEqual([needed(mostPerNode), needed(mostPerNode)]);
    }
    expect(new Set(blocks().map(({ cidr }) => cidr)).size).toBe(blocks().length);
  });

  it("gives up the commits that count on a block which is not given", async () => {
    using cluster = await Waiting.of(1_200, [network("n1", "10.96.0.0/20")]);
    cluster.before = (now) => {
      if (now === 0) throw new Error("etcd is gone");
    };
    await expect(cluster.place()).rejects.toThrow("etcd is gone");
    expect(cluster.commits).toHaveLength(1);
    expect(cluster.count()).toBe(0);
    expect(await cluster.place()).toBe(false);
    expect(cluster.count()).toBe(1_200);
  });

  it("takes back what could not be planned, and places it once it can be", async () => {
    using cluster = await Waiting.of(600, [network("n1", "10.96.0.0/20"), network("n2", "nonsense")]);
    await expect(cluster.place()).rejects.toThrow("nonsense");
    expect(cluster.commits).toEqual([]);
    await cluster.store.commit([{ table: "networks", id: "n2", value: network("n2", "10.96.16.0/20") }]);
    expect(await cluster.place()).toBe(false);
    expect(cluster.count()).toBe(600);
  });

  it("takes back who would stop others when a commit fails that it waited for", async () => {
    using cluster = await Waiting.of(1_000);
    await cluster.place();
    const tell = async (name: string, priority: number, count: number) => {
      const important = { ...spec, name, priority };
      const tasks = Array.from({ length: count }, (_, i) =>
        Task.create({
          id: `${name}${i}`,
          serviceId: name,
          serviceVersion: 1,
          slot: i + 1,
          spec: important,
          desired: 1,
        }),
      );
      await cluster.store.commit(tasks.map((value) => ({ table: "tasks", id: value.id, value })));
    };
    await tell("first", 10, 200);
    await tell("second", 5, 1);
    const made = cluster.commits.length;
    cluster.before = (now) => {
      if (now === made) throw new ClusterError("not yet", { code: "unavailable" });
    };
    await expect(cluster.place()).rejects.toThrow("not yet");
    expect(await cluster.place()).toBe(false);
    const waiting = [...cluster.index.view.tasks.values()].filter(({ nodeId }) => nodeId === "");
    expect(waiting.map(({ id }) => id)).toEqual([]);
    const stopped = [...cluster.index.view.tasks.values()].filter(({ preemptedBy }) => preemptedBy !== "");
    expect(stopped).toHaveLength(1);
  });

  it("comes to an end when a network has no addresses for hundreds of tasks, and places them when it has", async () => {
    // Two blocks, three nodes.
    using cluster = await Waiting.of(1_200, [network("n1", "10.96.0.0/26")]);
    expect(await cluster.place()).toBe(false);
    const waiting = () => [...cluster.index.view.tasks.values()].filter(({ nodeId }) => nodeId === "");
    const left = waiting();
    expect(left.length).toBeGreaterThan(200);
    expect(new Set(left.map(({ unplaced }) => unplaced))).toEqual(
      new Set(["network s_n1 is full: every block of 10.96.0.0/26 is given to a node"]),
    );
    const made = cluster.commits.length;
    expect(await cluster.place()).toBe(false);
    expect(cluster.commits).toHaveLength(made);
    const roomy = network("n1", "10.96.0.0/20");
    await cluster.store.commit([{ table: "networks", id: "n1", value: roomy }]);
    expect(await cluster.place()).toBe(false);
    expect(waiting()).toEqual([]);
    expect(cluster.count()).toBe(1_200);
  });

  it.each(["nothing fails", "the first commit fails", "the third commit fails"])(
    "gives a volume that services share one home a slot, with its tasks in commits under way together, when %s",
    async (how) => {
      using cluster = await Waiting.of(0);
      // Arrival by slot: both tasks of a slot are decided in one commit, in two under way, or in two passes.
      const tasks = Array.from({ length: 600 }, (_, i) => {
        const name = i % 2 === 0 ? "db" : "backup";
        const id = `t${String(i).padStart(4, "0")}`;
        const shared = ServiceSpec.create({ ...spec, name, container: mounting(["s_data"]) });
        return Task.create({
          id,
          serviceId: name,
          serviceVersion: 1,
          slot: Math.floor(i / 2) + 1,
          spec: shared,
          desired: 1,
        });
      });
      const value = (task: Task) => ({ table: "tasks" as const, id: task.id, value: task });
      await cluster.store.commit(tasks.map(value));
      const failing = { "nothing fails": -1, "the first commit fails": 0, "the third commit fails": 2 }[how];
      cluster.before = async (now) => {
        await new Promise((resolve) => setImmediate(resolve));
        if (now !== failing) return;
        // What is decided again goes elsewhere.
        await cluster.setAvailability("a", Availability.AVAILABILITY_PAUSE);
        throw new ClusterError("overtaken", { code: "conflict" });
      };
      const waiting = () => [...cluster.index.view.tasks.values()].filter(({ nodeId }) => nodeId === "").length;
      for (let pass = 0; pass < 4; pass++) await cluster.place();
      await cluster.setAvailability("a", Availability.AVAILABILITY_ACTIVE);
      for (let pass = 0; pass < 4 && waiting() > 0; pass++) await cluster.place();
      expect(cluster.count()).toBe(600);
      const homes = cluster.index.view.volumeHomes;
      expect(homes.size).toBe(300);
      for (const { slot, nodeId } of cluster.index.view.tasks.values()) {
        expect([slot, homes.get(`s_data/${slot}`)?.nodeId]).toEqual([slot, nodeId]);
      }
    },
  );
});

describe("placing tasks that others are stopped for", () => {
  const state = (cluster: Waiting) => {
    const tasks = [...cluster.index.view.tasks.values()];
    const stopped = tasks.filter(({ desired }) => desired === DesiredState.DESIRED_STATE_SHUTDOWN);
    const vital = tasks.filter(({ serviceId, nodeId }) => serviceId === "vital" && nodeId !== "");
    return { stopped: stopped.map(({ id }) => id).sort(), vital };
  };

  /** Three full nodes, and so many tasks of high priority that each need what one of the others has. */
  const full = async (vital: number, networks: readonly Network[] = [], milliCpus = 1_000) => {
    const cluster = await Waiting.of(0, networks);
    const networkIds = Object.fromEntries(networks.map(({ id }) => [id, id]));
    const ofService = (name: string, count: number, nodes: readonly string[], priority: number): Task[] => {
      const needs = priority > 0 ? milliCpus : 1_000;
      const resources = Resources.create({ reservations: { ...reserved, milliCpus: needs } });
      const own = ServiceSpec.create({ name, resources, priority });
      return Array.from({ length: count }, (_, i) =>
        Task.create({
          id: `${name}${i}`,
          serviceId: name,
          serviceName: name,
          stack: "s",
          serviceVersion: 1,
          slot: i + 1,
          spec: own,
          networkIds: priority > 0 ? networkIds : {},
          nodeId: nodes[i % nodes.length] ?? "",
          desired: DesiredState.DESIRED_STATE_RUNNING,
        }),
      );
    };
    const tasks = [...ofService("batch", 12, ["a", "b", "c"], 0), ...ofService("vital", vital, [], 10)];
    await cluster.store.commit(tasks.map((value) => ({ table: "tasks", id: value.id, value }) as const));
    return cluster;
  };

  /** As many are stopped as were placed for it, each for one, and no other. */
  const expectEven = (cluster: Waiting, count: number) => {
    const { stopped, vital } = state(cluster);
    expect(vital).toHaveLength(count);
    expect(vital.flatMap(({ preempts }) => preempts).sort()).toEqual(stopped);
    expect(stopped).toHaveLength(count);
    for (const id of stopped) expect(cluster.index.view.tasks.get(id)?.preemptedBy).toMatch(/^s_vital\.\d+$/);
  };

  it("stops and places in one commit", async () => {
    using cluster = await full(4);
    expect(await cluster.place()).toBe(false);
    expect(cluster.commits).toHaveLength(1);
    expectEven(cluster, 4);
    // Those that stop still count nowhere but for whom they make room.
    await cluster.place();
    expectEven(cluster, 4);
  });

  it.each([
    ["conflict", "overtaken"],
    ["unavailable", "etcd is away"],
  ] as const)("stops nobody when the commit fails: %s", async (code, message) => {
    using cluster = await full(4);
    cluster.before = (now) => {
      if (now === 0) throw new ClusterError(message, { code });
    };
    if (code === "conflict") expect(await cluster.place()).toBe(true);
    else await expect(cluster.place()).rejects.toThrow(message);
    expectEven(cluster, 0);
    await cluster.place();
    expectEven(cluster, 4);
  });

  it("decides anew when one that was to be stopped has changed", async () => {
    using cluster = await full(2);
    cluster.before = async (now, writes) => {
      const victim = writes.find(({ id }) => id.startsWith("batch"))?.id ?? "";
      const task = cluster.index.view.tasks.get(victim);
      if (now > 0 || task === undefined) return;
      await cluster.store.commit([{ table: "tasks", id: victim, value: { ...task, waitsFor: "x" } }]);
    };
    expect(await cluster.place()).toBe(true);
    expectEven(cluster, 0);
    expect(await cluster.place()).toBe(false);
    expectEven(cluster, 2);
  });

  it.each([
    ["in the same commit", 200],
    ["in the next", 1],
  ])(
    "stops nobody for one whose network is full, and nobody goes into the room that would be left, %s",
    async (_, most) => {
      using cluster = await full(1, [network("n", "10.0.0.0/27")], 400);
      const small = Task.create({ id: "small", serviceId: "small", serviceVersion: 1, slot: 1, spec, desired: 1 });
      await cluster.store.commit([
        { table: "blocks", id: "n/10.0.0.0-27", value: { networkId: "n", cidr: "10.0.0.0/27", nodeId: "gone" } },
        { table: "tasks", id: "small", value: small },
      ]);
      expect(await cluster.place(most)).toBe(false);
      expectEven(cluster, 0);
      expect(cluster.index.view.tasks.get("vital0")?.unplaced).toMatch(/network .* is full/);
      expect(cluster.index.view.tasks.get("small")?.nodeId).toBe("");
    },
  );
});
