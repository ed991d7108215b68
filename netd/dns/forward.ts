import { randomInt } from "node:crypto";
import { createSocket, type Socket } from "node:dgram";
import { readFileSync, watch } from "node:fs";
import { connect } from "node:net";
import { basename, dirname } from "node:path";
import { decode } from "dns-packet";
import type { Log } from "../../lib/log/log.ts";
import { serverFailure } from "./answer.ts";

export interface ForwarderOptions {
  readonly log: Log;
  /** The host's resolv.conf; read again when it changes. */
  readonly resolvConf: string;
  /** Our own addresses: asking ourselves would go round for ever. */
  readonly never: readonly string[];
  /** For one resolver to answer. Default 2,000. */
  readonly timeoutMs?: number;
  /** Answers kept. Default 10,000. */
  readonly capacity?: number;
  /** Port of the resolvers. Default 53. */
  readonly port?: number;
}

interface Kept {
  readonly bytes: Buffer;
  readonly untilMs: number;
}

const maxKeptMs = 60_000;
const maxMissingMs = 5_000;

/** The `nameserver` lines of a resolv.conf, in order. */
export function nameserversOf(text: string): string[] {
  const servers: string[] = [];
  for (const line of text.split("\n")) {
    const match = /^\s*nameserver\s+(\S+)/.exec(line);
    if (match?.[1] !== undefined) servers.push(match[1]);
  }
  return servers;
}

/**
 * Asks the host's own resolvers, in order, what is none of the cluster's, and keeps their answers as long as they say, a
 * minute at most. With no resolver, or none that answers: a server failure, at once or after the timeouts.
 */
export class Forwarder implements Disposable {
  readonly #options: ForwarderOptions;
  readonly #kept = new Map<string, Kept>();
  readonly #asking = new Map<string, Promise<Buffer | undefined>>();
  #servers: readonly string[] = [];
  readonly #watcher: { close(): void } | undefined;

  constructor(options: ForwarderOptions) {
    this.#options = options;
    this.#read();
    try {
      // The folder, as the file is replaced by renaming and may not be there yet.
      const name = basename(options.resolvConf);
      this.#watcher = watch(dirname(options.resolvConf), { persistent: false }, (_, changed) => {
        if (changed === name || changed === null) this.#read();
      });
    } catch (error) {
      options.log.warn("resolv.conf is not watched", { path: options.resolvConf, error });
    }
  }

  /** The answer for a query, with the query's id. `resolvers`: asked instead of the host's, when there are any. */
  async ask(query: Buffer, resolvers: readonly string[] = []): Promise<Buffer | undefined> {
    const key = `${resolvers.join()} ${query.toString("latin1", 2)}`;
    const now = performance.now();
    const kept = this.#kept.get(key);
    if (kept !== undefined && kept.untilMs > now) return withId(kept.bytes, query);
    this.#kept.delete(key);
    let asking = this.#asking.get(key);
    if (asking === undefined) {
      asking = this.#askAll(query, resolvers.length > 0 ? resolvers : this.#servers).finally(() =>
        this.#asking.delete(key),
      );
      this.#asking.set(key, asking);
    }
    const bytes = await asking;
    if (bytes === undefined) return serverFailure(query);
    this.#keep(key, bytes);
    return withId(bytes, query);
  }

  [Symbol.dispose](): void {
    this.#watcher?.close();
  }

  #read(): void {
    let text = "";
    try {
      text = readFileSync(this.#options.resolvConf, "utf8");
    } catch {
      // None: nothing to ask, and names outside the cluster fail at once.
    }
    this.#servers = nameserversOf(text).filter((server) => !this.#options.never.includes(server));
    this.#kept.clear();
  }

  async #askAll(query: Buffer, servers: readonly string[]): Promise<Buffer | undefined> {
    const { timeoutMs = 2_000, port = 53 } = this.#options;
    for (const server of servers.slice(0, 3)) {
      const bytes = await askOverUdp(query, server, port, timeoutMs);
      if (bytes === undefined) continue;
      const truncated = (bytes.readUInt8(2) & 0x02) !== 0;
      return truncated ? ((await askOverTcp(query, server, port, timeoutMs)) ?? bytes) : bytes;
    }
    return undefined;
  }

  #keep(key: string, bytes: Buffer): void {
    const lifeMs = lifetimeMs(bytes);
    if (lifeMs === 0) return;
    if (this.#kept.size >= (this.#options.capacity ?? 10_000)) {
      const oldest = this.#kept.keys().next();
      if (!oldest.done) this.#kept.delete(oldest.value);
    }
    this.#kept.set(key, { bytes, untilMs: performance.now() + lifeMs });
  }
}

