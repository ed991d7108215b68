import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  OnNodeLoss,
  Placement,
  Resources,
  type ServiceSpec,
  TaintEffect,
  UpdateOrder,
  UpdatePolicy,
} from "../../../proto/gen/embassy/v1/stack.ts";
import { Availability, NodeState, Task, TaskState } from "../../../proto/gen/embassy/v1/state.ts";
import { planMoves } from "../../api/rebalance.ts";
import { planNodeRemoval } from "../../api/remove-node.ts";
import { serviceProgress, stackProgress } from "../../domain/progress.ts";
import { hasEnded, observedState } from "../../domain/tasks.ts";
import { aService, aStack, mounting, replicas } from "../../domain/testing.ts";
import { homeId, volumesOf } from "../../domain/volumes.ts";
import { SteppedCluster } from "../testing.ts";
import { planAdoption } from "./homes.ts";
import { type CommitPlan, planCommit } from "./plan.ts";

const recreate = OnNodeLoss.ON_NODE_LOSS_RECREATE;
const db = (over: Partial<ServiceSpec> = {}): ServiceSpec =>
  aService("db", { mode: replicas(1), container: mounting(["s_data"]), ...over });

async function deployed(...services: ServiceSpec[]): Promise<SteppedCluster> {
  const cluster = new SteppedCluster();
  await cluster.addNodes("a", "b", "c");
  await cluster.deploy(aStack("s", services));
  await cluster.settle();
  return cluster;
}

const homes = (cluster: SteppedCluster): Record<string, string> =>
  Object.fromEntries([...cluster.index.view.volumeHomes.entries()].map(([id, { nodeId }]) => [id, nodeId]));

/** The one task that runs or waits. */
function live(cluster: SteppedCluster, name = "db"): Task {
  const tasks = cluster.tasks("s", name).filter((task) => !hasEnded(observedState(cluster.index.view, task)));
  expect(tasks).toHaveLength(1);
  return tasks[0] as Task;
}

/** Why the service has no task that runs, as people are told. */
function whyWaiting(cluster: SteppedCluster): string | undefined {
  expect(cluster.running("s", "db")).toEqual([]);
  return serviceProgress(cluster.index, cluster.service("s", "db")).problems[0]?.task?.unplaced;
}

/** Makes one node the only one that takes tasks. */
async function lure(cluster: SteppedCluster, to: string): Promise<void> {
  const { AVAILABILITY_ACTIVE, AVAILABILITY_PAUSE } = Availability;
  for (const node of ["a", "b", "c"]) {
    await cluster.setAvailability(node, node === to ? AVAILABILITY_ACTIVE : AVAILABILITY_PAUSE);
  }
}

async function unlure(cluster: SteppedCluster): Promise<void> {
  for (const node of ["a", "b", "c"]) await cluster.setAvailability(node, Availability.AVAILABILITY_ACTIVE);
}

