import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { createServer as createTlsServer } from "node:tls";
import { Metadata, Server, type ServerDuplexStream, status } from "@grpc/grpc-js";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { ClusterError } from "../lib/errors/errors.ts";
import { requirePeer, send, serverCredentials, streaming, unary } from "../lib/grpc/server.ts";
import type { Role } from "../lib/grpc/tls.ts";
import { Authority, createAuthority } from "../lib/pki/authority.ts";
import {
  type ClusterServer,
  ClusterService,
  type DeployRequest,
  type DeployResponse,
  type ExecInput,
  type ExecOutput,
  type ExecStart,
  InfoResponse,
  type ListVolumesResponse,
  LogChunk,
  LogReading,
  type LogsResumption,
  NodeView,
  RevisionView,
  type ServiceUpdate,
  ServiceView,
  type SimulateRequest,
  SimulateResponse,
  StackProgress,
  StackView,
  type TaskView,
  TaskView as TaskViews,
  type UpdateNodeRequest,
  VolumeHomeView,
} from "../proto/gen/embassy/v1/api.ts";
import { MountType, Protocol, PublishedPort, PublishMode } from "../proto/gen/embassy/v1/stack.ts";
import {
  NodeState,
  type NodeStatus,
  type TaskState,
  TaskState as TaskStates,
  UpdateState,
} from "../proto/gen/embassy/v1/state.ts";
import type { Cli } from "./cli.ts";
import { everyCommand, pathOf } from "./commands/tree.ts";
import { type Context, Contexts } from "./contexts/contexts.ts";
import { makeProgram, runCli } from "./program.ts";
import { dockerWords, inOwnWords, takesNext } from "./usual-words.ts";

/** What the cluster below answers; each test sets what it needs. */
let answers: {
  deploy: (request: DeployRequest) => void;
  progress: Parameters<typeof StackProgress.create>[0][];
  tasks: TaskView[];
  stacks: StackView[];
  revisions: RevisionView[];
  updates: ServiceUpdate[];
  removed: () => void;
  listed?: () => void;
  services: ServiceView[];
  started?: ExecStart;
  node?: Partial<NodeStatus>;
  volumes: ListVolumesResponse;
  simulated?: SimulateRequest;
  updated?: UpdateNodeRequest;
  resumed: (LogsResumption | undefined)[];
  logRead?: () => void;
  info?: Parameters<typeof InfoResponse.fromPartial>[0];
};

function task(
  name: string,
  state: TaskState,
  more: { message?: string; unplaced?: string; exitCode?: number; waitsFor?: string } = {},
): TaskView {
  return TaskViews.fromPartial({
    task: {
      id: `id${name}`,
      stack: "shop",
      serviceName: name,
      slot: 1,
      unplaced: more.unplaced ?? "",
      waitsFor: more.waitsFor ?? "",
    },
    status: { taskId: `id${name}`, state, message: more.message ?? "", exitCode: more.exitCode ?? 0 },
    nodeName: "host-2",
  });
}

const absent = () => {
  throw new ClusterError("not in this test", { code: "internal" });
};

const deployed: DeployResponse = {
  revision: 2,
  created: ["service/web"],
  updated: [],
  removed: [],
  unchanged: ["service/job"],
  triedAgain: [],
};

const implementation: ClusterServer = {
  deploy: unary((request, call) => {
    requirePeer(call, ["admin"]);
    answers.deploy(request);
    return deployed;
  }),
  rollbackStack: unary(({ revision }) => ({ restored: revision || 1, deployed })),
  listRevisions: unary(() => ({ revisions: answers.revisions })),
  removeStack: unary(() => {
    answers.removed();
    return {};
  }),
  scaleService: unary(({ service }) => ({ stack: "shop", service: service.replace(/^shop_/, "") })),
  restartServices: unary(({ services }) => ({
    services: services.map((service) => ({ stack: "shop", service: service.replace(/^shop_/, ""), version: 2 })),
  })),
  rebalance: unary(() => ({ moves: [] })),
  why: unary(absent),
  simulate: unary((request) => {
    answers.simulated = request;
    return SimulateResponse.fromPartial({
      moves: [{ taskName: "shop_web.1", from: "host-3", to: "host-1", why: "its node is drained" }],
    });
  }),
  watchStack: streaming(async (call, signal) => {
    for (const progress of answers.progress) await send(call, StackProgress.fromPartial(progress ?? {}), signal);
    await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
  }),
  listStacks: unary(() => ({ stacks: answers.stacks })),
  listServices: unary(() => ({ services: answers.services })),
  listManagers: unary(() => ({ managers: [] })),
  removeManager: unary(absent),
  listTasks: unary(({ node }) => {
    answers.listed?.();
    const tasks = answers.tasks.filter(({ nodeName }) => node === "" || nodeName === node);
    return { tasks, nowMs: 1_000_000, updates: answers.updates };
  }),
  listNodes: unary((_request, call) => {
    requirePeer(call, ["admin"]);
    return {
      nodes: [
        NodeView.fromPartial({
          spec: { id: "abc", name: "host-1" },
          status: { id: "abc", state: NodeState.NODE_STATE_READY, ...answers.node },
        }),
      ],
    };
  }),
  listNetworks: unary(absent),
  updateNode: unary((request) => {
    answers.updated = request;
    return { spec: undefined };
  }),
  removeNode: unary(absent),
  createJoinToken: unary(absent),
  listVolumes: unary(() => answers.volumes),
  removeVolume: unary(({ name, node }) => {
    if (name === "shop_db") throw new ClusterError("volume shop_db is in use", { code: "conflict" });
    return { nodes: [node || "host-1"], failures: node === "" ? answers.volumes.failures : [] };
  }),
  logs: streaming(async (call, signal) => {
    const { target, follow, resume } = call.request;
    const position = (taskId: string, state: LogReading, offset = 0) =>
      follow ? { taskId, state, file: "f", offset, skip: 0 } : undefined;
    if (target === "shop_job") {
      // Breaks off after the first line, and stops in good order before the last.
      answers.resumed.push(resume);
      const turn = answers.resumed.length;
      const chunk = { taskId: "j", taskName: "shop_job.1", timeUs: turn, line: Buffer.from(`line ${turn}`) };
      const under = position("j", LogReading.LOG_READING_UNDER_WAY, turn);
      await send(call, { chunks: [LogChunk.create({ ...chunk, position: under })] }, signal);
      if (turn === 1) call.emit("error", { code: status.UNAVAILABLE, details: "the server went away" });
      const ended = position("j", LogReading.LOG_READING_ENDED);
      const last = LogChunk.create({ taskId: "j", mark: true, position: ended });
      if (turn === 3) await send(call, { chunks: [last] }, signal);
      return;
    }
    if (target === "shop_endless") {
      call.sendMetadata(new Metadata());
      answers.logRead?.();
      await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
      return;
    }
    if (target !== "shop_web") {
      // Every target means the same two tasks.
      for (const [name, at] of [
        ["shop_db.1", 2],
        ["shop_api.1", 1],
        ["shop_db.1", 3],
      ] as const) {
        const line = Buffer.from(`at ${at}`);
        const ended = position(name, LogReading.LOG_READING_ENDED);
        const more = { taskId: name, taskName: name, nodeName: "host-1", timeUs: at, position: ended };
        if (name.startsWith(target)) await send(call, { chunks: [LogChunk.create({ ...more, line })] }, signal);
      }
      return;
    }
    const chunk = LogChunk.create({ taskId: "t", taskName: "shop_web.1", nodeName: "host-1", timeUs: 1_000_000 });
    const other = LogChunk.create({ taskId: "u", taskName: "shop_web.2", nodeName: "host-1", timeUs: 1_000_000 });
    const unnamed = LogChunk.create({ timeUs: 1_000_000 });
    const chunks = [
      { ...chunk, line: Buffer.from("one, "), partial: true },
      { ...unnamed, stderr: true, line: Buffer.from("between") },
      { ...other, line: Buffer.from("another's") },
    ];
    await send(call, { chunks }, signal);
    await send(call, { chunks: [{ ...chunk, line: Buffer.from("line") }] }, signal);
    await send(call, { chunks: [{ ...chunk, warning: "host-3 is down" }] }, signal);
  }),
  // Answers stdin in capitals, and exits with 7 when it is closed.
  exec: (call: ServerDuplexStream<ExecInput, ExecOutput>) => {
    call.on("data", ({ message }: ExecInput) => {
      if (message?.$case === "start") answers.started = message.value;
      if (message?.$case === "stdin") {
        const value = Buffer.from(Buffer.from(message.value).toString().toUpperCase());
        call.write({ message: { $case: "stdout", value } });
      }
      if (message?.$case === "stdinClosed") {
        call.write({ message: { $case: "exitCode", value: 7 } });
        call.end();
      }
    });
  },
  // Only where a test asks for it: other commands call it too, when they have done their work.
  info: unary(() => (answers.info === undefined ? absent() : InfoResponse.fromPartial(answers.info))),
} as ClusterServer;

