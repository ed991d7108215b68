import { Metadata, Server, type ServerDuplexStream, type ServerWritableStream } from "@grpc/grpc-js";
import { ClusterError } from "../../lib/errors/errors.ts";
import { requirePeer, serverCredentials, streaming, unary } from "../../lib/grpc/server.ts";
import type { TlsIdentity } from "../../lib/grpc/tls.ts";
import type { Log } from "../../lib/log/log.ts";
import {
  type AgentListVolumesRequest,
  type AgentLogsRequest,
  type AgentRemoveVolumeRequest,
  AgentService,
  type ExecInput,
  type ExecOutput,
  type LogBatch,
} from "../../proto/gen/embassy/v1/api.ts";
import type { Listen } from "../config.ts";
import { serveExec } from "../exec/exec.ts";
import { serveLogs } from "../logs/serve.ts";
import type { Runtime } from "../runtime/types.ts";
import type { TaskManager } from "../task/manager.ts";
import type { Volumes } from "../volumes/volumes.ts";

/** How long the sizes of volumes may be counted: less than who asks waits for the answer. */
const longestCountMs = 3_000;

export interface AgentDeps {
  readonly nodeName: string;
  readonly listen: Listen;
  readonly runtime: Pick<Runtime, "exec" | "logPath">;
  readonly tasks: Pick<TaskManager, "find" | "mounting">;
  readonly volumes: Pick<Volumes, "list" | "sizes" | "remove">;
  readonly log: Log;
}

/** The node's own server, for the control plane: logs and exec of the tasks that are here. */
export class AgentServer implements AsyncDisposable {
  readonly #server = new Server({ "grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1 });
  readonly #address: string;

  constructor(deps: AgentDeps) {
    const { host, port } = deps.listen;
    this.#address = host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
    // The caller tells by the headers that this agent is alive, also when there is nothing to send for long.
    const answer = (call: { sendMetadata(metadata: Metadata): void }) => call.sendMetadata(new Metadata());
    const find = (taskId: string) => {
      const task = deps.tasks.find(taskId);
      if (task !== undefined) return task;
      throw new ClusterError(`node ${deps.nodeName} has no task ${taskId}`, {
        code: "not-found",
        subject: `task/${taskId}`,
      });
    };
    const requireRunning = (taskId: string) => {
      const task = find(taskId);
      if (task.container.kind === "running") return;
      throw new ClusterError(`task ${task.assignment.taskName} is not running`, {
        code: "conflict",
        subject: `task/${taskId}`,
      });
    };
    this.#server.addService(AgentService, {
      logs: streaming(async (call: ServerWritableStream<AgentLogsRequest, LogBatch>, signal) => {
        requirePeer(call, ["manager"]);
        answer(call);
        const task = find(call.request.taskId);
        const path = deps.runtime.logPath(task.id);
        await serveLogs(
          { path, taskName: task.assignment.taskName, ended: task.ended.signal },
          deps.nodeName,
          call,
          signal,
        );
      }),
      exec: streaming(async (call: ServerDuplexStream<ExecInput, ExecOutput>, signal) => {
        requirePeer(call, ["manager"]);
        answer(call);
        await serveExec({ runtime: deps.runtime, requireRunning }, call, signal);
      }),
      listVolumes: unary(async ({ sizes }: AgentListVolumesRequest, call) => {
        requirePeer(call, ["manager"]);
        const names = await deps.volumes.list();
        const bytes = sizes ? await deps.volumes.sizes(names, AbortSignal.timeout(longestCountMs)) : {};
        return { names, bytes };
      }),
      removeVolume: unary(async ({ name }: AgentRemoveVolumeRequest, call) => {
        requirePeer(call, ["manager"]);
        const tasks = deps.tasks.mounting(name);
        if (tasks.length > 0) {
          throw new ClusterError(`${tasks.join(", ")} on node ${deps.nodeName} mounts volume ${name}`, {
            code: "conflict",
            subject: `volume/${name}`,
          });
        }
        const { emptied } = await deps.volumes.remove(name);
        emptied.catch((error: unknown) => deps.log.warn("volume not deleted whole", { volume: name, error }));
        deps.log.info("volume removed", { volume: name });
        return {};
      }),
    });
  }

  /** Listens with this identity from now on; calls under way go on with the one they began with. */
  async listen(identity: TlsIdentity): Promise<void> {
    try {
      this.#server.unbind(this.#address);
    } catch {
      // Not bound before.
    }
    await new Promise<void>((resolve, reject) => {
      this.#server.bindAsync(this.#address, serverCredentials(identity), (error) => {
        if (error === null) resolve();
        else {
          reject(
            new ClusterError(`cannot listen on ${this.#address}: ${error.message}`, {
              code: "unavailable",
              subject: "--agent-listen",
              hint: "Another program listens there, or the address is not this host's.",
              cause: error,
            }),
          );
        }
      });
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.forceShutdown();
    await Promise.resolve();
  }
}
