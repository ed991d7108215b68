import { createHmac } from "node:crypto";
import { lookup } from "node:dns/promises";
import { readFile } from "node:fs/promises";
import { hostname } from "node:os";
import { resolve as absolute } from "node:path";
import { Command, CommanderError, Option } from "commander";
import { Registry } from "prom-client";
import { type Clock, systemClock } from "../lib/clock/clock.ts";
import { asClusterError, ClusterError, hasCode, messageOf } from "../lib/errors/errors.ts";
import { call, channelOptions, clientCredentials } from "../lib/grpc/client.ts";
import { serveStatus } from "../lib/http/status.ts";
import { lockDirectory } from "../lib/lock/lock.ts";
import { createLog, type Log } from "../lib/log/log.ts";
import { defaultPorts } from "../lib/net/ports.ts";
import { loadIdentity, writeWhole } from "../lib/pki/identity.ts";
import { version } from "../lib/version/version.ts";
import {
  ClusterClient,
  ClusterService,
  type CreateJoinTokenRequest,
  type CreateJoinTokenResponse,
} from "../proto/gen/embassy/v1/api.ts";
import { DispatcherService, JoinService, ManagerService } from "../proto/gen/embassy/v1/dispatcher.ts";
import { JoinToken, Member } from "../proto/gen/embassy/v1/state.ts";
import { createApi } from "./api/index.ts";
import { makeBackup, readBackup, restoreBackup } from "./backup.ts";
import {
  type Config,
  defaultStateDir,
  type EtcdConfig,
  type EtcdFlags,
  type Flags,
  joinPort,
  listenedPorts,
  mainPort,
  type OwnEtcdFlags,
  parseConfig,
  parseDuration,
  parseEmbeddedEtcd,
  parseEtcd,
  parseHostPort,
} from "./config.ts";
import { createControllers } from "./controllers/index.ts";
import { createDispatcher } from "./dispatcher/index.ts";
import { ClusterIndex } from "./domain/index.ts";
import { dialled, EmbeddedEtcd } from "./embedded.ts";
import { etcdHostName } from "./etcd/arguments.ts";
import { serveGrpc } from "./listen.ts";
import { registerMember, watchMember } from "./member.ts";
import { createStoreMetrics, registerClusterMetrics } from "./metrics.ts";
import { managerService, Peers } from "./peers.ts";
import { MemberCertificates } from "./pki/certificates.ts";
import { adminContext, initCluster, loadAuthority } from "./pki/init.ts";
import { Join, renewCertificate } from "./pki/join.ts";
import { joinAsManager } from "./pki/join-cluster.ts";
import { ClusterFileKeeper, parseStoreKey, readClusterFile, stateFiles } from "./pki/state-dir.ts";
import { createToken, findToken, type TokenRole, tokenRoles } from "./pki/tokens.ts";
import { recoverAlone } from "./recover.ts";
import { EtcdClient, type EtcdClientOptions, hostOf, resolveEndpoints } from "./store/client.ts";
import { claimCluster } from "./store/cluster.ts";
import { Election } from "./store/election.ts";
import { EtcdStore } from "./store/etcd.ts";
import { maintainEtcd } from "./store/maintenance.ts";
import { createCodecs } from "./store/schema.ts";
import { createBlobCodec } from "./store/seal.ts";

/** How long the start waits for etcd. */
const startPatienceMs = 60_000;
const waitingLogMs = 30_000;
const silentTooLongMs = 12_000;
const reopeningMs = 4_000;

