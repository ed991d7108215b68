import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Clock } from "../../lib/clock/clock.ts";
import { asClusterError, ClusterError, isErrno, messageOf } from "../../lib/errors/errors.ts";
import { channelOptions, clientCredentials } from "../../lib/grpc/client.ts";
import { errorOf } from "../../lib/grpc/status.ts";
import type { TlsIdentity } from "../../lib/grpc/tls.ts";
import type { Log } from "../../lib/log/log.ts";
import { loadIdentity } from "../../lib/pki/identity.ts";
import {
  DispatcherClient,
  type NetworkDown,
  type NetworkState,
  type NetworkUp,
} from "../../proto/gen/embassy/v1/dispatcher.ts";

import { Protocol } from "../../proto/gen/embassy/v1/stack.ts";
import type { BusyPort as WireBusyPort } from "../../proto/gen/embassy/v1/state.ts";
import type { BusyPort } from "../publish/claims.ts";

export interface SessionDeps {
  readonly log: Log;
  readonly clock: Clock;
  /** noded's state directory: node.json and identity/. */
  readonly nodedDir: string;
  readonly version: string;
  /** 0 <= x < 1; spreads the reconnects of many hosts. */
  readonly random: () => number;
  /** Takes in a state; resolves once kernel and DNS have it. */
  readonly update: (state: NetworkState) => Promise<void>;
  /** Everything up to it is in kernel and DNS. */
  readonly appliedRevision: () => number;
  /** What of the state the programs of the host stand in the way of. */
  readonly busyPorts: () => readonly BusyPort[];
  /** Why the last pass over the kernel failed; empty when it did not. */
  readonly trouble: () => string;
}

const firstRetryMs = 100;
const maxRetryMs = 3_000;
const joinedPollMs = 500;
/** A member that has not sent a state by then is given up on, for the next. */
const firstStateMs = 5_000;
/** A state that is not in the kernel after this long is reported as in trouble. */
const troubleAfterMs = 2_000;

/** The managers that node.json names; "stopping" or "done" of a node that was removed. Throws `invalid`. */
function parseNodeFile(text: string, path: string): string[] | "stopping" | "done" {
  const file: unknown = JSON.parse(text);
  const removed = typeof file === "object" && file !== null && "removed" in file ? file.removed : undefined;
  if (removed === "stopping" || removed === "done") return removed;
  const managers = typeof file === "object" && file !== null && "managers" in file ? file.managers : undefined;
  const isText = (value: unknown): value is string => typeof value === "string";
  if (Array.isArray(managers) && managers.length > 0 && managers.every(isText)) return managers;
  throw new ClusterError(`${path} names no managers`, { code: "invalid", subject: path });
}

const busyPort = ({ protocol, address, port, by, at }: BusyPort): WireBusyPort => ({
  port,
  protocol: protocol === "udp" ? Protocol.PROTOCOL_UDP : Protocol.PROTOCOL_TCP,
  hostIp: address === "0.0.0.0" ? "" : address,
  by,
  listensAt: at,
});

interface Membership {
  readonly managers: readonly string[];
  readonly identity: TlsIdentity;
}

/**
 * netd's stream with the control plane, for as long as the host is a member: hello, a complete state, then deltas, each
 * acknowledged once it is in kernel and DNS. While the stream is away everything stays as it is.
 */
export class NetworkSession {
  readonly #deps: SessionDeps;
  #connected = false;
  /** Tells the stream, once it has had a state, of busy ports that it does not know of. */
  #tellBusy: (() => void) | undefined;

  constructor(deps: SessionDeps) {
    this.#deps = deps;
  }

  get connected(): boolean {
    return this.#connected;
  }

  /** Other ports are busy than before. */
  busyPortsChanged(): void {
    this.#tellBusy?.();
  }

