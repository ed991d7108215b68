import type { SchedulerNode, SchedulerTask, TaskGroup } from "./types.ts";

/** Test and bench data: one default each, and what the case is about as overrides. */
export const mebibyte = 1024 * 1024;

/** A ready, active worker of 4 cores and 8 GiB on linux/amd64. */
export function aNode(id: string, overrides: Partial<SchedulerNode> = {}): SchedulerNode {
  return {
    id,
    hostname: id,
    role: "worker",
    os: "linux",
    arch: "amd64",
    labels: {},
    availability: "active",
    ready: true,
    capacity: { milliCpus: 4_000, memoryBytes: 8_192 * mebibyte },
    ...overrides,
  };
}

/** Version 1 of a service that reserves 250 thousandths of a core and 256 MiB. */
export function aGroup(service: string, overrides: Partial<TaskGroup> = {}): TaskGroup {
  return {
    id: `${service}@1`,
    service,
    name: service,
    reservations: { milliCpus: 250, memoryBytes: 256 * mebibyte },
    ...overrides,
  };
}

/** `count` waiting tasks of a group, named `<service>.<n>` from `first`. */
export function someTasks(group: TaskGroup, count: number, first = 1): SchedulerTask[] {
  return Array.from({ length: count }, (_, i) => ({
    id: `${group.id}.${first + i}`,
    group: group.id,
    name: `${group.name}.${first + i}`,
  }));
}
