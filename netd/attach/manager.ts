import { type Cidr, parseCidr } from "../../lib/cidr/cidr.ts";
import { ClusterError, messageOf } from "../../lib/errors/errors.ts";
import type { Log } from "../../lib/log/log.ts";
import type { Spawner } from "../../lib/process/spawner.ts";
import type {
  Attachment as AttachmentRecord,
  AttachRequest,
  AttachResponse,
} from "../../proto/gen/embassy/v1/local.ts";
import type { PublishedPort } from "../../proto/gen/embassy/v1/stack.ts";
import type { TaskAddress } from "../../proto/gen/embassy/v1/state.ts";
import type { VethSource } from "../kernel/commands.ts";
import { gatewayAddress } from "../kernel/ruleset.ts";
import { runTool } from "../kernel/tools.ts";
import { gatewayMac } from "../plan/items.ts";
import { type Attachment, containerMac, hostDevice, type View } from "../plan/view.ts";
import { attachmentMtu } from "../policy/attachment.ts";
import { chooseAddress } from "./addresses.ts";
import type { Ledger } from "./ledger.ts";
import type { Namespaces, PreparedNamespace } from "./namespaces.ts";

export interface AttachDeps {
  readonly log: Log;
  readonly ledger: Ledger;
  readonly namespaces: Namespaces;
  readonly spawner: Spawner;
  readonly view: () => View;
  /** Puts attachments, new, changed or gone, into the kernel. */
  readonly apply: (taskIds: readonly string[]) => Promise<void>;
  /** Why the data path does not get on, if it does not; for errors. */
  readonly trouble: () => string;
  /** Claims the ports that a task publishes on this host; throws `conflict` when a program of the host has one. */
  readonly claim: (taskId: string, ports: readonly PublishedPort[]) => Promise<void>;
  /** Takes back what was claimed for a task that is not attached after all. */
  readonly unclaim: (taskId: string) => Promise<void>;
  /** The attachments have changed: who asks DNS may be another. */
  readonly onChange: () => void;
}

/**
 * Gives tasks their namespace and addresses. An address is in the ledger before it is in the kernel; many attaches at once
 * share one write of the ledger and one pass of the data path.
 */
export class AttachManager {
  /** Those that are in the ledger and whose namespace is as it has to be: what the data path is to lead to. */
  readonly ready = new Map<string, Attachment>();
  readonly #deps: AttachDeps;
  /** Calls under way, by task: a second call for the same task waits for the first. */
  readonly #busy = new Map<string, Promise<unknown>>();
  /** Devices that were made ahead and wait for their name. */
  readonly #prepared = new Map<string, string>();
  #stateChanged = Promise.withResolvers<void>();

  constructor(deps: AttachDeps) {
    this.#deps = deps;
  }

  /** Drops attachments whose namespace did not outlive a reboot. Resolves to the pins of the others. */
  async start(): Promise<ReadonlySet<string>> {
    const { ledger, namespaces, log } = this.#deps;
    const kept = new Set<string>();
    for (const attachment of ledger.attachments.values()) {
      if (await namespaces.exists(attachment.netns)) {
        kept.add(attachment.netns);
        this.ready.set(attachment.taskId, attachment);
        continue;
      }
      log.info("attachment forgotten, its namespace is gone", { taskId: attachment.taskId });
      this.#release(attachment.taskId);
    }
    await ledger.save();
    return kept;
  }

  /** The network state has changed: attaches that wait for a network look again. */
  stateChanged(): void {
    this.#stateChanged.resolve();
    this.#stateChanged = Promise.withResolvers();
  }

