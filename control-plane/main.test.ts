import { type ChildProcess, spawn } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { call, channelOptions, clientCredentials } from "../lib/grpc/client.ts";
import { ClusterClient, type ListManagersRequest, type ListManagersResponse } from "../proto/gen/embassy/v1/api.ts";
import { ManagerState } from "../proto/gen/embassy/v1/state.ts";
import { bundleOptions } from "../scripts/bundle.ts";
import { findEtcd } from "./etcd/process.ts";
import { stateFiles } from "./pki/state-dir.ts";
import { freePort, testEtcd } from "./store/etcd.testing.ts";

/** For each test, and for bundling: on a busy machine either waits mostly for a core. */
const patienceMs = 90_000;

// clusterd as users run it: its own process, real etcd.
let built: string;
let main: string;
beforeAll(async () => {
  // A bundle starts in a fifth of the time that the sources take.
  built = await mkdtemp(join(tmpdir(), "embassy-bundle-"));
  main = join(built, "clusterd.mjs");
  await build({ ...bundleOptions, entryPoints: [join(import.meta.dirname, "main.ts")], outfile: main });
}, patienceMs);
afterAll(async () => {
  await rm(built, { recursive: true });
});
let directory: string;
let running: ChildProcess[];
let logs: (() => string)[];
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "embassy-clusterd-"));
  running = [];
  logs = [];
});
afterEach(async () => {
  for (const child of running) if (child.exitCode === null && child.signalCode === null) child.kill("SIGKILL");
  for (const member of ["m1", "m2", "m3"]) {
    const etcd = await findEtcd(stateFiles(join(directory, member)).etcdData, []);
    if (etcd !== undefined) process.kill(etcd.pid, "SIGKILL");
  }
  await rm(directory, { recursive: true, maxRetries: 10 });
});

const state = () => join(directory, "m1");

interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}
function clusterd(...args: string[]): {
  readonly child: ChildProcess;
  readonly ended: Promise<Ended>;
  stderr(): string;
} {
  const child = spawn(process.execPath, [main, ...args], { stdio: ["ignore", "pipe", "pipe"] });
  running.push(child);
  const out = { stdout: "", stderr: "" };
  logs.push(() => out.stderr);
  child.stdout?.on("data", (data) => {
    out.stdout += data;
  });
  child.stderr?.on("data", (data) => {
    out.stderr += data;
  });
  const ended = new Promise<Ended>((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, ...out }));
  });
  return { child, ended, stderr: () => out.stderr };
}
const init = async (advertise = "127.0.0.1") =>
  await clusterd("init", "--advertise", advertise, "--name", "m1", "--state-dir", state()).ended;

async function managerToken(): Promise<string> {
  const made = await clusterd("token", "create", "--role", "manager", "--state-dir", state()).ended;
  expect(made).toMatchObject({ code: 0, stdout: expect.stringMatching(/^EMB-1-/) });
  return made.stdout.trim();
}
async function joinAs(name: string, at: Ports, own: Ports, token?: string): Promise<Ended> {
  const flags = ["--manager", at.join, "--token", token ?? (await managerToken()), "--advertise", own.main];
  return await clusterd("join", ...flags, "--name", name, "--state-dir", join(directory, name)).ended;
}

interface Ports {
  /** host:port of the main listener. */
  readonly main: string;
  readonly join: string;
  readonly http: number;
  readonly flags: readonly string[];
}
async function ports(stateDir = state(), embedded = true): Promise<Ports> {
  const [main, join, http, etcd, peer] = await Promise.all(Array.from({ length: 5 }, freePort));
  const local = (port: number | undefined) => `127.0.0.1:${port}`;
  const flags = [
    "--state-dir",
    stateDir,
    "--listen",
    local(main),
    "--join-listen",
    local(join),
    "--http-listen",
    local(http),
  ];
  if (embedded) flags.push("--etcd-listen", local(etcd), "--etcd-peer-listen", local(peer));
  return { main: local(main), join: local(join), http: http ?? 0, flags };
}

