import { rm } from "node:fs/promises";
import { Server, ServerCredentials } from "@grpc/grpc-js";
import { unary } from "../../lib/grpc/server.ts";
import { run, runOk } from "../../lib/process/run.ts";
import {
  type AttachRequest,
  type DetachRequest,
  type ListAttachmentsRequest,
  type ListAttachmentsResponse,
  NetdService,
  type NetdStatus,
  type NetdStatusRequest,
  type VerifyRequest,
  type VerifyResponse,
} from "../../proto/gen/embassy/v1/local.ts";

/** Stands in for netd on a real unix socket: gives each task a network namespace with only loopback in it. */
export class TestNetd implements AsyncDisposable {
  readonly attached = new Map<string, AttachRequest>();
  readonly #socket: string;
  readonly #prefix: string;
  #server: Server | undefined;

  /** @param prefix Of the namespaces' names. */
  constructor(socket: string, prefix: string) {
    this.#socket = socket;
    this.#prefix = prefix;
  }

  async start(): Promise<this> {
    await rm(this.#socket, { force: true });
    const server = new Server();
    server.addService(NetdService, {
      attach: unary(async (request: AttachRequest) => {
        const name = `${this.#prefix}${request.taskId}`;
        if (!this.attached.has(request.taskId)) {
          await runOk("ip", ["netns", "add", name]);
          await runOk("ip", ["-n", name, "link", "set", "lo", "up"]);
          this.attached.set(request.taskId, request);
        }
        const addresses = request.networkIds.map((networkId) => ({ networkId, address: "10.99.0.2" }));
        return { netnsPath: `/run/netns/${name}`, addresses, dnsAddress: "169.254.42.1", mtu: 1450 };
      }),
      detach: unary(async ({ taskId }: DetachRequest) => {
        if (this.attached.delete(taskId)) await runOk("ip", ["netns", "del", `${this.#prefix}${taskId}`]);
        return {};
      }),
      listAttachments: unary<ListAttachmentsRequest, ListAttachmentsResponse>(() => ({
        attachments: [...this.attached.values()].map(({ taskId, serviceId }) => ({ taskId, serviceId, addresses: [] })),
      })),
      status: unary<NetdStatusRequest, NetdStatus>(() => ({
        connected: true,
        stateRevision: 0,
        appliedRevision: 0,
        lastError: "",
      })),
      verify: unary<VerifyRequest, VerifyResponse>(() => ({ drifts: [] })),
    });
    await new Promise<void>((resolve, reject) =>
      server.bindAsync(`unix:${this.#socket}`, ServerCredentials.createInsecure(), (error) =>
        error === null ? resolve() : reject(error),
      ),
    );
    this.#server = server;
    return this;
  }

  /** It is away; what is attached stays. */
  async stop(): Promise<void> {
    this.#server?.forceShutdown();
    await rm(this.#socket, { force: true });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
    for (const taskId of this.attached.keys()) await run("ip", ["netns", "del", `${this.#prefix}${taskId}`]);
  }
}
