import { expect, it } from "vitest";
import { systemClock } from "../../../lib/clock/clock.ts";
import { silentLog } from "../../../lib/log/log.ts";
import { Resources, ServiceSpec } from "../../../proto/gen/embassy/v1/stack.ts";
import { NodeDescription, NodeSpec, NodeState, NodeStatus, Task } from "../../../proto/gen/embassy/v1/state.ts";
import { ClusterIndex } from "../../domain/index.ts";
import { mounting } from "../../domain/testing.ts";
import { Election } from "../../store/election.ts";
import { testEtcd } from "../../store/etcd.testing.ts";
import type { CommitOptions, Write } from "../../store/types.ts";
import { defaultControllerSettings } from "../deps.ts";
import { runScheduling } from "./loop.ts";

const reserved = { milliCpus: 10, memoryBytes: 0, pids: 0, generic: {} };
const spec = ServiceSpec.create({
  name: "web",
  resources: Resources.create({ reservations: reserved }),
  container: mounting(["s_data"]),
});

it("places each task once, with its volume's home, when etcd is killed with commits under way, twice", async () => {
  await using etcd = await testEtcd();
  using client = etcd.client();
  await using store = await etcd.store(client);
  using index = new ClusterIndex(store);
  const nodes = ["a", "b", "c"].flatMap((id): Write[] => {
    const description = NodeDescription.create({ os: "linux", arch: "amd64", milliCpus: 10_000 });
    const status = NodeStatus.create({ id, state: NodeState.NODE_STATE_READY, description });
    return [
      { table: "nodes", id, value: NodeSpec.create({ id, name: id }) },
      { table: "nodeStatuses", id, value: status },
    ];
  });
  const tasks = Array.from({ length: 3_000 }, (_, i): Write => {
    const id = `t${String(i).padStart(4, "0")}`;
    const value = Task.create({ id, serviceId: "web", serviceVersion: 1, slot: i + 1, spec, desired: 1 });
    return { table: "tasks", id, value };
  });
  await store.commit([...nodes, ...tasks]);

  let commits = 0;
  const killed: Promise<unknown>[] = [];
  const kill = async () => {
    const ended = etcd.supervisor.ended();
    process.kill(etcd.supervisor.pid, "SIGKILL");
    await ended;
  };
  const commit = async (writes: readonly Write[], options?: CommitOptions): Promise<number> => {
    const made = store.commit(writes, options);
    commits++;
    // With others on their way; the second one while the first are tried again.
    if (commits === 4 || commits === 12) killed.push(kill());
    return await made;
  };
  const moved: string[] = [];
  const done = Promise.withResolvers<void>();
  let left = tasks.length;
  using _ = index.subscribe((changes) => {
    for (const { table, id, before, after } of changes) {
      if (table !== "tasks" || before?.nodeId === after?.nodeId) continue;
      if (before?.nodeId !== "") moved.push(id);
      left--;
    }
    if (left === 0) done.resolve();
  });
  const stop = new AbortController();
  const election = new Election(
    { client, store, clock: systemClock, log: silentLog },
    { member: "m1", instance: "i1", ttlMs: 20_000 },
  );
  const deps = { index, log: silentLog, clock: systemClock, settings: defaultControllerSettings };
  const leading = election.run(
    async (deposed) => await runScheduling({ ...deps, store: { view: store.view, commit } }, deposed, 200),
    stop.signal,
  );
  await done.promise;
  stop.abort();
  await leading;
  await Promise.all(killed);
  expect(killed).toHaveLength(2);
  expect(moved).toEqual([]);
  // As etcd has it, and not only this view.
  using other = etcd.client();
  await using fresh = await etcd.store(other);
  expect([...fresh.view.tasks.entries()]).toEqual([...store.view.tasks.entries()].sort(([a], [b]) => (a < b ? -1 : 1)));
  const homes = [...fresh.view.volumeHomes.values()].map(({ slot, nodeId, taskId }) => [taskId, slot, nodeId]);
  const placed = [...fresh.view.tasks.values()].map(({ id, slot, nodeId }) => [id, slot, nodeId]);
  expect(new Set(homes.map(String))).toEqual(new Set(placed.map(String)));
  for (const id of ["a", "b", "c"]) expect(index.tasksOfNode(id)).toHaveLength(1_000);
});
