import type { NodeReason, NodeScore, Refusal, TaskView, WhyResponse } from "../../proto/gen/embassy/v1/api.ts";
import { PlacementStrategy } from "../../proto/gen/embassy/v1/stack.ts";
import { DesiredState, TaskState } from "../../proto/gen/embassy/v1/state.ts";
import { globalOptions, printJson, type Register, withCluster } from "../cli.ts";
import { jsonOf } from "../json.ts";
import { taskName } from "../names.ts";
import { count } from "../render/format.ts";
import { oneLine, type Screen } from "../render/style.ts";
import { type Column, table } from "../render/table.ts";
import { messageOf, stateOf } from "./ps.ts";

export const registerWhy: Register = (program, cli) => {
  program
    .command("why")
    .summary("say why a task is where it is, or nowhere")
    .description(
      "Says why a task is on its node or on none, and which nodes would take it now. The scheduler takes the one of the lowest cost, of which the terms that differ are shown. Of a service it says where one task more would go; with a node, whether that one would do, and what is in the way if not.",
    )
    .argument("<task|service>", "task name (counter_web.2), task id, <stack>_<service>, or service")
    .argument("[node]", "node's name or id")
    .action(async (target: string, node: string | undefined, _options, command) => {
      const global = globalOptions(command);
      await withCluster(cli, global, async (client) => {
        const { call } = await import("../../lib/grpc/client.ts");
        const { WhyResponse } = await import("../../proto/gen/embassy/v1/api.ts");
        const response = await call(client.why.bind(client), { target, node: node ?? "" }, { signal: cli.signal });
        if (global.output === "json") printJson(cli, jsonOf(WhyResponse, response));
        else cli.out.write(whyText(cli.out, response));
      });
    });
};

/** The answer in words and tables, those apart by an empty line. */
export function whyText(screen: Screen, response: WhyResponse): string {
  const parts = [headline(response)];
  if (response.nodes > 0) {
    parts.push(askedPart(response), candidatesPart(screen, response), refusalsPart(screen, response));
    const { nearest, asked } = response;
    if (nearest?.score !== undefined && nearest.score.nodeId !== asked?.score?.nodeId) {
      parts.push(`Nearest is ${nearest.score.nodeName}:\n${reasonLines(nearest.reasons)}`);
    }
  }
  return parts.filter((part) => part !== "").join("\n");
}

function headline(response: WhyResponse): string {
  const { service, tasks, subject, why, bound } = response;
  const lines: string[] = [];
  const [only] = tasks;
  if (only !== undefined && tasks.length === 1 && taskName(only) === subject) lines.push(taskLine(only, response));
  else if (only !== undefined && response.nodes === 0 && hasEnded(only)) lines.push(taskLine(only, response));
  else lines.push(...serviceLines(response));
  if (why !== "" && subject === "") lines.push(`One task more of ${service} has no place: ${oneLine(why)}.`);
  if (bound !== "" && why === "") lines.push(`It may be nowhere else: ${oneLine(bound)}.`);
  return `${lines.join("\n")}\n`;
}

function hasEnded({ status }: TaskView): boolean {
  return (status?.state ?? TaskState.TASK_STATE_PENDING) >= TaskState.TASK_STATE_COMPLETE;
}

function taskLine(view: TaskView, { why, nowMs }: WhyResponse): string {
  const { task, nodeName } = view;
  const name = taskName(view);
  const more = oneLine(messageOf(view, nowMs));
  const and = more === "" ? "" : `: ${more}`;
  if (hasEnded(view)) return `${name} has ended${nodeName === "" ? "" : ` on ${nodeName}`}, ${stateOf(view)}${and}.`;
  if (task?.nodeId === "") return `${name} waits: ${oneLine(why)}.`;
  if (task?.desired === DesiredState.DESIRED_STATE_SHUTDOWN) {
    const by = task.preemptedBy === "" ? "" : ` to make room for ${oneLine(task.preemptedBy)}`;
    return `${name} is on ${nodeName}, and is being stopped${by}.`;
  }
  return `${name} is on ${nodeName}, ${stateOf(view)}${and}.`;
}

/** "shop_web has 5 tasks: 2 on host-1, 1 on host-2, 2 waiting.", why those wait, and how the last that ended did. */
function serviceLines(response: WhyResponse): string[] {
  const { service, tasks, subject, why } = response;
  const perNode = new Map<string, number>();
  const places = tasks.filter((view) => !hasEnded(view)).map(({ nodeName }) => nodeName);
  for (const node of places) perNode.set(node, (perNode.get(node) ?? 0) + 1);
  const waiting = perNode.get("") ?? 0;
  perNode.delete("");
  const words = [
    ...[...perNode]
      .sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }))
      .map(([node, number]) => `${number} on ${node}`),
    ...(waiting > 0 ? [`${waiting} waiting`] : []),
    ...(tasks.length > places.length ? [`${tasks.length - places.length} ended`] : []),
  ];
  const lines = [`${service} has ${count(tasks.length, "task")}${words.length > 0 ? `: ${words.join(", ")}` : ""}.`];
  if (waiting > 1) lines.push(`${subject} and ${waiting - 1} more wait: ${oneLine(why)}.`);
  if (waiting === 1) lines.push(`${subject} waits: ${oneLine(why)}.`);
  const ended = tasks
    .filter(hasEnded)
    .toSorted((a, b) => (b.status?.finishedAtMs ?? 0) - (a.status?.finishedAtMs ?? 0));
  for (const view of ended.slice(0, 3)) lines.push(taskLine(view, response));
  return lines;
}

