import type { TaskView } from "../proto/gen/embassy/v1/api.ts";

/** <stack>_<service>.<slot>; a global service's task has its node's name in place of a slot. */
export function taskName({ task, nodeName }: TaskView): string {
  if (task === undefined) return "?";
  const place = task.slot > 0 ? String(task.slot) : nodeName || task.onlyNode;
  return `${task.stack}_${task.serviceName}.${place}`;
}