  /**
   * Runs until the signal is aborted, or until the host's node was removed and noded has stopped all its tasks: "removed". Never
   * rejects.
   */
  async run(signal: AbortSignal): Promise<"stopped" | "removed"> {
    const { log, clock, random } = this.#deps;
    let failures = 0;
    let turn = Math.floor(random() * 16);
    while (!signal.aborted) {
      try {
        const membership = await this.#membership(signal);
        if (membership === undefined) return "removed";
        const manager = membership.managers[turn % membership.managers.length] ?? "";
        await this.#stream(manager, membership.identity, signal, () => {
          failures = 0;
        });
      } catch (error) {
        if (signal.aborted) break;
        if (failures < 3 || failures % 20 === 0) log.warn("no network stream", { error: messageOf(error), failures });
      }
      if (this.#connected) {
        this.#connected = false;
        log.info("network stream lost");
      } else {
        turn++;
      }
      const ceiling = Math.min(maxRetryMs, firstRetryMs * 2 ** Math.min(failures++, 10));
      await clock.sleep(ceiling * (0.5 + random() / 2), signal).catch(() => {});
    }
    return "stopped";
  }

  /**
   * Read each time, as noded renews the certificate. Waits until the host has joined a cluster, and of a node that was removed
   * until noded has stopped its tasks, which needs this netd; resolves with nothing then.
   */
  async #membership(signal: AbortSignal): Promise<Membership | undefined> {
    const { nodedDir, log, clock } = this.#deps;
    for (let tries = 0; ; tries++) {
      try {
        const path = join(nodedDir, "node.json");
        const managers = parseNodeFile(await readFile(path, "utf8"), path);
        if (managers === "done") return undefined;
        if (managers === "stopping") {
          if (tries === 0) log.info("this node was removed: waiting until noded has stopped its tasks", { nodedDir });
          await clock.sleep(joinedPollMs, signal);
          continue;
        }
        const directory = join(nodedDir, "identity");
        const identity = await loadIdentity({
          ca: join(directory, "ca.pem"),
          certificate: join(directory, "node.pem"),
          key: join(directory, "node.key"),
        });
        return { managers, identity };
      } catch (error) {
        if (!isErrno(error, "ENOENT")) throw asClusterError(error);
        if (tries === 0) log.info("waiting for this host to join a cluster", { nodedDir });
        await clock.sleep(joinedPollMs, signal);
      }
    }
  }

  async #stream(manager: string, identity: TlsIdentity, signal: AbortSignal, onUp: () => void): Promise<void> {
    const { log, version } = this.#deps;
    const client = new DispatcherClient(manager, clientCredentials(identity), channelOptions);
    const stream = client.network();
    const stop = () => stream.cancel();
    signal.addEventListener("abort", stop, { once: true });
    const patience = setTimeout(stop, firstStateMs);
    try {
      await new Promise<void>((resolve, reject) => {
        let told: string | undefined;
        const tellBusy = () => {
          const ports = this.#deps.busyPorts().map(busyPort);
          const key = JSON.stringify(ports);
          if (key === told) return;
          told = key;
          stream.write({ message: { $case: "busy", value: { ports } } });
        };
        const send = (message: NetworkUp["message"]) => {
          // Who waits for an acknowledgement learns what could not be done of the state.
          if (message?.$case === "ack") {
            tellBusy();
            this.#tellBusy = tellBusy;
          }
          stream.write({ message });
        };
        // States are taken in as they come; of acknowledgements only the order matters.
        stream.on("data", ({ state }: NetworkDown) => {
          if (state === undefined) return;
          clearTimeout(patience);
          if (!this.#connected) {
            this.#connected = true;
            onUp();
            log.info("network stream up", { manager, revision: state.revision });
          }
          this.#take(state, send).catch(reject);
        });
        stream.on("error", (error) => reject(errorOf(error)));
        stream.on("end", resolve);
        send({ $case: "hello", value: { version } });
      });
    } finally {
      clearTimeout(patience);
      this.#tellBusy = undefined;
      signal.removeEventListener("abort", stop);
      stream.cancel();
      client.close();
    }
  }

  async #take(state: NetworkState, send: (message: NetworkUp["message"]) => void): Promise<void> {
    const { revision } = state;
    const timer = setTimeout(() => {
      send({
        $case: "ack",
        value: {
          revision: this.#deps.appliedRevision(),
          error: `revision ${revision}: ${this.#deps.trouble() || "not applied yet"}`,
        },
      });
    }, troubleAfterMs);
    try {
      await this.#deps.update(state);
      send({ $case: "ack", value: { revision, error: "" } });
    } finally {
      clearTimeout(timer);
    }
  }
}
