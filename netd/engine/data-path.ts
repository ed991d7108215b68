import { ClusterError, messageOf } from "../../lib/errors/errors.ts";
import type { Log } from "../../lib/log/log.ts";
import type { NetworkState } from "../../proto/gen/embassy/v1/dispatcher.ts";
import type { VethSource } from "../kernel/commands.ts";
import type { GoneBackend } from "../kernel/conntrack.ts";
import type { Kernel } from "../kernel/kernel.ts";
import { DesiredItems } from "../plan/desired.ts";
import { type Action, applyToModel, plan } from "../plan/diff.ts";
import type { Item } from "../plan/items.ts";
import { allUnits, planUnit, unitsTouchedBy } from "../plan/units.ts";
import type { Attachment, View } from "../plan/view.ts";
import type { PortClaims } from "../publish/claims.ts";
import { claimsOf } from "../publish/ports.ts";
import { type Changes, ClusterState } from "../state/cluster.ts";

/** Where the ends of veth pairs come from: the namespaces of attached tasks. */
export interface VethProvider {
  sourceOf(device: string): VethSource | undefined;
  /** A pair was made with an end in the task's namespace that is bare as yet: gives it its addresses and routes. */
  configure(device: string): Promise<void>;
}

export interface DataPathDeps {
  readonly kernel: Kernel;
  readonly log: Log;
  readonly veths: VethProvider;
  readonly attachments: ReadonlyMap<string, Attachment>;
  /** Which ports of this host may be published. */
  readonly claims: Pick<PortClaims, "set" | "has">;
  /** Finds the MTU of the device with the underlay address. */
  readonly mtuOfAddress: (address: string) => Promise<number | undefined>;
  /** Starts to end what connections still lead to those backends; nothing waits for it. */
  readonly forget: (backends: readonly GoneBackend[]) => void;
  /** Told after each pass that succeeded. */
  readonly onApplied?: (pass: {
    readonly actions: number;
    readonly durationMs: number;
    readonly drifts: number;
  }) => void;
}

/** A difference between the kernel and the state that netd itself has not made. */
export interface FoundDrift {
  readonly kind: string;
  readonly subject: string;
  readonly expected: string;
  readonly found: string;
}

const minRetryMs = 100;
const maxRetryMs = 5_000;
const defaultMtu = 1_500;

interface Waiter {
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

/**
 * The one loop that changes the kernel. Holds the network state, what it wants of the kernel by unit, and what is believed
 * to be there; a change of the state plans its units anew and compares only what they hold. What was changed by others, or
 * by a pass that failed half way, is found by observing everything and taking that as what is there.
 *
 * Nothing is planned before the first network state: what an earlier run left in the kernel keeps working.
 */
export class DataPath implements AsyncDisposable {
  readonly cluster = new ClusterState();
  readonly #deps: DataPathDeps;
  readonly #desired = new DesiredItems();
  #believed = new Map<string, Item>();
  readonly #dirty = new Set<string>();
  #observe = true;
  #suspected = false;
  #gone: GoneBackend[] = [];
  #waiting: Waiter[] = [];
  #running: Promise<void> | undefined;
  #retry: NodeJS.Timeout | undefined;
  #retryMs = minRetryMs;
  #underlayMtu = defaultMtu;
  #appliedRevision = 0;
  #lastError = "";
  #stopped = false;
  /** Devices made anew whose end in the task's namespace has no addresses yet. */
  readonly #bare = new Set<string>();

  constructor(deps: DataPathDeps) {
    this.#deps = deps;
  }

