import { isIP } from "node:net";
import { checkServerIdentity } from "node:tls";
import {
  type CallOptions,
  type ChannelCredentials,
  type ClientDuplexStream,
  type ClientOptions,
  type ClientUnaryCall,
  credentials,
  Metadata,
  type ServiceError,
  status,
} from "@grpc/grpc-js";
import { ClusterError } from "../../lib/errors/errors.ts";
import type { TlsIdentity } from "../../lib/grpc/tls.ts";
import type { Log } from "../../lib/log/log.ts";
import {
  ClusterClient,
  KVClient,
  LeaseClient,
  type LeaseKeepAliveRequest,
  type LeaseKeepAliveResponse,
  MaintenanceClient,
  RangeRequest,
  WatchClient,
  WatchRequest,
} from "../../proto/gen/etcd/rpc.ts";
import { decodeWatchResponse, type WatchAnswer } from "./watch-response.ts";

export interface EtcdClientOptions {
  /** `host:port` each; all members of one etcd. The first is preferred. */
  readonly endpoints: readonly string[];
  /** Host names and addresses of which the server's certificate must have one. Default: those of the endpoints. */
  readonly hosts?: readonly string[];
  /** undefined: no TLS. */
  readonly identity?: TlsIdentity | undefined;
  readonly log: Log;
}

interface Stubs {
  readonly cluster: ClusterClient;
  readonly kv: KVClient;
  readonly lease: LeaseClient;
  readonly watch: WatchClient;
  readonly maintenance: MaintenanceClient;
}

type Method<Request, Response> = (
  request: Request,
  metadata: Metadata,
  options: Partial<CallOptions>,
  callback: (error: ServiceError | null, response: Response) => void,
) => ClientUnaryCall;

const unaryDeadlineMs = 2_000;
/** A member that does not answer so many calls in a row is left for the next one. */
const patience = 2;

const options: ClientOptions = {
  "grpc.max_receive_message_length": -1,
  "grpc.max_send_message_length": -1,
  "grpc.keepalive_time_ms": 10_000,
  "grpc.keepalive_timeout_ms": 5_000,
  "grpc.initial_reconnect_backoff_ms": 50,
  "grpc.min_reconnect_backoff_ms": 50,
  "grpc.max_reconnect_backoff_ms": 500,
  // A transaction must never be sent twice by the library.
  "grpc.enable_retries": 0,
};

/** Calls to etcd: every one waits for a connection, has a deadline, and is made once. */
export class EtcdClient implements Disposable {
  #options: EtcdClientOptions;
  #credentials: ChannelCredentials;
  readonly #streams = new Set<{ cancel(): void }>();
  #stubs: Stubs;
  #endpoints: readonly string[];
  #first = 0;
  #unanswered = 0;
  /** Who answered the last call. */
  #peer = "";

  constructor(options: EtcdClientOptions) {
    this.#options = options;
    this.#endpoints = options.endpoints;
    this.#credentials = credentialsOf(hostsOf(options), options.identity);
    this.#stubs = this.#connect();
  }

  /** Makes one unary call. Throws a ClusterError; `unavailable` leaves open whether it has happened. */
  async call<Request, Response>(
    pick: (stubs: Stubs) => Method<Request, Response>,
    request: Request,
    options: {
      readonly deadlineMs?: number;
      readonly signal?: AbortSignal | undefined;
      /** Default true: a member that has lost its cluster is to refuse. */
      readonly needsLeader?: boolean;
    } = {},
  ): Promise<Response> {
    const { signal, deadlineMs = unaryDeadlineMs, needsLeader = true } = options;
    signal?.throwIfAborted();
    const stubs = this.#stubs;
    try {
      const response = await new Promise<Response>((resolve, reject) => {
        const cancel = () => pending.cancel();
        const deadline = Date.now() + deadlineMs;
        const pending = pick(stubs)(request, metadata(needsLeader), { deadline }, (error, answer) => {
          signal?.removeEventListener("abort", cancel);
          this.#peer = pending.getPeer();
          if (error === null) resolve(answer);
          else reject(error);
        });
        signal?.addEventListener("abort", cancel, { once: true });
      });
      this.#unanswered = 0;
      return response;
    } catch (error) {
      signal?.throwIfAborted();
      // Of many calls on one connection, the first ones make an end of it.
      if (stubs === this.#stubs) this.#noteFailure(error);
      throw etcdError(error);
    }
  }

  /** Opens a watch stream. The caller listens to `data`, `error` and `end`. */
  watch(): ClientDuplexStream<WatchRequest, WatchAnswer> {
    const encode = (request: WatchRequest) => Buffer.from(WatchRequest.encode(request).finish());
    const { watch } = this.#stubs;
    return this.#track(
      watch.makeBidiStreamRequest("/etcdserverpb.Watch/Watch", encode, decodeWatchResponse, metadata()),
    );
  }