interface Health {
  readonly healthy: boolean;
  readonly leader: string;
  readonly revision: number;
}
/** Resolves once /healthz answers and is as wanted. */
async function healthy({ http }: Ports, met: (health: Health) => boolean = ({ healthy }) => healthy): Promise<Health> {
  const untilMs = performance.now() + 60_000;
  for (let last = "no answer"; ; ) {
    try {
      const health = (await (await fetch(`http://127.0.0.1:${http}/healthz`)).json()) as Health;
      if (met(health)) return health;
      last = JSON.stringify(health);
    } catch {
      // Not listening yet.
    }
    if (performance.now() > untilMs)
      throw new Error(`never as wanted: ${last}\n${logs.map((log) => log()).join("\n")}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** SIGKILL to a member's clusterd and etcd at once. */
async function killMember(name: string, child: ChildProcess): Promise<void> {
  child.kill("SIGKILL");
  const etcd = await findEtcd(stateFiles(join(directory, name)).etcdData, []);
  if (etcd !== undefined) process.kill(etcd.pid, "SIGKILL");
  await new Promise((resolve) =>
    child.exitCode === null && child.signalCode === null ? child.once("close", resolve) : resolve(0),
  );
}

/** Calls the first member's API as its administrator. */
async function manage<T>(work: (api: ClusterClient) => Promise<T>): Promise<T> {
  const context: { endpoints: string[]; ca: string; certificate: string; key: string } = JSON.parse(
    await readFile(stateFiles(state()).admin, "utf8"),
  );
  const [ca, certificate, key] = [context.ca, context.certificate, context.key].map((pem) => Buffer.from(pem)) as [
    Buffer,
    Buffer,
    Buffer,
  ];
  const api = new ClusterClient(
    context.endpoints[0] ?? "",
    clientCredentials({ ca, certificate, key }),
    channelOptions,
  );
  try {
    return await work(api);
  } finally {
    api.close();
  }
}
const patient = { deadlineMs: 30_000 };
const managers = async () =>
  (await manage((api) => call<ListManagersRequest, ListManagersResponse>(api.listManagers.bind(api), {}))).managers;

describe("clusterd", { timeout: patienceMs }, () => {
  it("adopts its etcd when it was killed, starts a killed etcd again, and stops both on SIGTERM", async () => {
    expect(await init()).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^EMB-1-[0-9a-f]{64}-[a-z2-7]{32}\n$/),
    });
    const at = await ports();
    let server = clusterd("run", ...at.flags);
    let { revision } = await healthy(at);
    const { etcdData } = stateFiles(state());
    const etcd = await findEtcd(etcdData, []);
    for (let round = 0; round < 2; round++) {
      server.child.kill("SIGKILL");
      await server.ended;
      server = clusterd("run", ...at.flags);
      const health = await healthy(at);
      expect(health.revision).toBeGreaterThanOrEqual(revision);
      revision = health.revision;
      expect((await findEtcd(etcdData, []))?.pid).toBe(etcd?.pid);
      expect(server.stderr()).toContain("etcd adopted");
    }
    let pid = etcd?.pid ?? 0;
    for (let round = 0; round < 2; round++) {
      process.kill(pid, "SIGKILL");
      const before = pid;
      await healthy(at, () => true);
      let found = await findEtcd(etcdData, []);
      while (found === undefined || found.pid === before) found = await findEtcd(etcdData, []);
      pid = found.pid;
      // The leader's lease was renewed with the new etcd, or won again.
      await healthy(at);
    }
    const other = await clusterd("run", ...(await ports()).flags).ended;
    expect(other).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("another clusterd uses the state directory"),
    });
    server.child.kill("SIGKILL");
    await server.ended;
    server = clusterd("run", ...at.flags, "--etcd-quota", "1g");
    await healthy(at);
    // One with other flags is not adopted.
    expect((await findEtcd(etcdData, []))?.pid).not.toBe(pid);
    server.child.kill("SIGTERM");
    expect((await server.ended).code).toBe(0);
    expect(await findEtcd(etcdData, [])).toBeUndefined();
  });

  it("fails over between members that share an etcd of others", async () => {
    const second = join(directory, "m2");
    const [at1, at2] = await Promise.all([ports(state(), false), ports(second, false)]);
    await init(at1.main);
    await using external = await testEtcd();
    const { settings } = external.directory;
    const flags = [
      "--etcd-endpoints",
      `https://${settings.clientListen}`,
      "--lease-ttl",
      "2s",
      "--heartbeat-interval",
      "500ms",
    ];
    flags.push(
      "--etcd-ca",
      settings.files.ca,
      "--etcd-cert",
      settings.files.certificate,
      "--etcd-key",
      settings.files.key,
    );
    const one = clusterd("run", ...at1.flags, ...flags);
    await healthy(at1, ({ leader }) => leader === "m1");
    expect(await joinAs("m2", at1, at2)).toMatchObject({ code: 0 });
    const embedded = await clusterd("run", ...(await ports(second)).flags).ended;
    expect(embedded).toMatchObject({ code: 2, stderr: expect.stringContaining("--etcd-endpoints") });
    const two = clusterd("run", ...at2.flags, ...flags);
    await healthy(at2, ({ leader }) => leader === "m1");
    one.child.kill("SIGKILL");
    await healthy(at2, ({ leader }) => leader === "m2");
    const again = clusterd("run", ...at1.flags, ...flags);
    await healthy(at1, ({ leader }) => leader === "m2");
    two.child.kill("SIGTERM");
    await healthy(at1, ({ leader }) => leader === "m1");
    expect((await two.ended).code).toBe(0);
    again.child.kill("SIGTERM");
    expect((await again.ended).code).toBe(0);
    const stranger = ["--advertise", "127.0.0.1", "--name", "m3", "--state-dir", join(directory, "m3")];
    await clusterd("init", ...stranger).ended;
    const refused = await clusterd("run", ...(await ports(join(directory, "m3"), false)).flags, ...flags).ended;
    expect(refused).toMatchObject({ code: 1, stderr: expect.stringContaining("etcd holds cluster") });
  });

  it("lets a manager join with a manager's token, again after an interruption, and nobody in another's place", async () => {
    const [at1, at2, at3] = (await Promise.all([ports(), ports(), ports()])) as [Ports, Ports, Ports];
    const nodeToken = (await init(at1.main)).stdout.trim();
    const one = clusterd("run", ...at1.flags);
    await healthy(at1);
    expect(await joinAs("m2", at1, at2, nodeToken)).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("the join token is for a node, and this needs one for a manager"),
    });
    const token = await managerToken();
    expect(await joinAs("m1", at1, at2, token)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("holds a cluster"),
    });
    expect(await joinAs("m2", at1, at2, token)).toMatchObject({ code: 0 });
    expect(await joinAs("m2", at1, at2, token)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("holds a cluster"),
    });
    // An interrupted join left nothing that counts: the same again.
    await rm(stateFiles(join(directory, "m2")).cluster);
    expect(await joinAs("m2", at1, at2, token)).toMatchObject({ code: 0 });
    expect(await joinAs("m3", at1, at2, token)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("is the address of manager m2"),
    });
    expect(await joinAs("m3", at1, at3, token)).toMatchObject({ code: 0 });
    one.child.kill("SIGTERM");
    expect((await one.ended).code).toBe(0);
  });

  /** The ports of m1, m2 and m3, which run as one etcd, and what runs. */
  async function threeMembers() {
    const dirs = ["m1", "m2", "m3"].map((name) => join(directory, name));
    const [at1, at2, at3] = (await Promise.all(dirs.map((dir) => ports(dir)))) as [Ports, Ports, Ports];
    await init(at1.main);
    const one = clusterd("run", ...at1.flags);
    await healthy(at1, ({ leader }) => leader === "m1");
    const token = await managerToken();
    expect(await joinAs("m2", at1, at2, token)).toMatchObject({ code: 0 });
    expect(await joinAs("m3", at1, at3, token)).toMatchObject({ code: 0 });
    // Both at once: one waits for the other.
    const two = clusterd("run", ...at2.flags);
    const three = clusterd("run", ...at3.flags);
    await Promise.all([healthy(at2), healthy(at3)]);
    return { at: [at1, at2, at3] as const, processes: [one, two, three] as const };
  }

  it("makes one etcd of three members, which goes on without any one", async () => {
    const { at, processes } = await threeMembers();
    const [at1, at2, at3] = at;
    const [one, two, three] = processes;
    // On a busy machine etcd may have elected anew: who leads is not promised.
    const votes = { state: ManagerState.MANAGER_STATE_READY, etcd: expect.stringMatching(/^(leader|voter)$/) };
    const all = await managers();
    expect(all).toMatchObject([
      { name: "m1", ...votes },
      { name: "m2", ...votes },
      { name: "m3", ...votes },
    ]);
    expect(all.filter(({ leader }) => leader)).toHaveLength(1);

    // The first member and its etcd die at once: another leads.
    await killMember("m1", one.child);
    await healthy(at2, (health) => health.healthy && /^m[23]$/.test(health.leader));
    clusterd("run", ...at1.flags);
    await healthy(at1);

    // Two of three gone: what is left says what is wrong, and goes on when one comes back.
    await killMember("m2", two.child);
    await killMember("m3", three.child);
    await healthy(at1, (health) => !health.healthy);
    await expect(managers()).rejects.toMatchObject({
      code: "unavailable",
      message: expect.stringMatching(/^manager m1 has no quorum: etcd answers on 1 of 3 managers/),
    });
    clusterd("run", ...at3.flags);
    await Promise.all([healthy(at1), healthy(at3)]);
  });

  it("knows the managers that were removed, and removes none that etcd cannot do without", async () => {
    const { at, processes } = await threeMembers();
    const [at1, at2] = at;
    const [one, two, three] = processes;
    await killMember("m2", two.child);
    // m3's loss would leave one of two: refused. The lost one goes, and its state directory knows it.
    await expect(manage((api) => call(api.removeManager.bind(api), { manager: "m3" }, patient))).rejects.toMatchObject({
      code: "conflict",
      hint: expect.stringContaining("m2"),
    });
    await manage((api) => call(api.removeManager.bind(api), { manager: "m2" }, patient));
    expect((await managers()).map(({ name }) => name)).toEqual(["m1", "m3"]);
    expect(await clusterd("run", ...at2.flags).ended).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("manager m2 was removed from the cluster"),
    });
    // One that runs is removed: its clusterd ends itself.
    await manage((api) => call(api.removeManager.bind(api), { manager: "m3" }, patient));
    expect(await three.ended).toMatchObject({ code: 2, stderr: expect.stringContaining("was removed") });
    await healthy(at1);
    one.child.kill("SIGTERM");
    expect((await one.ended).code).toBe(0);
    await rm(stateFiles(state()).etcdData, { recursive: true });
    expect(await clusterd("run", ...at1.flags).ended).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("is gone"),
    });
  });

  it("goes on where it was when it is killed at any step of its way into etcd", async () => {
    const [at1, at2] = await Promise.all([ports(), ports(join(directory, "m2"))]);
    await init(at1.main);
    const one = clusterd("run", ...at1.flags);
    await healthy(at1);
    expect(await joinAs("m2", at1, at2)).toMatchObject({ code: 0 });
    const { cluster } = stateFiles(join(directory, "m2"));
    const steps: Readonly<Record<string, (log: string) => Promise<boolean>>> = {
      "it is added": async () => (await readFile(cluster, "utf8")).includes("initialCluster"),
      "its etcd is started": async (log) => await Promise.resolve(log.includes("etcd started")),
      "it votes": async (log) => await Promise.resolve(log.includes("votes from now on")),
    };
    for (const [step, reached] of Object.entries(steps)) {
      const two = clusterd("run", ...at2.flags);
      const untilMs = performance.now() + 30_000;
      while (!(await reached(two.stderr()))) {
        if (performance.now() > untilMs) throw new Error(`${step}: not within 30 s\n${two.stderr()}`);
        await new Promise((resolve) => setTimeout(resolve, 2));
      }
      await killMember("m2", two.child);
    }
    const two = clusterd("run", ...at2.flags);
    await Promise.all([healthy(at1), healthy(at2)]);
    expect((await managers()).map(({ name, etcd }) => [name, etcd])).toEqual([
      ["m1", expect.stringMatching(/leader|voter/)],
      ["m2", expect.stringMatching(/leader|voter/)],
    ]);
    two.child.kill("SIGTERM");
    expect((await two.ended).code).toBe(0);
    one.child.kill("SIGTERM");
    expect((await one.ended).code).toBe(0);
  });

  it("prints a new join token while it runs, and says when it does not", async () => {
    await clusterd("init", "--advertise", "127.0.0.1:1", "--name", "m1", "--state-dir", state()).ended;
    const none = await clusterd("token", "create", "--state-dir", state()).ended;
    expect(none).toMatchObject({
      code: 1,
      stdout: "",
      stderr: expect.stringContaining("no clusterd answers on 127.0.0.1:1"),
    });
    await rm(state(), { recursive: true });
    const at = await ports();
    const address = at.flags[at.flags.indexOf("--listen") + 1] ?? "";
    await clusterd("init", "--advertise", address, "--name", "m1", "--state-dir", state()).ended;
    const server = clusterd("run", ...at.flags);
    await healthy(at);
    const made = await clusterd("token", "create", "--state-dir", state(), "--ttl", "1h").ended;
    expect(made).toMatchObject({ code: 0, stdout: expect.stringMatching(/^EMB-1-/) });
    server.child.kill("SIGTERM");
    expect((await server.ended).code).toBe(0);
  });

  it("refuses a second init, and keeps the first", async () => {
    await init();
    const before = await readFile(stateFiles(state()).manager.ca, "utf8");
    expect(await init()).toMatchObject({
      code: 1,
      stdout: "",
      stderr: expect.stringContaining("holds a cluster already"),
    });
    expect(await readFile(stateFiles(state()).manager.ca, "utf8")).toBe(before);
  });

  it("says what is wrong with a flag, in one sentence, and exits with 2", async () => {
    const [wrong, nonsense, incomplete, empty] = await Promise.all([
      clusterd("run", "--lease-ttl", "soon").ended,
      clusterd("run", "--nonsense").ended,
      clusterd("init").ended,
      clusterd("run", "--state-dir", join(directory, "none")).ended,
    ]);
    expect(wrong).toMatchObject({ code: 2, stderr: '--lease-ttl "soon" is not a time like 1500ms, 5s, 10m or 24h\n' });
    expect(nonsense).toMatchObject({ code: 2, stderr: expect.stringContaining("--nonsense") });
    expect(incomplete).toMatchObject({ code: 2, stderr: expect.stringContaining("--advertise") });
    expect(empty).toMatchObject({ code: 2, stderr: expect.stringContaining("clusterd init") });
    await writeFile(join(directory, "file"), "");
    const unusable = await clusterd("init", "--advertise", "m1", "--state-dir", join(directory, "file/below")).ended;
    expect(unusable).toMatchObject({ code: 2, stderr: expect.stringContaining("cannot be made") });
  });

  it("names the package when there is no etcd, and the flag when a port is taken", async () => {
    await init();
    const at = await ports();
    const missing = await clusterd("run", ...at.flags, "--etcd-binary", "/nonexistent/etcd").ended;
    expect(missing).toMatchObject({ code: 2, stderr: expect.stringContaining("etcd-server") });
    const taken = createServer();
    await new Promise<void>((resolve) => taken.listen(at.http, "127.0.0.1", resolve));
    const busy = await clusterd("run", ...at.flags).ended;
    expect(busy).toMatchObject({ code: 1, stderr: expect.stringMatching(/cannot listen on .*--http-listen/s) });
    await new Promise<void>((resolve) => taken.close(() => resolve()));
  });
});