function askedPart({ asked, present, subject, service, global }: WhyResponse): string {
  const here = present?.score?.nodeId;
  if (asked?.score === undefined || asked.score.nodeId === here) {
    if (present?.score === undefined || present.reasons.length === 0) return "";
    return `${present.score.nodeName} itself would not take it now:\n${reasonLines(present.reasons)}`;
  }
  const name = asked.score.nodeName;
  const what = subject === "" ? `${global ? "a" : "another"} task of ${service}` : subject;
  if (asked.reasons.length > 0) return `${name} would not take ${what}:\n${reasonLines(asked.reasons)}`;
  return `${name} would take ${what}.\n`;
}

function reasonLines(reasons: readonly NodeReason[]): string {
  return reasons.map(({ why, fix }) => `  ${oneLine(why)}. ${oneLine(fix)}\n`).join("");
}

/** What a term stands for when a node has more points of it. Terms that are not here are called by their name. */
const termWords: Readonly<Record<string, string>> = {
  spread: "its spread domain has more of the service",
  affinity: "less near to what it wants to be with",
  "affinity-on-node": "less near to what it wants to be with",
  service: "has more of the service",
  failures: "it failed there lately",
  links: "has less of what it talks to",
  taint: "a taint advises against",
  scarce: "has resources that others need",
  "node-affinity": "its labels suit less",
  image: "has to pull the image",
  load: "is fuller",
};

/** Of services that fill one node after the other the emptier one costs more. */
function wordsOf(name: string, { tasks }: WhyResponse): string {
  const packs = tasks[0]?.task?.spec?.placement?.strategy === PlacementStrategy.PLACEMENT_STRATEGY_BINPACK;
  return name === "load" && packs ? "is emptier" : (termWords[name] ?? `more of ${name}`);
}

function candidatesPart(screen: Screen, response: WhyResponse): string {
  const { candidates, present, asked, subject, service, nodes, fitting, global } = response;
  const one = nodes === 1 ? "The one node that it may run on" : `${fitting} of ${count(nodes, "node")}`;
  if (global && subject === "") return `${one} would take a task of ${service}.\n`;
  if (fitting === 0) return "";
  const placed = present === undefined ? "" : ", its own place counted as free";
  const heading = `${one} would take ${subject === "" ? `one task more of ${service}` : subject} now${placed}. Best first:`;
  const rows = [...candidates];
  for (const more of [present, asked]) {
    const shown = rows.some(({ nodeId }) => nodeId === more?.score?.nodeId);
    if (more?.score !== undefined && more.reasons.length === 0 && !shown) rows.push(more.score);
  }
  const [best] = rows;
  if (best === undefined) return "";
  // What differs most says most, and is left out last.
  const differing = [...new Set(rows.flatMap(({ terms }) => terms.map(({ name }) => name)))]
    .map((name) => ({ name, range: range(rows.map((row) => points(row, name))) }))
    .filter((term) => term.range > 0)
    .sort((a, b) => b.range - a.range)
    .map(({ name }) => name);
  const columns: Column<NodeScore>[] = [
    { title: "NODE", value: ({ nodeName }) => nodeName, shrinkTo: 10 },
    { title: "", value: ({ nodeId }) => (nodeId === present?.score?.nodeId ? "here" : "") },
    { title: "COST", value: ({ cost }) => String(cost), align: "right" },
    ...differing.map((name, n): Column<NodeScore> => {
      const value = (row: NodeScore) => String(points(row, name));
      return { title: name.toUpperCase(), value, align: "right", drop: differing.length - n };
    }),
    { title: "WHY NOT FIRST", value: (row) => whyNotFirst(row, best, differing, response), shrinkTo: 13, wish: 30 },
  ];
  return `${heading}\n${table(screen, columns, rows)}`;
}

function points({ terms }: NodeScore, name: string): number {
  return terms.find((term) => term.name === name)?.points ?? 0;
}

function range(numbers: readonly number[]): number {
  return Math.max(...numbers) - Math.min(...numbers);
}

/** What costs more than on the best node, the most first. */
function whyNotFirst(row: NodeScore, best: NodeScore, names: readonly string[], response: WhyResponse): string {
  if (row === best) return "";
  if (row.cost === best.cost) return "as good: the draw decides";
  return names
    .map((name) => ({ name, more: points(row, name) - points(best, name) }))
    .filter(({ more }) => more > 0)
    .sort((a, b) => b.more - a.more)
    .map(({ name }) => wordsOf(name, response))
    .join(", ");
}

function refusalsPart(screen: Screen, { refusals, nodes, fitting }: WhyResponse): string {
  // Of one node the line above says it all.
  if (refusals.length === 0 || nodes === 1) return "";
  const rows = table<Refusal>(
    screen,
    [
      { title: "NODES", value: (row) => String(row.nodes), align: "right" },
      { title: "WHY NOT", value: ({ why }) => why, shrinkTo: 20, wish: 40 },
      { title: "WHICH", value: ({ classes }) => classes.map(classWords).join("; "), shrinkTo: 10, wish: 20, drop: 1 },
    ],
    refusals,
  );
  return `${nodes - fitting} would not:\n${rows}`;
}

function classWords({ name, nodes }: Refusal["classes"][number]): string {
  return `${nodes} × ${name}`;
}
