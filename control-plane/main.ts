import { createHmac } from "node:crypto";
import { lookup } from "node:dns/promises";
import { readFile } from "node:fs/promises";
import { hostname } from "node:os";
import { resolve as absolute } from "node:path";
import { Command, CommanderError } from "commander";
import { Registry } from "prom-client";
import { type Clock, systemClock } from "../lib/clock/clock.ts";
import { asClusterError, ClusterError, hasCode, messageOf } from "../lib/errors/errors.ts";
import { call, channelOptions, clientCredentials } from "../lib/grpc/client.ts";
import type { TlsIdentity } from "../lib/grpc/tls.ts";
import { serveStatus } from "../lib/http/status.ts";
import { lockDirectory } from "../lib/lock/lock.ts";
import { createLog, type Log } from "../lib/log/log.ts";
import { loadIdentity, writeWhole } from "../lib/pki/identity.ts";
import { version } from "../lib/version/version.ts";
import {
  ClusterClient,
  ClusterService,
  type CreateJoinTokenRequest,
  type CreateJoinTokenResponse,
} from "../proto/gen/embassy/v1/api.ts";
import { DispatcherService, JoinService } from "../proto/gen/embassy/v1/dispatcher.ts";
import { JoinToken, Member } from "../proto/gen/embassy/v1/state.ts";
import { createApi } from "./api/index.ts";
import {
  type Config,
  defaultStateDir,
  type Flags,
  mainPort,
  parseConfig,
  parseDuration,
  parseHostPort,
} from "./config.ts";
import { createControllers } from "./controllers/index.ts";
import { createDispatcher } from "./dispatcher/index.ts";
import { ClusterIndex } from "./domain/index.ts";
import { EtcdSupervisor } from "./etcd/supervisor.ts";
import { serveGrpc } from "./listen.ts";
import { keepMember } from "./member.ts";
import { createStoreMetrics, registerClusterMetrics } from "./metrics.ts";
import { MemberCertificates } from "./pki/certificates.ts";
import { adminContext, createMember, initCluster, loadAuthority } from "./pki/init.ts";
import { Join, renewCertificate } from "./pki/join.ts";
import {
  type ClusterFile,
  parseStoreKey,
  readClusterFile,
  type StateFiles,
  stateFiles,
  writeClusterFile,
} from "./pki/state-dir.ts";
import { createToken } from "./pki/tokens.ts";
import { EtcdClient, type EtcdClientOptions, hostOf, resolveEndpoints } from "./store/client.ts";
import { claimCluster } from "./store/cluster.ts";
import { Election } from "./store/election.ts";
import { EtcdStore } from "./store/etcd.ts";
import { maintainEtcd } from "./store/maintenance.ts";
import { createCodecs } from "./store/schema.ts";
import { createBlobCodec } from "./store/seal.ts";

/** How long the start waits for etcd. */
const startPatienceMs = 60_000;
const silentTooLongMs = 12_000;

async function run(config: Config): Promise<void> {
  const log = createLog("clusterd", config.logLevel);
  const clock = systemClock;
  const stop = new AbortController();
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    process.on(signal, () => {
      if (stop.signal.aborted) process.exit(1);
      log.info("stopping", { signal });
      stop.abort(new ClusterError(`stopped by ${signal}`, { code: "unavailable" }));
    });
  }
  for (const event of ["unhandledRejection", "uncaughtException"] as const) {
    process.on(event, (error: unknown) => {
      log.error("a failure that nothing handles", { error });
      process.exit(1);
    });
  }
  try {
    await serve(config, log, clock, stop);
  } catch (error) {
    // Stopped before it served.
    if (!stop.signal.aborted) throw error;
  }
}

