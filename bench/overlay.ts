import { images } from "../examples/counter/images.ts";
import { pushImages } from "../examples/images.ts";
import { type Cluster, startCluster } from "../test/cluster/cluster.ts";
import { Figures } from "./figures.ts";

export const title = "container to container across hosts, against host to host: streams and request/response";

// Docker Swarm 20.10 in the same set-up: share of host to host.
const swarm = { one: 0.72, four: 0.6, requests1: 0.8, requests16: 0.61 };

const stack = (registry: string) => `services:
  server:
    image: ${registry}/bench/net:1
    command: [sh, -c, "iperf3 -s >/dev/null & exec redis-server --save '' --protected-mode no"]
    expose: ["5201", "6379"]
    stop_grace_period: 1s
    deploy: { placement: { constraints: ["node.hostname == host-2"] } }
  client:
    image: ${registry}/bench/net:1
    command: [sleep, "100000"]
    links: [server]
    stop_grace_period: 1s
    deploy: { placement: { constraints: ["node.hostname == host-1"] } }
`;

// redis for requests and answers, iperf3 for streams.
const netImage = {
  repository: "bench/net",
  tag: "1",
  packages: [
    ...(images.find(({ repository }) => repository === "counter/redis")?.packages ?? []),
    "iperf3",
    "libiperf0",
    "libsctp1",
  ],
  files: {},
  config: {},
};

interface Path {
  readonly name: string;
  /** Runs a program of the image at the client's end. */
  readonly run: (words: readonly string[]) => Promise<string>;
  readonly target: string;
}

/** One short run. */
interface Sample {
  readonly rate: number;
  /** CPU seconds a GB of both ends, where the program tells. */
  readonly cpu?: number;
}

/** Gbit/s of one GB. */
async function throughput(path: Path, streams: number): Promise<Sample> {
  const output = await path.run(["iperf3", "-c", path.target, "-P", String(streams), "-n", "1000000000", "-J"]);
  const { end } = JSON.parse(output) as {
    end: {
      sum_sent: { seconds: number };
      sum_received: { bytes: number };
      cpu_utilization_percent: { host_total: number; remote_total: number };
    };
  };
  const { bytes } = end.sum_received;
  const { seconds } = end.sum_sent;
  const { host_total, remote_total } = end.cpu_utilization_percent;
  return { rate: (bytes * 8) / seconds / 1e9, cpu: (((host_total + remote_total) / 100) * seconds) / (bytes / 1e9) };
}

/** Requests a second over connections that stay open. */
async function requests(path: Path, connections: number): Promise<Sample> {
  const count = connections === 1 ? "10000" : "50000";
  const output = await path.run([
    "redis-benchmark",
    "-h",
    path.target,
    "-c",
    String(connections),
    "-n",
    count,
    "-t",
    "ping_mbulk",
    "--csv",
  ]);
  return { rate: Number(/"PING_MBULK","([\d.]+)"/.exec(output)?.[1]) };
}

/** The same programs in the hosts' own network namespaces: the containers' files, without their network. */
async function hostPath(cluster: Cluster, clientPid: number, serverPid: number): Promise<Path> {
  const server = cluster.hosts.find(({ name }) => name === "host-2");
  const enter = (pid: number) => ["nsenter", "--target", String(pid), "--mount", "--"];
  await cluster.exec("host-2", [
    ...enter(serverPid),
    "sh",
    "-c",
    "iperf3 -s -p 5201 >/dev/null 2>&1 & redis-server --save '' --protected-mode no --daemonize yes >/dev/null",
  ]);
  return {
    name: "host to host",
    target: server?.address ?? "",
    run: async (words) => (await cluster.exec("host-1", [...enter(clientPid), ...words])).stdout,
  };
}

/**
 * `--runs N`, default 15 rounds. A round is one run of about half a second on each path, every other round in the opposite
 * order; a ratio is between runs of one round, so that what else the machine does is in both.
 */
export async function run(args: readonly string[]): Promise<void> {
  const runs = Number(args[args.indexOf("--runs") + 1] ?? 15) || 15;
  await using cluster = await startCluster({ hosts: 2 });
  await pushImages([netImage], cluster.registry);
  await cluster.deployText("net", stack(cluster.registry));
  const tasks = await cluster.tasks();
  const find = (service: string) => tasks.find((view) => view.task?.serviceName === service);
  const run = async (words: readonly string[]) => (await cluster.run(["exec", "net_client.1", "--", ...words])).stdout;
  const paths: Path[] = [
    await hostPath(cluster, find("client")?.status?.pid ?? 0, find("server")?.status?.pid ?? 0),
    { name: "overlay, the task's address", run, target: find("server")?.status?.addresses[0]?.address ?? "" },
    { name: "overlay, through the ambassador", run, target: "server" },
  ];
  const kinds: readonly [string, number | undefined, (path: Path) => Promise<Sample>][] = [
    ["TCP 1 stream, Gbit/s", swarm.one, async (path) => await throughput(path, 1)],
    ["TCP 4 streams, Gbit/s", swarm.four, async (path) => await throughput(path, 4)],
    ["requests/s, 1 connection", swarm.requests1, async (path) => await requests(path, 1)],
    ["requests/s, 16 connections", swarm.requests16, async (path) => await requests(path, 16)],
  ];
  for (const [what, peer, measure] of kinds) {
    const samples = new Map(paths.map((path): [Path, Sample[]] => [path, []]));
    for (let i = 0; i < runs; i++) {
      for (const path of i % 2 === 0 ? paths : paths.toReversed()) samples.get(path)?.push(await measure(path));
    }
    const base = samples.values().next().value ?? [];
    console.log(`\n${what}\n`);
    const figures = new Figures("");
    for (const [{ name }, found] of samples) {
      figures.row(
        name,
        found.map(({ rate }) => rate),
      );
    }
    console.log();
    const ratios = new Figures("", "Swarm's");
    for (const [{ name }, found] of samples) {
      if (found === base) continue;
      const shares = found.map(({ rate }, i) => rate / (base[i]?.rate ?? Number.NaN));
      ratios.row(`${name} / host to host`, shares, peer);
    }
    // What it costs, which other load on the machine changes less than how long it takes.
    if (base[0]?.cpu === undefined) continue;
    console.log();
    const costs = new Figures("CPU s/GB");
    for (const [{ name }, found] of samples) {
      costs.row(
        name,
        found.map(({ cpu }) => cpu ?? Number.NaN),
      );
    }
  }
}
