import type { Assignment, Blob } from "../../proto/gen/embassy/v1/dispatcher.ts";
import { PublishMode } from "../../proto/gen/embassy/v1/stack.ts";
import type { DesiredState, Task } from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "./index.ts";
import { linkEnvironment, linkHosts } from "./links.ts";
import { taskName } from "./tasks.ts";

/**
 * All that a node needs to run the task, and of configs and secrets no more than it mounts. `desired` is what the node is
 * told now, which may lag behind the record while the network lets go of the task.
 */
export function assignmentOf(index: ClusterIndex, task: Task, desired: DesiredState): Assignment {
  const spec = task.spec;
  return {
    taskId: task.id,
    taskName: taskName(index.view, task),
    stack: task.stack,
    serviceId: task.serviceId,
    serviceName: task.serviceName,
    slot: task.slot,
    epoch: task.epoch,
    desired,
    container: spec?.container,
    resources: spec?.resources,
    linkEnvironment: linkEnvironment(index, task),
    linkHosts: linkHosts(index, task),
    preempts: task.preempts,
    networks: (spec?.networks ?? []).map(({ network, aliases }) => ({
      networkId: task.networkIds[network] ?? "",
      aliases,
    })),
    configs: blobs(index, task, "config", spec?.container?.configs ?? []),
    secrets: blobs(index, task, "secret", spec?.container?.secrets ?? []),
    hostPorts:
      task.hostPorts.length > 0
        ? task.hostPorts
        : (spec?.ports ?? []).filter(({ mode }) => mode === PublishMode.PUBLISH_MODE_HOST),
  };
}

function blobs(
  index: ClusterIndex,
  task: Task,
  kind: "config" | "secret",
  mounts: readonly { readonly source: string }[],
): Blob[] {
  const found: Blob[] = [];
  for (const name of new Set(mounts.map(({ source }) => source))) {
    const digest = task.blobDigests[`${kind}/${name}`];
    const blob = digest === undefined ? undefined : index.view.blobs.get(`${kind}/${digest}`);
    if (blob !== undefined) found.push({ name, content: blob.content });
  }
  return found;
}