async function serve(config: Config, log: Log, clock: Clock, stop: AbortController): Promise<void> {
  await using owned = new AsyncDisposableStack();
  const files = stateFiles(config.stateDir);
  const cluster = await readClusterFile(files);
  owned.use(await lockDirectory(config.stateDir, "clusterd"));
  const authority = await loadAuthority(files);
  const certificates = await MemberCertificates.load({ files, authority, cluster, clock, log });
  const storeKey = parseStoreKey(await readFile(files.storeKey, "utf8"));
  const registry = new Registry();

  const supervisor = await startEtcd(config, files, cluster, log);
  if (supervisor !== undefined) owned.use(supervisor);
  const client = owned.use(new EtcdClient({ ...(await etcdAccess(config, certificates.identities.etcd)), log }));
  const codecs = createCodecs(createBlobCodec(storeKey));
  const metrics = createStoreMetrics(registry);
  const store = await untilReached(supervisor, stop.signal, async () => {
    await claimCluster(client, cluster.clusterId, stop.signal);
    return await EtcdStore.open({ client, codecs, log, clock, metrics }, stop.signal);
  });
  owned.use(store);
  await keepFirstToken(store, files, cluster);

  const leadership = new Election(
    { client, store, clock, log },
    { member: cluster.member, instance: cluster.instance, ttlMs: config.leaseTtlMs },
  );
  registerClusterMetrics({ registry, store, leadership, member: cluster.member });
  const { clusterId, member, advertise } = cluster;
  const index = owned.use(new ClusterIndex(store));
  const { blockPrefix } = config;
  const controllers = createControllers({ store, index, log, clock, settings: { blockPrefix } });
  const { heartbeatIntervalMs, leaseTtlMs, vipPool } = config;
  const dispatcher = createDispatcher({
    store,
    index,
    log,
    clock,
    member,
    settings: { clusterId, heartbeatIntervalMs, leaseTtlMs, vipPool, addressPools: [config.networkPool] },
    renew: async (nodeId, csrDer) => await renewCertificate({ store, authority, clock }, nodeId, csrDer),
  });
  const api = owned.use(
    createApi({
      store,
      index,
      log,
      clock,
      clusterId,
      version,
      settings: { networkPool: config.networkPool, networkPrefix: config.networkPrefix, vipPool },
      secretDigest: (content) => createHmac("sha256", storeKey).update(content).digest("hex"),
      leadership,
      identity: () => certificates.identities.manager,
      network: dispatcher,
      createToken: async (ttlMs) => await createToken({ store, caFingerprint: authority.fingerprint, clock }, ttlMs),
    }),
  );
  const join = new Join({ store, authority, clusterId, advertise, clock, log });

  owned.use(
    await serveGrpc(config.listen, "--listen", certificates.listener("required"), clock, (server) => {
      server.addService(ClusterService, api.service);
      server.addService(DispatcherService, dispatcher.service);
    }),
  );
  owned.use(
    await serveGrpc(config.joinListen, "--join-listen", certificates.listener("optional"), clock, (server) => {
      server.addService(JoinService, join.service);
    }),
  );
  owned.use(
    await serveStatus(config.httpListen, {
      metrics: async () => await registry.metrics(),
      health: () => {
        const problems: string[] = [];
        if (!store.connected) problems.push("etcd is not reached");
        else if (store.silentMs > silentTooLongMs) {
          problems.push(`etcd silent for ${Math.round(store.silentMs / 1000)} s`);
        }
        if (leadership.leader() === "") problems.push("no leader");
        const { revision } = store.view;
        return { healthy: problems.length === 0, member, leader: leadership.leader(), revision, problems };
      },
    }),
  );
  const own = Member.create({ name: member, address: advertise, startedAtMs: clock.nowMs(), version });
  const embedded = config.etcd.kind === "embedded";
  const loops = [
    keepMember({ store, clock, log }, own, stop.signal),
    certificates.keep(({ etcd }) => embedded && client.renew(etcd), stop.signal),
    dispatcher.run(stop.signal),
    leadership.run(async (signal) => await controllers.run(signal), stop.signal),
    ...(embedded ? [maintainEtcd({ client, clock, log }, stop.signal)] : []),
  ];
  owned.defer(async () => {
    stop.abort();
    await Promise.allSettled(loops);
  });
  log.info("serving", { clusterId, member, listen: config.listen, join: config.joinListen, http: config.httpListen });
  await Promise.all(loops);
}

async function startEtcd(
  config: Config,
  files: StateFiles,
  cluster: ClusterFile,
  log: Log,
): Promise<EtcdSupervisor | undefined> {
  if (config.etcd.kind === "external") return undefined;
  const { binary, clientListen, peerListen, quotaBytes } = config.etcd;
  const { clusterId, member } = cluster;
  const settings = {
    name: member,
    clusterId,
    dataDir: files.etcdData,
    clientListen,
    peerListen,
    files: files.etcd,
    quotaBytes,
  };
  return await EtcdSupervisor.start({ log, clock: systemClock }, { settings, binary, logFile: files.etcdLog });
}

async function etcdAccess(
  { etcd }: Config,
  own: TlsIdentity,
): Promise<Pick<EtcdClientOptions, "endpoints" | "hosts" | "identity">> {
  if (etcd.kind === "embedded") {
    return { endpoints: [etcd.clientListen], identity: own };
  }
  try {
    const endpoints = await resolveEndpoints(etcd.endpoints, async (host) => (await lookup(host, 4)).address);
    return {
      endpoints,
      hosts: etcd.endpoints.map(hostOf),
      identity: etcd.tls === undefined ? undefined : await loadIdentity(etcd.tls),
    };
  } catch (cause) {
    throw cause instanceof ClusterError
      ? cause
      : new ClusterError(messageOf(cause), { code: "unavailable", subject: "--etcd-endpoints", cause });
  }
}