let server: Server;
let authority: Authority;
let admin: Context;
let directory: string;

async function contextOf(from: Authority, role: Role, endpoint: string, nowMs = Date.now()): Promise<Context> {
  const { certificate, key } = await from.issue({ commonName: "someone", role, nowMs });
  return {
    name: "test",
    endpoints: [endpoint],
    ca: authority.certificate.toString(),
    certificate: certificate.toString(),
    key: key.toString(),
  };
}

async function newAuthority(): Promise<Authority> {
  const made = await createAuthority("embassy test", Date.now());
  return await Authority.load(made.certificate, made.key);
}

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), "embassy-cli-"));
  authority = await newAuthority();
  const own = await authority.issue({ commonName: "m1", role: "manager", nowMs: Date.now(), hosts: ["127.0.0.1"] });
  server = new Server();
  server.addService(ClusterService, implementation);
  const credentials = serverCredentials(own);
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync("127.0.0.1:0", credentials, (error, bound) => (error === null ? resolve(bound) : reject(error)));
  });
  admin = await contextOf(authority, "admin", `127.0.0.1:${port}`);
});

afterAll(() => {
  server.forceShutdown();
  rmSync(directory, { recursive: true, force: true });
});

beforeEach(() => {
  answers = {
    deploy: () => {},
    progress: [],
    tasks: [],
    stacks: [],
    revisions: [],
    updates: [],
    services: [],
    removed: () => {},
    resumed: [],
    volumes: { volumes: [], failures: [], homes: [] },
  };
});

async function clusterctl(
  words: readonly string[],
  options: { context?: Context | undefined; input?: string; interrupted?: AbortController } = {},
) {
  const configDirectory = mkdtempSync(join(directory, "config-"));
  const environment = { EMBASSY_CONFIG_DIR: configDirectory, HOME: directory };
  const contexts = new Contexts(environment);
  const context = "context" in options ? options.context : admin;
  if (context !== undefined) {
    contexts.save(context);
    contexts.use(context.name);
  }
  let stdout = "";
  let stderr = "";
  const screen = (write: (text: string) => void) => ({
    isTerminal: false,
    columns: Number.POSITIVE_INFINITY,
    colours: false,
    write,
  });
  const output = new PassThrough();
  output.on("data", (data: Buffer) => {
    stdout += data.toString();
  });
  const stdin = new PassThrough();
  stdin.end(options.input ?? "");
  const cli = {
    out: screen((text) => {
      stdout += text;
    }),
    err: screen((text) => {
      stderr += text;
    }),
    environment,
    contexts,
    signal: (options.interrupted ?? new AbortController()).signal,
    stdin,
    stdout: output,
    stderr: output,
    exitCode: 0,
  } as unknown as Cli;
  const code = await runCli(words, cli);
  return { code, stdout, stderr };
}

function stackFile(): string {
  const file = join(directory, "stack.yml");
  writeFileSync(file, "name: shop\nservices:\n  web:\n    image: registry.lab:5000/web:1\n");
  return file;
}

describe("the command line", () => {
  it.each([
    [["depoly"], /unknown command 'depoly' \(did you mean deploy\?\)\n`clusterctl --help` lists the commands/],
    [
      ["node", "actvate"],
      /unknown command 'actvate' \(did you mean activate\?\)\n`clusterctl node` has drain, activate, /,
    ],
    [["up"], /unknown command 'up'\n`clusterctl deploy` deploys/],
    [["node", "promote", "host-1"], /unknown command 'promote'\n.*token create --role manager/],
    [["service", "update", "web"], /unknown command 'service'.*\nChange the stack file/],
    [["token", "create", "--ttl", "0s"], /argument '0s' is invalid\. Give a time of at least 1s/],
    [["token", "create", "--ttl", "20ms"], /argument '20ms' is invalid\. Give a time of at least 1s/],
    [["deploy"], /^error: no stack file was named, and there is none here\nName one with -f/],
    [
      ["deploy", "a.yml", "shop", "more"],
      /too many arguments.*\nusage: clusterctl deploy \[options\] \[file\] \[name\]\n/,
    ],
    [["deploy", "-f", "a.yml", "b.yml", "shop"], /a stack file is given in two ways/],
    [["deploy", "a.yml", "shop", "-n", "store"], /two names: shop and store/],
    [["node"], /a subcommand is missing: one of drain, activate/],
    [["token"], /a subcommand is missing: create\n/],
    [["help", "depoly"], /unknown command 'depoly' \(did you mean deploy\?\)/],
    [["completion", "fish"], /^error: argument 'shell' cannot be 'fish'\. Give bash or zsh\.\n/],
    [["--context", "nope", "ps"], /^error: there is no context nope\nThere is only test\.\n/],
    [["ps", "--al"], /unknown option '--al' \(did you mean --all\?\)\nusage: clusterctl ps/],
    [["scale", "web"], /"web" is not SERVICE=NUMBER/],
    [["simulate"], /there is nothing to simulate\nSay what is to change: --drain, --lose, --add or --scale/],
    [["simulate", "--add", "4x8gx0"], /"4x8gx0" is no size of nodes\nGive CPUs, memory and maybe how many/],
    [["simulate", "--scale", "web"], /"web" is not SERVICE=NUMBER/],
    [["logs"], /missing required argument 'target'/],
    [["logs", "web", "--tail", "few"], /argument 'few' is invalid\. Give a whole number of at least 0, or all/],
    [["logs", "web", "--since", "yesterday"], /argument 'yesterday' is invalid\. Give a time such as 10m/],
    [["exec", "web"], /missing required argument 'command'/],
    [["inspect", "web"], /"web" is not KIND\/NAME\nKIND is one of/],
    [["context", "import", "/nowhere/admin.json"], /^error: there is no file \/nowhere\/admin\.json\n/],
    [["context", "import", "README.md"], /^error: README\.md is not a context file: it is not JSON\nUse the file/],
    [["deploy", "/nowhere/stack.yml"], /\/nowhere\/stack\.yml/],
  ])("%j is refused in one sentence, with exit code 1", async (words, expected) => {
    const result = await clusterctl(words);
    expect(result.stderr).toMatch(expected);
    expect(result.code).toBe(1);
    expect(result.stdout).toBe("");
  });

  it("says help and version in the usual words, and times as they are given", async () => {
    expect((await clusterctl(["help", "deploy"])).stdout).toMatch(
      /^Usage: clusterctl deploy[\s\S]*default: 5m[\s\S]*default: 1s/,
    );
    expect((await clusterctl(["help"])).stdout).toMatch(/^Usage: clusterctl /);
    expect((await clusterctl(["--version"])).stdout).toMatch(/^clusterctl \d/);
    expect((await clusterctl(["--help"])).stdout).toMatch(/--version +print the version\n/);
    expect((await clusterctl(["logs", "--help"])).stdout).toMatch(/\(default:\s+all\)/);
  });

  it.each([
    [["node", "ls"], ["nodes"]],
    [
      ["--context", "test", "node", "list"],
      ["--context", "test", "nodes"],
    ],
    [
      ["node", "ls", "-o", "json"],
      ["nodes", "-o", "json"],
    ],
    [
      ["node", "ps", "host-1", "-a"],
      ["ps", "--node", "host-1", "-a"],
    ],
    [
      ["volume", "ls", "shop"],
      ["volumes", "shop"],
    ],
    [["config", "ls"], ["configs"]],
    [
      ["stack", "deploy", "-c", "a.yml", "shop"],
      ["deploy", "-f", "a.yml", "shop"],
    ],
    [
      ["stack", "rm", "shop"],
      ["rm", "shop"],
    ],
    [
      ["service", "logs", "-f", "web"],
      ["logs", "-f", "web"],
    ],
    [
      ["service", "inspect", "shop_web"],
      ["inspect", "service/shop_web"],
    ],
    [
      ["volume", "rm", "data"],
      ["volume", "rm", "data"],
    ],
    [
      ["context", "ls"],
      ["context", "ls"],
    ],
    [
      ["exec", "web", "--", "service", "ls"],
      ["exec", "web", "--", "service", "ls"],
    ],
    [
      ["logs", "node", "ls"],
      ["logs", "node", "ls"],
    ],
  ])("takes docker's words: %j is %j", (words, expected) => {
    const options = makeProgram({ out: {} } as unknown as Cli).options;
    expect(inOwnWords(words, (word) => takesNext(options, word))).toEqual(expected);
  });

  it("every one of docker's words stands for a command that is there", () => {
    const program = makeProgram({ out: {} } as unknown as Cli);
    const paths = new Set([...everyCommand(program)].map(pathOf));
    for (const [, ours] of dockerWords) expect(paths).toContain(ours.split(" ")[0]);
  });

  it("prints help on stdout and succeeds when asked for it", async () => {
    const result = await clusterctl(["deploy", "--help"]);
    expect(result.code).toBe(0);
    expect(result.stdout).toMatch(/^Usage: clusterctl deploy/);
  });
});

