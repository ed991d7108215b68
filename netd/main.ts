import { rm } from "node:fs/promises";
import { systemClock } from "../lib/clock/clock.ts";
import { asClusterError, ClusterError, hasCode } from "../lib/errors/errors.ts";
import { serveStatus } from "../lib/http/status.ts";
import { createLog } from "../lib/log/log.ts";
import { version } from "../lib/version/version.ts";
import { type Config, parseConfig, usage } from "./config.ts";
import { cleanup } from "./kernel/cleanup.ts";
import { Netd } from "./netd.ts";
import { serveNetd } from "./server/grpc.ts";
import { NetworkSession } from "./session/session.ts";
import { stateFilePath } from "./session/state-file.ts";

/** Resolves with "removed" when the host is no node any more; what was built stands until `leave`. */
async function run(config: Config, signal: AbortSignal): Promise<"stopped" | "removed"> {
  const log = createLog("netd", config.logLevel);
  await using stack = new AsyncDisposableStack();
  const session: NetworkSession = new NetworkSession({
    log,
    clock: systemClock,
    nodedDir: config.nodedDir,
    version,
    random: Math.random,
    update: async (state) => await netd.update(state),
    appliedRevision: () => netd.appliedRevision,
    busyPorts: () => netd.busyPorts(),
    trouble: () => netd.status().lastError,
  });
  const netd: Netd = stack.use(
    new Netd({
      log,
      stateDir: config.stateDir,
      runDir: config.runDir,
      resolvConf: config.resolvConf,
      poolSize: config.poolSize,
      connected: () => session.connected,
      onBusyPorts: () => session.busyPortsChanged(),
    }),
  );
  await netd.start();
  stack.use(await serveNetd(netd, config.socket));
  stack.use(
    await serveStatus(`${config.httpListen.host}:${config.httpListen.port}`, {
      health: () => {
        const status = netd.status();
        // Without a control plane it still serves; without having applied what it knows it does not.
        return { healthy: status.lastError === "", ...status, dns: netd.dnsUp };
      },
      metrics: () => netd.formatMetrics(),
    }),
  );
  log.info("netd serves", { socket: config.socket, attachments: netd.attachments().length });
  const end = await session.run(signal);
  log.info(end === "removed" ? "this node was removed: what netd built goes" : "netd stops; what it built stays");
  return end;
}

/** Takes away what netd built for a node that was removed. Killed in between, the next netd does it again. */
async function leave({ runDir, stateDir }: Config): Promise<never> {
  await cleanup(runDir);
  // Last: a netd that finds it builds by it, and comes here again.
  await rm(stateFilePath(stateDir), { force: true });
  throw new ClusterError("this host's node was removed from its cluster, and its tasks are stopped", {
    code: "not-found",
    hint: "netd's part is taken away. Run `noded join` to join again, then start noded and netd.",
  });
}

async function main(): Promise<void> {
  const config = parseConfig(process.argv.slice(2));
  if (config === "help") {
    process.stdout.write(usage);
    return;
  }
  if (config === "version") {
    process.stdout.write(`netd ${version}\n`);
    return;
  }
  if (config.command === "cleanup") {
    const { removed } = await cleanup(config.runDir);
    process.stdout.write(`Removed ${removed} things of netd's from this host.\n`);
    return;
  }
  const stop = new AbortController();
  for (const name of ["SIGTERM", "SIGINT"] as const) process.once(name, () => stop.abort());
  if ((await run(config, stop.signal)) === "removed") await leave(config);
}

main().catch((error: unknown) => {
  const { message, hint } = asClusterError(error);
  process.stderr.write(`netd: ${message}\n${hint === undefined ? "" : `${hint}\n`}`);
  process.exitCode = hasCode(error, "invalid") || hasCode(error, "not-found") ? 2 : 1;
});