  get view(): View {
    const { attachments, claims } = this.#deps;
    const mayPublish: View["mayPublish"] = (claim) => claims.has(claim);
    return { cluster: this.cluster, attachments, underlayMtu: this.#underlayMtu, mayPublish };
  }

  /** Everything up to it is in the kernel. */
  get appliedRevision(): number {
    return this.#appliedRevision;
  }

  /** Why the last pass failed; empty when it did not. */
  get lastError(): string {
    return this.#lastError;
  }

  /** How many things the kernel is to hold. */
  get size(): number {
    return this.#desired.items.size;
  }

  /** Is the thing with that id to be in the kernel? */
  wants(id: string): boolean {
    return this.#desired.items.has(id);
  }

  /** Loads the ruleset. Throws `internal` when the kernel does not take it. */
  async start(): Promise<void> {
    await this.#deps.kernel.ensureRuleset();
  }

  /**
   * Takes in a message of the control plane. Returns what it changed, and a promise that resolves once that is in the
   * kernel; a failed pass is tried again, so that the promise rejects only when the data path is stopped.
   */
  update(message: NetworkState): { readonly changes: Changes; readonly applied: Promise<void> } {
    const changes = this.cluster.apply(message);
    for (const unit of unitsTouchedBy(this.view, changes)) this.#dirty.add(unit);
    for (const [taskId, was] of changes.endpoints) {
      if (was === undefined) continue;
      const is = this.cluster.endpoints.get(taskId);
      const kept = new Set(is?.addresses.map(({ address }) => address));
      for (const { address } of was.addresses) {
        if (!kept.has(address)) this.#gone.push({ address, hostLost: !this.cluster.hosts.has(was.nodeId) });
      }
    }
    return { changes, applied: this.#request() };
  }

  /** Attachments were added, changed or taken away. Resolves once the kernel has them so. */
  async attachmentsChanged(taskIds: Iterable<string>): Promise<void> {
    for (const id of taskIds) this.#dirty.add(`attachment ${id}`);
    await this.#request();
  }

  /** Ports may be published that could not be, or the other way round. */
  portsChanged(units: Iterable<string>): void {
    for (const unit of units) this.#dirty.add(unit);
    this.#request().catch(() => {});
  }

  /** Something may have been changed by others: everything will be compared, and mended. */
  async suspect(): Promise<void> {
    this.#suspected = true;
    this.#observe = true;
    await this.#request();
  }

  /** Compares the kernel with what it should hold; with `repair`, mends it. Resolves to what differed. */
  async verify(repair: boolean): Promise<FoundDrift[]> {
    let drifts: FoundDrift[] = [];
    // A pass under way would be seen half done.
    await this.#exclusive(async () => {
      if (this.cluster.revision === 0) return;
      await this.#replan();
      const observation = await this.#deps.kernel.observe(this.#sysctls());
      drifts = plan(this.#desired.items, observation.items).map(driftOf);
      if (!this.#deps.kernel.isRuleset(observation)) {
        drifts.push({ kind: "nft", subject: "ruleset", expected: "as loaded", found: "changed" });
      }
    });
    if (repair && drifts.length > 0) await this.suspect();
    return drifts;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#retry);
    await this.#running;
    const error = new ClusterError("netd is stopping", { code: "unavailable" });
    for (const waiter of this.#waiting.splice(0)) waiter.reject(error);
  }

  async #request(): Promise<void> {
    if (this.#stopped) throw new ClusterError("netd is stopping", { code: "unavailable" });
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#waiting.push({ resolve, reject });
    // Later in this turn, so that the requests of one burst are one pass.
    queueMicrotask(() => this.#pump());
    await promise;
  }

  #pump(): void {
    if (this.#running !== undefined || this.#stopped || this.#waiting.length === 0 || this.#retry !== undefined) return;
    void this.#exclusive(() => this.#passOnce());
  }

  async #exclusive(work: () => Promise<void>): Promise<void> {
    while (this.#running !== undefined) await this.#running;
    const running = work();
    this.#running = running
      .catch(() => {})
      .finally(() => {
        this.#running = undefined;
        queueMicrotask(() => this.#pump());
      });
    await running;
  }

  /** One pass for everyone who waits by now. Never rejects. */
  async #passOnce(): Promise<void> {
    const waiting = this.#waiting.splice(0);
    try {
      await this.#pass();
      this.#retryMs = minRetryMs;
      this.#lastError = "";
      for (const waiter of waiting) waiter.resolve();
    } catch (error) {
      this.#observe = true;
      this.#lastError = messageOf(error);
      this.#deps.log.warn("network pass failed", { error, retryInMs: this.#retryMs });
      this.#waiting.unshift(...waiting);
      this.#retry = setTimeout(() => {
        this.#retry = undefined;
        this.#pump();
      }, this.#retryMs);
      this.#retryMs = Math.min(this.#retryMs * 2, maxRetryMs);
    }
  }

  async #pass(): Promise<void> {
    if (this.cluster.revision === 0) return;
    const { log, forget, onApplied } = this.#deps;
    const startMs = performance.now();
    if (this.#observe) await this.#readUnderlay();
    const { touched, revision } = await this.#replan();
    const gone = this.#gone.splice(0);
    let drifts = 0;
    let actions: Action[];
    try {
      if (this.#observe) {
        const believed = this.#believed;
        const reloaded = await this.#readKernel();
        actions = plan(this.#desired.items, this.#believed);
        if (this.#suspected) drifts = this.#reportDrift(believed) + Number(reloaded);
      } else {
        actions = plan(this.#desired.items, this.#believed, touched);
      }
      await this.#apply(actions);
      this.#observe = false;
      this.#suspected = false;
    } catch (error) {
      this.#gone.unshift(...gone);
      throw error;
    }
    this.#appliedRevision = revision;
    if (gone.length > 0) forget(gone);
    const durationMs = performance.now() - startMs;
    log.debug("network pass", { revision, actions: actions.length, durationMs });
    onApplied?.({ actions: actions.length, durationMs, drifts });
  }

  async #readUnderlay(): Promise<void> {
    const address = this.cluster.self?.underlayAddress;
    if (address === undefined) return;
    const mtu = await this.#deps.mtuOfAddress(address);
    if (mtu === undefined) this.#deps.log.warn("no device has this host's underlay address", { address });
    const underlayMtu = mtu ?? defaultMtu;
    if (underlayMtu === this.#underlayMtu) return;
    this.#underlayMtu = underlayMtu;
    for (const unit of allUnits(this.view)) this.#dirty.add(unit);
  }

  /** Plans the dirty units anew. Gives the ids of what may have changed, and the revision that they are planned for. */
  async #replan(): Promise<{ readonly touched: Set<string>; readonly revision: number }> {
    const touched = new Set<string>();
    const { view } = this;
    const { claims } = this.#deps;
    const dirty = new Set<string>();
    // Meanwhile the state may have changed again.
    while (this.#dirty.size > 0) {
      const fresh = [...this.#dirty];
      this.#dirty.clear();
      await claims.set(new Map(fresh.map((unit) => [unit, claimsOf(view, unit)])));
      for (const unit of fresh) dirty.add(unit);
    }
    for (const unit of dirty) {
      const plans = planUnit(view, unit);
      if (unit === "hosts") {
        const gone = [...this.#desired.units()].filter((known) => known.startsWith("host ") && !plans.has(known));
        for (const known of gone) this.#desired.set(known, [], touched);
      }
      for (const [name, items] of plans) this.#desired.set(name, items, touched);
    }
    return { touched, revision: this.cluster.revision };
  }

  /** Resolves to whether the ruleset had to be loaded again. */
  async #readKernel(): Promise<boolean> {
    const { kernel } = this.#deps;
    let observation = await kernel.observe(this.#sysctls());
    const changed = !kernel.isRuleset(observation);
    if (changed) {
      this.#deps.log.warn("ruleset was changed by others, loading it again");
      await kernel.ensureRuleset();
      observation = await kernel.observe(this.#sysctls());
    }
    this.#believed = observation.items;
    return changed;
  }

  /** What is not as this run left it, and is still wanted so. Returns how many things. */
  #reportDrift(believed: ReadonlyMap<string, Item>): number {
    const stillWanted = new Map<string, Item>();
    for (const [id, item] of believed) if (this.#desired.items.get(id)?.value === item.value) stillWanted.set(id, item);
    const drifts = plan(stillWanted, this.#believed, stillWanted.keys());
    for (const action of drifts.slice(0, 20)) this.#deps.log.warn("drift", { ...driftOf(action) });
    if (drifts.length === 0) this.#deps.kernel.doubtOwnProcess();
    return drifts.length;
  }

  #sysctls(): string[] {
    const keys: string[] = [];
    for (const item of this.#desired.items.values()) if (item.kind === "sysctl") keys.push(item.key);
    return keys;
  }

  async #apply(actions: readonly Action[]): Promise<void> {
    const { veths } = this.#deps;
    if (actions.length > 0) await this.#applyToKernel(actions);
    for (const device of this.#bare) {
      await veths.configure(device);
      this.#bare.delete(device);
    }
  }

  async #applyToKernel(actions: readonly Action[]): Promise<void> {
    const { kernel, veths } = this.#deps;
    await kernel.apply(actions, (device) => {
      const source = veths.sourceOf(device);
      if (source?.kind === "namespace") this.#bare.add(device);
      return source;
    });
    applyToModel(this.#believed, actions);
  }
}

function driftOf(action: Action): FoundDrift {
  const { item } = action;
  const found = action.do === "set" ? action.found : item;
  return {
    kind: item.kind === "element" ? "nft" : item.kind,
    subject: item.key,
    expected: action.do === "set" ? item.value || "there" : "nothing",
    found: found === undefined ? "nothing" : found.value || "there",
  };
}