function withId(bytes: Buffer, query: Buffer): Buffer {
  const copy = Buffer.from(bytes);
  query.copy(copy, 0, 0, 2);
  return copy;
}

/** How long an answer may be kept: its smallest TTL, or a little while for one that says that there is nothing. */
function lifetimeMs(bytes: Buffer): number {
  const code = bytes.readUInt8(3) & 0xf;
  if (code === 3) return maxMissingMs;
  if (code !== 0) return 0;
  try {
    const ttls = (decode(bytes).answers ?? []).map((record) => ("ttl" in record ? (record.ttl ?? 0) : 0));
    return ttls.length === 0 ? maxMissingMs : Math.min(maxKeptMs, Math.min(...ttls) * 1_000);
  } catch {
    return 0;
  }
}

/** One question to one resolver, from a port of its own. undefined: no answer in time. */
async function askOverUdp(query: Buffer, server: string, port: number, timeoutMs: number): Promise<Buffer | undefined> {
  const socket: Socket = createSocket(server.includes(":") ? "udp6" : "udp4");
  const question = Buffer.from(query);
  // Ids of our own: tasks choose theirs as they like, and an answer must not be easy to forge.
  question.writeUInt16BE(randomInt(65_536), 0);
  try {
    return await new Promise<Buffer | undefined>((resolve) => {
      const timer = setTimeout(() => resolve(undefined), timeoutMs);
      const done = (bytes: Buffer | undefined) => {
        clearTimeout(timer);
        resolve(bytes);
      };
      socket.on("error", () => done(undefined));
      socket.on("message", (bytes) => {
        if (bytes.length >= 12 && bytes.readUInt16BE(0) === question.readUInt16BE(0)) done(bytes);
      });
      // Connected, so that only this resolver's datagrams arrive, and its refusal is an error at once.
      socket.connect(port, server, () => socket.send(question));
    });
  } finally {
    socket.close();
  }
}

async function askOverTcp(query: Buffer, server: string, port: number, timeoutMs: number): Promise<Buffer | undefined> {
  return await new Promise<Buffer | undefined>((resolve) => {
    const socket = connect({ host: server, port, timeout: timeoutMs });
    let received = Buffer.alloc(0);
    const done = (bytes: Buffer | undefined) => {
      socket.destroy();
      resolve(bytes);
    };
    socket.on("connect", () => socket.write(framed(query)));
    socket.on("data", (chunk) => {
      received = Buffer.concat([received, chunk]);
      const length = received.length < 2 ? Number.POSITIVE_INFINITY : received.readUInt16BE(0);
      if (received.length >= length + 2) done(length >= 12 ? received.subarray(2, length + 2) : undefined);
    });
    socket.on("timeout", () => done(undefined));
    socket.on("error", () => done(undefined));
    socket.on("close", () => done(undefined));
  });
}

/** A message with its length before it, as TCP carries it (RFC 1035, 4.2.2). */
export function framed(message: Buffer): Buffer {
  const length = Buffer.alloc(2);
  length.writeUInt16BE(message.length);
  return Buffer.concat([length, message]);
}