/** Tries until etcd answers. Throws what is not `unavailable` at once. */
async function untilReached<T>(
  supervisor: EtcdSupervisor | undefined,
  signal: AbortSignal,
  attempt: () => Promise<T>,
): Promise<T> {
  const untilMs = systemClock.monotonicMs() + startPatienceMs;
  let failed: string | undefined;
  void supervisor?.failing().then((why) => {
    failed = why;
  });
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      signal.throwIfAborted();
      if (failed !== undefined) {
        throw new ClusterError(`the embedded etcd keeps ending: ${failed}`, {
          code: "unavailable",
          subject: "etcd",
          hint: "Its own log is etcd/etcd.log in the state directory.",
          cause: error,
        });
      }
      if (!hasCode(error, "unavailable") || systemClock.monotonicMs() > untilMs) throw error;
      await systemClock.sleep(50, signal);
    }
  }
}

/** Moves the token that `init` printed from the state directory into the state. */
async function keepFirstToken(store: EtcdStore, files: StateFiles, cluster: ClusterFile): Promise<void> {
  const { firstToken, ...rest } = cluster;
  if (firstToken === undefined) return;
  const { id, secretSha256, createdAtMs, expiresAtMs } = firstToken;
  const token = { id, secretSha256: Buffer.from(secretSha256, "hex"), role: "node", createdAtMs, expiresAtMs };
  await store.commit([{ table: "tokens", id, value: JoinToken.create(token) }]);
  await writeClusterFile(files, rest);
}

async function createTokenByApi(stateDir: string, ttlMs: number): Promise<string> {
  const files = stateFiles(stateDir);
  await readClusterFile(files);
  const context: { endpoints: string[]; ca: string; certificate: string; key: string } = JSON.parse(
    await readFile(files.admin, "utf8"),
  );
  const identity = {
    ca: Buffer.from(context.ca),
    certificate: Buffer.from(context.certificate),
    key: Buffer.from(context.key),
  };
  const client = new ClusterClient(context.endpoints[0] ?? "", clientCredentials(identity), channelOptions);
  try {
    const { token } = await call<CreateJoinTokenRequest, CreateJoinTokenResponse>(client.createJoinToken.bind(client), {
      ttlMs,
    }).catch((error: unknown) => {
      // With a subject it is clusterd that answers: its etcd is away.
      if (!hasCode(error, "unavailable") || error.subject !== undefined) throw error;
      throw new ClusterError(`no clusterd answers on ${context.endpoints[0]}`, {
        code: "unavailable",
        hint: "Start it with `clusterd run`; it must be reachable under the address that `clusterd init --advertise` was given.",
        cause: error,
      });
    });
    return token;
  } finally {
    client.close();
  }
}

