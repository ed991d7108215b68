import { type ChildProcessByStdio, spawn, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { NetworkState } from "../../proto/gen/embassy/v1/dispatcher.ts";
import { AttachRequest, type AttachResponse } from "../../proto/gen/embassy/v1/local.ts";

/** Runs a command and gives its stdout. Throws with its stderr when it fails. */
export function sh(command: string): string {
  const { status, stdout, stderr } = spawnSync("sh", ["-c", command], { encoding: "utf8" });
  if (status !== 0) throw new Error(`${command}: ${stderr || `exit code ${status}`}`);
  return stdout;
}

/** Runs a command that may fail and gives its exit code and all that it said. */
export function attempt(command: string): { readonly code: number; readonly output: string } {
  const { status, stdout, stderr } = spawnSync("sh", ["-c", command], { encoding: "utf8" });
  return { code: status ?? -1, output: stdout + stderr };
}

/** Waits until the condition holds. Throws, with what it last was, after `timeoutMs`. */
export async function until<T>(
  what: string,
  probe: () => Promise<T> | T,
  holds: (last: T) => boolean,
  timeoutMs = 10_000,
): Promise<T> {
  const end = performance.now() + timeoutMs;
  for (;;) {
    const last = await probe();
    if (holds(last)) return last;
    if (performance.now() > end) throw new Error(`not within ${timeoutMs} ms: ${what}; last: ${JSON.stringify(last)}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** A long-lived process that says lines. */
export class Talker implements AsyncDisposable {
  readonly child: ChildProcessByStdio<Writable, Readable, Readable>;
  readonly lines: string[] = [];
  stderr = "";

  constructor(program: string, args: readonly string[]) {
    this.child = spawn(program, args, { stdio: ["pipe", "pipe", "pipe"] });
    createInterface({ input: this.child.stdout }).on("line", (line) => this.lines.push(line));
    this.child.stderr.setEncoding("utf8").on("data", (text: string) => {
      this.stderr += text;
    });
    this.child.stdin.on("error", () => {});
  }

  async says(what: string | RegExp, timeoutMs = 10_000): Promise<string> {
    const matches = (line: string) => (typeof what === "string" ? line.includes(what) : what.test(line));
    await until(
      `a line with ${what}; stderr: ${this.stderr}`,
      () => this.lines.slice(-5),
      () => this.lines.some(matches) || this.#ended,
      timeoutMs,
    );
    const line = this.lines.find(matches);
    if (line === undefined) throw new Error(`it ended before it said ${what}; stderr: ${this.stderr}`);
    return line;
  }

  get #ended(): boolean {
    return this.child.exitCode !== null || this.child.signalCode !== null;
  }

  async kill(signal: NodeJS.Signals = "SIGKILL"): Promise<void> {
    if (this.#ended) return;
    const closed = new Promise((resolve) => this.child.once("close", resolve));
    this.child.kill(signal);
    await closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }
}

/** A program of this folder in a network namespace, that answers questions. */
export class Asked implements AsyncDisposable {
  readonly #talker: Talker;
  #serial = 0;

  constructor(netns: string, program: "core.ts" | "peer.ts", argument: string) {
    const path = join(import.meta.dirname, program);
    this.#talker = new Talker("nsenter", [`--net=${netns}`, process.execPath, path, argument]);
  }

  async ready(): Promise<void> {
    await this.#talker.says('"ready"');
  }

  /** Throws with what the program says when it cannot. */
  async ask(command: string, argument?: unknown): Promise<unknown> {
    const id = ++this.#serial;
    this.#talker.child.stdin.write(`${JSON.stringify({ id, command, argument })}\n`);
    const line = await this.#talker.says(new RegExp(`^\\{"id":${id},`), 20_000);
    const answer = JSON.parse(line) as { result?: unknown; error?: string };
    if (answer.error !== undefined) throw new Error(`${command}: ${answer.error}\n${this.#talker.stderr}`);
    return answer.result;
  }

  get stderr(): string {
    return this.#talker.stderr;
  }

  /** As `kill -9`: nothing is cleaned up. */
  async kill(): Promise<void> {
    await this.#talker.kill("SIGKILL");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }
}

/** Serves and connects inside a task's, or a host's, namespace. */
export class Peer extends Asked {
  static async in(netns: string, name: string): Promise<Peer> {
    const peer = new Peer(netns.includes("/") ? netns : `/run/netns/${netns}`, "peer.ts", name);
    await peer.ready();
    return peer;
  }

  /** What the server at the other end says ("name client-address"), or an error code, or TIMEOUT. */
  async tcp(host: string, port: number, more: object = {}): Promise<string> {
    return String(await this.ask("getTcp", { host, port, ...more }));
  }

  async udp(host: string, port: number): Promise<string> {
    return String(await this.ask("getUdp", { host, port }));
  }

  async resolve(name: string): Promise<unknown> {
    return await this.ask("resolve", name);
  }

  async streamState(
    stream: unknown,
  ): Promise<{ readonly sent: number; readonly echoed: number; readonly error: string }> {
    return (await this.ask("streamState", stream)) as { sent: number; echoed: number; error: string };
  }
}

/** A netd in a host's namespace. */
export class Core extends Asked {
  constructor(host: Host) {
    super(`/run/netns/${host.netns}`, "core.ts", host.directory);
  }

  async update(state: NetworkState): Promise<void> {
    await this.ask("update", NetworkState.toJSON(state));
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    await this.ask("stop").catch(() => {});
    await this.kill();
  }
}

/** A task's namespace on a host. */
export interface TestTask {
  readonly id: string;
  readonly netns: string;
  readonly addresses: readonly string[];
}

/** A host: a network namespace on a common underlay, with a netd. */
export class Host {
  readonly name: string;
  readonly netns: string;
  readonly underlay: string;
  readonly directory: string;
  core: Core;

  constructor(name: string, netns: string, underlay: string, directory: string) {
    this.name = name;
    this.netns = netns;
    this.underlay = underlay;
    this.directory = directory;
    mkdirSync(directory, { recursive: true });
    writeFileSync(join(directory, "resolv.conf"), "");
    this.core = new Core(this);
  }

  /** Runs a command on the host. */
  exec(command: string): string {
    return sh(`ip netns exec ${this.netns} ${command}`);
  }

  async restart(): Promise<void> {
    await this.core.kill();
    this.core = new Core(this);
    await this.core.ready();
  }

  /** With `waitMs` among the rest: the time that the call may take. */
  async attach(
    id: string,
    serviceId: string,
    networkIds: readonly string[],
    { waitMs, ...more }: { readonly waitMs?: number } & Partial<AttachRequest> = {},
  ): Promise<TestTask> {
    const request = AttachRequest.fromPartial({ taskId: id, serviceId, slot: 1, networkIds: [...networkIds], ...more });
    const response = (await this.core.ask("attach", {
      ...(AttachRequest.toJSON(request) as object),
      waitMs,
    })) as AttachResponse;
    return { id, netns: response.netnsPath, addresses: response.addresses.map(({ address }) => address) };
  }
}

/** A command line that runs another inside a task's namespace. */
export const within = (task: TestTask, command: string): string => `nsenter --net=${task.netns} ${command}`;

/** Hosts on one underlay, 172.31.99.0/24, with a client outside of the cluster at .100. */
export class TestCluster implements AsyncDisposable {
  readonly prefix: string;
  readonly directory: string;
  readonly hosts: Host[] = [];
  readonly clientNetns: string;

  private constructor(prefix: string, directory: string) {
    this.prefix = prefix;
    this.directory = directory;
    this.clientNetns = `${prefix}-client`;
  }

  /** Prefix: of every namespace that it makes, and unlike that of any other test under way. */
  static async start(prefix: string, count: number): Promise<TestCluster> {
    const cluster = new TestCluster(prefix, mkdtempSync(join(tmpdir(), `${prefix}-`)));
    try {
      cluster.#underlay(count);
      await Promise.all(cluster.hosts.map((host) => host.core.ready()));
    } catch (error) {
      await cluster[Symbol.asyncDispose]();
      throw error;
    }
    return cluster;
  }

  host(n: number): Host {
    const host = this.hosts[n];
    if (host === undefined) throw new Error(`no host ${n}`);
    return host;
  }

  async updateAll(state: (host: Host) => NetworkState): Promise<void> {
    await Promise.all(this.hosts.map((host) => host.core.update(state(host))));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.hosts.map((host) => host.core[Symbol.asyncDispose]()));
    for (const host of this.hosts) {
      attempt(`for p in ${host.directory}/netns/*; do umount -l "$p"; done; ip netns del ${host.netns}`);
    }
    attempt(`ip netns del ${this.clientNetns}; ip netns del ${this.prefix}-net`);
    rmSync(this.directory, { recursive: true, force: true });
  }

  #underlay(count: number): void {
    const net = `${this.prefix}-net`;
    sh(`ip netns add ${net} && ip -n ${net} link add br0 type bridge && ip -n ${net} link set br0 up`);
    const join = (netns: string, n: number, address: string) => {
      sh(
        [
          `ip netns add ${netns}`,
          `ip -n ${netns} link set lo up`,
          `ip -n ${netns} link add eth0 type veth peer name p${n} netns ${net}`,
          `ip -n ${net} link set p${n} master br0 up`,
          `ip -n ${netns} addr add ${address}/24 dev eth0`,
          `ip -n ${netns} link set eth0 up`,
        ].join(" && "),
      );
    };
    join(this.clientNetns, 100, "172.31.99.100");
    for (let n = 0; n < count; n++) {
      const netns = `${this.prefix}-h${n}`;
      const underlay = `172.31.99.${n + 1}`;
      join(netns, n, underlay);
      // The world, as tasks see it: the client.
      sh(`ip -n ${netns} route add default via 172.31.99.100`);
      this.hosts.push(new Host(`host-${n}`, netns, underlay, `${this.directory}/h${n}`));
    }
  }
}
