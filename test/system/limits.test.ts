import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { pushBusybox } from "../cluster/busybox.ts";
import { type CgroupFile, cgroupV2, readCgroup } from "../cluster/cgroups.ts";
import { type Cluster, startCluster, type TaskView } from "../cluster/cluster.ts";
import { pids, running } from "./counter.ts";

const files = {
  memory: { v2: "memory.max", v1: "memory/memory.limit_in_bytes" },
  cpu: { v2: "cpu.max", v1: "cpu/cpu.cfs_quota_us" },
  weight: { v2: "cpu.weight", v1: "cpu/cpu.shares" },
  pids: { v2: "pids.max", v1: "pids/pids.max" },
  throttling: { v2: "cpu.stat", v1: "cpu/cpu.stat" },
} as const satisfies Record<string, CgroupFile>;

const limitsOf = (view: TaskView) => ({
  memory: readCgroup(view, files.memory),
  cpu: readCgroup(view, files.cpu),
  weight: readCgroup(view, files.weight),
  pids: readCgroup(view, files.pids),
});

/** A tenth of a CPU at most and a twentieth for certain, 48 MiB, 40 processes, as the kernel says it. */
const asked = {
  memory: String(48 * 1024 * 1024),
  cpu: cgroupV2 ? "10000 100000" : "10000",
  weight: cgroupV2 ? "5" : "51",
  pids: "40",
};

describe("limits of a service", () => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster({ hosts: 3 });
    await pushBusybox(cluster);
    await cluster.deployText(
      "limits",
      `services:
  held:
    image: "${cluster.registry}/busybox:1"
    command: [sh, -c, "while :; do :; done"]
    deploy:
      mode: global
      resources: {limits: {cpus: "0.1", memory: 48M, pids: 40}, reservations: {cpus: "0.05"}}`,
    );
  });
  afterAll(async () => await cluster?.[Symbol.asyncDispose]());

  it("are in force in each task's cgroup on every host, and the program can read them", async () => {
    const held = running(await cluster.tasks(), "held");
    expect(held.map(({ nodeName }) => nodeName).sort()).toEqual(["host-1", "host-2", "host-3"]);
    for (const view of held) expect(limitsOf(view)).toEqual(asked);
    const inside = `/sys/fs/cgroup/${cgroupV2 ? files.memory.v2 : files.memory.v1}`;
    for (const { task } of held) {
      expect((await cluster.run(["exec", task.id, "--", "cat", inside])).stdout.trim()).toBe(asked.memory);
    }
  });

  it("slow down whoever wants more CPU", async () => {
    for (const view of running(await cluster.tasks(), "held")) {
      await cluster.untilTrue(`${view.task.id} is throttled`, async () =>
        Promise.resolve(/^nr_throttled [1-9]/m.test(readCgroup(view, files.throttling))),
      );
    }
  });

  it("hold, as do the processes, while noded is killed and when it is back", async () => {
    const before = running(await cluster.tasks(), "held");
    await cluster.kill("host-1", "noded");
    for (const view of before) expect(limitsOf(view)).toEqual(asked);
    await cluster.start("host-1", "noded");
    await cluster.untilNodes("all nodes are ready", (nodes) => nodes.every(({ status }) => status?.state === "ready"));
    const after = await cluster.tasks();
    expect(pids(after, "held")).toEqual(pids(before, "held"));
    for (const view of running(after, "held")) expect(limitsOf(view)).toEqual(asked);
  });

  it.each([
    { what: "while its agent watches", killed: false, back: false },
    { what: "after its agent was killed and came back", killed: true, back: true },
    { what: "while its agent is dead", killed: true, back: false },
  ])("a task killed for its memory $what says so", async ({ killed, back }) => {
    // It eats all that it gets as soon as it finds the file; if nothing else holds it, not the whole machine.
    await cluster.deployText(
      "greedy",
      `services:
  eater:
    image: "${cluster.registry}/busybox:1"
    command: [sh, -c, "ulimit -v 500000; until [ -e /tmp/go ]; do sleep 0.1; done; exec tail /dev/zero"]
    deploy:
      restart_policy: {condition: none}
      placement: {constraints: [node.hostname == host-2]}
      resources: {limits: {memory: 24M}}`,
    );
    const [eater] = running(await cluster.tasks(), "eater");
    if (eater === undefined) throw new Error("no eater runs");
    const ready = async () => {
      await cluster.start("host-2", "noded");
      await cluster.untilNodes("all nodes are ready", (nodes) =>
        nodes.every(({ status }) => status?.state === "ready"),
      );
    };
    if (killed) await cluster.kill("host-2", "noded");
    if (back) await ready();
    // By way of the host: noded may be dead.
    const pid = String(eater.status?.pid);
    const onHost = async (script: string) => await cluster.exec("host-2", ["sh", "-c", script]);
    expect(await onHost(`touch /proc/${pid}/root/tmp/go`)).toMatchObject({ code: 0 });
    await cluster.untilTrue("it is gone", async () => (await onHost(`test ! -e /proc/${pid}`)).code === 0);
    if (killed && !back) await ready();

    let found: TaskView | undefined;
    await cluster.untilTrue("its end is known", async () => {
      found = (await cluster.tasks({ all: true })).find(({ task }) => task.id === eater.task.id);
      return found?.status?.state === "failed";
    });
    expect(found?.status).toMatchObject({ exitCode: 137, oomKilled: true });
    expect((await cluster.run(["ps", "--all", "greedy"])).stdout).toMatch(/failed \(oom\)/i);
    await cluster.run(["rm", "greedy"]);
  });
});