  /**
   * Makes the task's namespace and addresses; for a task that has them, gives the same again. Waits, until the signal is
   * aborted, for networks and for an address. Throws `exhausted`, `unavailable`, `conflict` for a port of the host, or `invalid`
   * for a sysctl.
   */
  async attach(request: AttachRequest, signal: AbortSignal): Promise<AttachResponse> {
    return await this.#alone(request.taskId, async () => {
      const known = this.#deps.ledger.attachments.get(request.taskId);
      const attachment = known ?? (await this.#claimAndCreate(request, signal));
      // Also for a known one: an earlier call may have been given up on while the kernel was at it.
      await this.#untilApplied(attachment.taskId, signal);
      return this.#response(attachment);
    });
  }

  /** Takes namespace and addresses away. A task that has none is no error. */
  async detach(taskId: string): Promise<void> {
    await this.#alone(taskId, async () => {
      const { ledger, namespaces } = this.#deps;
      const attachment = ledger.attachments.get(taskId);
      if (attachment === undefined) return;
      this.#release(taskId);
      await ledger.save();
      this.#deps.onChange();
      await this.#deps.apply([taskId]);
      await namespaces.unname(taskId);
      await namespaces.remove([attachment.netns]);
      this.stateChanged();
    });
  }

  /** By task id, ascending. */
  list(): AttachmentRecord[] {
    const records = [...this.#deps.ledger.attachments.values()].map(({ taskId, serviceId, addresses }) => ({
      taskId,
      serviceId,
      addresses: [...addresses],
    }));
    return records.sort((a, b) => (a.taskId < b.taskId ? -1 : 1));
  }

  sourceOf(device: string): VethSource | undefined {
    const prepared = this.#prepared.get(device);
    if (prepared !== undefined) {
      this.#prepared.delete(device);
      return { kind: "prepared", device: prepared };
    }
    const attachment = this.#byDevice(device);
    return attachment === undefined ? undefined : { kind: "namespace", path: attachment.netns };
  }

  /** Gives the bare end of a new pair in the task's namespace its addresses and routes. */
  async configure(device: string): Promise<void> {
    const attachment = this.#byDevice(device);
    if (attachment !== undefined) await this.#setUp(attachment);
  }

  async #setUp(attachment: Attachment): Promise<void> {
    const { spawner, view } = this.#deps;
    const input = insideCommands(view(), attachment)
      .map((command) => `${command}\n`)
      .join("");
    if (input === "") return;
    const { code, stderr } = await spawner.run("ip", ["-force", "-batch", "-"], { netns: attachment.netns, input });
    if (code === 0) return;
    throw new ClusterError(`task ${attachment.taskId}: ${stderr.trim() || `ip ended with ${code}`}`, {
      code: "internal",
    });
  }

  async #claimAndCreate(request: AttachRequest, signal: AbortSignal): Promise<Attachment> {
    await this.#deps.claim(request.taskId, request.hostPorts);
    try {
      return await this.#create(request, signal);
    } catch (error) {
      await this.#deps.unclaim(request.taskId);
      throw error;
    }
  }

  async #create(request: AttachRequest, signal: AbortSignal): Promise<Attachment> {
    const { ledger, namespaces, log } = this.#deps;
    const namespace = await namespaces.take();
    try {
      const attachment = await this.#allocate(request, namespace, signal);
      const { addresses } = attachment;
      // Nothing of this reaches further than the namespace, which goes when the ledger does not name it.
      await Promise.all([this.#setUp(attachment), namespaces.name(request.taskId, namespace.path), ledger.save()]);
      await setSysctls(namespace.path, request.sysctls);
      if (addresses.length > 0) this.#prepared.set(hostDevice(request.taskId), namespace.device);
      this.ready.set(request.taskId, attachment);
      this.#deps.onChange();
      return attachment;
    } catch (error) {
      this.#release(request.taskId);
      await namespaces.unname(request.taskId);
      await namespaces.remove([namespace.path]);
      await ledger.save().catch((cause: unknown) => log.warn("attachments were not saved", { error: cause }));
      throw error;
    }
  }

  /** Chooses an address in each network and enters the attachment, in one step; waits for what is missing. */
  async #allocate(request: AttachRequest, namespace: PreparedNamespace, signal: AbortSignal): Promise<Attachment> {
    for (;;) {
      const changed = this.#stateChanged.promise;
      const chosen = this.#choose(request.networkIds);
      if (Array.isArray(chosen)) {
        const { taskId, serviceId, slot, hostPorts, dns: resolvers } = request;
        const netns = namespace.path;
        const attachment: Attachment = { taskId, serviceId, slot, addresses: chosen, hostPorts, netns, resolvers };
        this.#deps.ledger.attachments.set(taskId, attachment);
        return attachment;
      }
      if (signal.aborted) throw chosen.error;
      await oneOf(changed, signal, chosen.waitMs);
    }
  }

  #choose(
    networkIds: readonly string[],
  ): TaskAddress[] | { readonly error: ClusterError; readonly waitMs: number | undefined } {
    const { cluster } = this.#deps.view();
    const inUse = new Set<string>();
    for (const { addresses } of this.#deps.ledger.attachments.values()) {
      for (const { address } of addresses) inUse.add(address);
    }
    const addresses: TaskAddress[] = [];
    for (const networkId of networkIds) {
      const blocks: Cidr[] = cluster.ownBlocks(networkId).map(parseCidr);
      if (blocks.length === 0 || cluster.self === undefined) {
        const what = cluster.networks.has(networkId) ? "has no block on this host" : "is not known on this host";
        const error = new ClusterError(`network ${networkId} ${what} yet`, {
          code: "unavailable",
          subject: `network/${networkId}`,
          hint: cluster.revision === 0 ? "netd has not heard from the control plane." : undefined,
        });
        return { error, waitMs: undefined };
      }
      const choice = chooseAddress(blocks, inUse, this.#deps.ledger.resting, Date.now());
      if (choice.kind !== "address") {
        const subject = `network/${networkId}`;
        const message =
          choice.kind === "full"
            ? `this host's blocks of network ${networkId} are full: ${choice.inUse} addresses in use`
            : `every free address of this host in network ${networkId} was in use a moment ago`;
        return {
          error: new ClusterError(message, { code: "exhausted", subject }),
          waitMs: choice.kind === "wait" ? choice.waitMs : undefined,
        };
      }
      inUse.add(choice.address);
      addresses.push({ networkId, address: choice.address });
    }
    return addresses;
  }

  #release(taskId: string): void {
    const { ledger } = this.#deps;
    const attachment = ledger.attachments.get(taskId);
    for (const { address } of attachment?.addresses ?? []) ledger.resting.set(address, Date.now());
    ledger.attachments.delete(taskId);
    this.ready.delete(taskId);
    this.#prepared.delete(hostDevice(taskId));
  }

  async #untilApplied(taskId: string, signal: AbortSignal): Promise<void> {
    const applied = this.#deps.apply([taskId]);
    await Promise.race([applied, aborted(signal)]);
    if (!signal.aborted) return await applied;
    applied.catch(() => {});
    const trouble = this.#deps.trouble();
    throw new ClusterError(`task ${taskId} is not in the kernel yet${trouble === "" ? "" : `: ${trouble}`}`, {
      code: "unavailable",
      subject: `task/${taskId}`,
    });
  }

  #response(attachment: Attachment): AttachResponse {
    return {
      netnsPath: attachment.netns,
      addresses: [...attachment.addresses],
      dnsAddress: gatewayAddress,
      mtu: attachment.addresses.length === 0 ? 65_535 : attachmentMtu(this.#deps.view(), attachment),
    };
  }

  #byDevice(device: string): Attachment | undefined {
    for (const one of this.ready.values()) if (hostDevice(one.taskId) === device) return one;
    return undefined;
  }

  async #alone<T>(taskId: string, work: () => Promise<T>): Promise<T> {
    const before = this.#busy.get(taskId) ?? Promise.resolve();
    const mine = before.catch(() => {}).then(work);
    this.#busy.set(taskId, mine);
    try {
      return await mine;
    } finally {
      if (this.#busy.get(taskId) === mine) this.#busy.delete(taskId);
    }
  }
}