describe("a cluster that cannot be called", () => {
  it("none chosen: exit code 6", async () => {
    const result = await clusterctl(["nodes"], { context: undefined });
    expect(result.code).toBe(6);
    expect(result.stderr).toMatch(/^error: no cluster is chosen\n.*context import/);
  });

  it("nothing listens: exit code 6, with the address", async () => {
    const result = await clusterctl(["nodes"], { context: { ...admin, endpoints: ["127.0.0.1:9"] } });
    expect(result.code).toBe(6);
    expect(result.stderr).toMatch(/cannot be reached \(127\.0\.0\.1:9: connection refused\)/);
  });

  // Nothing else would end it: following logs has no deadline.
  it("a host that takes the connection and never answers: exit code 6, in seconds", { timeout: 15_000 }, async () => {
    const silent = createServer().listen(0, "127.0.0.1");
    await once(silent, "listening");
    const { port } = silent.address() as AddressInfo;
    const context = { ...admin, endpoints: [`127.0.0.1:${port}`] };
    const result = await clusterctl(["logs", "-f", "shop_web"], { context });
    silent.close();
    expect(result.stderr).toMatch(/cannot be reached \(127\.0\.0\.1:\d+: no answer\)/);
    expect(result.code).toBe(6);
  });

  it("a certificate of another CA: exit code 7", async () => {
    const endpoint = admin.endpoints[0] ?? "";
    const result = await clusterctl(["nodes"], { context: await contextOf(await newAuthority(), "admin", endpoint) });
    expect(result.code).toBe(7);
    expect(result.stderr).toMatch(/does not accept the certificate of context test\n/);
  });

  it("a certificate that has expired: exit code 7, with the day and how to have another", async () => {
    const endpoint = admin.endpoints[0] ?? "";
    const context = await contextOf(authority, "admin", endpoint, Date.UTC(2020, 0, 1));
    const result = await clusterctl(["nodes"], { context });
    expect(result.stderr).toMatch(/^error: the certificate of context test has expired on 2020-03-31\n.*admin create/);
    expect(result.code).toBe(7);
  });

  it.each([
    {
      what: "speaks first, without TLS",
      says: "SSH-2.0-OpenSSH_9.2\r\n",
      code: 6,
      told: /: it does not speak TLS\nAnother program/,
    },
    {
      what: "answers in HTTP",
      says: "HTTP/1.1 400 Bad Request\r\n\r\n",
      code: 6,
      told: /: it does not speak TLS\nAnother program/,
    },
    {
      what: "closes the connection",
      says: "",
      code: 6,
      told: /cannot be reached \(127\.0\.0\.1:\d+: it breaks the connection off\)/,
    },
  ])("a program that $what: in words that say so", async ({ says, code, told }) => {
    const stranger = createServer((socket) => socket.on("error", () => {}).end(says)).listen(0, "127.0.0.1");
    await once(stranger, "listening");
    const context = { ...admin, endpoints: [`127.0.0.1:${(stranger.address() as AddressInfo).port}`] };
    const result = await clusterctl(["nodes"], { context });
    stranger.close();
    expect(result.stderr).toMatch(told);
    expect(result.stderr).not.toMatch(/SSL|error:.*error:/);
    expect(result.code).toBe(code);
  });

  it("a server whose certificate has expired: exit code 7, and that clocks may differ", async () => {
    const own = await authority.issue({
      commonName: "m1",
      role: "manager",
      nowMs: Date.UTC(2020, 0, 1),
      hosts: ["127.0.0.1"],
    });
    const old = createTlsServer({ cert: own.certificate, key: own.key, ALPNProtocols: ["h2"] });
    old.on("tlsClientError", () => {}).listen(0, "127.0.0.1");
    await once(old, "listening");
    const context = { ...admin, endpoints: [`127.0.0.1:${(old.address() as AddressInfo).port}`] };
    const result = await clusterctl(["nodes"], { context });
    old.close();
    expect(result.stderr).toMatch(/: its certificate has expired\nCompare the clocks/);
    expect(result.code).toBe(7);
  });

  it("a host whose name is not known: exit code 6", async () => {
    const result = await clusterctl(["nodes"], { context: { ...admin, endpoints: ["nosuch.invalid:7400"] } });
    expect(result.stderr).toMatch(/nosuch\.invalid:7400: (there is no host of that name|the name cannot be looked up)/);
    expect(result.code).toBe(6);
  });

  it("a server of another CA: exit code 7", async () => {
    const other = await newAuthority();
    const result = await clusterctl(["nodes"], { context: { ...admin, ca: other.certificate.toString() } });
    expect(result.code).toBe(7);
    expect(result.stderr).toMatch(/is not a member of the cluster .*: its certificate is of another CA\n/);
  });

  it("a node's certificate: exit code 7, in the server's words", async () => {
    const context = await contextOf(authority, "node", admin.endpoints[0] ?? "");
    const result = await clusterctl(["nodes"], { context });
    expect(result.code).toBe(7);
    expect(result.stderr).toMatch(/needs a certificate with role admin, got node/);
  });
});

