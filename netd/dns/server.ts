import { createSocket, type RemoteInfo, type Socket } from "node:dgram";
import { type Socket as Connection, createServer, type Server } from "node:net";
import { ClusterError, messageOf } from "../../lib/errors/errors.ts";
import type { Log } from "../../lib/log/log.ts";
import { answer } from "./answer.ts";
import { framed } from "./forward.ts";
import type { Asker, Names } from "./names.ts";

export interface DnsServerOptions {
  readonly log: Log;
  readonly address: string;
  readonly port: number;
  readonly names: Names;
  /** The task with that address, if it is one of this host's. */
  readonly askerAt: (address: string) => Asker | undefined;
  readonly forwarder: { ask(query: Buffer, resolvers: readonly string[]): Promise<Buffer | undefined> };
  /** Told of each query: where its answer came from. */
  readonly count?: (source: "kept" | "cluster" | "forwarded" | "garbage") => void;
}

const maxKept = 20_000;
const maxTcpBytes = 65_535;
const tcpIdleMs = 10_000;

/**
 * DNS over UDP and TCP on one address. Answers of the cluster's own are kept by the bytes of their question and who asked,
 * until `changed()`; whatever arrives, the server goes on.
 */
export class DnsServer implements AsyncDisposable {
  readonly #options: DnsServerOptions;
  readonly #kept = new Map<string, Buffer>();
  readonly #connections = new Set<Connection>();
  #udp: Socket | undefined;
  #tcp: Server | undefined;
  #turn = 0;

  constructor(options: DnsServerOptions) {
    this.#options = options;
  }

  /** Listens. Throws `unavailable` when the address is not there or its port is taken. */
  async listen(): Promise<void> {
    const { address, port, log } = this.#options;
    const udp = createSocket({ type: "udp4" });
    const tcp = createServer((connection) => this.#serve(connection));
    try {
      await new Promise<void>((resolve, reject) => {
        udp.once("error", reject);
        udp.bind({ address, port, exclusive: true }, () => {
          udp.off("error", reject);
          resolve();
        });
      });
      await new Promise<void>((resolve, reject) => {
        tcp.once("error", reject);
        tcp.listen({ host: address, port: udp.address().port, exclusive: true }, () => {
          tcp.off("error", reject);
          resolve();
        });
      });
    } catch (cause) {
      udp.close();
      tcp.close();
      throw new ClusterError(`DNS cannot listen on ${address}:${port}: ${messageOf(cause)}`, {
        code: "unavailable",
        hint: "See which program has the port: `ss -ulpn sport = 53`.",
        cause,
      });
    }
    udp.on("message", (message, from) => this.#receive(udp, message, from));
    udp.on("error", (error) => log.warn("dns socket failed", { error }));
    tcp.on("error", (error) => log.warn("dns listener failed", { error }));
    this.#udp = udp;
    this.#tcp = tcp;
  }

  /** The port it listens on. */
  get port(): number {
    return this.#udp?.address().port ?? 0;
  }

  /** The network state or the attachments have changed: what was kept may be wrong. */
  changed(): void {
    this.#kept.clear();
    this.#options.names.changed();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const connection of this.#connections) connection.destroy();
    const { promise, resolve } = Promise.withResolvers<void>();
    if (this.#tcp === undefined) resolve();
    else this.#tcp.close(() => resolve());
    this.#udp?.close();
    this.#udp = undefined;
    this.#tcp = undefined;
    await promise;
  }

  #receive(socket: Socket, message: Buffer, from: RemoteInfo): void {
    const reply = this.#answer(message, from.address, Number.POSITIVE_INFINITY);
    if (reply instanceof Promise) {
      void reply.then((bytes) => {
        if (bytes !== undefined && this.#udp === socket) socket.send(bytes, from.port, from.address, ignore);
      });
    } else if (reply !== undefined) {
      socket.send(reply, from.port, from.address, ignore);
    }
  }

  /** The answer, the promise of one, or undefined when there is nothing to say. */
  #answer(message: Buffer, from: string, limit: number): Buffer | Promise<Buffer | undefined> | undefined {
    const { names, askerAt, forwarder, count, log } = this.#options;
    const asker = askerAt(from);
    if (message.length < 12) {
      count?.("garbage");
      return undefined;
    }
    const key = `${limit === Number.POSITIVE_INFINITY ? "u" : "t"}${asker?.serviceId} ${asker?.networkIds.join()} ${message.toString("latin1", 2)}`;
    const kept = this.#kept.get(key);
    if (kept !== undefined) {
      count?.("kept");
      const copy = Buffer.from(kept);
      message.copy(copy, 0, 0, 2);
      return copy;
    }
    let found: ReturnType<typeof answer>;
    try {
      found = answer(message, asker, names, this.#turn++, limit);
    } catch (error) {
      log.warn("a dns query could not be answered", { from, error });
      count?.("garbage");
      return undefined;
    }
    if (found === undefined) {
      count?.("garbage");
      return undefined;
    }
    if (found.forward) {
      count?.("forwarded");
      return forwarder.ask(message, asker?.resolvers ?? []).catch((error: unknown) => {
        log.debug("a dns query could not be forwarded", { error });
        return undefined;
      });
    }
    count?.("cluster");
    if (found.keep && this.#kept.size < maxKept) this.#kept.set(key, found.bytes);
    return found.bytes;
  }

  #serve(connection: Connection): void {
    this.#connections.add(connection);
    connection.on("close", () => this.#connections.delete(connection));
    connection.on("error", () => connection.destroy());
    connection.setTimeout(tcpIdleMs, () => connection.destroy());
    const from = connection.remoteAddress ?? "";
    let received: Buffer = Buffer.alloc(0);
    connection.on("data", (chunk: Buffer) => {
      received = received.length === 0 ? chunk : Buffer.concat([received, chunk]);
      while (received.length >= 2 && received.length >= received.readUInt16BE(0) + 2) {
        const length = received.readUInt16BE(0);
        const message = Buffer.from(received.subarray(2, 2 + length));
        received = received.subarray(2 + length);
        void Promise.resolve(this.#answer(message, from, maxTcpBytes)).then((bytes) => {
          if (bytes !== undefined && connection.writable) connection.write(framed(bytes));
        });
      }
    });
  }
}

// An asker that is gone, or whose queue is full, asks again.
function ignore(): void {}
