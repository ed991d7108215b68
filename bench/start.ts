import { pushBusybox } from "../test/cluster/busybox.ts";
import { type Cluster, startCluster } from "../test/cluster/cluster.ts";
import { CpuAccount } from "./cpu.ts";
import { Figures } from "./figures.ts";

export const title = "from deploy to running: 1, 12 and 60 replicas over three hosts; removal; a crashed task";

// Docker Swarm 20.10 on a machine of this size: three hosts as namespaces, images local, seconds.
const swarm = { 1: 0.76, 12: 2.16, 60: 8.85, removed60: 10.4, crash: 5.61 };

function stack(cluster: Cluster, replicas: number): string {
  return `services:
  nap:
    image: ${cluster.registry}/busybox:1
    command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"]
    stop_grace_period: 2s
    deploy: { replicas: ${replicas}, restart_policy: { delay: 0s } }
`;
}

async function seconds(work: () => Promise<unknown>): Promise<number> {
  const startedMs = performance.now();
  await work();
  return (performance.now() - startedMs) / 1_000;
}

/** A deploy is timed until clusterctl returns, which is when every replica runs. `--runs N`, default 5. */
export async function run(args: readonly string[]): Promise<void> {
  const runs = Number(args[args.indexOf("--runs") + 1] ?? 5) || 5;
  await using cluster = await startCluster({ hosts: 3 });
  await pushBusybox(cluster);
  // Every host pulls the image once; Swarm's figures are with local images.
  await cluster.deployText("warm", stack(cluster, 6));
  await cluster.run(["rm", "warm"]);

  const figures = new Figures("s", "Swarm");
  const removals: number[] = [];
  const cpu = new CpuAccount(cluster.name);
  const spent: ReadonlyMap<string, number>[] = [];
  for (const replicas of [1, 12, 60] as const) {
    const times: number[] = [];
    for (let i = 0; i < runs; i++) {
      cpu.take();
      times.push(await seconds(() => cluster.deployText("nap", stack(cluster, replicas), ["--settle", "0s"])));
      const removal = await seconds(() => cluster.run(["rm", "nap"]));
      if (replicas === 60) {
        removals.push(removal);
        spent.push(cpu.take());
      }
    }
    figures.row(`deploy, ${replicas} replicas running`, times, swarm[replicas]);
  }
  figures.row("rm, 60 replicas gone", removals, swarm.removed60);

  await cluster.deployText("nap", stack(cluster, runs));
  const crashes: number[] = [];
  for (let i = 0; i < runs; i++) {
    // Another slot each time: one that fails again and again is started with growing delays.
    const victim = (await cluster.tasks()).find(({ task }) => task.slot === i + 1);
    crashes.push(
      await seconds(async () => {
        await cluster.exec(victim?.nodeName ?? "", ["kill", "-9", String(victim?.status?.pid)]);
        await cluster.until("the task is replaced", (tasks) => {
          const running = tasks.filter(
            (view) => view.status?.state === "running" && view.task?.id !== victim?.task?.id,
          );
          return running.length === runs;
        });
      }),
    );
  }
  figures.row("a task's process killed, replacement running (delay 0)", crashes, swarm.crash);

  console.log("\nCPU of a deploy of 60 and its rm\n");
  const account = new Figures("s");
  for (const what of [...new Set(spent.flatMap((one) => [...one.keys()]))].sort()) {
    const seconds = spent.map((one) => one.get(what) ?? 0);
    if (seconds.some((value) => value > 0)) account.row(what, seconds);
  }
  account.row(
    "all of it",
    spent.map((one) => [...one.values()].reduce((sum, value) => sum + value, 0)),
  );
}
