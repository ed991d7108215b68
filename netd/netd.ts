import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { ClusterError } from "../lib/errors/errors.ts";
import type { Log } from "../lib/log/log.ts";
import { Spawner } from "../lib/process/spawner.ts";
import type { NetworkState } from "../proto/gen/embassy/v1/dispatcher.ts";
import type { Attachment, AttachRequest, AttachResponse, NetdStatus } from "../proto/gen/embassy/v1/local.ts";
import type { PublishedPort } from "../proto/gen/embassy/v1/stack.ts";
import { Ledger } from "./attach/ledger.ts";
import { AttachManager } from "./attach/manager.ts";
import { Namespaces } from "./attach/namespaces.ts";
import { Forwarder } from "./dns/forward.ts";
import { type Asker, Names } from "./dns/names.ts";
import { DnsServer } from "./dns/server.ts";
import { DataPath, type FoundDrift } from "./engine/data-path.ts";
import { forgetBackends, type GoneBackend } from "./kernel/conntrack.ts";
import { Kernel } from "./kernel/kernel.ts";
import { listListeners } from "./kernel/listeners.ts";
import { KernelMonitor } from "./kernel/monitor.ts";
import { mtuOfAddress } from "./kernel/observe.ts";
import { gatewayAddress } from "./kernel/ruleset.ts";
import { type BusyPort, claimOf, describeBusy, PortClaims } from "./publish/claims.ts";
import { Metrics } from "./server/metrics.ts";
import { StateFile, stateFilePath } from "./session/state-file.ts";

export interface NetdOptions {
  readonly log: Log;
  readonly stateDir: string;
  /** Folder of the namespace pins. */
  readonly runDir: string;
  readonly resolvConf: string;
  readonly poolSize: number;
  /** The control plane's stream is up; for status. */
  readonly connected: () => boolean;
  /** Other ports than before cannot be published here; see `busyPorts`. */
  readonly onBusyPorts?: () => void;
  /** How often a port that could not be had is tried again; default 5 s. */
  readonly portRetryMs?: number;
}

/** A full comparison now and then finds what no event told of. */
const verifyIntervalMs = 300_000;
/** Events come in bursts: one comparison for each. */
const driftDelayMs = 100;
const dnsRetryMs = 1_000;
const startPatienceMs = 5_000;

/**
 * The whole of netd but for its connections: takes network states in, attaches tasks, answers DNS, and keeps the kernel's
 * network state of the network namespace it runs in as they say.
 */
export class Netd implements AsyncDisposable {
  readonly metrics = new Metrics();
  readonly #options: NetdOptions;
  readonly #kernel: Kernel;
  readonly #ledger: Ledger;
  readonly #spawner = new Spawner("netd: spawner");
  readonly #namespaces: Namespaces;
  readonly #attach: AttachManager;
  readonly #path: DataPath;
  readonly #claims: PortClaims;
  readonly #stateFile: StateFile;
  readonly #names: Names;
  readonly #dns: DnsServer;
  readonly #forwarder: Forwarder;
  readonly #monitor: KernelMonitor;
  readonly #askers = new Map<string, Asker>();
  #drift: NodeJS.Timeout | undefined;
  #verify: NodeJS.Timeout | undefined;
  #dnsUp = false;
  #dnsRetry: NodeJS.Timeout | undefined;
  #stopped = false;
  #forgetting = Promise.resolve();
  /** Of several passes in short order, while the ones before are still being forgotten. */
  #toForget: GoneBackend[] = [];

