import type { ListTasksResponse, TaskView } from "../../proto/gen/embassy/v1/api.ts";
import { DesiredState, TaskState, UpdateState } from "../../proto/gen/embassy/v1/state.ts";
import { gaveUpAfter, nextTry } from "../attempts.ts";
import { type Cli, globalOptions, printJson, type Register, withCluster } from "../cli.ts";
import { jsonOf } from "../json.ts";
import { taskName } from "../names.ts";
import { formatAge, formatEnum } from "../render/format.ts";
import { oneLine, type Style, styled } from "../render/style.ts";
import { table } from "../render/table.ts";
import { nextOf } from "../update-words.ts";

export const registerPs: Register = (program, cli) => {
  program
    .command("ps")
    .summary("list tasks")
    .description(
      "Lists the tasks of the cluster, of a stack, or of a service: those that have not ended, and of a slot that has none such the newest, with what comes next. Below it says of each service whose update is under way or has failed how that stands, and what can be done.",
    )
    .argument("[stack|service]", "stack, <stack>_<service>, or service")
    .option("-a, --all", "every task that is remembered")
    .option("--node <name>", "only those on this node")
    .action(async (target: string | undefined, options: { all?: boolean; node?: string }, command) => {
      const global = globalOptions(command);
      await withCluster(cli, global, async (client) => {
        const { call } = await import("../../lib/grpc/client.ts");
        const { ListTasksResponse } = await import("../../proto/gen/embassy/v1/api.ts");
        const { stackOrService } = await import("../lookup.ts");
        const chosen =
          target === undefined ? { stack: "", service: "" } : await stackOrService(client, target, cli.signal);
        const request = { ...chosen, node: options.node ?? "", all: options.all === true };
        const response = await call(client.listTasks.bind(client), request, { signal: cli.signal });
        if (global.output === "json") printJson(cli, jsonOf(ListTasksResponse, response));
        else printTasks(cli, response);
      });
    });
};

function printTasks(cli: Cli, { tasks, nowMs, updates }: ListTasksResponse): void {
  cli.out.write(
    table<TaskView>(
      cli.out,
      [
        { title: "NAME", value: taskName, shrinkTo: 16 },
        { title: "ID", value: ({ task }) => task?.id ?? "", drop: 1 },
        { title: "IMAGE", value: ({ task }) => task?.spec?.container?.image ?? "", shrinkTo: 12, wish: 24, drop: 2 },
        { title: "NODE", value: ({ nodeName }) => nodeName || "-", shrinkTo: 10 },
        { title: "STATE", value: stateOf, style: styleOf },
        { title: "AGE", value: ({ task }) => formatAge(task?.createdAtMs ?? 0, nowMs), align: "right" },
        { title: "MESSAGE", value: (view) => messageOf(view, nowMs), shrinkTo: 10, wish: 40 },
      ],
      tasks,
    ),
  );
  for (const { stack, service, state, message } of updates) {
    const next = nextOf(state, stack);
    const style = state === UpdateState.UPDATE_STATE_UPDATING ? "yellow" : "red";
    cli.err.write(
      `${styled(cli.err, style, `${stack}_${service}:`)} ${oneLine(message)}\n${next === "" ? "" : `  ${next}\n`}`,
    );
  }
}

/** "running", "running (unhealthy)", "failed (137)", "pending". What it is told to do shows when that differs: "running → shutdown". */
export function stateOf({ task, status }: TaskView): string {
  const state = status?.state ?? TaskState.TASK_STATE_PENDING;
  const name = nameOf(TaskState, state, "TASK_STATE_");
  if (state === TaskState.TASK_STATE_FAILED)
    return status?.oomKilled ? `${name} (oom)` : `${name} (${status?.exitCode})`;
  const ended = state >= TaskState.TASK_STATE_COMPLETE;
  if (!ended && task !== undefined && task.desired >= DesiredState.DESIRED_STATE_SHUTDOWN) return `${name}, stopping`;
  if (state === TaskState.TASK_STATE_RUNNING && status?.health === 1) return `${name} (starting)`;
  if (state === TaskState.TASK_STATE_RUNNING && status?.health === 3) return `${name} (unhealthy)`;
  return name;
}

function nameOf(values: Readonly<Record<string, number>>, value: number, prefix: string): string {
  const found = Object.entries(values).find(([, candidate]) => candidate === value)?.[0];
  return found === undefined ? String(value) : formatEnum(found, prefix);
}

function styleOf({ task, status }: TaskView): Style | undefined {
  switch (status?.state) {
    case TaskState.TASK_STATE_RUNNING:
      return status.health === 3 ? "yellow" : "green";
    case TaskState.TASK_STATE_FAILED:
    case TaskState.TASK_STATE_REJECTED:
    case TaskState.TASK_STATE_ORPHANED:
      return "red";
    case TaskState.TASK_STATE_COMPLETE:
    case TaskState.TASK_STATE_SHUTDOWN:
      return "dim";
    default:
      return task?.unplaced ? "red" : "yellow";
  }
}

/**
 * What a task waits for says something only until it runs; after that, its node knows best. With one that ended, what comes
 * next: "exited with code 1; next try in 5 s", "gave up after 3 attempts: exited with code 1".
 */
export function messageOf(view: TaskView, nowMs: number): string {
  const { task, status } = view;
  const waits = (status?.state ?? TaskState.TASK_STATE_PENDING) < TaskState.TASK_STATE_RUNNING;
  const waitsFor = waits ? task?.unplaced || task?.waitsFor : "";
  const message = waitsFor || view.kept || status?.message || "";
  const gaveUp = gaveUpAfter(view);
  if (gaveUp !== undefined) return message === "" ? gaveUp : `${gaveUp}: ${message}`;
  return [message, nextTry(view, nowMs) ?? ""].filter((part) => part !== "").join("; ");
}
