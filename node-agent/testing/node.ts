import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ServerDuplexStream } from "@grpc/grpc-js";
import { channelOptions, clientCredentials } from "../../lib/grpc/client.ts";
import type { Role, TlsIdentity } from "../../lib/grpc/tls.ts";
import { newId } from "../../lib/ids/ids.ts";
import { Authority, createAuthority } from "../../lib/pki/authority.ts";
import { writeIdentity } from "../../lib/pki/identity.ts";
import { run } from "../../lib/process/run.ts";
import { AgentClient } from "../../proto/gen/embassy/v1/api.ts";
import type { Assignment, SessionDown, SessionUp } from "../../proto/gen/embassy/v1/dispatcher.ts";
import type { TaskStatus } from "../../proto/gen/embassy/v1/state.ts";
import { identityFiles, writeNodeFile } from "../join/node.ts";
import { Dispatcher } from "./dispatcher.ts";
import { TestNetd } from "./netd.ts";

export interface TestNodeOptions {
  readonly insecureRegistries: readonly string[];
  /** Default: from the sources. */
  readonly program?: string;
}

const program = join(import.meta.dirname, "../main.ts");

/**
 * A real noded on this machine with its own directories, a control plane and a netd that the test plays. Needs root. What it
 * made is gone when it is disposed of.
 */
export class TestNode implements AsyncDisposable {
  readonly netd: TestNetd;
  readonly agent: AgentClient;
  /** The newest status of each task, as the control plane heard it. */
  readonly statuses = new Map<string, TaskStatus>();
  /** Everything a session began with, newest last. */
  readonly hellos: TaskStatus[][] = [];
  readonly #directory: string;
  readonly #options: TestNodeOptions;
  readonly #authority: Authority;
  readonly #control: Dispatcher;
  readonly #ports: readonly [agent: number, http: number];
  readonly #watchers = new Set<() => void>();
  #assignments = new Map<string, Assignment>();
  #stream: ServerDuplexStream<SessionUp, SessionDown> | undefined;
  #child: ChildProcess | undefined;
  #log = "";

  private constructor(
    directory: string,
    options: TestNodeOptions,
    control: Dispatcher,
    ports: readonly [number, number],
    manager: TlsIdentity,
    nodeId: string,
    authority: Authority,
  ) {
    this.#authority = authority;
    this.#directory = directory;
    this.#options = options;
    this.#control = control;
    this.#ports = ports;
    this.netd = new TestNetd(join(directory, "netd.sock"), "nat-");
    this.agent = new AgentClient(
      `127.0.0.1:${ports[0]}`,
      clientCredentials(manager, { role: "node", name: nodeId }),
      channelOptions,
    );
  }

  static async create(options: TestNodeOptions): Promise<TestNode> {
    const directory = await mkdtemp(join(tmpdir(), "embassy-node-"));
    const { certificate, key } = await createAuthority("test", Date.now());
    const authority = await Authority.load(certificate, key);
    const manager = await authority.issue({ commonName: "m1", role: "manager", nowMs: Date.now() });
    const control = await new Dispatcher(authority, manager).listen();
    const stateDir = join(directory, "state");
    const nodeId = newId();
    const identity = await authority.issue({ commonName: nodeId, role: "node", nowMs: Date.now() });
    await writeIdentity(identityFiles(stateDir), identity);
    await writeNodeFile(stateDir, {
      nodeId,
      name: "test-node",
      clusterId: "testclusteraa",
      managers: [`127.0.0.1:${control.port}`],
      underlay: "127.0.0.1",
    });
    const node = new TestNode(
      directory,
      options,
      control,
      [await freePort(), await freePort()],
      manager,
      nodeId,
      authority,
    );
    await node.netd.start();
    void node.#serve();
    return node;
  }

  /** A client of the node with a certificate of that role. */
  async callAs(role: Role): Promise<Disposable & { readonly agent: AgentClient }> {
    const identity = await this.#authority.issue({ commonName: "caller", role, nowMs: Date.now() });
    const agent = new AgentClient(
      `127.0.0.1:${this.#ports[0]}`,
      clientCredentials(identity, { role: "node" }),
      channelOptions,
    );
    return { agent, [Symbol.dispose]: () => agent.close() };
  }

