import { MountType } from "../../proto/gen/embassy/v1/stack.ts";
import type { Task } from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "./index.ts";

/**
 * The node that holds what a task's slot has written into its named volumes: where the slot's last task was, as far as it is on record.
 * undefined without named volumes, and for a slot's first task.
 */
export function nodeOfData(index: ClusterIndex, task: Task): string | undefined {
  if (task.spec?.container?.mounts.some(isNamedVolume) !== true) return undefined;
  let last: Task | undefined;
  for (const other of index.tasksOfService(task.serviceId)) {
    if (other.slot !== task.slot || other.nodeId === "") continue;
    if (last === undefined || other.epoch > last.epoch) last = other;
  }
  return last?.nodeId;
}

function isNamedVolume({ type, source }: { readonly type: MountType; readonly source: string }): boolean {
  return type === MountType.MOUNT_TYPE_VOLUME && source !== "";
}
