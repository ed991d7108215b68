import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { TaskView } from "./cluster.ts";

const mountPoint = "/sys/fs/cgroup";

/** Is this machine's cgroup tree v2 alone? Else the controllers are v1's, with or without a v2 tree beside them. */
export const cgroupV2: boolean = existsSync(join(mountPoint, "cgroup.controllers"));

/** A file of a cgroup: its name on v2, its controller and name on v1. */
export interface CgroupFile {
  readonly v2: string;
  readonly v1: string;
}

/** What the machine has in a file of the task's own cgroup, without the last newline. */
export function readCgroup({ task }: TaskView, { v2, v1 }: CgroupFile): string {
  const own = `embassy-${task.nodeId}/${task.id}`;
  const [controller = "", name = ""] = v1.split("/");
  const file = cgroupV2 ? join(mountPoint, own, v2) : join(mountPoint, controller, own, name);
  return readFileSync(file, "utf8").trimEnd();
}

/** The cgroups of these nodes, in every hierarchy of the machine. */
export function cgroupsOf(nodeIds: readonly string[]): string[] {
  return nodeIds.flatMap((id) =>
    execFileSync("find", [mountPoint, "-type", "d", "-name", `embassy-${id}`], { encoding: "utf8" })
      .split("\n")
      .filter(Boolean),
  );
}