describe("deploy", () => {
  const service = { name: "web", desired: 1, running: 0, old: 0, problems: [] };

  it("waits until the stack has converged at its own revision or a later one", async () => {
    answers.progress = [
      { revision: 1, converged: true, services: [] },
      { revision: 2, services: [service] },
      { revision: 2, converged: true, services: [{ ...service, running: 1 }] },
    ];
    const result = await clusterctl(["deploy", stackFile(), "--settle", "0s"]);
    expect(result.code).toBe(0);
    expect(result.stderr).toMatch(/created service\/web/);
    expect(result.stderr).toMatch(/web {2}0\/1 running\n.*web {2}1\/1 running\n/);
    expect(result.stderr).toMatch(/stack shop runs: 1 service, 1 task/);
  });

  it("tells a service that gave up long ago last, once the others run", async () => {
    const old = {
      ...task("job", TaskStates.TASK_STATE_FAILED, { exitCode: 1 }),
      gaveUp: "its restart condition is none",
    };
    const job = { name: "job", desired: 1, problems: [old] };
    answers.progress = [
      { revision: 2, services: [job, service] },
      { revision: 2, services: [job, { ...service, running: 1 }] },
    ];
    const result = await clusterctl(["deploy", stackFile()]);
    expect(result.code).toBe(2);
    expect(result.stderr).toMatch(
      /web {2}1\/1 running\n(?:.*\n)*error: job\.1 ended on host-2 \(exit code 1\); gave up after 1 attempt\n/,
    );
    expect(result.stderr).toContain("What gave up is not tried again until its service changes");
  });

  it("ends with exit code 3 once the service that goes back has, and says what failed", async () => {
    const rollback = {
      version: 1,
      failedVersion: 2,
      revision: 2,
      why: "web.1 failed: exited with code 1",
      taskId: "t",
    };
    const back = { ...service, rollback, updateMessage: "rolling back, 1 of 1 to go" };
    answers.progress = [
      { revision: 1, services: [{ ...back, updateState: UpdateState.UPDATE_STATE_ROLLED_BACK }] },
      { revision: 2, services: [{ ...service, old: 1 }] },
      { revision: 2, services: [{ ...back, updateState: UpdateState.UPDATE_STATE_ROLLING_BACK }] },
      {
        revision: 2,
        services: [
          { ...back, running: 1, updateState: UpdateState.UPDATE_STATE_ROLLED_BACK, updateMessage: "rolled back" },
        ],
      },
    ];
    const result = await clusterctl(["deploy", stackFile()]);
    expect(result.code).toBe(3);
    expect(result.stderr).toMatch(
      /web {2}0\/1 as before; rolling back, 1 of 1 to go\n.*web {2}1\/1 as before; rolled back\n/,
    );
    expect(result.stderr).toMatch(
      /error: web was rolled back: web\.1 failed: exited with code 1\n.*the rest of shop is as deployed.*`clusterctl rollback shop`/,
    );
  });

  it("says of an update that is paused what comes next, and how to go back", async () => {
    const gone = { ...task("web", TaskStates.TASK_STATE_REJECTED, { message: "no such image" }) };
    const paused = {
      ...service,
      old: 2,
      oldRunning: 2,
      problems: [gone],
      updateMessage: "update paused: web.1 failed",
    };
    answers.progress = [{ revision: 2, services: [{ ...paused, updateState: UpdateState.UPDATE_STATE_PAUSED }] }];
    const result = await clusterctl(["deploy", stackFile(), "--timeout", "20s"]);
    expect(result.code).toBe(2);
    expect(result.stderr).toMatch(/web {2}0\/1 updated, 2 from before; update paused: web\.1 failed\n/);
    expect(result.stderr).toMatch(
      /cannot be started on host-2: no such image\nThe others stay as before\..*once it stays up the update goes on\..*`clusterctl rollback shop`\. 2 tasks of web from before go on\./,
    );
  }, 20_000);

  it("ends when a job that others wait for has given up, also when that was before", async () => {
    const gone = {
      ...task("job", TaskStates.TASK_STATE_FAILED, { exitCode: 4 }),
      gaveUp: "its restart condition is none",
    };
    const job = { name: "job", desired: 1, problems: [gone] };
    const waits = { ...service, waitsOn: ["job"] };
    const further = { ...service, name: "proxy", waitsOn: ["web"] };
    answers.progress = [{ revision: 2, services: [job, further, waits] }];
    const result = await clusterctl(["deploy", stackFile(), "--timeout", "3s"]);
    expect(result.code).toBe(2);
    expect(result.stderr).toContain("error: job.1 ended on host-2 (exit code 4); gave up after 1 attempt\n");
  });

  it("tells what has fitted nowhere since before, once what it changes runs", { timeout: 15_000 }, async () => {
    const waiting = { ...task("job", TaskStates.TASK_STATE_PENDING, { unplaced: "no node fits" }), nodeName: "" };
    const job = { name: "job", desired: 1, problems: [waiting] };
    answers.progress = [
      { revision: 2, services: [job, service] },
      { revision: 2, services: [job, { ...service, running: 1 }] },
    ];
    const result = await clusterctl(["deploy", stackFile(), "--timeout", "10s"]);
    expect(result.stderr).toMatch(/web {2}1\/1 running\n(?:.*\n)*error: job\.1 has no place: no node fits\n/);
    expect(result.code).toBe(2);
  });

  it("does not count a service that ends as soon as it has started", async () => {
    const crashed = task("web", TaskStates.TASK_STATE_FAILED, { exitCode: 3 });
    answers.progress = [
      { revision: 2, converged: true, services: [{ ...service, running: 1 }] },
      { revision: 2, services: [{ ...service, problems: [crashed] }] },
    ];
    const result = await clusterctl(["deploy", stackFile(), "--timeout", "300ms"]);
    expect(result.code).toBe(4);
    expect(result.stderr).toMatch(/web {2}0\/1 running; web\.1 ended on host-2 \(exit code 3\)/);
  });

  it.each([
    [["deploy", "FILE"], "shop", ["web"]],
    [["deploy", "FILE", "store"], "store", ["web"]],
    [["deploy", "-f", "FILE", "--file", "OVER"], "shop", ["extra", "web"]],
    [["deploy", "-f", "FILE", "store"], "store", ["web"]],
    [["deploy", "FILE", "-n", "store", "--profile", "more", "--project-directory", "/"], "store", ["later", "web"]],
    [["deploy", "-f", "ODD", "--ignore-unsupported", "attach", "--allow-outside"], "shop", ["odd"]],
  ])("takes the options of config: %j", async (words, name, services) => {
    const texts: Record<string, string> = {
      FILE: "name: shop\nservices:\n  web: {image: 'a:1'}\n  later: {image: 'a:1', profiles: [more]}\n",
      OVER: "services:\n  extra: {image: 'a:1'}\n",
      ODD: "name: shop\nservices:\n  odd: {image: 'a:1', attach: false}\n",
    };
    const paths = words.map((word) => {
      const text = texts[word];
      if (text === undefined) return word;
      const file = join(directory, `${word}.yml`);
      writeFileSync(file, text);
      return file;
    });
    let sent: DeployRequest | undefined;
    answers.deploy = (request) => {
      sent = request;
    };
    const result = await clusterctl([...paths, "--detach"]);
    expect(result.code).toBe(0);
    expect(sent?.spec?.name).toBe(name);
    expect(sent?.spec?.services.map((one) => one.name).toSorted()).toEqual(services);
  });

  it("names the way out when only keys that the cluster does not run stand in its way", async () => {
    const file = join(directory, "later.yml");
    const later = "x-singleton: true";
    writeFileSync(file, `name: shop\nservices:\n  web: {image: 'a:1', ${later}}\n`);
    const refused = await clusterctl(["deploy", file, "--detach"]);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(
      /Nothing was changed\. To deploy it without that: --ignore-unsupported x-singleton\n$/,
    );
    const taken = await clusterctl(["deploy", file, "--detach", "--ignore-unsupported", "x-singleton"]);
    expect(taken.code).toBe(0);
    expect(taken.stderr).toMatch(/x-singleton: is not used, as asked/);
    writeFileSync(file, `name: shop\nservices:\n  web: {image: 'a:1', pull_policy: daily, ${later}}\n`);
    expect((await clusterctl(["deploy", file])).stderr).toMatch(/\n\nNothing was changed\.\n$/);
  });

  it("says each error of a file once, with one prefix", async () => {
    const file = join(directory, "bad.yml");
    writeFileSync(file, "services:\n  web: {imag: a}\n  db: {imag: a}\n");
    const result = await clusterctl(["deploy", file]);
    expect(result.code).toBe(1);
    expect(result.stderr).toMatch(/^error: services\./);
    expect(result.stderr).not.toMatch(/error: error:/);
    expect(result.stderr).toMatch(/\n\nNothing was changed\.\n$/);
  });

  it("is refused as a conflict with exit code 5 and the server's hint", async () => {
    answers.deploy = () => {
      throw new ClusterError("port 80/tcp is taken by shop2_web", { code: "conflict", hint: "Publish another." });
    };
    const result = await clusterctl(["deploy", stackFile()]);
    expect(result.code).toBe(5);
    expect(result.stderr).toBe("error: port 80/tcp is taken by shop2_web\nPublish another.\nNothing was changed.\n");
  });

  it("says when it is interrupted that the cluster goes on, and how to undo that", async () => {
    const interrupted = new AbortController();
    answers.deploy = () => {
      setImmediate(() => interrupted.abort(new ClusterError("interrupted", { code: "unavailable" })));
    };
    const result = await clusterctl(["deploy", stackFile()], { interrupted });
    expect(result.code).toBe(130);
    expect(result.stderr).toMatch(
      /interrupted\nThe cluster goes on.*`clusterctl ps shop`.*`clusterctl rm shop` removes it/,
    );
  });

  it("says so too when a removal or a drain is interrupted", async () => {
    const interrupted = new AbortController();
    answers.progress = [{ revision: 2, services: [service] }];
    answers.removed = () => {
      setTimeout(() => interrupted.abort(new ClusterError("interrupted", { code: "unavailable" })), 50);
    };
    answers.stacks = ["shop", "store"].map((name) => StackView.create({ name }));
    const result = await clusterctl(["rm", "shop", "store"], { interrupted });
    expect(result.code).toBe(130);
    expect(result.stderr).toMatch(/interrupted\nThe cluster goes on removing shop: .* Not touched: store\.\n$/);
    answers.tasks = [task("web", TaskStates.TASK_STATE_RUNNING)];
    const again = new AbortController();
    answers.listed = () => again.abort(new ClusterError("interrupted", { code: "unavailable" }));
    const drain = await clusterctl(["node", "drain", "host-2"], { interrupted: again });
    expect(drain).toMatchObject({ code: 130 });
    expect(drain.stderr).toMatch(
      /interrupted\nThe cluster goes on with it: .*`clusterctl node activate host-2` undoes it/,
    );
  });

  it("ends at once with exit code 5 when the stack is removed meanwhile", async () => {
    const gone = { revision: 0, services: [{ ...service, desired: 0, old: 1 }] };
    answers.progress = [{ revision: 1 }, { revision: 2, services: [service] }, gone];
    expect(await clusterctl(["deploy", stackFile()])).toMatchObject({
      code: 5,
      stderr: expect.stringMatching(/error: stack shop was removed meanwhile\nIf it is to run, deploy it again\.\n$/),
    });
  });

  it("ends with exit code 4 when the time is over, and says what is missing", async () => {
    answers.progress = [{ revision: 2, services: [service] }];
    const result = await clusterctl(["deploy", stackFile(), "--timeout", "300ms"]);
    expect(result.code).toBe(4);
    expect(result.stderr).toMatch(/shop has not converged within 0\.3 s\nweb {2}0\/1 running/);
  });
});

