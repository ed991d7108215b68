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

/** Gbit/s of a 3 s transfer. */
async function throughput(path: Path, streams: number): Promise<number> {
  const output = await path.run(["iperf3", "-c", path.target, "-P", String(streams), "-t", "3", "-O", "1", "-J"]);
  return (
    (JSON.parse(output) as { end: { sum_received: { bits_per_second: number } } }).end.sum_received.bits_per_second /
    1e9
  );
}

/** Requests a second over connections that stay open. */
async function requests(path: Path, connections: number): Promise<number> {
  const count = connections === 1 ? "30000" : "200000";
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
  return Number(/"PING_MBULK","([\d.]+)"/.exec(output)?.[1]);
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

/** `--runs N`, default 5; the paths take turns, so that a ratio compares neighbours in time. */
export async function run(args: readonly string[]): Promise<void> {
  const runs = Number(args[args.indexOf("--runs") + 1] ?? 5) || 5;
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
  const kinds: readonly [string, number | undefined, (path: Path) => Promise<number>][] = [
    ["TCP 1 stream, Gbit/s", swarm.one, async (path) => await throughput(path, 1)],
    ["TCP 4 streams, Gbit/s", swarm.four, async (path) => await throughput(path, 4)],
    ["requests/s, 1 connection", swarm.requests1, async (path) => await requests(path, 1)],
    ["requests/s, 16 connections", swarm.requests16, async (path) => await requests(path, 16)],
  ];
  for (const [what, peer, measure] of kinds) {
    const results = paths.map((): number[] => []);
    for (let i = 0; i < runs; i++) {
      for (const [index, path] of paths.entries()) results[index]?.push(await measure(path));
    }
    console.log(`\n${what}\n`);
    const figures = new Figures("");
    for (const [index, path] of paths.entries()) figures.row(path.name, results[index] ?? []);
    const ratios = new Figures("", "Swarm's");
    for (const [index, path] of paths.entries()) {
      if (index === 0) continue;
      ratios.row(
        `${path.name} / host to host`,
        (results[index] ?? []).map((value, i) => value / (results[0]?.[i] ?? Number.NaN)),
        peer,
      );
    }
  }
}
