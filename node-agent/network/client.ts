import { credentials, status } from "@grpc/grpc-js";
import { ClusterError } from "../../lib/errors/errors.ts";
import { call, channelOptions } from "../../lib/grpc/client.ts";
import { unansweredStatus } from "../../lib/grpc/status.ts";
import {
  type Attachment,
  type AttachRequest,
  type AttachResponse,
  type DetachRequest,
  type DetachResponse,
  type ListAttachmentsRequest,
  type ListAttachmentsResponse,
  NetdClient,
  type NetdStatus,
  type NetdStatusRequest,
} from "../../proto/gen/embassy/v1/local.ts";

/** What the node asks of netd. Each call throws `unavailable` while netd is away. */
export interface NetworkDaemon {
  attach(request: AttachRequest, signal: AbortSignal): Promise<AttachResponse>;
  detach(taskId: string): Promise<void>;
  list(): Promise<readonly Attachment[]>;
}

/** What netd says of itself, if it does. */
export interface NetworkState {
  status(): Promise<NetdStatus>;
}

// Of an attach netd's answer comes once the task's networks have reached it from the control plane.
const deadlineMs = 10_000;
/** It is asked for what it knows already. */
const statusDeadlineMs = 2_000;

/** netd of this host, behind its unix socket; a netd that is restarted is found again by the next call. */
export class Netd implements NetworkDaemon, NetworkState, Disposable {
  readonly #client: NetdClient;
  readonly #socketPath: string;

  constructor(socketPath: string) {
    this.#socketPath = socketPath;
    this.#client = new NetdClient(`unix:${socketPath}`, credentials.createInsecure(), channelOptions);
  }

  async attach(request: AttachRequest, signal: AbortSignal): Promise<AttachResponse> {
    const attach = call<AttachRequest, AttachResponse>;
    return await this.#asking(attach((...args) => this.#client.attach(...args), request, { deadlineMs, signal }));
  }

  async detach(taskId: string): Promise<void> {
    const detach = call<DetachRequest, DetachResponse>;
    await this.#asking(detach((...args) => this.#client.detach(...args), { taskId }, { deadlineMs }));
  }

  async list(): Promise<readonly Attachment[]> {
    const list = call<ListAttachmentsRequest, ListAttachmentsResponse>;
    const pending = list((...args) => this.#client.listAttachments(...args), {}, { deadlineMs });
    return (await this.#asking(pending)).attachments;
  }

  async status(): Promise<NetdStatus> {
    const ask = call<NetdStatusRequest, NetdStatus>;
    const pending = ask((...args) => this.#client.status(...args), {}, { deadlineMs: statusDeadlineMs });
    return await this.#asking(pending, statusDeadlineMs);
  }

  /** What netd itself says is passed on; what the connection says is put in words for whoever reads a task's status. */
  async #asking<T>(pending: Promise<T>, withinMs = deadlineMs): Promise<T> {
    try {
      return await pending;
    } catch (error) {
      const code = unansweredStatus(error);
      if (code === status.DEADLINE_EXCEEDED) {
        throw this.#unavailable(`netd did not answer within ${withinMs / 1_000} s`, error);
      }
      if (code === status.UNAVAILABLE) throw this.#unavailable("netd is not there", error);
      throw error;
    }
  }

  #unavailable(message: string, cause: unknown): ClusterError {
    return new ClusterError(`waits for the network: ${message}`, {
      code: "unavailable",
      subject: this.#socketPath,
      hint: "Look at netd's log on this node.",
      cause,
    });
  }

  [Symbol.dispose](): void {
    this.#client.close();
  }
}
