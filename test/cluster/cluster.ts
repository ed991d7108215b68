import { randomBytes } from "node:crypto";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { BuiltImage } from "../images/image.ts";
import { pushImage } from "../images/registry.ts";
import { clusterctlCommand, patience, type Result, type RunOptions, runCommand } from "./command.ts";

/** A task as `clusterctl ps --output json` gives it; the fields that tests use. */
export interface TaskView {
  readonly task: {
    readonly id: string;
    readonly stack: string;
    readonly serviceName: string;
    readonly slot: number;
    readonly nodeId: string;
    readonly desired: string;
    readonly unplaced: string;
    readonly epoch: number;
  };
  readonly status?: {
    readonly state: string;
    readonly message: string;
    readonly exitCode: number;
    readonly oomKilled: boolean;
    readonly pid: number;
    readonly health: string;
    readonly startedAtMs: number;
    readonly finishedAtMs: number;
    readonly addresses: readonly { readonly networkId: string; readonly address: string }[];
  };
  readonly nodeName: string;
}

/** A node as `clusterctl nodes --output json` gives it. */
export interface NodeView {
  readonly spec: { readonly id: string; readonly name: string; readonly availability: string };
  readonly status?: {
    readonly state: string;
    readonly message: string;
    readonly networkProblem: string;
    readonly diskProblem: string;
    readonly images: readonly number[];
  };
  readonly tasks: number;
}

interface ServiceView {
  readonly service: { readonly stack: string; readonly spec: { readonly name: string } };
  readonly status?: { readonly vips: Readonly<Record<string, string>> };
}

/** A host of the cluster, as seen from this machine. */
export interface Host {
  readonly name: string;
  readonly address: string;
}

export interface UntilOptions {
  /** Default 30,000; times `patience`. */
  readonly timeoutMs?: number;
}

export interface ClusterOptions {
  /** Default 3. */
  readonly hosts?: number;
  /** How many of them are managers. Default 1. */
  readonly managers?: number;
}

/** A command line of the lab, for tests that run it themselves. */
export interface LabCommand {
  readonly name: string;
  readonly configDirectory: string;
  readonly command: string;
  readonly args: string[];
  readonly environment: NodeJS.ProcessEnv;
}

/**
 * `clusterctl lab <words>` for a lab of its own name, or for that of an earlier command. Its configuration directory is
 * removed by whoever made it first.
 */
export function labCommand(words: readonly string[], earlier?: LabCommand): LabCommand {
  const name = earlier?.name ?? `test-${randomBytes(4).toString("hex")}`;
  const configDirectory = earlier?.configDirectory ?? mkdtempSync(join(tmpdir(), `embassy-${name}-`));
  const [command, ...args] = [...clusterctlCommand, "lab", ...words, "--name", name];
  return { name, configDirectory, command, args, environment: { ...process.env, EMBASSY_CONFIG_DIR: configDirectory } };
}

/**
 * A real cluster: a lab with a name, a subnet and a configuration directory of its own, so that several can run at once.
 * Disposing it takes all of it away.
 */
export class Cluster implements AsyncDisposable {
  readonly name: string;
  readonly hosts: readonly Host[];
  /** "10.213.0.2:5000": from this machine and from every host. */
  readonly registry: string;
  /** The administrator's context, as a file. */
  readonly contextFile: string;
  readonly #lab: LabCommand;
  readonly #directory: string;

  constructor(lab: LabCommand, hosts: readonly Host[], registry: string) {
    this.name = lab.name;
    this.hosts = hosts;
    this.registry = registry;
    this.#lab = lab;
    this.contextFile = join(lab.configDirectory, "contexts", `${lab.name}.json`);
    this.#directory = mkdtempSync(join(tmpdir(), `embassy-${lab.name}-files-`));
  }

