import type { SchedulerNode, SchedulerTask, TaskGroup } from "../control-plane/scheduler/index.ts";

/** What the benchmarks of placing place, and where: the same in every run. */
export type Shape = "same" | "mixed" | "one-off";

export const mebibyte = 1024 * 1024;

/** Nodes alike but for their zone (one of three) and rack (one of fifty). */
export function clusterOf(count: number, milliCpus: number, mebibytes: number): SchedulerNode[] {
  return Array.from({ length: count }, (_, i) => ({
    id: `node-${i}`,
    hostname: `host-${i}`,
    role: "worker",
    os: "linux",
    arch: "amd64",
    labels: { zone: "abc"[i % 3] as string, rack: `r${i % 50}` },
    availability: "active",
    ready: true,
    capacity: { milliCpus, memoryBytes: mebibytes * mebibyte },
  }));
}

/** Room for the tasks at about 60 % of every node, whatever the counts. */
export function roomyCluster(nodes: number, tasks: number): SchedulerNode[] {
  const perNode = Math.max(4, Math.ceil(tasks / nodes));
  return clusterOf(nodes, perNode * 650, perNode * 700);
}

const cpuSizes = [100, 250, 500, 750];
const memorySizes = [128, 256, 384, 512];

/** One of services with 4 x 4 sizes, a third of them bound to a zone and a tenth with a host port. */
export function mixedGroup(i: number): TaskGroup {
  return {
    id: `s${i}@1`,
    service: `s${i}`,
    name: `s${i}`,
    reservations: {
      milliCpus: cpuSizes[i % 4] as number,
      memoryBytes: (memorySizes[(i >> 2) % 4] as number) * mebibyte,
    },
    constraints: i % 3 === 0 ? [`node.labels.zone == ${"abc"[(i / 3) % 3]}`] : undefined,
    ports: i % 10 === 0 ? [{ port: 8_000 + ((i / 10) % 1_000), protocol: "tcp" }] : undefined,
  };
}

/** The services of a shape of load, and their tasks: one service, services of 100 tasks, or a service a task. */
export function loadOf(
  shape: Shape,
  tasks: number,
): { readonly groups: TaskGroup[]; readonly pending: SchedulerTask[] } {
  if (shape === "same") {
    const group: TaskGroup = {
      id: "web@1",
      service: "web",
      name: "web",
      reservations: { milliCpus: 250, memoryBytes: 256 * mebibyte },
    };
    return { groups: [group], pending: tasksOf(group, tasks) };
  }
  const each = shape === "mixed" ? 100 : 1;
  const groups = Array.from({ length: Math.ceil(tasks / each) }, (_, i) => mixedGroup(i));
  return { groups, pending: groups.flatMap((group) => tasksOf(group, each)) };
}

export function tasksOf(group: TaskGroup, count: number, first = 1): SchedulerTask[] {
  return Array.from({ length: count }, (_, i) => ({ id: `${group.service}.${first + i}`, group: group.id }));
}