describe("a volume's home", () => {
  it("is written with the first placement, and found again after the stack was removed", async () => {
    using cluster = new SteppedCluster();
    await cluster.addNodes("a", "b", "c");
    await lure(cluster, "b");
    await cluster.deploy(aStack("s", [db()]));
    await cluster.settle();
    expect(cluster.index.view.volumeHomes.get("s_data/1")).toEqual({
      volume: "s_data",
      slot: 1,
      nodeId: "b",
      taskId: live(cluster).id,
      service: "s_db",
    });
    await unlure(cluster);
    await cluster.removeStack("s");
    await cluster.settle();
    expect(cluster.index.view.services.size).toBe(0);
    await cluster.deploy(aStack("t", [aService("load", { mode: replicas(9), container: mounting([]) })]));
    await cluster.settle();
    await cluster.deploy(aStack("s", [aService("web", { mode: replicas(2) }), db()]));
    await cluster.settle();
    expect(cluster.running("s", "db")).toEqual(["1@b"]);
  });

  it("is one for each slot, whether or not the slot is wanted at the moment", async () => {
    using cluster = await deployed(db({ mode: replicas(3) }));
    const before = cluster.running("s", "db");
    expect(new Set(Object.values(homes(cluster))).size).toBe(3);
    await cluster.deploy(aStack("s", [db({ mode: replicas(1) })]));
    await cluster.settle();
    await lure(cluster, "a");
    await cluster.deploy(aStack("s", [db({ mode: replicas(3) })]));
    await cluster.settle();
    await unlure(cluster);
    await cluster.settle();
    expect(cluster.running("s", "db")).toEqual(before);
  });

  it("is shared by the services that mount the volume, slot by slot, from the first deploy on", async () => {
    const reader = aService("reader", { mode: replicas(3), container: mounting(["s_data"]) });
    using cluster = await deployed(db({ mode: replicas(2) }), reader);
    expect(cluster.running("s", "reader").slice(0, 2)).toEqual(cluster.running("s", "db"));
    expect(cluster.running("s", "reader")).toHaveLength(3);
  });

  it("of a global service is each node", async () => {
    using cluster = await deployed(db({ mode: { $case: "global", value: {} } }));
    expect(homes(cluster)).toEqual({ "s_data/node:a": "a", "s_data/node:b": "b", "s_data/node:c": "c" });
    await cluster.drain("b");
    await cluster.settle();
    expect(cluster.running("s", "db").sort()).toEqual(["a@a", "c@c"]);
  });

  it.each<[string, string, (cluster: SteppedCluster, home: string) => Promise<void>]>([
    ["drained", "drained", async (cluster, home) => await cluster.drain(home)],
    ["down", "down", async (cluster, home) => await cluster.setNode(home, NodeState.NODE_STATE_DOWN)],
    [
      "paused when its task is to be replaced",
      "paused",
      async (cluster, home) => {
        await cluster.setAvailability(home, Availability.AVAILABILITY_PAUSE);
        await cluster.report(live(cluster), TaskState.TASK_STATE_FAILED);
        cluster.nowMs += 60_000;
      },
    ],
  ])("that is %s is waited for, and that is said", async (_, word, lose) => {
    using cluster = await deployed(db());
    const home = live(cluster).nodeId;
    await lose(cluster, home);
    await cluster.settle();
    expect(whyWaiting(cluster)).toBe(`its volume s_data is on ${home}, which is ${word}`);
    await cluster.setNode(home, NodeState.NODE_STATE_READY);
    await cluster.setAvailability(home, Availability.AVAILABILITY_ACTIVE);
    await cluster.settle();
    expect(cluster.running("s", "db")).toEqual([`1@${home}`]);
    expect(live(cluster).unplaced).toBe("");
  });

  it("that is waited for tells what keeps it now", async () => {
    using cluster = await deployed(db());
    const home = live(cluster).nodeId;
    const why = async () => {
      await cluster.settle();
      return whyWaiting(cluster)?.replace(`its volume s_data is on ${home}, `, "");
    };
    await cluster.setNode(home, NodeState.NODE_STATE_DOWN);
    expect(await why()).toBe("which is down");
    await cluster.drain(home);
    expect(await why()).toBe("which is down");
    await cluster.setNode(home, NodeState.NODE_STATE_READY);
    expect(await why()).toBe("which is drained");
    const status = cluster.index.nodeStatus(home);
    const description = { ...status?.description, milliCpus: 10 } as NonNullable<typeof status>["description"];
    if (status !== undefined)
      await cluster.store.commit([{ table: "nodeStatuses", id: home, value: { ...status, description } }]);
    const resources = Resources.create({ reservations: { milliCpus: 500, memoryBytes: 0, pids: 0, generic: {} } });
    await cluster.deploy(aStack("s", [db({ resources })]));
    await cluster.setAvailability(home, Availability.AVAILABILITY_ACTIVE);
    expect(await why()).toMatch(/^where it does not fit: 500m CPU needed, .*free/);
  });

  it("that comes back has its task still, which nobody replaced meanwhile", async () => {
    using cluster = await deployed(db({ mode: replicas(2) }));
    const tasks = cluster.tasks("s", "db");
    const [lost] = tasks;
    await cluster.setNode(lost?.nodeId ?? "", NodeState.NODE_STATE_DOWN);
    await cluster.settleFor(60);
    expect(cluster.tasks("s", "db")).toEqual(tasks);
    expect(stackProgress(cluster.index, "s")).toMatchObject({
      converged: false,
      services: [{ running: 1, desired: 2 }],
    });
    await cluster.setNode(lost?.nodeId ?? "", NodeState.NODE_STATE_READY);
    await cluster.settle();
    expect(cluster.tasks("s", "db")).toEqual(tasks);
    expect(stackProgress(cluster.index, "s").converged).toBe(true);
  });

  it.each<[string, (cluster: SteppedCluster) => Promise<void>]>([
    [
      "another version is deployed",
      async (cluster) =>
        await cluster.deploy(aStack("s", [db({ container: mounting(["s_data"], { image: "registry/db:2" }) })])),
    ],
    [
      "its stack is removed and deployed again",
      async (cluster) => {
        await cluster.removeStack("s");
        await cluster.settle();
        await cluster.deploy(aStack("s", [db()]));
      },
    ],
    ["the home is drained", async (cluster) => await cluster.drain(cluster.tasks("s", "db")[0]?.nodeId ?? "")],
  ])("that comes back has a new task when %s meanwhile", async (_, change) => {
    using cluster = await deployed(db());
    const lost = live(cluster);
    await cluster.setNode(lost.nodeId, NodeState.NODE_STATE_DOWN);
    await cluster.settle();
    await change(cluster);
    await cluster.settle();
    expect(whyWaiting(cluster)).toBe(`its volume s_data is on ${lost.nodeId}, which is down`);
    await cluster.setNode(lost.nodeId, NodeState.NODE_STATE_READY);
    await cluster.setAvailability(lost.nodeId, Availability.AVAILABILITY_ACTIVE);
    await cluster.settle();
    expect(cluster.running("s", "db")).toEqual([`1@${lost.nodeId}`]);
    expect(live(cluster).id).not.toBe(lost.id);
  });

  it.each(["drained", "down"])(
    "that is %s is left when the volume says recreate, and the next one is home then",
    async (how) => {
      using cluster = await deployed(db({ container: mounting(["s_data"], {}, recreate) }));
      const first = live(cluster).nodeId;
      if (how === "down") await cluster.setNode(first, NodeState.NODE_STATE_DOWN);
      else await cluster.drain(first);
      await cluster.settle();
      const second = live(cluster).nodeId;
      expect(second).not.toBe(first);
      expect(homes(cluster)).toEqual({ "s_data/1": second });
      await cluster.setNode(first, NodeState.NODE_STATE_READY);
      await cluster.setAvailability(first, Availability.AVAILABILITY_ACTIVE);
      await cluster.settle();
      await lure(cluster, first);
      await cluster.report(live(cluster), TaskState.TASK_STATE_FAILED);
      cluster.nowMs += 60_000;
      await cluster.settle();
      expect(live(cluster).unplaced).toBe(`its volume s_data is on ${second}, which is paused`);
    },
  );

  it("that is forgotten is waited for no longer", async () => {
    using cluster = await deployed(db());
    const home = live(cluster).nodeId;
    await cluster.setNode(home, NodeState.NODE_STATE_DOWN);
    await cluster.settle();
    await cluster.store.commit([{ table: "volumeHomes", id: "s_data/1", value: undefined }]);
    await cluster.settle();
    expect(cluster.running("s", "db")).toHaveLength(1);
    expect(live(cluster).nodeId).not.toBe(home);
  });

  it("is left once a deploy says recreate, without a restart of what runs", async () => {
    const file = (onNodeLoss?: OnNodeLoss) =>
      aStack("s", [db({ mode: replicas(2), container: mounting(["s_data"], {}, onNodeLoss) })]);
    using cluster = await deployed(...file().services);
    const [lost, kept] = cluster.tasks("s", "db");
    await cluster.setNode(lost?.nodeId ?? "", NodeState.NODE_STATE_DOWN);
    await cluster.settle();
    expect(cluster.running("s", "db")).toEqual([`2@${kept?.nodeId}`]);
    await cluster.deploy(file(recreate));
    await cluster.settle();
    expect(cluster.running("s", "db")).toHaveLength(2);
    expect(cluster.tasks("s", "db").at(-1)).toEqual(kept);
  });

  it("is stayed at by updates, and by rebalancing", async () => {
    const version = (n: number, order: UpdateOrder) =>
      aStack("s", [
        db({
          mode: replicas(2),
          container: mounting(["s_data"], { image: `registry/db:${n}` }),
          update: UpdatePolicy.create({ parallelism: 1, order }),
        }),
      ]);
    using cluster = await deployed(...version(1, UpdateOrder.UPDATE_ORDER_STOP_FIRST).services);
    const before = cluster.running("s", "db");
    for (const [n, order] of [UpdateOrder.UPDATE_ORDER_STOP_FIRST, UpdateOrder.UPDATE_ORDER_START_FIRST].entries()) {
      await cluster.deploy(version(n + 2, order));
      await cluster.settleFor(20);
      expect(cluster.running("s", "db")).toEqual(before);
      expect(cluster.tasks("s", "db").at(-1)?.serviceVersion).toBe(n + 2);
    }
    await cluster.deploy(aStack("t", [aService("load", { mode: replicas(6), container: mounting([]) })]));
    await cluster.settle();
    expect(planMoves(cluster.index, { stack: "s", service: "", dryRun: true }).moves).toEqual([]);
  });

  it.each<
    [string, (home: string) => Partial<ServiceSpec>, (cluster: SteppedCluster, home: string) => Promise<void>, string]
  >([
    [
      "is paused",
      () => ({ container: mounting(["s_data"], { image: "registry/db:2" }) }),
      async (cluster, home) => await cluster.setAvailability(home, Availability.AVAILABILITY_PAUSE),
      "which is paused",
    ],
    [
      "does not meet a new constraint",
      (home) => ({ placement: Placement.create({ constraints: [`node.hostname != ${home}`] }) }),
      async () => {},
      "where it does not fit: constraint node.hostname !=",
    ],
  ])("that %s holds an update, and what runs goes on", async (_, change, before, why) => {
    using cluster = await deployed(db());
    const old = live(cluster);
    await before(cluster, old.nodeId);
    await cluster.deploy(aStack("s", [db(change(old.nodeId))]));
    await cluster.settleFor(20);
    expect(cluster.running("s", "db")).toEqual([`1@${old.nodeId}`]);
    expect(cluster.tasks("s", "db").at(-1)?.unplaced).toContain(`its volume s_data is on ${old.nodeId}, ${why}`);
    // Back, or as it was.
    await cluster.setAvailability(old.nodeId, Availability.AVAILABILITY_ACTIVE);
    if (!why.includes("paused")) await cluster.deploy(aStack("s", [db()]));
    await cluster.settleFor(20);
    expect(live(cluster)).toMatchObject({ nodeId: old.nodeId, unplaced: "" });
    expect(cluster.running("s", "db")).toEqual([`1@${old.nodeId}`]);
  });

  it.each([recreate, undefined])(
    "that gives its tasks away by a taint is left as a drained one is (%s)",
    async (onNodeLoss) => {
      using cluster = await deployed(db({ container: mounting(["s_data"], {}, onNodeLoss) }));
      const home = live(cluster).nodeId;
      const node = cluster.index.view.nodes.get(home);
      if (node === undefined) throw new Error("its node exists");
      const taints = [{ key: "broken", value: "", effect: TaintEffect.TAINT_EFFECT_NO_EXECUTE }];
      await cluster.store.commit([{ table: "nodes", id: home, value: { ...node, taints } }]);
      await cluster.settle();
      if (onNodeLoss === recreate) expect(cluster.running("s", "db")).toHaveLength(1);
      else
        expect(live(cluster).unplaced).toMatch(
          /^its volume s_data is on .*, where it does not fit: taint broken:no-execute/,
        );
    },
  );

  it("elsewhere than that of the task's other volume is told, and mended by leaving one out", async () => {
    using cluster = new SteppedCluster();
    await cluster.addNodes("a", "b", "c");
    const both = aService("both", { mode: replicas(1), container: mounting(["x", "y"]) });
    for (const [node, volume] of [
      ["a", "x"],
      ["b", "y"],
    ] as const) {
      await lure(cluster, node);
      await cluster.deploy(aStack(volume, [aService("one", { mode: replicas(1), container: mounting([volume]) })]));
      await cluster.settle();
    }
    await unlure(cluster);
    await cluster.deploy(aStack("s", [both]));
    await cluster.settle();
    expect(live(cluster, "both").unplaced).toBe("its volumes are on different nodes: x on a, y on b");
    await cluster.deploy(aStack("s", [{ ...both, container: mounting(["y"]) }]));
    await cluster.settle();
    expect(cluster.running("s", "both")).toEqual(["1@b"]);
  });

  it("goes with its node only when that is forced", async () => {
    using cluster = await deployed(db());
    const home = live(cluster).nodeId;
    const remove = (force: boolean) => planNodeRemoval(cluster.index, { node: home, force });
    expect(() => remove(true)).toThrow(`node ${home} is up`);
    await cluster.setNode(home, NodeState.NODE_STATE_DOWN);
    await cluster.settle();
    expect(() => remove(false)).toThrow(`volumes have their data on node ${home}: s_data`);
    const { volumes, writes } = remove(true);
    expect(volumes).toEqual(["s_data"]);
    await cluster.store.commit(writes);
    await cluster.settle();
    expect(cluster.running("s", "db")).toHaveLength(1);
    expect(homes(cluster)).toEqual({ "s_data/1": live(cluster).nodeId });
  });

  it("of volumes from before homes were kept is where the slot's task runs, or was last", async () => {
    using cluster = await deployed(
      db({ mode: replicas(2) }),
      aService("job", { mode: replicas(1), container: mounting(["s_once"]) }),
    );
    const before = homes(cluster);
    const once = live(cluster, "job");
    await cluster.report(once, TaskState.TASK_STATE_COMPLETE);
    await cluster.store.commit(
      Object.keys(before).map((id) => ({ table: "volumeHomes" as const, id, value: undefined })),
    );
    await cluster.store.commit(planAdoption(cluster.index));
    expect(homes(cluster)).toEqual(before);
    expect(planAdoption(cluster.index)).toEqual([]);
  });
});

