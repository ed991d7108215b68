import { Server, type ServerDuplexStream } from "@grpc/grpc-js";
import { requirePeer, serverCredentials, streaming, unary } from "../../lib/grpc/server.ts";
import type { TlsIdentity } from "../../lib/grpc/tls.ts";
import { removedNode } from "../../lib/membership/removed.ts";
import type { Authority } from "../../lib/pki/authority.ts";
import {
  DispatcherService,
  type NetworkDown,
  type NetworkUp,
  type SessionDown,
  type SessionUp,
} from "../../proto/gen/embassy/v1/dispatcher.ts";

type Stream = ServerDuplexStream<SessionUp, SessionDown>;

/** A queue that a test waits on. */
export class Mailbox<T> {
  readonly #items: T[] = [];
  #waiting: ((item: T) => void)[] = [];

  put(item: T): void {
    const taker = this.#waiting.shift();
    if (taker === undefined) this.#items.push(item);
    else taker(item);
  }

  async next(): Promise<T> {
    const item = this.#items.shift();
    return item ?? (await new Promise<T>((resolve) => this.#waiting.push(resolve)));
  }

  async until(wanted: (item: T) => boolean): Promise<T> {
    for (;;) {
      const item = await this.next();
      if (wanted(item)) return item;
    }
  }
}

/** Plays the control plane: the test reads what the node says, and writes what it is told. */
export class Dispatcher implements AsyncDisposable {
  readonly streams = new Mailbox<{
    readonly stream: Stream;
    readonly said: Mailbox<SessionUp>;
    readonly peer: string;
  }>();
  readonly renewals = new Mailbox<Buffer>();
  #server = new Server();
  readonly #authority: Authority;
  readonly #identity: TlsIdentity;
  port = 0;
  /** Nodes are told that they were removed, from their next stream on. */
  removing = false;

  constructor(authority: Authority, identity: TlsIdentity) {
    this.#authority = authority;
    this.#identity = identity;
  }

  /** Port 0: a free one. */
  async listen(port = 0): Promise<this> {
    this.#server = new Server();
    this.#server.addService(DispatcherService, {
      session: streaming(async (stream: Stream, signal) => {
        const peer = requirePeer(stream, ["node"]).name;
        if (this.removing) throw removedNode(peer);
        const said = new Mailbox<SessionUp>();
        stream.on("data", (message: SessionUp) => said.put(message));
        this.streams.put({ stream, said, peer });
        await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()));
      }),
      network: streaming<ServerDuplexStream<NetworkUp, NetworkDown>, NetworkUp, NetworkDown>(async () => {
        await Promise.resolve();
      }),
      renew: unary(async ({ csrDer }: { csrDer: Buffer }) => {
        this.renewals.put(csrDer);
        const grant = { commonName: "aaaaaaaaaaaa", role: "node", nowMs: Date.now() } as const;
        return { certificatePem: await this.#authority.sign(csrDer, grant), caPem: this.#authority.certificate };
      }),
    });
    this.port = await new Promise<number>((resolve, reject) =>
      this.#server.bindAsync(`127.0.0.1:${port}`, serverCredentials(this.#identity), (error, bound) =>
        error === null ? resolve(bound) : reject(error),
      ),
    );
    return this;
  }

  async welcome(heartbeatIntervalMs = 60_000) {
    const opened = await this.streams.next();
    const hello = (await opened.said.next()).message;
    if (hello?.$case !== "hello") throw new Error(`expected hello, got ${hello?.$case}`);
    opened.stream.write({
      message: {
        $case: "welcome",
        value: { sessionId: "s", heartbeatIntervalMs, leaseTtlMs: 5_000, clusterId: "c", nodeName: "n" },
      },
    });
    return { ...opened, hello: hello.value };
  }

  /** It is away; `listen` brings it back. */
  async close(): Promise<void> {
    this.#server.forceShutdown();
    await Promise.resolve();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
