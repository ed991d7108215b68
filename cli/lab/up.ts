import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { ClusterError, messageOf } from "../../lib/errors/errors.ts";
import { call } from "../../lib/grpc/client.ts";
import { ManagerState, NodeState } from "../../proto/gen/embassy/v1/state.ts";
import { connect } from "../contexts/connect.ts";
import { type Context, type Contexts, parseContext } from "../contexts/contexts.ts";
import { bundle, daemonError, ensureDaemon, findNamed, logTail, missingDaemons, nodeBinary } from "./daemons.ts";
import { takeDown } from "./down.ts";
import {
  daemonNames,
  hostAddress,
  hostNames,
  type LabPaths,
  type LabRecord,
  machineAddress,
  managerPort,
  managersOf,
  mostHosts,
  mostManagers,
  registryAddress,
  registryPort,
} from "./layout.ts";
import { boot, outsidePath, readInit, requireInit, runInside } from "./namespaces.ts";
import { lock, makeDirectory, readRecord, writeRecord } from "./record.ts";
import { checkMachine } from "./requirements.ts";
import { claimSubnet } from "./subnet.ts";
import { attachHost, ensureRegistry, ensureUnderlay, underlayName } from "./underlay.ts";

export interface UpOptions {
  /** How many hosts; default: as many as the lab has, 3 for a new one. */
  readonly hosts: number | undefined;
  /** How many of them are managers, from host-1 on; default: as many as the lab has, 1 for a new one. */
  readonly managers: number | undefined;
  /** CIDR; default: a free one. */
  readonly subnet: string | undefined;
  /** Leave a new lab that did not come up as it is, to look at it. */
  readonly keep: boolean;
  readonly contexts: Contexts;
  /** Told what is being done, before each step. */
  readonly step: (text: string) => void;
  readonly signal: AbortSignal;
}

/**
 * Brings a lab up: the underlay, the registry, the hosts, the control plane, and every host joined and ready.
 * What runs already is left as it is, so it also mends a lab and adds hosts to it.
 */
export async function bringUp(paths: LabPaths, options: UpOptions): Promise<LabRecord> {
  checkMachine();
  for (const name of daemonNames) bundle(name);
  makeDirectory(paths);
  let isNew = false;
  try {
    using _lock = lock(paths);
    const known = readRecord(paths);
    isNew = known === undefined;
    const lab = await prepare(paths, known, options);
    return await build(paths, lab, options);
  } catch (error) {
    if (!isNew || options.keep) throw error;
    const logs = failedLogs(paths, options.hosts ?? 3);
    await takeDown(paths);
    if (logs === "" || options.signal.aborted) throw error;
    throw new ClusterError(`${messageOf(error)}\n${logs}`, {
      code: error instanceof ClusterError ? error.code : "internal",
      hint: "The lab has been taken down again; --keep leaves it, to look at it.",
      cause: error,
    });
  }
}

async function prepare(paths: LabPaths, known: LabRecord | undefined, options: UpOptions): Promise<LabRecord> {
  if (known !== undefined) {
    if (options.subnet !== undefined && options.subnet !== known.subnet) {
      throw new ClusterError(`lab ${paths.name} has subnet ${known.subnet}`, {
        code: "conflict",
        subject: "--subnet",
        hint: `Take it down first: clusterctl lab down --name ${paths.name}`,
      });
    }
    const { hosts = known.hosts, managers = known.managers ?? 1 } = options;
    refuseFewer(paths, "--hosts", hosts, known.hosts, "host");
    refuseFewer(paths, "--managers", managers, known.managers ?? 1, "manager");
    const lab = { ...known, hosts, managers };
    checkCounts(lab);
    if (lab.hosts !== known.hosts || lab.managers !== known.managers) writeRecord(paths, lab);
    return lab;
  }
  const hosts = options.hosts ?? 3;
  const managers = options.managers ?? 1;
  checkCounts({ hosts, managers });
  const lab: LabRecord = { name: paths.name, subnet: await claimSubnet(paths, options.subnet), hosts, managers };
  writeRecord(paths, lab);
  return lab;
}