  /** Opens the stream by which leases are kept. */
  leaseKeepAlive(): ClientDuplexStream<LeaseKeepAliveRequest, LeaseKeepAliveResponse> {
    return this.#track(this.#stubs.lease.leaseKeepAlive(metadata()));
  }

  get endpoints(): readonly string[] {
    return this.#endpoints;
  }

  /** The members have changed. Streams begin anew. */
  setEndpoints(endpoints: readonly string[]): void {
    if (endpoints.join() === this.#endpoints.join()) return;
    this.#endpoints = endpoints;
    this.#first = 0;
    this.#reconnect();
  }

  /** Goes back to the preferred member when another one answers at present and the preferred one serves again. */
  async preferFirst(signal: AbortSignal): Promise<void> {
    const [own = ""] = this.#endpoints;
    if (this.#endpoints.length < 2 || this.#peer === "" || this.#peer === own) return;
    using probe = new EtcdClient({ ...this.#options, endpoints: [own], hosts: hostsOf(this.#options) });
    try {
      const request = RangeRequest.create({ key: Buffer.from("/"), countOnly: true });
      await probe.call(({ kv }) => kv.range.bind(kv), request, { signal });
    } catch {
      return;
    }
    this.#options.log.info("etcd's preferred member serves again", { endpoint: own });
    this.#first = 0;
    this.#peer = "";
    this.#reconnect();
  }

  /** Goes on with a new certificate. */
  renew(identity: TlsIdentity): void {
    this.#options = { ...this.#options, identity };
    this.#credentials = credentialsOf(hostsOf(this.#options), identity);
    this.#reconnect();
  }

  [Symbol.dispose](): void {
    for (const stream of this.#streams) stream.cancel();
    for (const stub of Object.values(this.#stubs)) stub.close();
  }

  #track<Stream extends { cancel(): void; on(event: "close" | "error" | "end", listener: () => void): unknown }>(
    stream: Stream,
  ): Stream {
    this.#streams.add(stream);
    const forget = () => this.#streams.delete(stream);
    stream.on("end", forget);
    stream.on("error", forget);
    return stream;
  }

  #connect(): Stubs {
    const endpoints = this.#endpoints;
    const ordered = [...endpoints.slice(this.#first), ...endpoints.slice(0, this.#first)];
    const target = targetOf(ordered);
    const named = hostsOf(this.#options).find((host) => isIP(host) === 0);
    // An address as the TLS server name is not allowed (RFC 6066, section 3).
    const channelOptions = {
      ...options,
      "grpc.ssl_target_name_override": named ?? "etcd",
    };
    return {
      cluster: new ClusterClient(target, this.#credentials, channelOptions),
      kv: new KVClient(target, this.#credentials, channelOptions),
      lease: new LeaseClient(target, this.#credentials, channelOptions),
      watch: new WatchClient(target, this.#credentials, channelOptions),
      maintenance: new MaintenanceClient(target, this.#credentials, channelOptions),
    };
  }

  /**
   * A channel stays with its member as long as the connection is up, even when that member is cut off from the others or
   * hangs. So after some calls without an answer all calls and streams move to the next member. The only member is connected to
   * anew: Node does not see a connection end while large writes are pending on it, and would wait for the keepalive's 15 s.
   */
  #noteFailure(error: unknown): void {
    if (!isCode(error, status.DEADLINE_EXCEEDED) && !isCode(error, status.UNAVAILABLE)) return;
    this.#unanswered += 1;
    if (this.#unanswered < patience) return;
    this.#unanswered = 0;
    this.#first = (this.#first + 1) % this.#endpoints.length;
    this.#options.log.warn("etcd does not answer, connecting to the next member", {
      endpoint: this.#endpoints[this.#first],
    });
    this.#reconnect();
  }

  #reconnect(): void {
    const old = { stubs: this.#stubs, streams: [...this.#streams] };
    this.#stubs = this.#connect();
    for (const stream of old.streams) stream.cancel();
    for (const stub of Object.values(old.stubs)) stub.close();
  }
}

function hostsOf({ hosts, endpoints }: EtcdClientOptions): readonly string[] {
  return hosts ?? endpoints.map(hostOf);
}

function credentialsOf(hosts: readonly string[], identity: TlsIdentity | undefined): ChannelCredentials {
  if (identity === undefined) return credentials.createInsecure();
  return credentials.createSsl(identity.ca, identity.key, identity.certificate, {
    // One channel has several endpoints: the certificate must be for one of them.
    checkServerIdentity: (_host, certificate) => {
      const errors = hosts.map((host) => checkServerIdentity(host, certificate));
      return errors.includes(undefined) ? undefined : errors[0];
    },
  });
}

/**
 * Makes addresses of `host:port` endpoints. One host name is left to the channel, which looks it up again when the connection
 * is lost; of several, the channel takes addresses only.
 */
export async function resolveEndpoints(
  endpoints: readonly string[],
  lookup: (host: string) => Promise<string>,
): Promise<readonly string[]> {
  if (endpoints.length === 1) return endpoints;
  return await Promise.all(
    endpoints.map(async (endpoint) => {
      const host = hostOf(endpoint);
      return isIP(host) === 0 ? `${await lookup(host)}:${portOf(endpoint)}` : endpoint;
    }),
  );
}

function targetOf(endpoints: readonly string[]): string {
  const [only] = endpoints;
  if (endpoints.length === 1 && only !== undefined && isIP(hostOf(only)) === 0) return `dns:${only}`;
  return `${endpoints.some((one) => one.startsWith("[")) ? "ipv6" : "ipv4"}:${endpoints.join(",")}`;
}

/** Of `host:port`. */
export function hostOf(endpoint: string): string {
  return endpoint.slice(0, endpoint.lastIndexOf(":")).replace(/^\[|\]$/g, "");
}

function portOf(endpoint: string): string {
  return endpoint.slice(endpoint.lastIndexOf(":") + 1);
}

function metadata(needsLeader = true): Metadata {
  const result = new Metadata({ waitForReady: true });
  // A member that has lost its cluster refuses at once instead of waiting, and ends its watches.
  if (needsLeader) result.set("hasleader", "true");
  return result;
}

function isCode(error: unknown, code: status): boolean {
  return error instanceof Error && "code" in error && error.code === code;
}

/** etcd's failures in our words; the one place where its texts are looked at. */
export function etcdError(error: unknown): ClusterError {
  if (error instanceof ClusterError) return error;
  const text = error instanceof Error && "details" in error ? String(error.details) : String(error);
  const fail = (code: ClusterError["code"], message: string, hint?: string) =>
    new ClusterError(message, { code, subject: "etcd", hint, cause: error });
  if (text.includes("database space exceeded")) {
    return fail(
      "exhausted",
      "etcd is full and takes no more writes",
      "Remove stacks that are not needed; then compact and defragment etcd and disarm its NOSPACE alarm, or give it more room (--etcd-quota).",
    );
  }
  if (text.includes("too many learner")) return fail("conflict", "another member is joining etcd");
  if (text.includes("in sync with leader")) return fail("unavailable", "etcd's new member has not caught up yet");
  if (text.includes("re-configuration failed") || text.includes("unhealthy cluster")) {
    return fail("conflict", "etcd does not change its members while too few of them run");
  }
  if (text.includes("no leader"))
    return fail("unavailable", "etcd has no leader: more than half of its members must run");
  if (text.includes("raft: stopped") || text.includes("server stopped")) return fail("unavailable", "etcd is stopping");
  if (text.includes("too many requests")) return fail("unavailable", "etcd has too much to do");
  if (text.includes("too many operations")) {
    return fail("exhausted", "etcd takes fewer operations in one transaction", "Start etcd with --max-txn-ops=10000.");
  }
  if (text.includes("request is too large") || isCode(error, status.RESOURCE_EXHAUSTED)) {
    return fail("exhausted", `etcd takes no request of this size: ${text}`, "Make configs and secrets smaller.");
  }
  if (isCode(error, status.PERMISSION_DENIED) || isCode(error, status.UNAUTHENTICATED)) {
    return fail("denied", `etcd refuses: ${text}`, "Check --etcd-cert and --etcd-key.");
  }
  if (isCode(error, status.DEADLINE_EXCEEDED)) return fail("unavailable", "etcd does not answer in time");
  if (isCode(error, status.UNAVAILABLE) || isCode(error, status.CANCELLED)) {
    return fail("unavailable", `etcd cannot be reached: ${text}`);
  }
  return fail("internal", `etcd: ${text}`);
}