  constructor(options: NetdOptions) {
    const { log, stateDir, runDir, poolSize } = options;
    this.#options = options;
    this.#kernel = new Kernel();
    this.#ledger = new Ledger(join(stateDir, "attachments.json"));
    this.#namespaces = new Namespaces({
      directory: runDir,
      log,
      spawner: this.#spawner,
      size: poolSize,
      ip: async (commands) => await this.#kernel.ip(commands),
    });
    this.#claims = new PortClaims({
      log,
      listeners: listListeners,
      onChange: (units) => this.#path.portsChanged(units),
      onBusy: () => options.onBusyPorts?.(),
      ...(options.portRetryMs === undefined ? {} : { retryMs: options.portRetryMs }),
    });
    this.#attach = new AttachManager({
      log,
      ledger: this.#ledger,
      namespaces: this.#namespaces,
      spawner: this.#spawner,
      view: () => this.#path.view,
      apply: async (taskIds) => await this.#path.attachmentsChanged(taskIds),
      trouble: () => this.#path.lastError,
      claim: async (taskId, ports) => await this.#claim(taskId, ports),
      unclaim: async (taskId) => await this.#unclaim(taskId),
      onChange: () => this.#attachmentsChanged(),
    });
    this.#path = new DataPath({
      kernel: this.#kernel,
      log,
      veths: this.#attach,
      attachments: this.#attach.ready,
      claims: this.#claims,
      mtuOfAddress,
      forget: (backends) => {
        this.#toForget.push(...backends);
        this.#forgetting = this.#forgetting.then(async () => await this.#forget());
      },
      onApplied: ({ actions, durationMs, drifts }) => this.metrics.pass(actions, durationMs, drifts),
    });
    this.#stateFile = new StateFile(stateFilePath(stateDir), log);
    this.#names = new Names(this.#path.cluster);
    this.#forwarder = new Forwarder({ log, resolvConf: options.resolvConf, never: [gatewayAddress] });
    this.#dns = new DnsServer({
      log,
      address: gatewayAddress,
      port: 53,
      names: this.#names,
      askerAt: (address) => this.#askers.get(address),
      forwarder: this.#forwarder,
      count: (source) => this.metrics.dns(source),
    });
    this.#monitor = new KernelMonitor({
      log,
      onDrift: () => this.#suspect(),
      isOwnProcess: (pid) => this.#kernel.isOwnProcess(pid),
      isWanted: (kind, key) => this.#path.wants(`${kind} ${key}`),
    });
  }

  /**
   * Takes over what an earlier run left, by observing it: with a state kept, kernel and DNS are as it says when this
   * resolves, or five seconds have passed. Throws `internal` when the kernel refuses the ruleset or the ledger cannot be read.
   */
  async start(): Promise<void> {
    await this.#ledger.load();
    await this.#path.start();
    const kept = await this.#attach.start();
    this.#attachmentsChanged();
    this.#monitor.start();
    const state = await this.#stateFile.load();
    if (state !== undefined) {
      this.#options.log.info("starting from the state kept", { revision: state.revision });
      // In trouble with the kernel it still serves, and says what the trouble is.
      const applied = this.#applied(state).catch(() => {});
      const patience = new AbortController();
      await Promise.race([applied, sleep(startPatienceMs, undefined, { signal: patience.signal }).catch(() => {})]);
      patience.abort();
    }
    await this.#namespaces.start(kept);
    this.#verify = setInterval(() => this.#suspect(), verifyIntervalMs);
  }

  /** Takes in a message of the control plane. Resolves once kernel and DNS have it. */
  async update(message: NetworkState): Promise<void> {
    const applied = this.#applied(message);
    this.#stateFile.save(() => this.#path.cluster.snapshot());
    await applied;
  }

  async attach(request: AttachRequest, signal: AbortSignal): Promise<AttachResponse> {
    return await this.#attach.attach(request, signal);
  }

  async detach(taskId: string): Promise<void> {
    await this.#attach.detach(taskId);
  }

  attachments(): Attachment[] {
    return this.#attach.list();
  }

  status(): NetdStatus {
    return {
      connected: this.#options.connected(),
      stateRevision: this.#path.cluster.revision,
      appliedRevision: this.#path.appliedRevision,
      lastError: this.#path.lastError,
    };
  }

  /** Ports that are to be published here and that programs of the host have: those keep them. */
  busyPorts(): BusyPort[] {
    return this.#claims.busy();
  }

  get appliedRevision(): number {
    return this.#path.appliedRevision;
  }

  get dnsUp(): boolean {
    return this.#dnsUp;
  }

  async verify(repair: boolean): Promise<FoundDrift[]> {
    return await this.#path.verify(repair);
  }

  /** The text of /metrics. */
  formatMetrics(): string {
    const { cluster } = this.#path;
    const links = [...cluster.services.values()].reduce((sum, { links: own }) => sum + own.length, 0);
    return this.metrics.format({
      embassy_netd_connected: {
        help: "1 while the control plane's stream is up.",
        value: Number(this.#options.connected()),
      },
      embassy_netd_state_revision: { help: "Revision of the network state.", value: cluster.revision },
      embassy_netd_applied_revision: { help: "Revision that kernel and DNS have.", value: this.#path.appliedRevision },
      embassy_netd_attachments: { help: "Tasks attached.", value: this.#ledger.attachments.size },
      embassy_netd_networks: { help: "Networks on this host.", value: cluster.networks.size },
      embassy_netd_links: { help: "Links known.", value: links },
      embassy_netd_kernel_items: { help: "Things that the kernel is to hold.", value: this.#path.size },
    });
  }

  /** Stops; tasks, overlay and ambassadors go on. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#drift);
    clearTimeout(this.#dnsRetry);
    clearInterval(this.#verify);
    await this.#monitor[Symbol.asyncDispose]();
    await this.#dns[Symbol.asyncDispose]();
    this.#forwarder[Symbol.dispose]();
    await this.#path[Symbol.asyncDispose]();
    await this.#claims[Symbol.asyncDispose]();
    await this.#namespaces[Symbol.asyncDispose]();
    await this.#spawner[Symbol.asyncDispose]();
    await this.#kernel[Symbol.asyncDispose]();
    await this.#stateFile.idle();
    await this.#forgetting;
  }

  async #claim(taskId: string, ports: readonly PublishedPort[]): Promise<void> {
    const busy = await this.#claims.refused(`attachment ${taskId}`, ports.map(claimOf));
    if (busy === undefined) return;
    await this.#unclaim(taskId);
    throw new ClusterError(describeBusy(busy), {
      code: "conflict",
      subject: `task/${taskId}`,
      hint: "Stop that program, or publish another port.",
    });
  }

  async #unclaim(taskId: string): Promise<void> {
    await this.#claims.set(new Map([[`attachment ${taskId}`, []]]));
  }

  async #applied(message: NetworkState): Promise<void> {
    const { applied } = this.#path.update(message);
    // DNS answers from the state itself: new answers before the kernel has them would lead nowhere for a moment only.
    this.#dns.changed();
    this.#attach.stateChanged();
    await applied;
    if (!this.#dnsUp) await this.#listen();
  }

  async #listen(): Promise<void> {
    if (this.#stopped) return;
    try {
      await this.#dns.listen();
      this.#dnsUp = true;
    } catch (error) {
      this.#options.log.error("dns does not listen", { error, retryInMs: dnsRetryMs });
      clearTimeout(this.#dnsRetry);
      this.#dnsRetry = setTimeout(() => void this.#listen(), dnsRetryMs);
    }
  }

  #attachmentsChanged(): void {
    this.#askers.clear();
    for (const { serviceId, addresses, resolvers } of this.#ledger.attachments.values()) {
      const asker: Asker = { serviceId, networkIds: addresses.map(({ networkId }) => networkId), resolvers };
      for (const { address } of addresses) this.#askers.set(address, asker);
    }
  }

  #suspect(): void {
    this.#drift ??= setTimeout(() => {
      this.#drift = undefined;
      this.#path.suspect().catch(() => {});
    }, driftDelayMs);
  }

  async #forget(): Promise<void> {
    const backends = this.#toForget.splice(0);
    if (backends.length === 0) return;
    const clients = [...this.#ledger.attachments.values()].map(({ netns, addresses }) => ({
      netns,
      addresses: addresses.map(({ address }) => address),
    }));
    await forgetBackends(backends, clients, this.#options.log);
  }
}