function commands(): Command {
  const program = new Command("clusterd")
    .description("The control plane of an Embassy cluster.")
    .version(`clusterd ${version}`);
  const stateDir = ["--state-dir <dir>", "where this member keeps its certificates and data", defaultStateDir] as const;

  program
    .command("run", { isDefault: true })
    .description("Serve. The default.")
    .option(...stateDir)
    .option("--listen <address:port>", "for users and nodes (mutual TLS)", `0.0.0.0:${mainPort}`)
    .option("--join-listen <address:port>", "for hosts that join (TLS)", "0.0.0.0:7401")
    .option("--http-listen <address:port>", "for /healthz and /metrics", "127.0.0.1:7402")
    .option("--etcd-endpoints <urls>", "use this etcd, a comma between members, instead of the embedded one")
    .option("--etcd-ca <file>", "of that etcd, PEM")
    .option("--etcd-cert <file>", "to show to that etcd, PEM")
    .option("--etcd-key <file>", "of that certificate, PEM")
    .option("--etcd-binary <path>", "the embedded etcd", "etcd")
    .option("--etcd-listen <address:port>", "the embedded etcd, for clusterd", "127.0.0.1:7404")
    .option("--etcd-peer-listen <address:port>", "the embedded etcd, for its own kind", "127.0.0.1:7405")
    .option("--etcd-quota <size>", "most that the embedded etcd may hold, up to 8g", "4g")
    .option("--heartbeat-interval <time>", "between a node's signs of life", "1500ms")
    .option("--lease-ttl <time>", "without a sign of life a node is down, and a leader deposed", "5s")
    .option("--network-pool <cidr>", "subnets of networks are taken from it", "10.96.0.0/12")
    .option("--network-prefix <n>", "prefix length of a network's subnet", "20")
    .option("--block-prefix <n>", "prefix length of what a node gets of a network at a time", "27")
    .option("--vip-pool <cidr>", "virtual addresses of services are taken from it", "10.112.0.0/16")
    .option("--log-level <level>", "debug, info, warn or error", "info")
    .action(async (flags: Flags) => await run(parseConfig({ ...flags, stateDir: absolute(flags.stateDir) })));

  program
    .command("init")
    .description("Make a new cluster, of which this is the first member. Prints a join token.")
    .requiredOption("--advertise <host[:port]>", "how nodes and users reach this member")
    .option(...stateDir)
    .option("--name <member>", "this member's name", hostname())
    .action(async (flags: { advertise: string; stateDir: string; name: string }) => {
      const token = await initCluster(memberOptions(flags, flags.stateDir));
      console.error(
        `Cluster made in ${flags.stateDir}. Start it with \`clusterd run\`; hosts join with this token (valid for 24 hours):`,
      );
      console.log(token);
    });

  program
    .command("token")
    .description("Join tokens.")
    .command("create")
    .description("Print a new join token. Needs the running cluster.")
    .option(...stateDir)
    .option("--ttl <time>", "how long it is valid", "24h")
    .action(async (flags: { stateDir: string; ttl: string }) => {
      const ttlMs = parseDuration("--ttl", flags.ttl);
      if (ttlMs === 0) throw new ClusterError("--ttl is 0", { code: "invalid", subject: "--ttl" });
      console.log(await createTokenByApi(absolute(flags.stateDir), ttlMs));
    });

  program
    .command("member")
    .description("Members of the control plane that share one etcd.")
    .command("create")
    .description("Make the state directory of a further member, to be moved to its host.")
    .requiredOption("--name <member>", "its name")
    .requiredOption("--advertise <host[:port]>", "how nodes and users reach it")
    .requiredOption("--out <dir>", "where to make it")
    .option(...stateDir)
    .action(async (flags: { name: string; advertise: string; out: string; stateDir: string }) => {
      await createMember(stateFiles(absolute(flags.stateDir)), memberOptions(flags, flags.out));
      console.error(
        `Member ${flags.name} made in ${flags.out}. Move it to its host and start it there with \`clusterd run --state-dir … --etcd-endpoints …\`.`,
      );
    });

  program
    .command("admin")
    .description("Users of the cluster.")
    .command("create")
    .description("Write a clusterctl context with a new certificate of role admin, valid for 90 days.")
    .option(...stateDir)
    .option("--name <user>", "the user's name", "admin")
    .requiredOption("--out <file>", "where to write it")
    .action(async (flags: { stateDir: string; name: string; out: string }) => {
      const files = stateFiles(absolute(flags.stateDir));
      const { advertise } = await readClusterFile(files);
      const context = await adminContext(
        await loadAuthority(files),
        advertise,
        Date.now(),
        checkName("--name", flags.name),
      );
      await writeWhole(absolute(flags.out), context, 0o600);
    });

  return program;
}

function memberOptions(flags: { readonly advertise: string; readonly name: string }, stateDir: string) {
  return {
    stateDir: absolute(stateDir),
    member: checkName("--name", flags.name),
    advertise: parseHostPort("--advertise", flags.advertise, mainPort),
    nowMs: Date.now(),
  };
}

function checkName(flag: string, name: string): string {
  if (/^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$/i.test(name)) return name;
  throw new ClusterError(`${flag} ${JSON.stringify(name)} is not a name of letters, digits, - and .`, {
    code: "invalid",
    subject: flag,
  });
}

async function main(): Promise<void> {
  const program = commands();
  for (const command of [program, ...program.commands, ...program.commands.flatMap(({ commands: below }) => below)]) {
    command.exitOverride().allowExcessArguments(false);
  }
  try {
    await program.parseAsync();
  } catch (error) {
    if (error instanceof CommanderError) {
      // Commander has said it; 0 is --help and --version.
      process.exit(error.exitCode === 0 ? 0 : 2);
    }
    const { code, message, hint } = asClusterError(error);
    console.error(hint === undefined ? message : `${message}\n${hint}`);
    // A service manager need not try again with what only a person can mend.
    process.exit(["invalid", "not-found", "denied"].includes(code) ? 2 : 1);
  }
  process.exit(0);
}

await main();