describe("rollback", () => {
  it.each([["shop@"], ["@3"], ["shop@0"], ["shop@x"]])("%s is refused", async (word) => {
    const result = await clusterctl(["rollback", word]);
    expect(result).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/is not STACK or STACK@REVISION\nFor example/),
    });
  });

  it("says what the stack is like again, and waits as deploy does", async () => {
    answers.progress = [{ revision: 2, converged: true, services: [] }];
    const result = await clusterctl(["rollback", "shop@7", "--settle", "0s"]);
    expect(result.stderr).toMatch(/^stack shop, revision 2: created service\/web; as revision 7\n.*stack shop runs/);
    expect(result.code).toBe(0);
  });

  it("lists the revisions with what became of them", async () => {
    const update = { stack: "shop", service: "web", state: UpdateState.UPDATE_STATE_PAUSED, message: "update paused" };
    const rows = [
      { revision: 5, newest: true, updates: [update], changed: ["service/web"] },
      { revision: 4, rolledBack: ["web"], changed: ["service/web"] },
      { revision: 3, convergedAtMs: 5, restores: 1, changed: [] },
      { revision: 2 },
      { revision: 1, convergedAtMs: 5 },
    ];
    answers.revisions = rows.map((row) => RevisionView.fromPartial({ ...row, deployedBy: "admin" }));
    const { stdout } = await clusterctl(["revisions", "shop"]);
    const cells = stdout
      .trimEnd()
      .split("\n")
      .map((line) => line.trim().split(/ {2,}/));
    expect(cells.slice(1).map(([revision, , , changed, outcome]) => [revision, changed, outcome])).toEqual([
      ["5", "service/web", "web update paused"],
      ["4", "service/web", "rolled back: web"],
      ["3", "as revision 1", "ran"],
      ["2", "nothing", "did not all run"],
      ["1", "nothing", "ran"],
    ]);
  });
});

describe("scale", () => {
  const unplaced = { ...task("web", TaskStates.TASK_STATE_PENDING, { unplaced: "no node fits" }), nodeName: "" };
  const web = { name: "web", desired: 4, running: 2, problems: [unplaced] };

  it("prints what it has set as JSON, and nothing else", async () => {
    answers.progress = [
      { revision: 1, converged: true, services: [{ name: "web", desired: 3, running: 3, completed: 0, old: 0 }] },
    ];
    const result = await clusterctl(["scale", "web=3", "-o", "json"]);
    expect(JSON.parse(result.stdout)).toEqual({ services: [{ stack: "shop", service: "web", replicas: 3 }] });
    expect(result.code).toBe(0);
    expect(JSON.parse((await clusterctl(["scale", "-d", "web=3", "-o", "json"])).stdout)).toMatchObject({
      services: [{}],
    });
  });

  it("gives up on tasks that fit nowhere from the first state on, as deploy does", { timeout: 15_000 }, async () => {
    const old = { name: "old", desired: 1, problems: [task("old", TaskStates.TASK_STATE_REJECTED)] };
    answers.progress = [{ revision: 1, services: [old, web] }];
    const result = await clusterctl(["scale", "shop_web=4"]);
    expect(result.code).toBe(2);
    expect(result.stderr).toMatch(
      /\nerror: web\.1 has no place: no node fits\n.*Scale it back, mend it and deploy again, look at it/,
    );
    expect(result.stderr).toContain("`clusterctl logs shop_web`");
    expect(result.stderr).not.toContain("old");
  });

  it("says nothing of services that it does not change when the time is over", async () => {
    const job = { name: "job", desired: 1, problems: [task("job", TaskStates.TASK_STATE_REJECTED)] };
    answers.progress = [{ revision: 1, services: [job, { name: "web", desired: 4, running: 2 }] }];
    const { code, stderr } = await clusterctl(["scale", "shop_web=4", "--timeout", "300ms"]);
    expect(code).toBe(4);
    expect(stderr).toMatch(/error: shop_web has not reached 4 tasks within 0\.3 s\nweb {2}2\/4 running\n/);
    expect(stderr).not.toContain("job");
  });

  it("names its services when the time is over", async () => {
    const db = { name: "db", desired: 1, running: 1 };
    answers.progress = [{ revision: 1, services: [db, web] }];
    const one = await clusterctl(["scale", "shop_web=4", "--timeout", "0s"]);
    expect(one).toMatchObject({ code: 4, stderr: expect.stringContaining("error: shop_web has not reached 4 tasks") });
    const two = await clusterctl(["scale", "shop_web=4", "shop_db=1", "--timeout", "0s"]);
    expect(two.stderr).toContain("error: shop_web, shop_db have not all reached their numbers within");
  });

  it("is not done when the stack is removed meanwhile", async () => {
    answers.progress = [
      { revision: 1, services: [web] },
      { revision: 0, removed: true },
    ];
    expect(await clusterctl(["scale", "shop_web=4"])).toMatchObject({ code: 5 });
  });
});

describe("rm", () => {
  const service = { name: "web", desired: 1, running: 1 };

  it("ends with exit code 5 when the stack is deployed again meanwhile", async () => {
    answers.progress = [
      { revision: 4, services: [service] },
      { revision: 0, services: [{ ...service, desired: 0, old: 1 }] },
      { revision: 1, services: [service] },
    ];
    expect(await clusterctl(["rm", "shop", "--timeout", "3s"])).toMatchObject({
      code: 5,
      stderr: expect.stringMatching(
        /error: stack shop was deployed again meanwhile \(revision 1\)\nIf it is to go, remove it again\.\n$/,
      ),
    });
  });
});