/** What a container's end needs: addresses, and one neighbour through which everything goes. */
function insideCommands(view: View, attachment: Attachment): string[] {
  const [first, ...others] = attachment.addresses;
  if (first === undefined) return [];
  const via = `via ${gatewayAddress} dev eth0`;
  return [
    `link set eth0 address ${containerMac(first.address)} mtu ${attachmentMtu(view, attachment)}`,
    ...attachment.addresses.map(({ address }) => `addr replace ${address}/32 dev eth0`),
    "link set eth0 up",
    `route replace ${gatewayAddress}/32 dev eth0 scope link`,
    `neigh replace ${gatewayAddress} lladdr ${gatewayMac} dev eth0 nud permanent`,
    `route replace default ${via} src ${first.address}`,
    // Members of a further network know this task by its address there.
    ...others.flatMap(({ networkId, address }) => {
      const subnet = view.cluster.networks.get(networkId)?.subnet;
      return subnet === undefined ? [] : [`route replace ${subnet} ${via} src ${address}`];
    }),
  ];
}

async function setSysctls(netns: string, sysctls: Readonly<Record<string, string>>): Promise<void> {
  for (const [name, value] of Object.entries(sysctls)) {
    if (!/^net\.[\w.-]+$/.test(name)) {
      throw new ClusterError(`sysctl ${name} is not of the network namespace`, { code: "invalid", subject: name });
    }
    const path = `/proc/sys/${name.replaceAll(".", "/")}`;
    try {
      await runTool("nsenter", [`--net=${netns}`, "tee", path], `${value}\n`);
    } catch (cause) {
      throw new ClusterError(`sysctl ${name}=${value}: ${messageOf(cause)}`, { code: "invalid", subject: name, cause });
    }
  }
}

async function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
}

async function oneOf(changed: Promise<void>, signal: AbortSignal, waitMs: number | undefined): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<void>((resolve) => {
    if (waitMs !== undefined) timer = setTimeout(resolve, waitMs);
  });
  await Promise.race([changed, aborted(signal), late]);
  clearTimeout(timer);
}