  /** Runs clusterctl on this cluster to its end, whatever it exits with. */
  async clusterctl(args: readonly string[], options: RunOptions = {}): Promise<Result> {
    const environment = { EMBASSY_CONFIG_DIR: this.#lab.configDirectory, ...options.environment };
    return await runCommand([...clusterctlCommand, ...args], { ...options, environment });
  }

  /** Runs clusterctl and expects it to succeed: throws with all that it printed otherwise. */
  async run(args: readonly string[], options: RunOptions = {}): Promise<Result> {
    const result = await this.clusterctl(args, options);
    if (result.code === 0) return result;
    throw new Error(`clusterctl ${args.join(" ")} exits with ${result.code}\n${result.stdout}${result.stderr}`);
  }

  /** What a reading command prints with --output json. */
  async json<T = unknown>(args: readonly string[]): Promise<T> {
    return JSON.parse((await this.run([...args, "--output", "json"])).stdout) as T;
  }

  /** Tasks that have not ended, and of a slot that has none such the newest; with `all`, every task that is remembered. */
  async tasks(options: { readonly all?: boolean } = {}): Promise<TaskView[]> {
    return (await this.json<{ tasks: TaskView[] }>(["ps", ...(options.all === true ? ["--all"] : [])])).tasks;
  }

  async nodes(): Promise<NodeView[]> {
    return (await this.json<{ nodes: NodeView[] }>(["nodes"])).nodes;
  }

  /** The virtual address of a service, "<stack>_<service>", on the first of its networks. */
  async vip(service: string): Promise<string> {
    const { services } = await this.json<{ services: ServiceView[] }>(["services"]);
    const view = services.find(({ service: { stack, spec } }) => `${stack}_${spec.name}` === service);
    const [vip] = Object.values(view?.status?.vips ?? {});
    if (vip === undefined) throw new Error(`${service} has no virtual address: ${JSON.stringify(view)}`);
    return vip;
  }

  /** Deploys the text of a stack file under that name and waits until it has converged. */
  async deployText(name: string, text: string, more: readonly string[] = []): Promise<Result> {
    const file = join(this.#directory, `${name}.yml`);
    writeFileSync(file, text);
    return await this.run(["deploy", file, name, ...more], { environment: { REGISTRY: this.registry } });
  }

  /** Runs a command on a host to its end, whatever it exits with. */
  async exec(host: string, command: readonly string[]): Promise<Result> {
    return await this.#labVerb("exec", host, "--", ...command);
  }

  /** SIGKILL to a process of a host: clusterd, etcd, noded or netd. */
  async kill(host: string, process: string): Promise<void> {
    await this.#expectVerb("kill", `${host}:${process}`);
  }

  /** SIGKILL to a whole host. */
  async killHost(host: string): Promise<void> {
    await this.#expectVerb("kill", host);
  }

  /** Starts a process that was killed, or a whole host when none is named. */
  async start(host: string, process?: string): Promise<void> {
    await this.#expectVerb("start", process === undefined ? host : `${host}:${process}`);
  }

  /** SIGKILL to a daemon of a host, which is then started with these options more. It keeps them until it is killed. */
  async restartWith(host: string, daemon: string, options: readonly string[]): Promise<void> {
    const pidFile = `/run/lab/${daemon}.pid`;
    const script = `
      pid=$(cat ${pidFile})
      mapfile -d '' -t command </proc/$pid/cmdline
      exec 2>>/proc/$pid/fd/2
      kill -9 $pid
      while kill -0 $pid 2>/dev/null; do :; done
      setsid "\${command[@]}" "$@" >&2 </dev/null & echo $! >${pidFile}`;
    const { code, stderr } = await this.exec(host, ["bash", "-c", script, "bash", ...options]);
    if (code !== 0) throw new Error(`${daemon} of ${host} is not started again: ${stderr}`);
  }

  async pause(target: string): Promise<void> {
    await this.#expectVerb("pause", target);
  }

  async resume(target: string): Promise<void> {
    await this.#expectVerb("resume", target);
  }

  /** Takes a host off the network. */
  async cut(host: string): Promise<void> {
    await this.#expectVerb("cut", host);
  }

  async heal(host: string): Promise<void> {
    await this.#expectVerb("heal", host);
  }

  /** Pushes an image to the cluster's registry. Returns its reference, as a stack file names it. */
  async push(repository: string, tag: string, image: BuiltImage): Promise<string> {
    return await pushImage(`http://${this.registry}`, repository, tag, image);
  }

  /** Resolves with the tasks once the predicate holds for them. On timeout throws the last state and the daemons' logs. */
  async until(
    condition: string,
    predicate: (tasks: readonly TaskView[]) => boolean,
    options: UntilOptions = {},
  ): Promise<readonly TaskView[]> {
    let last: readonly TaskView[] = [];
    const show = () => last.map(describeTask).join("\n");
    await this.#poll(condition, options, show, async () => {
      last = await this.tasks();
      return predicate(last);
    });
    return last;
  }