/** A lab only grows. */
function refuseFewer({ name }: LabPaths, option: string, wanted: number, has: number, what: string): void {
  if (wanted >= has) return;
  throw new ClusterError(`lab ${name} has ${has} ${what}s, and none is taken away: ${option} is ${wanted}`, {
    code: "conflict",
    subject: option,
    hint: `Take it down and bring it up anew: clusterctl lab down --name ${name}`,
  });
}

function checkCounts({ hosts, managers }: Required<Pick<LabRecord, "hosts" | "managers">>): void {
  if (!Number.isInteger(hosts) || hosts < 1 || hosts > mostHosts) {
    throw new ClusterError(`--hosts is ${hosts}; it must be 1-${mostHosts}`, { code: "invalid", subject: "--hosts" });
  }
  const most = Math.min(hosts, mostManagers);
  if (!Number.isInteger(managers) || managers < 1 || managers > most) {
    throw new ClusterError(`--managers is ${managers}; it must be 1-${most}`, {
      code: "invalid",
      subject: "--managers",
      hint: "Use an odd number: 3 go on without one, 5 without two.",
    });
  }
}

async function build(paths: LabPaths, lab: LabRecord, options: UpOptions): Promise<LabRecord> {
  const { step, signal } = options;
  const hosts = hostNames(lab.hosts);
  step(`underlay ${lab.subnet}, registry ${registryAddress(lab)}:${registryPort}`);
  const underlay = await ensureUnderlay(paths, lab);
  const registry = ensureRegistry(paths, lab, underlay);
  // Awaited below; a failure before that must not end the process as unhandled.
  registry.catch(() => {});

  signal.throwIfAborted();
  const down = hosts.filter((host) => readInit(paths, host) === undefined);
  if (down.length > 0) step(`hosts ${down.join(", ")}`);
  await Promise.all(down.map((host) => bootHost(paths, lab, host)));
  for (const host of hosts) writeFileSync(outsidePath(requireInit(paths, host), "/etc/hosts"), hostsFile(lab, host));

  signal.throwIfAborted();
  const firstToken = await startControlPlane(paths, lab, step, signal);
  const context = saveContext(paths, lab, options.contexts);
  using client = closing(connect(context));
  const managers = await addManagers(paths, lab, client.value, options);

  const strangers = hosts.filter((host) => !existsSync(join(paths.host(host), "lib/noded/node.json")));
  if (strangers.length > 0) {
    step(`joining ${strangers.join(", ")}`);
    const token =
      firstToken ??
      (await call(client.value.createJoinToken.bind(client.value), { ttlMs: 600_000, role: "node" }, { signal })).token;
    const through = managers[0] ?? "host-1";
    await Promise.all(strangers.map((host) => enroll(paths, lab, host, { token, through }, signal)));
  }

  await registry;
  step("starting noded and netd");
  for (const host of hosts) {
    await ensureDaemon(paths, lab, host, "netd");
    await ensureDaemon(paths, lab, host, "noded");
  }
  step("waiting until every node is ready");
  await untilReady(paths, lab, { hosts, managers }, client.value, signal);
  return lab;
}

/** Boots one host and joins it to the underlay. */
export async function bootHost(paths: LabPaths, lab: LabRecord, host: string): Promise<void> {
  const etc = join(paths.host(host), "etc");
  mkdirSync(etc, { recursive: true });
  for (const [name, content] of Object.entries({
    hostname: `${host}\n`,
    hosts: hostsFile(lab, host),
    "resolv.conf": "# A lab has no resolver: names outside the cluster do not resolve.\n",
  })) {
    // The machine's may be a symbolic link, which must not be written through.
    rmSync(join(etc, name), { force: true });
    writeFileSync(join(etc, name), content);
  }
  const init = await boot(paths, host);
  await attachHost(lab, requireInit(paths, underlayName), host, init);
}