describe("a commit", () => {
  it("gives a home once, waits for the commit under way that gives it, and puts off who was placed elsewhere", async () => {
    using cluster = new SteppedCluster();
    await cluster.addNodes("a", "b");
    const container = mounting(["s_data"]);
    const tasks = ["db", "backup", "web"].map((name) => {
      const spec = aService(name, { container: name === "web" ? mounting([]) : container });
      return Task.create({
        id: name,
        serviceId: name,
        stack: "s",
        serviceName: name,
        serviceVersion: 1,
        slot: 1,
        spec,
      });
    });
    await cluster.store.commit(tasks.map((value) => ({ table: "tasks" as const, id: value.id, value })));
    const placed = (task: string, node: string) => ({ task, node, ports: [], preempts: [] });
    const homesIn = ({ writes }: CommitPlan) =>
      writes.flatMap((write) => (write.table === "volumeHomes" ? [write] : []));
    const first = planCommit(cluster.index, [placed("db", "a")], 27);
    expect(homesIn(first)).toEqual([
      {
        table: "volumeHomes",
        id: "s_data/1",
        value: { volume: "s_data", slot: 1, nodeId: "a", taskId: "db", service: "s_db" },
        ifRevision: 0,
      },
    ]);
    const beside = planCommit(cluster.index, [placed("web", "b"), placed("backup", "a")], 27, [first]);
    expect(beside.after).toEqual(new Set([first]));
    expect(homesIn(beside)).toEqual([]);
    expect(beside.writes.map(({ id }) => id)).toEqual(["web", "backup"]);
    const elsewhere = planCommit(cluster.index, [placed("backup", "b"), placed("web", "b")], 27, [first]);
    expect([...elsewhere.later]).toEqual(["backup"]);
    expect(elsewhere.writes.map(({ id }) => id)).toEqual(["web"]);
    const both = planCommit(cluster.index, [placed("db", "a"), placed("backup", "a")], 27);
    expect(both.writes.map(({ id }) => id)).toEqual(["db", "s_data/1", "backup"]);
    expect([...planCommit(cluster.index, [placed("db", "a"), placed("backup", "b")], 27).later]).toEqual(["backup"]);
  });
});