  /** Like `until`, over the nodes. */
  async untilNodes(
    condition: string,
    predicate: (nodes: readonly NodeView[]) => boolean,
    options: UntilOptions = {},
  ): Promise<void> {
    let last: readonly NodeView[] = [];
    const show = () => last.map(({ spec, status }) => `${spec.name} ${status?.state} ${status?.message}`).join("\n");
    await this.#poll(condition, options, show, async () => {
      last = await this.nodes();
      return predicate(last);
    });
  }

  /** Like `until`, over anything. An error counts as "not yet", and is shown when the time is over. */
  async untilTrue(condition: string, holds: () => Promise<boolean>, options: UntilOptions = {}): Promise<void> {
    await this.#poll(condition, options, () => "", holds);
  }

  /** The last lines of every daemon's log. */
  logs(lines = 30): string {
    const directory = join(process.env["EMBASSY_LAB_DIR"] ?? "/var/lib/embassy-lab", this.name, "hosts");
    if (!existsSync(directory)) return "";
    return readdirSync(directory)
      .flatMap((host) =>
        readdirSync(join(directory, host, "log")).map((file) => {
          const text = readFileSync(join(directory, host, "log", file), "utf8").trimEnd();
          return `--- ${host} ${file}\n${text.split("\n").slice(-lines).join("\n")}`;
        }),
      )
      .join("\n");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    rmSync(this.#directory, { recursive: true, force: true });
    await takeDown(this.#lab);
  }

  async #poll(
    condition: string,
    options: UntilOptions,
    show: () => string,
    holds: () => Promise<boolean>,
  ): Promise<void> {
    const timeoutMs = (options.timeoutMs ?? 30_000) * patience;
    const deadline = performance.now() + timeoutMs;
    let failure: unknown;
    for (;;) {
      try {
        failure = undefined;
        if (await holds()) return;
      } catch (error) {
        failure = error;
      }
      if (performance.now() > deadline) {
        const parts = [`not within ${timeoutMs} ms: ${condition}`, show(), this.logs()];
        throw new Error(parts.filter(Boolean).join("\n"), { cause: failure });
      }
      await delay(20);
    }
  }

  async #labVerb(verb: string, ...words: readonly string[]): Promise<Result> {
    return await this.clusterctl(["lab", verb, "--name", this.name, ...words]);
  }

  async #expectVerb(verb: string, target: string): Promise<void> {
    await this.run(["lab", verb, "--name", this.name, target]);
  }
}

function describeTask({ task, status, nodeName }: TaskView): string {
  const message = task.unplaced || status?.message || "";
  return `${task.stack}_${task.serviceName}.${task.slot} ${task.id} on ${nodeName || "-"}: ${status?.state ?? "pending"}, wanted ${task.desired} ${message}`;
}

async function takeDown(lab: LabCommand): Promise<void> {
  const down = labCommand(["down"], lab);
  const result = await runCommand([down.command, ...down.args], { environment: down.environment });
  rmSync(lab.configDirectory, { recursive: true, force: true });
  if (result.code !== 0) throw new Error(`lab down exits with ${result.code}\n${result.stdout}${result.stderr}`);
}

/** Starts a cluster of that many hosts; returns when every node is ready. */
export async function startCluster(options: ClusterOptions = {}): Promise<Cluster> {
  const lab = labCommand([
    "up",
    "--hosts",
    String(options.hosts ?? 3),
    "--managers",
    String(options.managers ?? 1),
    "--output",
    "json",
  ]);
  const up = await runCommand([lab.command, ...lab.args], { environment: lab.environment });
  if (up.code !== 0) {
    await takeDown(lab);
    throw new Error(`the cluster does not start: exit code ${up.code}\n${up.stdout}${up.stderr}`);
  }
  const { hosts, registry } = JSON.parse(up.stdout) as { hosts: Host[]; registry: string };
  return new Cluster(lab, hosts, registry);
}