async function serveUntilStopped(config: Config): Promise<void> {
  const log = createLog("clusterd", config.logLevel);
  const clock = systemClock;
  const stop = new AbortController();
  let signalled = false;
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    process.on(signal, () => {
      if (stop.signal.aborted) process.exit(1);
      log.info("stopping", { signal });
      signalled = true;
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
    // What a stop interrupts is no failure.
    if (!signalled) throw error;
  }
}

async function serve(config: Config, log: Log, clock: Clock, stop: AbortController): Promise<void> {
  await using owned = new AsyncDisposableStack();
  const files = stateFiles(config.stateDir);
  const keeper = await ClusterFileKeeper.open(files);
  const cluster = keeper.value;
  owned.use(await lockDirectory(config.stateDir, "clusterd"));
  if (cluster.restoring === true) {
    throw new ClusterError(`the restore of a backup into ${config.stateDir} was interrupted`, {
      code: "invalid",
      subject: config.stateDir,
      hint: "Run `clusterd restore` again: it begins anew.",
    });
  }
  const authority = await loadAuthority(files);
  const certificates = await MemberCertificates.load({ files, authority, cluster, clock, log });
  const storeKey = parseStoreKey(await readFile(files.storeKey, "utf8"));
  const registry = new Registry();

  const identity = () => certificates.identities.etcd;
  const embedded =
    config.etcd.kind === "external"
      ? undefined
      : owned.use(await EmbeddedEtcd.start({ config: config.etcd, files, keeper, identity, log, clock }, stop.signal));
  const client = embedded?.client ?? owned.use(new EtcdClient({ ...(await externalEtcd(config.etcd)), log }));
  const codecs = createCodecs(createBlobCodec(storeKey));
  const metrics = createStoreMetrics(registry);
  const store = await untilReached({ embedded, log, signal: stop.signal }, async () => {
    await embedded?.settle(stop.signal);
    await claimCluster(client, cluster.clusterId, stop.signal);
    return await EtcdStore.open({ client, codecs, log, clock, metrics }, stop.signal);
  });
  owned.use(store);
  const { clusterId, member, advertise, instance } = cluster;
  const own = Member.create({ name: member, address: advertise, startedAtMs: clock.nowMs(), version, instance });
  await untilReached({ embedded, log, signal: stop.signal }, async () => {
    await registerMember({ store }, own, cluster.registered === true);
    await embedded?.look(stop.signal);
    await keepFirstToken(store, keeper);
  });

  const leadership = new Election(
    { client, store, clock, log },
    { member: cluster.member, instance: cluster.instance, ttlMs: config.leaseTtlMs },
  );
  registerClusterMetrics({ registry, store, leadership, member: cluster.member });
  const index = owned.use(new ClusterIndex(store));
  const { blockPrefix, silentHoldMs, rebalanceSettleMs, rebalanceCooldownMs } = config;
  const settings = { blockPrefix, silentHoldMs, rebalanceSettleMs, rebalanceCooldownMs };
  const controllers = createControllers({ store, index, log, clock, settings });
  const { heartbeatIntervalMs, leaseTtlMs, vipPool } = config;
  const managerIdentity = () => certificates.identities.manager;
  const peers = owned.use(new Peers({ view: store.view, member, identity: managerIdentity }));
  const dispatcher = createDispatcher({
    store,
    index,
    log,
    clock,
    member,
    peers,
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
      settings: {
        networkPool: config.networkPool,
        networkPrefix: config.networkPrefix,
        vipPool,
        listenedPorts: listenedPorts(config),
      },
      control: { blockPrefix, silentHoldMs },
      secretDigest: (content) => createHmac("sha256", storeKey).update(content).digest("hex"),
      leadership,
      identity: managerIdentity,
      network: dispatcher,
      createToken: async (ttlMs, role) =>
        await createToken({ store, caFingerprint: authority.fingerprint, clock }, ttlMs, role),
      etcd: embedded,
      requireQuorum: async (failed) => {
        // A watch that is opened again, as when etcd's members change, is no loss of etcd.
        const current = store.silentMs <= (store.connected ? silentTooLongMs : reopeningMs);
        if (current && !failed) return;
        const why = await embedded?.lacksQuorum();
        if (!current || why !== undefined) throw noQuorum(member, why);
      },
    }),
  );
  const manager = managerService({
    checkToken: (token) => void findToken(store.view, token, authority.fingerprint, clock.nowMs(), "manager"),
    secrets: async () => ({
      caKeyPem: await readFile(files.caKey),
      storeKey: storeKey.toString("hex"),
      etcd: (await embedded?.list())?.flatMap(({ clients, learner }) => (learner ? [] : clients)) ?? [],
    }),
    network: dispatcher,
  });
  const join = new Join({ store, authority, clusterId, advertise, clock, log });

  owned.use(
    await serveGrpc(config.listen, "--listen", certificates.listener("required"), clock, (server) => {
      server.addService(ClusterService, api.service);
      server.addService(DispatcherService, dispatcher.service);
      server.addService(ManagerService, manager);
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
  const loops = [
    watchMember({ store }, own, stop.signal),
    certificates.keep(({ etcd }) => embedded?.client.renew(etcd), stop.signal),
    dispatcher.run(stop.signal),
    leadership.run(async (signal) => await controllers.run(signal), stop.signal),
    ...(embedded === undefined
      ? []
      : [maintainEtcd({ client, clock, log }, stop.signal), embedded.follow(stop.signal)]),
  ];
  owned.defer(async () => {
    stop.abort();
    await Promise.allSettled(loops);
  });
  log.info("serving", { clusterId, member, listen: config.listen, join: config.joinListen, http: config.httpListen });
  await Promise.all(loops);
}

async function backup(stateDir: string, flags: OwnEtcdFlags & { readonly etcdListen: string }, out: string) {
  const files = stateFiles(stateDir);
  await readClusterFile(files);
  const log = createLog("clusterd", "error");
  const config = parseEtcd({ ...flags, etcdBinary: "", etcdPeerListen: flags.etcdListen, etcdQuota: "4g" });
  using client = new EtcdClient(
    config.kind === "external"
      ? { ...(await externalEtcd(config)), log }
      : {
          endpoints: [dialled(config.clientListen)],
          hosts: [etcdHostName],
          identity: await loadIdentity(files.etcd),
          log,
        },
  );
  return await makeBackup({ client, files, clock: systemClock }, out, new AbortController().signal);
}

async function recover(stateDir: string, flags: EtcdFlags & { readonly othersAreLost: boolean }) {
  const clock = systemClock;
  const log = createLog("clusterd", "warn");
  const files = stateFiles(stateDir);
  const keeper = await ClusterFileKeeper.open(files);
  await using _ = await lockDirectory(stateDir, "clusterd");
  const authority = await loadAuthority(files);
  const certificates = await MemberCertificates.load({ files, authority, cluster: keeper.value, clock, log });
  const deps = {
    config: parseEmbeddedEtcd(flags),
    files,
    keeper,
    identity: () => certificates.identities.etcd,
    log,
    clock,
  };
  const forgotten = await recoverAlone(deps, flags.othersAreLost, new AbortController().signal);
  return { member: keeper.value.member, forgotten };
}

async function externalEtcd(etcd: EtcdConfig): Promise<Pick<EtcdClientOptions, "endpoints" | "hosts" | "identity">> {
  if (etcd.kind === "embedded") throw new Error("this etcd is embedded");
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

/** Why this member answers no question about the cluster now. */
function noQuorum(member: string, why: string | undefined): ClusterError {
  return new ClusterError(`manager ${member} has no quorum: ${why ?? "it is cut off from the cluster's etcd"}`, {
    code: "unavailable",
    subject: `manager/${member}`,
    hint: "Start clusterd on the others again, and all goes on; what runs on the nodes runs on meanwhile. Are they lost for good: `clusterd recover` on this host.",
  });
}

interface Reaching {
  readonly embedded: EmbeddedEtcd | undefined;
  readonly log: Log;
  readonly signal: AbortSignal;
}

/**
 * Tries until etcd answers. Throws what is not `unavailable` at once. A member that has others waits for them as long as it
 * takes: to end would take its etcd from those that come back.
 */
async function untilReached<T>({ embedded, log, signal }: Reaching, attempt: () => Promise<T>): Promise<T> {
  let untilMs = systemClock.monotonicMs() + startPatienceMs;
  let failed: string | undefined;
  void embedded?.supervisor.failing().then((why) => {
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
      // The member's record was changed between its reading and its writing.
      const overtaken = hasCode(error, "conflict") && error.subject?.startsWith("members/") === true;
      if (!overtaken && !hasCode(error, "unavailable")) throw error;
      if (systemClock.monotonicMs() > untilMs) {
        if (embedded?.hasOthers !== true) throw error;
        untilMs += waitingLogMs;
        log.warn("waiting for the other managers", { why: (await embedded.lacksQuorum()) ?? error.message });
      }
      await systemClock.sleep(50, signal);
    }
  }
}

/** Moves the token that `init` printed from the state directory into the state, and notes that the member is registered. */
async function keepFirstToken(store: EtcdStore, keeper: ClusterFileKeeper): Promise<void> {
  const { firstToken, registered } = keeper.value;
  if (firstToken !== undefined) {
    const { id, secretSha256, createdAtMs, expiresAtMs } = firstToken;
    const token = { id, secretSha256: Buffer.from(secretSha256, "hex"), role: "node", createdAtMs, expiresAtMs };
    await store.commit([{ table: "tokens", id, value: JoinToken.create(token) }]);
  }
  if (firstToken !== undefined || registered !== true) await keeper.change({ firstToken: undefined, registered: true });
}

async function createTokenByApi(stateDir: string, ttlMs: number, role: TokenRole): Promise<string> {
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
      role,
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

  const run = program
    .command("run", { isDefault: true })
    .description("Serve. The default.")
    .option(...stateDir)
    .option("--listen <address:port>", "for users and nodes (mutual TLS)", `0.0.0.0:${mainPort}`)
    .option("--join-listen <address:port>", "for hosts that join (TLS)", `0.0.0.0:${joinPort}`)
    .option(
      "--http-listen <address:port>",
      "for /healthz and /metrics",
      `127.0.0.1:${defaultPorts.clusterdStatus.port}`,
    );
  withEtcdOptions(withOwnEtcdOptions(run))
    .option("--heartbeat-interval <time>", "between a node's signs of life", "1500ms")
    .option("--lease-ttl <time>", "without a sign of life a node is down, and a leader deposed", "5s")
    .option(
      "--silent-hold <time>",
      "how long nodes keep their tasks when most went silent together (0s: as one alone)",
      "5m",
    )
    .option(
      "--rebalance-settle <time>",
      "how long nodes have to stay as they are, and a task up, before x-disruption.rebalance moves it",
      "30s",
    )
    .option("--rebalance-cooldown <time>", "between two such moves of a service, when no more were planned", "10m")
    .option("--network-pool <cidr>", "subnets of networks are taken from it", "10.96.0.0/12")
    .option("--network-prefix <n>", "prefix length of a network's subnet", "20")
    .option("--block-prefix <n>", "prefix length of what a node gets of a network at a time", "27")
    .option("--vip-pool <cidr>", "virtual addresses of services are taken from it", "10.112.0.0/16")
    .option("--log-level <level>", "debug, info, warn or error", "info")
    .action(
      async (flags: Flags) => await serveUntilStopped(parseConfig({ ...flags, stateDir: absolute(flags.stateDir) })),
    );

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
    .addOption(new Option("--role <role>", "what the host is to become").choices(tokenRoles).default("node"))
    .option("--ttl <time>", "how long it is valid (default: 24h, a manager's 1h)")
    .action(async (flags: { stateDir: string; ttl?: string; role: TokenRole }) => {
      const ttlMs = flags.ttl === undefined ? 0 : parseDuration("--ttl", flags.ttl);
      if (flags.ttl !== undefined && ttlMs < 1_000) {
        throw new ClusterError(`--ttl is ${flags.ttl}; it must be at least 1s`, { code: "invalid", subject: "--ttl" });
      }
      console.log(await createTokenByApi(absolute(flags.stateDir), ttlMs, flags.role));
    });

  program
    .command("join")
    .description("Make this host a manager of the cluster that a manager's join token is for.")
    .requiredOption("--manager <host[:port]>", "a manager of the cluster, and the port of its join listener")
    .requiredOption("--token <token>", "from `clusterd token create --role manager`")
    .option(
      "--advertise <host[:port]>",
      "how nodes and users reach this member (default: the address that it calls from)",
    )
    .option(...stateDir)
    .option("--name <member>", "this member's name", hostname())
    .action(async (flags: { manager: string; token: string; advertise?: string; stateDir: string; name: string }) => {
      const { member, advertise } = await joinAsManager({
        stateDir: absolute(flags.stateDir),
        token: flags.token,
        manager: parseHostPort("--manager", flags.manager, joinPort),
        member: checkName("--name", flags.name),
        advertise: flags.advertise === undefined ? undefined : parseHostPort("--advertise", flags.advertise, mainPort),
        defaultPort: mainPort,
        nowMs: Date.now(),
      });
      console.error(`This host is manager ${member} (${advertise}). Start it with \`clusterd run\`.`);
    });

  withOwnEtcdOptions(
    program
      .command("backup")
      .description("Write what the cluster is to one file, while it serves: state, CA, and the key of the secrets.")
      .requiredOption("--out <file>", "where to write it; whoever reads it has the cluster")
      .option(...stateDir),
  )
    .option("--etcd-listen <address:port>", "the embedded etcd, for managers", `0.0.0.0:${defaultPorts.etcd.port}`)
    .action(async (flags: OwnEtcdFlags & { stateDir: string; etcdListen: string; out: string }) => {
      const out = absolute(flags.out);
      const { clusterId, revision, entries, bytes } = await backup(absolute(flags.stateDir), flags, out);
      console.error(`Cluster ${clusterId} at revision ${revision}: ${entries} entries, ${bytes} bytes, in ${out}.`);
      console.error("It holds the CA's key and all secrets: take it off this host, and keep it as you keep those.");
    });

  withEtcdOptions(
    program
      .command("restore")
      .description(
        "Make the cluster of a backup, with this member as its only manager. Needs an empty state directory.",
      )
      .argument("<file>", "from `clusterd backup`")
      .requiredOption("--advertise <host[:port]>", "how nodes and users reach this member")
      .option(...stateDir)
      .option("--name <member>", "this member's name", hostname()),
  ).action(
    async (
      file: string,
      flags: EtcdFlags & { readonly advertise: string; readonly stateDir: string; readonly name: string },
    ) => {
      const { member, advertise, stateDir: directory } = memberOptions(flags, flags.stateDir);
      const found = await readBackup(absolute(file));
      const deps = { log: createLog("clusterd", "warn"), clock: systemClock };
      const options = { stateDir: directory, member, advertise, etcd: parseEmbeddedEtcd(flags) };
      await restoreBackup(deps, found, options, new AbortController().signal);
      const madeAt = new Date(found.madeAtMs).toISOString();
      console.error(
        `Manager ${member} (${advertise}) has cluster ${found.clusterId} as of ${madeAt}, revision ${found.revision}.`,
      );
      console.error("Start it with `clusterd run`. No other manager of this cluster may run.");
    },
  );

  withEtcdOptions(
    program
      .command("recover")
      .description("Make this manager the only one, when most are lost for good. clusterd must not run on this host.")
      .option(...stateDir)
      .option("--others-are-lost", "none of the other managers will ever start again as it is", false),
  ).action(async (flags: EtcdFlags & { readonly stateDir: string; readonly othersAreLost: boolean }) => {
    const { member, forgotten } = await recover(absolute(flags.stateDir), flags);
    console.error(`Manager ${member} is the only one now. Forgotten: ${forgotten.join(", ") || "none"}.`);
    console.error(
      "Start it with `clusterd run`. Remove the state directory of each other one before that host joins again.",
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

function withOwnEtcdOptions(command: Command): Command {
  return command
    .option("--etcd-endpoints <urls>", "use this etcd, a comma between members, instead of the embedded one")
    .option("--etcd-ca <file>", "of that etcd, PEM")
    .option("--etcd-cert <file>", "to show to that etcd, PEM")
    .option("--etcd-key <file>", "of that certificate, PEM");
}

function withEtcdOptions(command: Command): Command {
  return command
    .option("--etcd-binary <path>", "the embedded etcd", "etcd")
    .option("--etcd-listen <address:port>", "the embedded etcd, for managers", `0.0.0.0:${defaultPorts.etcd.port}`)
    .option(
      "--etcd-peer-listen <address:port>",
      "the embedded etcd, for its own kind",
      `0.0.0.0:${defaultPorts.etcdPeer.port}`,
    )
    .option("--etcd-quota <size>", "most that the embedded etcd may hold, up to 8g", "4g");
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
