import { expect, it } from "vitest";
import { TaskState } from "../../proto/gen/embassy/v1/state.ts";
import { Metrics } from "./metrics.ts";

it("counts tasks by state, pulls by result and starts by duration", () => {
  const metrics = new Metrics();
  metrics.started(40);
  metrics.started(150);
  metrics.started(90_000);
  metrics.pulled(true);
  metrics.pulled(false);
  const disk = { directory: "/d", bytes: 100, freeBytes: 40, inodes: 10, freeInodes: 3 };
  const lines = metrics
    .format([TaskState.TASK_STATE_RUNNING, TaskState.TASK_STATE_RUNNING, TaskState.TASK_STATE_FAILED], true, [disk])
    .split("\n");
  for (const line of [
    'embassy_node_tasks{state="running"} 2',
    'embassy_node_tasks{state="failed"} 1',
    'embassy_node_tasks{state="pending"} 0',
    "embassy_node_session_up 1",
    'embassy_node_disk_bytes{directory="/d"} 100',
    'embassy_node_disk_free_bytes{directory="/d"} 40',
    'embassy_node_disk_free_inodes{directory="/d"} 3',
    'embassy_node_image_pulls_total{result="ok"} 1',
    'embassy_node_image_pulls_total{result="failed"} 1',
    'embassy_node_task_start_seconds_bucket{le="0.05"} 1',
    'embassy_node_task_start_seconds_bucket{le="0.2"} 2',
    'embassy_node_task_start_seconds_bucket{le="60"} 2',
    'embassy_node_task_start_seconds_bucket{le="+Inf"} 3',
    "embassy_node_task_start_seconds_count 3",
  ]) {
    expect(lines).toContain(line);
  }
  // The format allows nothing but comments and samples.
  expect(lines.filter((line) => line !== "" && !/^(#|[a-z_]+(\{[a-z]+="[^"]*"\})? [0-9.e+-]+$)/.test(line))).toEqual(
    [],
  );
});