function hostsFile(lab: LabRecord, host: string): string {
  const others = hostNames(lab.hosts).map((name) => `${hostAddress(lab, name)} ${name}`);
  return [
    `127.0.0.1 localhost ${host}`,
    "::1 localhost ip6-localhost",
    ...others,
    `${registryAddress(lab)} registry.lab`,
    `${machineAddress(lab)} machine.lab`,
    "",
  ].join("\n");
}

/** Starts clusterd on host-1, made first if need be. Returns the join token when it was made now. */
async function startControlPlane(
  paths: LabPaths,
  lab: LabRecord,
  step: (text: string) => void,
  signal: AbortSignal,
): Promise<string | undefined> {
  const host = "host-1";
  let token: string | undefined;
  if (!existsSync(paths.admin)) {
    step(`making the cluster on ${host}`);
    const command = [nodeBinary, bundle("clusterd"), "init", "--advertise", `${hostAddress(lab, host)}:${managerPort}`];
    const words = await runInside(paths, host, command, signal);
    token = words.match(/EMB-1-\S+/)?.[0];
  }
  const joined = managersOf(lab).filter((name) => name === host || hasJoined(paths, name));
  const down = joined.filter((name) => findNamed(requireInit(paths, name), "clusterd") === undefined);
  if (down.length > 0) step(`starting clusterd on ${down.join(", ")}`);
  // All of them: one alone may have no quorum.
  for (const name of down) await ensureDaemon(paths, lab, name, "clusterd");
  await untilAnswers(paths, lab, joined, signal);
  return token;
}

function hasJoined(paths: LabPaths, host: string): boolean {
  return existsSync(join(paths.host(host), "lib/clusterd/cluster.json"));
}

/** Waits until one of the managers says that the cluster can serve. Throws `internal` with what clusterd said last when all have ended. */
async function untilAnswers(
  paths: LabPaths,
  lab: LabRecord,
  managers: readonly string[],
  signal: AbortSignal,
): Promise<void> {
  using client = closing(connect({ ...readContext(paths), endpoints: endpointsOf(lab, managers) }));
  const deadline = performance.now() + 60_000;
  for (;;) {
    signal.throwIfAborted();
    try {
      const info = await call(client.value.info.bind(client.value), {}, { deadlineMs: 2_000, signal });
      if (info.leader !== "") return;
    } catch (error) {
      const running = managers.some((host) => findNamed(requireInit(paths, host), "clusterd") !== undefined);
      if (performance.now() > deadline || !running) {
        throw daemonError(paths, managers[0] ?? "host-1", "clusterd", "clusterd does not serve", error);
      }
    }
    await delay(50, undefined, { signal });
  }
}

/**
 * Has the other managers join, and waits until all of them serve. Returns those that do: one that was removed from the cluster
 * ends by itself, and the lab goes on without it.
 */
async function addManagers(
  paths: LabPaths,
  lab: LabRecord,
  client: Client,
  { step, signal }: Pick<UpOptions, "step" | "signal">,
): Promise<string[]> {
  const all = managersOf(lab);
  const strangers = all.filter((host) => !hasJoined(paths, host));
  if (strangers.length > 0) {
    step(`joining managers ${strangers.join(", ")}`);
    const { token } = await call(client.createJoinToken.bind(client), { ttlMs: 600_000, role: "manager" }, { signal });
    const { managers } = await call(client.listManagers.bind(client), {}, { signal });
    const through = managers.find(({ state }) => state === ManagerState.MANAGER_STATE_READY)?.name ?? "host-1";
    for (const host of strangers) {
      const flags = ["--manager", hostAddress(lab, through), "--token", token];
      await runInside(paths, host, [nodeBinary, bundle("clusterd"), "join", ...flags], signal);
    }
  }
  for (const host of strangers) await ensureDaemon(paths, lab, host, "clusterd");
  const deadline = performance.now() + 60_000;
  for (;;) {
    signal.throwIfAborted();
    const { managers } = await call(client.listManagers.bind(client), {}, { signal });
    const ready = managers.filter(({ state, etcd }) => state === ManagerState.MANAGER_STATE_READY && etcd !== "down");
    const waiting = all.filter((host) => !ready.some(({ name }) => name === host));
    const ended = waiting.filter((host) => findNamed(requireInit(paths, host), "clusterd") === undefined);
    const removed = ended.filter((host) => !strangers.includes(host) && !managers.some(({ name }) => name === host));
    if (waiting.length === removed.length) {
      for (const host of removed) step(messageOf(daemonError(paths, host, "clusterd", `clusterd ended on ${host}`)));
      return all.filter((host) => !removed.includes(host));
    }
    const bad = ended.find((host) => !removed.includes(host));
    if (bad !== undefined || performance.now() > deadline) {
      const host = bad ?? waiting[0] ?? "";
      const what = `clusterd ${bad === undefined ? "does not serve" : "ended"} on ${host}`;
      throw daemonError(paths, host, "clusterd", what);
    }
    await delay(50, undefined, { signal });
  }
}

