import type { ClientDuplexStream } from "@grpc/grpc-js";
import { ClusterError } from "../../lib/errors/errors.ts";
import type { LeaseKeepAliveRequest, LeaseKeepAliveResponse } from "../../proto/gen/etcd/rpc.ts";
import { type EtcdClient, etcdError } from "./client.ts";

const answerMs = 2_000;

interface Waiting {
  readonly resolve: (alive: boolean) => void;
  readonly reject: (error: ClusterError) => void;
  readonly timer: NodeJS.Timeout;
}

/** Leases: granted and revoked by calls, kept by one stream that all of them share. */
export class Leases implements Disposable {
  readonly #client: EtcdClient;
  readonly #waiting = new Map<bigint, Waiting[]>();
  #stream: ClientDuplexStream<LeaseKeepAliveRequest, LeaseKeepAliveResponse> | undefined;

  constructor(client: EtcdClient) {
    this.#client = client;
  }

  /** Resolves with the lease's id. etcd counts in whole seconds and has a least TTL of its own election timeout and a half. */
  async grant(ttlMs: number): Promise<bigint> {
    const TTL = BigInt(Math.ceil(ttlMs / 1000));
    const { ID } = await this.#client.call(({ lease }) => lease.leaseGrant.bind(lease), { TTL, ID: 0n });
    return ID;
  }

  /** Resolves false when it is gone. Throws `unavailable`. */
  async keepAlive(lease: bigint): Promise<boolean> {
    return await new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        // One that does not answer one lease does not answer the others: begin anew.
        this.#fail(
          new ClusterError("etcd does not answer: lease not renewed", { code: "unavailable", subject: "etcd" }),
        );
      }, answerMs);
      const waiting = this.#waiting.get(lease);
      const mine = { resolve, reject, timer };
      if (waiting === undefined) this.#waiting.set(lease, [mine]);
      else waiting.push(mine);
      this.#open().write({ ID: lease });
    });
  }

  /** Revoking one that is gone is no error. */
  async revoke(lease: bigint): Promise<void> {
    try {
      await this.#client.call(({ lease: stub }) => stub.leaseRevoke.bind(stub), { ID: lease });
    } catch (error) {
      const cause: unknown = error instanceof Error ? error.cause : undefined;
      if (!isLeaseGone(cause)) throw error;
    }
  }

  [Symbol.dispose](): void {
    this.#fail(new ClusterError("the store is closed", { code: "unavailable" }));
  }

  #open(): ClientDuplexStream<LeaseKeepAliveRequest, LeaseKeepAliveResponse> {
    if (this.#stream !== undefined) return this.#stream;
    const stream = this.#client.leaseKeepAlive();
    this.#stream = stream;
    stream.on("data", ({ ID, TTL }: LeaseKeepAliveResponse) => {
      const waiting = this.#waiting.get(ID) ?? [];
      this.#waiting.delete(ID);
      for (const one of waiting) {
        clearTimeout(one.timer);
        one.resolve(TTL > 0n);
      }
    });
    const ended = (error?: unknown) => {
      if (this.#stream === stream) this.#fail(etcdError(error ?? new Error("the lease stream ended")));
    };
    stream.on("error", ended);
    stream.on("end", ended);
    return stream;
  }

  #fail(error: ClusterError): void {
    const stream = this.#stream;
    this.#stream = undefined;
    stream?.cancel();
    const all = [...this.#waiting.values()].flat();
    this.#waiting.clear();
    for (const one of all) {
      clearTimeout(one.timer);
      one.reject(error);
    }
  }
}

/** Did etcd say that there is no such lease? */
export function isLeaseGone(error: unknown): boolean {
  return error instanceof Error && "details" in error && String(error.details).includes("requested lease not found");
}