  get stateDir(): string {
    return join(this.#directory, "state");
  }

  /** noded's own log so far. */
  get log(): string {
    return this.#log;
  }

  get pid(): number {
    return this.#child?.pid ?? 0;
  }

  start(): void {
    const { insecureRegistries } = this.#options;
    const [agentPort, httpPort] = this.#ports;
    const flags = {
      "--state-dir": this.stateDir,
      "--run-dir": join(this.#directory, "run"),
      "--netd-socket": join(this.#directory, "netd.sock"),
      "--agent-listen": `127.0.0.1:${agentPort}`,
      "--http-listen": `127.0.0.1:${httpPort}`,
      "--log-level": "debug",
    };
    const registries = insecureRegistries.flatMap((registry) => ["--insecure-registry", registry]);
    const args = [this.#options.program ?? program, "run", ...Object.entries(flags).flat(), ...registries];
    const child = spawn(process.execPath, args, { stdio: ["ignore", "ignore", "pipe"] });
    child.stderr?.on("data", (chunk: Buffer) => {
      this.#log += chunk.toString();
      this.#changed();
    });
    this.#child = child;
  }

  /** Ends noded by this signal, and waits until it is gone. */
  async end(signal: NodeJS.Signals): Promise<number | null> {
    const child = this.#child;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return child?.exitCode ?? null;
    const gone = once(child, "exit");
    child.kill(signal);
    await gone;
    return child.exitCode;
  }

  /** Resolves with the exit code once noded has ended by itself. */
  async ended(): Promise<number | null> {
    const child = this.#child;
    if (child !== undefined && child.exitCode === null && child.signalCode === null) await once(child, "exit");
    return child?.exitCode ?? null;
  }

  /** Has the node hold this from now on, and nothing else. */
  assign(...assignments: Assignment[]): void {
    const set = new Map(assignments.map((assignment) => [assignment.taskId, assignment]));
    const remove = [...this.#assignments.keys()].filter((taskId) => !set.has(taskId));
    this.#assignments = set;
    this.#stream?.write({
      message: { $case: "assignments", value: { revision: 2, complete: false, set: assignments, remove } },
    });
  }

  /** Resolves once this is so; fails with the last state and noded's log when it takes longer than a minute. */
  async until<T>(what: string, look: () => Promise<T | undefined | false> | T | undefined | false): Promise<T> {
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    const check = () => {
      Promise.resolve(look()).then((found) => {
        if (found !== undefined && found !== false) resolve(found);
      }, reject);
    };
    const timer = setTimeout(() => {
      const state = JSON.stringify([...this.statuses.values()]).slice(0, 3_000);
      reject(new Error(`never came: ${what}\n${state}\n${this.#log.slice(-3_000)}`));
    }, 60_000);
    this.#watchers.add(check);
    // For what nobody tells of: files, processes.
    const poll = setInterval(check, 50);
    check();
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      clearInterval(poll);
      this.#watchers.delete(check);
    }
  }

  /** The control plane is away until `reconnect`. */
  async cutOff(): Promise<void> {
    await this.#control.close();
  }

  /** The control plane is there again, and says that the node was removed. */
  async remove(): Promise<void> {
    this.#control.removing = true;
    await this.#control.close();
    await this.#control.listen(this.#control.port);
  }

  async reconnect(): Promise<void> {
    await this.#control.listen(this.#control.port);
  }

  async http(path: string): Promise<string> {
    return await (await fetch(`http://127.0.0.1:${this.#ports[1]}${path}`)).text();
  }

  #changed(): void {
    for (const check of this.#watchers) check();
  }

  async #serve(): Promise<void> {
    for (;;) {
      const { stream, said, hello } = await this.#control.welcome(500);
      this.#stream = stream;
      this.hellos.push(hello.tasks);
      for (const status of hello.tasks) this.#heard(status);
      stream.write({
        message: {
          $case: "assignments",
          value: { revision: 1, complete: true, set: [...this.#assignments.values()], remove: [] },
        },
      });
      this.#changed();
      void (async () => {
        for (;;) {
          const { message } = await said.next();
          if (message?.$case === "statuses") for (const status of message.value.statuses) this.#heard(status);
        }
      })();
    }
  }

  #heard(status: TaskStatus): void {
    const known = this.statuses.get(status.taskId);
    if (known === undefined || known.sequence <= status.sequence) this.statuses.set(status.taskId, status);
    this.#changed();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // noded takes everything away itself.
    if (this.#child?.exitCode === null && this.#child.signalCode === null) {
      this.assign();
      const directory = join(this.stateDir, "tasks");
      for (let n = 0; n < 100 && (await readdir(directory).catch(() => [])).length > 0; n++) {
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      await this.end("SIGTERM");
    }
    this.agent.close();
    await this.netd[Symbol.asyncDispose]();
    await this.#control[Symbol.asyncDispose]();
    const mounts = (await readFile("/proc/self/mounts", "utf8")).split("\n").map((line) => line.split(" ")[1] ?? "");
    for (const mount of mounts.filter((path) => path.startsWith(`${this.#directory}/`)).reverse()) {
      await run("umount", [mount]);
    }
    await rm(this.#directory, { recursive: true, force: true });
  }
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise<void>((resolve) => server.close(() => resolve()));
  return typeof address === "object" && address !== null ? address.port : 0;
}
