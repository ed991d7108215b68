import { mkdir } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { systemClock } from "../lib/clock/clock.ts";
import { asClusterError, ClusterError, hasCode } from "../lib/errors/errors.ts";
import type { TlsIdentity } from "../lib/grpc/tls.ts";
import { serveStatus } from "../lib/http/status.ts";
import { lockDirectory } from "../lib/lock/lock.ts";
import { createLog } from "../lib/log/log.ts";
import { defaultPorts } from "../lib/net/ports.ts";
import { readCertificate } from "../lib/pki/certificate.ts";
import { loadIdentity, writeIdentity } from "../lib/pki/identity.ts";
import { Spawner } from "../lib/process/spawner.ts";
import { version } from "../lib/version/version.ts";
import { parseConfig, type RunConfig, usage } from "./config.ts";
import { describeNode } from "./describe/describe.ts";
import { DiskWatch } from "./disk/watch.ts";
import { openImageStore } from "./images/store.ts";
import { toldImages } from "./images/told.ts";
import { leaveCluster, removedHost } from "./join/leave.ts";
import { identityFiles, readNodeFile, writeNodeFile } from "./join/node.ts";
import { keepRotating } from "./logs/rotation.ts";
import { Netd } from "./network/client.ts";
import { NetworkWatch } from "./network/watch.ts";
import { openRuntime } from "./runtime/open.ts";
import { AgentServer } from "./server/agent.ts";
import { Metrics } from "./server/metrics.ts";
import { keepCertificate } from "./session/renewal.ts";
import { Session } from "./session/session.ts";
import { collectUnused, keepCollecting } from "./task/collect.ts";
import { TaskFiles } from "./task/files.ts";
import { TaskManager } from "./task/manager.ts";
import { RecordStore } from "./task/record.ts";
import { Volumes } from "./volumes/volumes.ts";