describe("whatever happens to nodes and stacks", () => {
  const step = fc.oneof(
    {
      weight: 4,
      arbitrary: fc.record({
        kind: fc.constantFrom("down" as const, "up" as const, "drain" as const, "activate" as const, "pause" as const),
        node: fc.constantFrom("a", "b", "c", "d"),
      }),
    },
    {
      weight: 3,
      arbitrary: fc.record({
        kind: fc.constant("deploy" as const),
        count: fc.integer({ min: 1, max: 4 }),
        version: fc.integer({ min: 1, max: 3 }),
      }),
    },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant("remove" as const) }) },
    { weight: 2, arbitrary: fc.record({ kind: fc.constant("crash" as const), slot: fc.integer({ min: 1, max: 4 }) }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant("restart-leader" as const) }) },
  );

  it("a slot's data is on one node, and no task of it runs elsewhere", async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 3, maxLength: 14 }), async (steps) => {
        using cluster = new SteppedCluster();
        await cluster.addNodes("a", "b", "c", "d");
        const seen = new Map<string, string>();
        const check = () => {
          for (const task of cluster.index.view.tasks.values()) {
            if (task.nodeId === "") continue;
            for (const volume of volumesOf(task.spec?.container)) {
              const id = homeId(volume, task);
              expect([id, task.nodeId]).toEqual([id, seen.get(id) ?? task.nodeId]);
              seen.set(id, task.nodeId);
            }
          }
          expect(homes(cluster)).toEqual(Object.fromEntries(seen));
        };
        for (const one of steps) {
          switch (one.kind) {
            case "down":
              await cluster.setNode(one.node, NodeState.NODE_STATE_DOWN);
              break;
            case "up":
              await cluster.setNode(one.node, NodeState.NODE_STATE_READY);
              break;
            case "drain":
              await cluster.drain(one.node);
              break;
            case "activate":
              await cluster.setAvailability(one.node, Availability.AVAILABILITY_ACTIVE);
              break;
            case "pause":
              await cluster.setAvailability(one.node, Availability.AVAILABILITY_PAUSE);
              break;
            case "deploy": {
              const image = { image: `registry/db:${one.version}` };
              const reader = aService("reader", { mode: replicas(2), container: mounting(["s_data"]) });
              await cluster.deploy(
                aStack("s", [
                  db({ mode: replicas(one.count), container: mounting(["s_data", "s_log"], image) }),
                  reader,
                ]),
              );
              break;
            }
            case "remove":
              if (cluster.index.stack("s") !== undefined) await cluster.removeStack("s");
              break;
            case "crash":
              for (const task of cluster.index.view.tasks.values()) {
                if (task.slot !== one.slot || observedState(cluster.index.view, task) !== TaskState.TASK_STATE_RUNNING)
                  continue;
                await cluster.report(task, TaskState.TASK_STATE_FAILED);
              }
              break;
            case "restart-leader":
              expect(planAdoption(cluster.index)).toEqual([]);
              break;
            default:
              one satisfies never;
          }
          await cluster.settleFor(3, check);
        }
        // Once every node takes tasks, all that is wanted runs.
        for (const node of ["a", "b", "c", "d"]) {
          await cluster.setNode(node, NodeState.NODE_STATE_READY);
          await cluster.setAvailability(node, Availability.AVAILABILITY_ACTIVE);
        }
        await cluster.settleFor(90, check);
        for (const service of cluster.index.view.services.values()) {
          const wanted = service.spec?.mode?.$case === "replicated" ? service.spec.mode.value.replicas : 0;
          expect(cluster.running(service.stack, service.spec?.name ?? "")).toHaveLength(wanted);
        }
      }),
      { numRuns: Number(process.env["EMBASSY_FUZZ_RUNS"] ?? 40) },
    );
  }, 60_000);
});