describe("what is read", () => {
  it("has every field in JSON", async () => {
    const { stdout } = await clusterctl(["nodes", "--output", "json"]);
    expect(JSON.parse(stdout)).toMatchObject({
      nodes: [{ spec: { name: "host-1", labels: {} }, status: { state: "ready" }, tasks: 0 }],
    });
    expect(JSON.parse((await clusterctl(["stacks", "-o", "json"])).stdout)).toEqual({ stacks: [] });
  });

  it("is refused of a stack that is not there", async () => {
    const result = await clusterctl(["services", "nosuch"]);
    expect(result.code).toBe(1);
    expect(result.stderr).toMatch(/^error: there is no stack or service nosuch\n/);
  });

  it("puts the parts of a long line together, and warnings on stderr", async () => {
    const result = await clusterctl(["logs", "shop_web", "-t"]);
    expect(result.stdout).toBe(
      "1970-01-01T00:00:01.000Z shop_web.1 | between\n1970-01-01T00:00:01.000Z shop_web.2 | another's\n1970-01-01T00:00:01.000Z shop_web.1 | one, line\n",
    );
    expect(result.stderr).toBe("warning: host-3 is down\n");
  });

  it("merges the lines of several targets by time, and says each once", async () => {
    const result = await clusterctl(["logs", "shop_db", "shop", "shop_api", "shop_db"]);
    expect(result).toEqual({ code: 0, stdout: "shop_api.1 | at 1\nshop_db.1 | at 2\nshop_db.1 | at 3\n", stderr: "" });
    const followed = await clusterctl(["logs", "-f", "shop_db", "shop_api", "shop"]);
    expect(followed.stdout.split("\n").toSorted()).toEqual([
      "",
      "shop_api.1 | at 1",
      "shop_db.1 | at 2",
      "shop_db.1 | at 3",
    ]);
  });

  it("removes volumes, and says where that could not be done", async () => {
    expect(await clusterctl(["volume", "rm", "a", "b"])).toEqual({
      code: 0,
      stdout: "",
      stderr: "a is removed from host-1\nb is removed from host-1\n",
    });
    answers.volumes = { volumes: [], failures: [{ nodeName: "host-4", why: "node host-4 is down" }], homes: [] };
    expect(await clusterctl(["volume", "rm", "a"])).toMatchObject({
      code: 6,
      stderr: expect.stringContaining("error: a stays where it could not be removed: node host-4 is down\n") as string,
    });
    expect((await clusterctl(["volume", "rm", "a", "--node", "host-2"])).stderr).toBe("a is removed from host-2\n");
    expect((await clusterctl(["volume", "rm", "shop_db"])).code).toBe(5);
  });

  it("removes nothing when one of several is not there or in use", async () => {
    answers.stacks = [StackView.create({ name: "shop" })];
    answers.removed = () => expect.unreachable("a stack was removed");
    expect(await clusterctl(["rm", "shop", "shopp"])).toMatchObject({
      code: 1,
      stderr: "error: there is no stack shopp\nDid you mean shop?\n",
    });
    expect(await clusterctl(["volume", "rm", "a", "shop_db"])).toMatchObject({
      code: 5,
      stderr: "error: volume shop_db is in use\n",
    });
  });

  it("a node whose netd is away has no network, unless it is down anyway", async () => {
    answers.node = { networkProblem: "netd is not there" };
    const { stdout } = await clusterctl(["nodes"]);
    expect(stdout).toMatch(/host-1 .*no network .*netd is not there/);
    const inspected = JSON.parse((await clusterctl(["inspect", "node/host-1"])).stdout) as unknown;
    expect(inspected).toMatchObject({ status: { state: "ready", networkProblem: "netd is not there" } });
    answers.node = { ...answers.node, state: NodeState.NODE_STATE_DOWN, message: "no sign of life" };
    expect((await clusterctl(["nodes"])).stdout).toMatch(/host-1 .*down .*no sign of life/);
  });

  it("a node whose disk is nearly full is low on disk, and says so beside what is wrong with its network", async () => {
    const diskProblem = "the disk of /d is nearly full";
    answers.node = { diskProblem };
    expect((await clusterctl(["nodes"])).stdout).toMatch(/host-1 .*low disk .*the disk of \/d is nearly full/);
    const inspected = JSON.parse((await clusterctl(["inspect", "node/host-1"])).stdout) as unknown;
    expect(inspected).toMatchObject({ status: { state: "ready", diskProblem } });
    answers.node = { diskProblem, networkProblem: "no netd" };
    expect((await clusterctl(["nodes"])).stdout).toMatch(
      /host-1 .*no network .*no netd; the disk of \/d is nearly full/,
    );
    answers.node = { diskProblem, state: NodeState.NODE_STATE_DOWN, message: "no sign of life" };
    expect((await clusterctl(["nodes"])).stdout).toMatch(/host-1 .*down .*no sign of life/);
  });

  it("a restart waits for the new tasks, and a state from before it says nothing", async () => {
    const gaveUp = { ...task("web", TaskStates.TASK_STATE_FAILED), gaveUp: "its restart condition is none" };
    const web = { name: "web", desired: 1 };
    answers.progress = [
      { revision: 1, services: [{ ...web, version: 1, problems: [gaveUp] }] },
      {
        revision: 1,
        services: [
          { ...web, version: 2, running: 1 },
          { name: "other", desired: 1, problems: [gaveUp] },
        ],
      },
    ] as typeof answers.progress;
    const result = await clusterctl(["restart", "shop_web"]);
    expect(result.stderr).toMatch(/^shop_web: every task is replaced\n.*web\s+1\/1 running\n.*done after /s);
    expect(result.code).toBe(0);
    const given = [{ stack: "shop", service: "web", version: 2 }];
    expect(JSON.parse((await clusterctl(["restart", "-d", "web", "-o", "json"])).stdout)).toEqual({ services: given });
  });

  it.each([true, false])(
    "of a log ends with exit code 130 when it is interrupted, and says nothing (following: %s)",
    async (follow) => {
      const interrupted = new AbortController();
      answers.logRead = () => interrupted.abort(new ClusterError("interrupted", { code: "unavailable" }));
      const result = await clusterctl(["logs", ...(follow ? ["-f"] : []), "shop_endless"], { interrupted });
      expect(result).toMatchObject({ code: 130, stderr: "" });
    },
  );

  it.each([
    [{ nodesReady: 3, nodesTotal: 3 }, "3 of 3 ready"],
    [
      { nodesReady: 3, nodesTotal: 6, nodesSilent: 1, nodesWithoutNetwork: 2, nodesLowOnDisk: 1 },
      "3 of 6 ready, 2 of them without network, 1 of them low on disk, 1 silent, 2 down",
    ],
  ])("counts the nodes of %j", async (info, expected) => {
    answers.info = info;
    expect((await clusterctl(["info"])).stdout).toContain(`nodes:     ${expected}\n`);
  });

  it("goes on behind the last line when the connection breaks, and says so, until all is read", async () => {
    const result = await clusterctl(["logs", "-f", "shop_job"]);
    expect(result.stdout).toBe("shop_job.1 | line 1\nshop_job.1 | line 2\nshop_job.1 | line 3\n");
    const broke = "warning: the connection to the cluster broke off, trying again\n";
    const again = "warning: connected again: the log goes on with the next line\n";
    expect(result.stderr).toBe(`${broke}${again}${broke}${again}`);
    expect(answers.resumed.map((resume) => resume?.tasks.map(({ offset }) => offset))).toEqual([undefined, [1], [2]]);
  });

  it("lists secrets, configs and volumes with who uses them, and nothing that is in them", async () => {
    const blob = { name: "key", content: Buffer.from("ab".repeat(32), "hex"), labels: { team: "shop" } };
    const container = {
      secrets: [{ source: "key" }],
      mounts: [{ type: MountType.MOUNT_TYPE_VOLUME, source: "shop_data" }],
    };
    const spec = { name: "shop", secrets: [blob], services: [{ name: "db", container }, { name: "web" }] };
    answers.stacks = [StackView.fromPartial({ name: "shop", spec })];
    answers.services = [ServiceView.fromPartial({ service: { stack: "shop", spec: { name: "db", container } } })];
    answers.tasks = [
      TaskViews.fromPartial({
        task: { spec: { container } },
        status: { state: TaskStates.TASK_STATE_RUNNING },
        nodeName: "host-2",
      }),
    ];
    expect((await clusterctl(["secrets"])).stdout).toMatch(/NAME.*\nshop_key +abababababab +db +team=shop\n$/);
    expect(JSON.parse((await clusterctl(["secrets", "shop", "-o", "json"])).stdout)).toEqual({
      secrets: [{ stack: "shop", name: "key", digest: "ab".repeat(32), labels: { team: "shop" }, services: ["db"] }],
    });
    expect((await clusterctl(["configs", "-o", "json"])).stdout).toBe('{\n  "configs": []\n}\n');
    expect(JSON.parse((await clusterctl(["volumes", "-o", "json"])).stdout)).toEqual({
      volumes: [{ name: "shop_data", services: ["shop_db"], nodes: ["host-2"], homes: [], dataNodes: [], bytes: {} }],
    });
    const homeOn = (volume: string, slot: number, nodeName: string, problem = "") =>
      VolumeHomeView.fromPartial({ home: { volume, slot, service: "shop_db" }, nodeName, problem });
    const held = [
      ["old_data", "host-3"],
      ["shop_data", "host-1"],
      ["shop_data", "host-2"],
    ] as const;
    answers.volumes = {
      volumes: held.map(([name, nodeName]) => ({ name, nodeName })),
      failures: [{ nodeName: "host-4", why: "node host-4 is down" }],
      homes: [
        homeOn("old_data", 1, "host-1"),
        homeOn("shop_data", 1, "host-2"),
        homeOn("shop_data", 2, "host-4", "down"),
        homeOn("shop_data", 3, "host-2"),
      ],
    };
    expect(await clusterctl(["volumes"])).toEqual({
      code: 0,
      stdout: expect.stringMatching(
        /\nold_data +- +- +host-1 \(no data\) +host-3\nshop_data +shop_db +host-2 +host-2 \(slots 1 3\), host-4 \(slot 2, down\) +host-1 host-2\n$/,
      ) as string,
      stderr: "warning: volumes are missing from the list: node host-4 is down\n",
    });
    answers.volumes.volumes.splice(1, 1, { name: "shop_data", nodeName: "host-1", bytes: 3 * 2 ** 20 });
    expect((await clusterctl(["volumes", "shop", "--size"])).stdout).toMatch(/host-1 host-2 +3\.0 MiB, \?\n$/);
    expect((await clusterctl(["volumes", "shop"])).stdout).not.toContain("old_data");
    const inspected = async (subject: string) => JSON.parse((await clusterctl(["inspect", subject])).stdout) as unknown;
    expect(await inspected("volume/old_data")).toMatchObject({
      name: "old_data",
      dataNodes: ["host-3"],
      homes: [{ slot: 1, node: "host-1", problem: "no data", service: "shop_db" }],
    });
    expect(await inspected("secret/shop_key")).toMatchObject({ stack: "shop", name: "key", services: ["db"] });
    expect((await clusterctl(["inspect", "config/key"])).stderr).toBe("error: there is no config key\n");
    expect(await clusterctl(["volumes", "shp"])).toMatchObject({
      code: 1,
      stderr: "error: there is no stack shp\nDid you mean shop?\n",
    });
  });

  it("tells of a published port where it answers", async () => {
    const ports = [
      PublishedPort.fromPartial({ published: 19001, target: 80 }),
      PublishedPort.fromPartial({ published: 19002, target: 80, hostIp: "127.0.0.1" }),
      PublishedPort.fromPartial({
        published: 19003,
        target: 53,
        protocol: Protocol.PROTOCOL_UDP,
        mode: PublishMode.PUBLISH_MODE_HOST,
      }),
    ];
    answers.services = [
      ServiceView.fromPartial({ service: { stack: "shop", spec: { name: "web" } }, status: { ports } }),
    ];
    const { stdout } = await clusterctl(["services"]);
    expect(stdout).toContain(" 19001→80/tcp 127.0.0.1:19002→80/tcp 19003→53/udp (host)");
  });

  it("shows why a task failed", async () => {
    answers.tasks = [task("web", TaskStates.TASK_STATE_FAILED, { exitCode: 3, message: "no such file" })];
    const { stdout } = await clusterctl(["ps"]);
    expect(stdout).toMatch(/shop_web\.1 +idweb +host-2 +failed \(3\) +- +no such file/);
  });

  it("shows what comes after a task that failed", async () => {
    const failed = task("web", TaskStates.TASK_STATE_FAILED, { exitCode: 3, message: "no such file" });
    answers.tasks = [
      { ...failed, retryAtMs: 1_004_100 },
      { ...task("api", TaskStates.TASK_STATE_FAILED, { message: "out of files" }), retryAtMs: 999_000 },
      { ...task("job", TaskStates.TASK_STATE_FAILED, { message: "no luck" }), gaveUp: "its restart condition is none" },
    ];
    const { stdout } = await clusterctl(["ps"]);
    expect(stdout).toMatch(/shop_web\.1 .* no such file; next try in 5 s\n/);
    expect(stdout).toMatch(/shop_api\.1 .* out of files; next try now\n/);
    expect(stdout).toMatch(/shop_job\.1 .* gave up after 1 attempt: no luck\n/);
    expect(JSON.parse((await clusterctl(["ps", "-o", "json"])).stdout)).toMatchObject({
      nowMs: 1_000_000,
      tasks: [{ retryAtMs: 1_004_100, gaveUp: "" }, {}, { retryAtMs: 0, gaveUp: "its restart condition is none" }],
    });
  });

  it("says below the tasks which updates have failed, and what can be done", async () => {
    answers.tasks = [task("web", TaskStates.TASK_STATE_RUNNING)];
    const web = { stack: "shop", service: "web", message: "update paused, 2 of 3 to go: web.1 failed" };
    answers.updates = [{ ...web, state: UpdateState.UPDATE_STATE_PAUSED }];
    const { stdout, stderr } = await clusterctl(["ps"]);
    expect(stdout).not.toContain("paused");
    expect(stderr).toMatch(
      /^shop_web: update paused, 2 of 3 to go: web\.1 failed\n {2}.*`clusterctl rollback shop`\.\n$/,
    );
    const json = JSON.parse((await clusterctl(["ps", "--output", "json"])).stdout);
    expect(json.updates).toEqual([{ ...web, state: "paused" }]);
  });

  it("shows what a task waits for, and what became of it after that", async () => {
    const more = { message: "no such image", waitsFor: "db to be healthy" };
    answers.tasks = [task("web", TaskStates.TASK_STATE_REJECTED, more), task("api", TaskStates.TASK_STATE_READY, more)];
    const { stdout } = await clusterctl(["ps"]);
    expect(stdout).toMatch(/shop_web\.1 .* rejected .* no such image\n/);
    expect(stdout).toMatch(/shop_api\.1 .* ready .* db to be healthy\n/);
  });
});