async function run(config: RunConfig): Promise<void> {
  const log = createLog("noded", config.logLevel);
  const clock = systemClock;
  const stop = new AbortController();
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    process.on(signal, () => {
      // Asked twice: at once. Containers go on either way.
      if (stop.signal.aborted) process.exit(1);
      log.info("stopping", { signal });
      stop.abort(new ClusterError(`stopped by ${signal}`, { code: "unavailable" }));
    });
  }
  process.on("unhandledRejection", (error) => {
    log.error("a failure that nothing handles", { error });
    process.exit(1);
  });

  await using owned = new AsyncDisposableStack();
  await mkdir(config.stateDir, { recursive: true, mode: 0o711 });
  owned.use(await lockDirectory(config.stateDir, "noded"));
  const node = await readNodeFile(config.stateDir);
  if (node.removed === "done") throw removedHost(node);
  let { managers } = node;
  const files = identityFiles(config.stateDir);
  let identity: TlsIdentity = await loadIdentity(files);
  const { notAfterMs } = readCertificate(identity.certificate);
  if (notAfterMs < clock.nowMs()) {
    log.error("this node's certificate has expired: the control plane will refuse it; remove the node and join again", {
      notAfter: new Date(notAfterMs).toISOString(),
    });
  }

  const metrics = new Metrics();
  let adopted = false;
  const sessionUp = () => session?.state.kind === "established";
  let session: Session | undefined;
  let tasks: TaskManager | undefined;
  let disk: DiskWatch | undefined;
  owned.use(
    await serveStatus(`${config.httpListen.host}:${config.httpListen.port}`, {
      health: () => ({
        healthy: adopted,
        node: node.name,
        session: node.removed === undefined ? (session?.state.kind ?? "none") : "removed",
        tasks: tasks?.statuses().length ?? 0,
      }),
      metrics: () =>
        metrics.format(tasks?.statuses().map(({ state }) => state) ?? [], sessionUp(), disk?.measured ?? []),
    }),
  );

  const taskFiles = new TaskFiles(config.runDir);
  await taskFiles.prepareDirectory();
  const spawner = owned.use(new Spawner("noded: spawner"));
  const imageDir = join(config.stateDir, "images");
  const images = owned.use(
    await openImageStore({
      stateDir: imageDir,
      insecureRegistries: config.insecureRegistries,
      log,
      spawner,
    }),
  );
  const runtime = owned.use(
    await openRuntime({
      nodeId: node.nodeId,
      stateDir: join(config.stateDir, "runtime"),
      runDir: join(config.runDir, "runtime"),
      logDir: join(config.stateDir, "logs"),
      runtime: config.runtime ?? "auto",
      log,
      spawner,
    }),
  );
  const network = owned.use(new Netd(config.netdSocket));
  const volumes = new Volumes(join(config.stateDir, "volumes"));
  const manager = owned.use(
    new TaskManager({
      log,
      clock,
      runtime,
      images,
      network,
      volumes,
      files: taskFiles,
      records: new RecordStore(join(config.stateDir, "tasks"), log),
      concurrency: Math.max(2, 2 * availableParallelism()),
      report: (status) => session?.report(status),
      measure: metrics,
    }),
  );
  tasks = manager;
  await manager.adopt(node.removed !== undefined);
  adopted = true;

  const listen = config.agentListen ?? { host: node.underlay, port: defaultPorts.agent.port };
  const agent = owned.use(new AgentServer({ nodeName: node.name, listen, runtime, tasks: manager, volumes, log }));
  await agent.listen(identity);

  const everywhere = listen.host === "0.0.0.0" || listen.host === "::";
  const agentAddress = `${everywhere ? node.underlay : listen.host}:${listen.port}`;
  const { genericResources } = config;
  const facts = { underlay: node.underlay, agentAddress, version, probe: runtime.probe, genericResources };
  const networkWatch = new NetworkWatch({ log, clock, network });
  const used = () => manager.imagesInUse();
  const diskWatch = new DiskWatch({
    log,
    clock,
    directories: [config.stateDir, imageDir],
    limits: config.diskLow,
    makeRoom: async () => await collectUnused({ log, images, used }),
  });
  disk = diskWatch;
  session = new Session({
    log,
    clock,
    chance: Math,
    nodeId: node.nodeId,
    managers: () => managers,
    managersChanged: async (addresses) => {
      if (addresses.length === 0 || addresses.join() === managers.join()) return;
      managers = addresses;
      log.info("the control plane has other members", { managers });
      // netd reads it there, and so does the next noded. A full disk must not end the session.
      await writeNodeFile(config.stateDir, { ...node, managers }).catch((error: unknown) =>
        log.warn("node.json could not be written", { error }),
      );
    },
    identity: () => identity,
    describe: () => describeNode(facts),
    statuses: () => manager.statuses(),
    images: async () => toldImages(await images.list()),
    problems: () => ({ networkProblem: networkWatch.problem, diskProblem: diskWatch.problem }),
    assign: (assignments) => manager.assign(assignments),
  });
  log.info("started", { node: node.name, nodeId: node.nodeId, ...facts.probe, agentAddress });
  let left = false;
  const membership = async (member: Session) => {
    if (node.removed === undefined) await member.run(stop.signal);
    if (node.removed === undefined && member.state.kind !== "removed") return;
    await leaveCluster({ log, stateDir: config.stateDir, node: { ...node, managers }, tasks: manager }, stop.signal);
    left = !stop.signal.aborted;
    stop.abort(removedHost(node));
  };
  await Promise.all([
    membership(session),
    manager.sweepNetwork(stop.signal),
    networkWatch.run(stop.signal),
    diskWatch.run(stop.signal),
    volumes.sweep().catch((error: unknown) => log.warn("removed volumes not deleted whole", { error })),
    keepCertificate(
      {
        log,
        clock,
        managers: () => managers,
        identity: () => identity,
        replace: async (renewed) => {
          await writeIdentity(files, renewed);
          identity = renewed;
          await agent.listen(renewed);
        },
      },
      stop.signal,
    ),
    keepRotating({ log, clock, logs: () => manager.runningLogs(), reopen: (id) => runtime.reopenLog(id) }, stop.signal),
    keepCollecting({ log, clock, images, used }, stop.signal),
  ]);
  if (left) throw removedHost(node);
}

async function main(): Promise<void> {
  const config = parseConfig(process.argv.slice(2));
  switch (config.command) {
    case "help":
      process.stdout.write(usage);
      return;
    case "version":
      process.stdout.write(`noded ${version}\n`);
      return;
    case "join": {
      // Loaded only here: the running daemon has no use for it.
      const { joinCluster } = await import("./join/join.ts");
      const node = await joinCluster(config, createLog("noded", "warn"));
      process.stdout.write(`This host is node ${node.name} (${node.nodeId}). Start noded and netd.\n`);
      return;
    }
    case "run":
      return await run(config);
    default:
      config satisfies never;
  }
}

try {
  await main();
  // What is still open is nobody's business any more.
  process.exit(0);
} catch (caught) {
  const error = asClusterError(caught);
  const words = error.hint === undefined ? error.message : `${error.message}\n${error.hint}`;
  process.stderr.write(`noded: ${words}\n`);
  // 2: started wrongly, or removed, and starting it again would change nothing.
  const hopeless = hasCode(error, "invalid") || hasCode(error, "not-found") || hasCode(error, "conflict");
  process.exit(hopeless ? 2 : 1);
}