function endpointsOf(lab: LabRecord, managers: readonly string[]): string[] {
  return managers.map((host) => `${hostAddress(lab, host)}:${managerPort}`);
}

function readContext(paths: LabPaths): Context {
  return { ...parseContext(readFileSync(paths.admin, "utf8"), paths.admin), name: paths.name };
}

function saveContext(paths: LabPaths, lab: LabRecord, contexts: Contexts): Context {
  const context = { ...readContext(paths), endpoints: endpointsOf(lab, managersOf(lab)) };
  contexts.save(context);
  contexts.use(context.name);
  return context;
}

async function enroll(
  paths: LabPaths,
  lab: LabRecord,
  host: string,
  { token, through }: { readonly token: string; readonly through: string },
  signal: AbortSignal,
): Promise<void> {
  const options = { manager: hostAddress(lab, through), token, name: host, underlay: hostAddress(lab, host) };
  const flags = Object.entries(options).flatMap(([flag, value]) => [`--${flag}`, value]);
  await runInside(paths, host, [nodeBinary, bundle("noded"), "join", ...flags], signal);
}

type Client = ReturnType<typeof connect>;

async function untilReady(
  paths: LabPaths,
  lab: LabRecord,
  { hosts, managers }: { readonly hosts: readonly string[]; readonly managers: readonly string[] },
  client: Client,
  signal: AbortSignal,
): Promise<void> {
  const missing = (host: string) =>
    missingDaemons(lab, requireInit(paths, host), host).filter(
      (name) => name !== "clusterd" || managers.includes(host),
    );
  const deadline = performance.now() + 60_000;
  for (;;) {
    signal.throwIfAborted();
    const { nodes } = await call(client.listNodes.bind(client), {}, { signal });
    const ready = new Set(
      nodes.filter((node) => node.status?.state === NodeState.NODE_STATE_READY).map((node) => node.spec?.name),
    );
    const waiting = hosts.filter((host) => !ready.has(host));
    if (waiting.length === 0) return;
    const host = waiting.find((name) => missing(name).length > 0);
    if (host !== undefined) {
      const names = missing(host);
      throw new ClusterError(`${names.join(" and ")} ended on ${host}`, {
        code: "internal",
        subject: host,
        hint: `The log: ${paths.log(host, names[0] ?? "noded")}`,
      });
    }
    if (performance.now() > deadline) {
      throw new ClusterError(`not ready after a minute: ${waiting.join(", ")}`, {
        code: "internal",
        hint: `Their logs: ${paths.log("HOST", "{noded,netd}")}`,
      });
    }
    await delay(50, undefined, { signal });
  }
}

function failedLogs(paths: LabPaths, hosts: number): string {
  const tails: string[] = [];
  for (const host of hostNames(Math.min(hosts, mostHosts))) {
    for (const name of daemonNames) {
      const tail = logTail(paths, host, name, 5);
      if (tail !== "") tails.push(`--- ${host} ${name}\n${tail}`);
    }
  }
  return tails.join("\n");
}

function closing(client: Client): Disposable & { readonly value: Client } {
  return { value: client, [Symbol.dispose]: () => client.close() };
}