describe("what changes something says so", () => {
  it.each([
    [["node", "activate", "host-1"], "host-1 is active\n"],
    [["node", "pause", "host-1"], "host-1 is paused: it gets no new tasks\n"],
    [["node", "label", "host-1", "zone=a", "old-"], "host-1 has zone=a; has no old\n"],
    [["node", "drain", "host-1"], "host-1 is drained: no task runs there\n"],
    [["context", "use", "test"], "context test is the current one\n"],
  ])("%j", async (words, expected) => {
    expect(await clusterctl(words)).toEqual({ code: 0, stdout: "", stderr: expected });
    expect(await clusterctl([...words, "-o", "json"])).toEqual({ code: 0, stdout: "", stderr: "" });
  });
});

describe("context rm", () => {
  it("forgets none when there is none of one name", async () => {
    const result = await clusterctl(["context", "rm", "test", "nosuch"]);
    expect(result).toMatchObject({ code: 1, stderr: "error: there is no context nosuch\nNone was forgotten.\n" });
  });
});

describe("simulate", () => {
  it("asks for all changes at once, and prints what would happen on stdout", async () => {
    const words = ["--drain", "host-3", "--drain", "b", "--lose", "zone=a", "--add", "0.5x512mx3", "--scale", "web=4"];
    const result = await clusterctl(["simulate", ...words]);
    expect(answers.simulated).toEqual({
      drain: ["host-3", "b"],
      lose: ["zone=a"],
      add: [{ milliCpus: 500, memoryBytes: 512 * 2 ** 20, count: 3 }],
      scale: [{ service: "web", replicas: 4 }],
      force: false,
    });
    expect(result.stdout).toBe("TASK        FROM    TO      WHY\nshop_web.1  host-3  host-1  its node is drained\n");
    expect(result.stderr).toBe("1 task would move. Nothing was changed.\n");
    expect(result.code).toBe(0);
  });

  it("is what `node drain --dry-run` does, which drains nothing", async () => {
    const result = await clusterctl(["node", "drain", "host-3", "--dry-run", "--output", "json"]);
    expect(answers.simulated).toEqual({ drain: ["host-3"], lose: [], add: [], scale: [], force: false });
    expect(JSON.parse(result.stdout)).toMatchObject({ moves: [{ taskName: "shop_web.1" }], waits: [] });
    expect(result.stderr).toBe("");
  });
});

