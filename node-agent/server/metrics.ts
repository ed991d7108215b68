import { TaskState, taskStateToJSON } from "../../proto/gen/embassy/v1/state.ts";
import type { FileSystem } from "../disk/pressure.ts";
import type { TaskMeasures } from "../task/manager.ts";

const bounds = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60];
const states = Object.values(TaskState);

/**
 * What /metrics tells, in Prometheus' text format. By hand: a client library takes as much memory as a third of this program.
 */
export class Metrics implements TaskMeasures {
  readonly #buckets = bounds.map(() => 0);
  #startSeconds = 0;
  #starts = 0;
  #pulls = 0;
  #failedPulls = 0;

  started(ms: number): void {
    const seconds = ms / 1_000;
    this.#starts++;
    this.#startSeconds += seconds;
    for (const [index, bound] of bounds.entries()) {
      if (seconds <= bound) this.#buckets[index] = (this.#buckets[index] ?? 0) + 1;
    }
  }

  pulled(ok: boolean): void {
    if (ok) this.#pulls++;
    else this.#failedPulls++;
  }

  /** @param tasks The state of each task that the node holds. */
  format(tasks: Iterable<TaskState>, sessionUp: boolean, disks: readonly FileSystem[]): string {
    const counts = new Map<TaskState, number>(states.map((state) => [state, 0]));
    for (const state of tasks) counts.set(state, (counts.get(state) ?? 0) + 1);
    const label = (state: TaskState) => taskStateToJSON(state).replace("TASK_STATE_", "").toLowerCase();
    const ofDisks = (name: string, value: (disk: FileSystem) => number) =>
      disks.map((disk) => `${name}{directory=${JSON.stringify(disk.directory)}} ${value(disk)}`);
    const cpu = process.cpuUsage();
    return [
      ...metric("embassy_node_tasks", "gauge", "Tasks that the node holds, by state."),
      ...[...counts].map(([state, count]) => `embassy_node_tasks{state="${label(state)}"} ${count}`),
      ...metric("embassy_node_session_up", "gauge", "1 while there is a session with the control plane."),
      `embassy_node_session_up ${sessionUp ? 1 : 0}`,
      ...metric("embassy_node_disk_bytes", "gauge", "Size of each file system that the node keeps its things on."),
      ...ofDisks("embassy_node_disk_bytes", ({ bytes }) => bytes),
      ...metric("embassy_node_disk_free_bytes", "gauge", "What is free of it."),
      ...ofDisks("embassy_node_disk_free_bytes", ({ freeBytes }) => freeBytes),
      ...metric("embassy_node_disk_free_inodes", "gauge", "How many inodes are free of it."),
      ...ofDisks("embassy_node_disk_free_inodes", ({ freeInodes }) => freeInodes),
      ...metric("embassy_node_image_pulls_total", "counter", "Images made ready for a task, by result."),
      `embassy_node_image_pulls_total{result="ok"} ${this.#pulls}`,
      `embassy_node_image_pulls_total{result="failed"} ${this.#failedPulls}`,
      ...metric("embassy_node_task_start_seconds", "histogram", "From the order to run a task until it runs."),
      ...bounds.map((bound, index) => `embassy_node_task_start_seconds_bucket{le="${bound}"} ${this.#buckets[index]}`),
      `embassy_node_task_start_seconds_bucket{le="+Inf"} ${this.#starts}`,
      `embassy_node_task_start_seconds_sum ${this.#startSeconds}`,
      `embassy_node_task_start_seconds_count ${this.#starts}`,
      ...metric("process_resident_memory_bytes", "gauge", "Resident memory."),
      `process_resident_memory_bytes ${process.memoryUsage.rss()}`,
      ...metric("process_cpu_seconds_total", "counter", "CPU time of the process."),
      `process_cpu_seconds_total ${(cpu.user + cpu.system) / 1e6}`,
      "",
    ].join("\n");
  }
}

function metric(name: string, type: string, help: string): string[] {
  return [`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`];
}
