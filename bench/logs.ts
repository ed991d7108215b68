import { spawn } from "node:child_process";
import { pushBusybox } from "../test/cluster/busybox.ts";
import { type Cluster, startCluster } from "../test/cluster/cluster.ts";
import { clusterctlCommand } from "../test/cluster/command.ts";
import { CpuAccount } from "./cpu.ts";
import { Figures } from "./figures.ts";

export const title = "lines a second that `logs` gives out, of one task and of three by time, and CPU for each";

/** Of 90 bytes, as a web server's are. */
const rest = " 192.0.2.17 GET /index.html HTTP/1.1 200 5124 curl/7.88.1 0.004 upstream=a x=1";

const stack = (cluster: Cluster, lines: number) => `services:
  writer:
    image: ${cluster.registry}/busybox:1
    command: [sh, -c, "seq 1000000 ${999_999 + lines} | sed 's|$$|${rest}|'; echo written; exec sleep 100000"]
    stop_grace_period: 0s
    logging: {driver: json-file, options: {max-size: 1g}}
    deploy: {mode: global}
`;

/** Runs clusterctl until it has printed that many lines, then interrupts it. Resolves to seconds. */
async function read(cluster: Cluster, words: readonly string[], lines: number): Promise<number> {
  const [program, ...args] = [...clusterctlCommand, "--context", cluster.contextFile, ...words];
  const startedMs = performance.now();
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "inherit"] });
  let seen = 0;
  child.stdout.on("data", (data: Buffer) => {
    for (let at = data.indexOf(10); at >= 0; at = data.indexOf(10, at + 1)) seen++;
    if (seen >= lines) child.kill("SIGINT");
  });
  await new Promise((resolve) => child.on("close", resolve));
  if (seen < lines) throw new Error(`${words.join(" ")}: ${seen} lines of ${lines}`);
  return (performance.now() - startedMs) / 1_000;
}

/** `--runs N`, default 3; `--lines N` of each task, default 200,000. The start of the CLI counts. */
export async function run(args: readonly string[]): Promise<void> {
  const number = (name: string, byDefault: number) =>
    args.includes(name) ? Number(args[args.indexOf(name) + 1]) : byDefault;
  const [runs, lines] = [number("--runs", 3), number("--lines", 200_000)];
  await using cluster = await startCluster({ hosts: 3 });
  await pushBusybox(cluster);
  await cluster.deployText("logs", stack(cluster, lines));
  const tasks = (await cluster.tasks()).map(({ task, nodeName }) => ({ id: task.id, nodeName }));
  for (const { id } of tasks) {
    await cluster.untilTrue(`${id} has written`, async () =>
      (await cluster.run(["logs", "--tail", "1", id])).stdout.includes("written"),
    );
  }
  const far = tasks.find(({ nodeName }) => nodeName === "host-2")?.id ?? "";
  const figures = new Figures("lines/s");
  const account = new CpuAccount(cluster.name);
  const spent: string[] = [];
  for (const [what, words, count] of [
    ["one task, to its end", ["logs", far], lines + 1],
    ["one task, followed", ["logs", "--follow", far], lines + 1],
    ["three tasks, by time", ["logs", "logs_writer"], 3 * lines + 3],
    ["three tasks, followed", ["logs", "--follow", "logs_writer"], 3 * lines + 3],
  ] as const) {
    account.take();
    const rates: number[] = [];
    for (let i = 0; i < runs; i++) rates.push(count / (await read(cluster, words, count)));
    figures.row(what, rates);
    const cpu = [...account.take()].filter(([, seconds]) => seconds >= 0.05);
    const each = cpu.map(([name, seconds]) => `${name} ${((seconds * 1e6) / count / runs).toFixed(1)}`);
    spent.push(`${what}: ${each.join(", ")}`);
  }
  console.log(`\nCPU in us a line\n\n${spent.map((line) => `- ${line}`).join("\n")}`);
}
