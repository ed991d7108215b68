import { pushBusybox } from "../test/cluster/busybox.ts";
import { startCluster } from "../test/cluster/cluster.ts";
import { Figures } from "./figures.ts";

export const title = "a host loses power: until its tasks run elsewhere";

// Docker Swarm 20.10, 4 of 12 replicas on the dead worker, seconds.
const swarm = { down: 11.5, elsewhere: 17.4 };

/** `--runs N`, default 5. The lease is 5 s, the default. */
export async function run(args: readonly string[]): Promise<void> {
  const runs = Number(args[args.indexOf("--runs") + 1] ?? 5) || 5;
  await using cluster = await startCluster({ hosts: 3 });
  await pushBusybox(cluster);
  await cluster.deployText(
    "nap",
    `services: {nap: {image: "${cluster.registry}/busybox:1", command: [sleep, "100000"], stop_grace_period: 1s, deploy: {replicas: 12}}}`,
  );
  const down: number[] = [];
  const elsewhere: number[] = [];
  for (let i = 0; i < runs; i++) {
    // The control plane is on host-1, so one of the others dies.
    const victim = i % 2 === 0 ? "host-2" : "host-3";
    const killedMs = performance.now();
    await cluster.killHost(victim);
    await cluster.untilTrue(`${victim} is down`, async () => {
      const nodes = await cluster.nodes();
      return nodes.some((node) => node.spec?.name === victim && node.status?.state === "down");
    });
    down.push((performance.now() - killedMs) / 1_000);
    await cluster.until("12 running elsewhere", (tasks) => {
      const running = tasks.filter((view) => view.status?.state === "running");
      return running.filter((view) => view.nodeName !== victim).length === 12;
    });
    elsewhere.push((performance.now() - killedMs) / 1_000);
    await cluster.start(victim);
    // Even again for the next round.
    await cluster.run(["scale", "nap_nap=1"]);
    await cluster.run(["scale", "nap_nap=12"]);
  }
  const figures = new Figures("s", "Swarm");
  figures.row("host marked down", down, swarm.down);
  figures.row("all 12 replicas running elsewhere", elsewhere, swarm.elsewhere);
}