describe("node drain", () => {
  it("warns of the node's own tasks that find no place, and of no others", async () => {
    const waiting = (name: string, replaces: string) => {
      const view = task(name, TaskStates.TASK_STATE_PENDING, { unplaced: "no node fits: 1 is drained" });
      return { ...view, nodeName: "", task: view.task && { ...view.task, replaces } };
    };
    const gone = { ...task("old", TaskStates.TASK_STATE_SHUTDOWN), nodeName: "host-1" };
    const elsewhere = { ...task("before", TaskStates.TASK_STATE_SHUTDOWN), nodeName: "host-3" };
    answers.tasks = [gone, elsewhere, waiting("web", "idold"), waiting("api", "idbefore"), waiting("new", "")];
    const { stderr } = await clusterctl(["node", "drain", "host-1"]);
    expect(stderr).toBe(
      "host-1 is drained: no task runs there\nwarning: shop_web.1 has no place: no node fits: 1 is drained\n",
    );
  });
});

describe("a drain of a node that is down", () => {
  it("does not say that no task runs there, and says what is replaced", async () => {
    const at = (name: string, state: TaskState, nodeName: string, epoch: number) => {
      const view = task(name, state);
      return { ...view, nodeName, task: view.task && { ...view.task, epoch } };
    };
    answers.tasks = [
      at("web", TaskStates.TASK_STATE_ORPHANED, "host-1", 3),
      at("web", TaskStates.TASK_STATE_RUNNING, "host-2", 4),
      at("db", TaskStates.TASK_STATE_ORPHANED, "host-1", 3),
      at("moved", TaskStates.TASK_STATE_SHUTDOWN, "host-1", 1),
      at("moved", TaskStates.TASK_STATE_RUNNING, "host-3", 2),
    ];
    answers.node = { state: NodeState.NODE_STATE_DOWN };
    const { code, stderr } = await clusterctl(["node", "drain", "host-1"]);
    expect(stderr).toBe(
      "warning: host-1 is drained and down: what still runs there cannot be told, and is stopped when it comes back\nreplaced: shop_web.1 on host-2\n",
    );
    expect(code).toBe(0);
  });
});

describe("a drain that may not stop a task yet", () => {
  const kept = "shop_web has to keep 2 up (x-disruption.min_available), and has 2";

  it("says why while it waits, and what to do when its time is over", async () => {
    answers.tasks = ["web", "api"].map((name) => ({
      ...task(name, TaskStates.TASK_STATE_RUNNING),
      nodeName: "host-1",
      kept: name === "web" ? kept : "",
    }));
    const result = await clusterctl(["node", "drain", "host-1", "--timeout", "0s"]);
    expect(result.code).toBe(4);
    expect(result.stderr).toMatch(
      /host-1 still runs shop_api\.1, shop_web\.1 after 0\.0 s; shop_web\.1 goes on: shop_web has to keep 2 up/,
    );
    expect(result.stderr).toContain("`clusterctl node drain --force host-1` moves or stops them all the same");
    expect((await clusterctl(["ps"])).stdout).toContain(kept);
    answers.tasks = [{ ...task("web", TaskStates.TASK_STATE_RUNNING), nodeName: "host-1" }];
    expect((await clusterctl(["node", "drain", "host-1", "--timeout", "0s"])).stderr).not.toContain("--force");
  });

  it("takes it all the same with --force", async () => {
    await clusterctl(["node", "drain", "host-1", "--force"]);
    expect(answers.updated).toMatchObject({ node: "host-1", force: true });
    await clusterctl(["node", "drain", "host-1"]);
    expect(answers.updated).toMatchObject({ node: "host-1", force: false });
    await clusterctl(["node", "drain", "host-1", "--force", "--dry-run"]);
    expect(answers.simulated).toMatchObject({ drain: ["host-1"], force: true });
  });
});

describe("a deploy that the cluster refuses", () => {
  it("has the place in the file, and says that nothing was changed", async () => {
    const refusal = (code: "conflict" | "unavailable", subject: string) => () => {
      throw new ClusterError("port 80/tcp is taken by other_web", { code, subject, hint: "Publish another." });
    };
    answers.deploy = refusal("conflict", "services.web.image");
    const placed = await clusterctl(["deploy", stackFile()]);
    expect(placed.code).toBe(5);
    expect(
      placed.stderr.replace(/--> .*stack\.yml/, "--> stack.yml"),
    ).toBe(`error: services.web.image: port 80/tcp is taken by other_web
 --> stack.yml:4:12
  |
4 |     image: registry.lab:5000/web:1
  |            ^^^^^^^^^^^^^^^^^^^^^^^
  = Publish another.

Nothing was changed.
`);
    answers.deploy = refusal("conflict", "network/shop_default");
    const other = await clusterctl(["deploy", stackFile()]);
    expect(other.stderr).toBe("error: port 80/tcp is taken by other_web\nPublish another.\nNothing was changed.\n");
    answers.deploy = refusal("unavailable", "services.web.ports");
    expect((await clusterctl(["deploy", stackFile()])).stderr).not.toContain("Nothing was changed");
  });
});

describe("config -o json", () => {
  it("prints one document, also of lists", async () => {
    const flags = ["--services", "--volumes", "--networks", "--images", "--hash", "--environment"];
    const { stdout, stderr } = await clusterctl(["config", "-f", stackFile(), ...flags, "-o", "json"]);
    expect(JSON.parse(stdout)).toEqual({
      services: ["web"],
      volumes: [],
      networks: ["default"],
      images: ["registry.lab:5000/web:1"],
      hashes: { web: expect.stringMatching(/^[0-9a-f]{64}$/) },
      environment: [],
    });
    expect(stderr).toBe("");
    expect(JSON.parse((await clusterctl(["config", "-f", stackFile(), "--images", "-o", "json"])).stdout)).toEqual({
      images: ["registry.lab:5000/web:1"],
    });
  });
});

describe("exec", () => {
  it("-e NAME takes the caller's value, and nothing where the caller has none", async () => {
    const result = await clusterctl(["exec", "-e", "HOME", "-e", "UNSET", "-e", "A=b=c", "-e", "EMPTY=", "web", "env"]);
    expect(result).toMatchObject({ code: 7, stderr: "" });
    expect(answers.started?.environment).toEqual({ HOME: directory, A: "b=c", EMPTY: "" });
  });

  it.each(["", "=x"])("-e %j is refused before anything is connected to", async (word) => {
    const nowhere = { ...admin, endpoints: ["127.0.0.1:1"] };
    const result = await clusterctl(["exec", "-e", word, "web", "env"], { context: nowhere });
    expect(result.code).toBe(1);
    expect(result.stderr).toMatch(/^error: --env ".*" has no name\nGive NAME=VALUE/);
    expect(answers.started).toBeUndefined();
  });

  it("passes stdin on and exits with the command's code", async () => {
    const result = await clusterctl(["exec", "-i", "shop_web.1", "--", "tr", "a-z", "A-Z"], { input: "hello" });
    expect(result).toEqual({ code: 7, stdout: "HELLO", stderr: "" });
  });

  it.each([
    [["exec", "shop_web.1", "id", "-u"], ["id", "-u"], "", false],
    [["exec", "shop_web.1", "--", "id", "-u"], ["id", "-u"], "", false],
    [
      ["exec", "-iu", "root", "shop_web.1", "sh", "-c", "ls -l", "--", "-x"],
      ["sh", "-c", "ls -l", "--", "-x"],
      "root",
      true,
    ],
    [["exec", "-e", "A=1", "--user=root", "shop_web.1", "-i", "env", "-i"], ["env", "-i"], "root", true],
    [
      ["-o", "json", "exec", "-w/tmp", "shop_web.1", "ps", "-o", "pid", "--help"],
      ["ps", "-o", "pid", "--help"],
      "",
      false,
    ],
    [["exec", "shop_web.1", "exec", "-u", "x"], ["exec", "-u", "x"], "", false],
  ])("%j runs %j", async (words, command, user, stdin) => {
    const result = await clusterctl(words);
    expect(result).toMatchObject({ code: 7, stderr: "" });
    expect(answers.started).toMatchObject({ target: "shop_web.1", command, user, stdin });
  });
});
