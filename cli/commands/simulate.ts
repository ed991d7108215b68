import type { Command } from "commander";
import { ClusterError } from "../../lib/errors/errors.ts";
import { parseBytes } from "../../lib/units/bytes.ts";
import type { NewNodes, PlannedWait, SimulateRequest, SimulateResponse } from "../../proto/gen/embassy/v1/api.ts";
import { type Cli, globalOptions, printJson, type Register, withCluster } from "../cli.ts";
import { jsonOf } from "../json.ts";
import { count } from "../render/format.ts";
import { oneLine, type Screen, styled } from "../render/style.ts";
import { table } from "../render/table.ts";
import { parseScale } from "./scale.ts";

/** What is to change, in the words of the command line. */
interface SimulateOptions {
  readonly drain?: string[];
  readonly lose?: string[];
  readonly add?: string[];
  readonly scale?: string[];
  readonly force?: boolean;
}

export const registerSimulate: Register = (program, cli) => {
  program
    .command("simulate")
    .summary("say what a change would lead to, and change nothing")
    .description(
      "Says which tasks would move, end or wait, and why, if nodes were drained, lost or added or services scaled. All of it counts at once, and nothing is changed. It is what the cluster does as long as nothing else changes; only which of several services goes first is its own choice.",
    )
    .option("--drain <node>", "a node to drain; may be given several times", collect)
    .option("--force", "drain although services have to keep tasks up there")
    .option("--lose <node|label=value>", "a node to lose, or all with a label; may be given several times", collect)
    .option("--add <size>", "nodes to add, CPUSxMEMORY[xCOUNT]: 4x8g, 2x512mx3; may be given several times", collect)
    .option("--scale <service=number>", "a service and the number of its tasks; may be given several times", collect)
    .action(async (options: SimulateOptions, command) => {
      await foretell(cli, command, options);
    });
};

/** Asks what the changes would lead to, and prints it. */
export async function foretell(cli: Cli, command: Command, options: SimulateOptions): Promise<void> {
  const request: SimulateRequest = {
    drain: options.drain ?? [],
    lose: options.lose ?? [],
    add: (options.add ?? []).map(parseSize),
    scale: (options.scale ?? []).map(parseScale),
    force: options.force === true,
  };
  const { drain, lose, add, scale } = request;
  if ([drain, lose, add, scale].every((list: readonly unknown[]) => list.length === 0)) {
    throw new ClusterError("there is nothing to simulate", {
      code: "invalid",
      hint: "Say what is to change: --drain, --lose, --add or --scale.",
    });
  }
  const global = globalOptions(command);
  await withCluster(cli, global, async (client) => {
    const { call } = await import("../../lib/grpc/client.ts");
    const { SimulateResponse } = await import("../../proto/gen/embassy/v1/api.ts");
    // Thousands of services that have no place take their time.
    const limits = { deadlineMs: 60_000, signal: cli.signal };
    const response = await call(client.simulate.bind(client), request, limits);
    if (global.output === "json") {
      printJson(cli, jsonOf(SimulateResponse, response));
      return;
    }
    for (const note of response.notes) cli.err.write(`${styled(cli.err, "yellow", "note:")} ${oneLine(note)}\n`);
    cli.out.write(foretoldText(cli.out, response));
    cli.err.write(`${summary(response)}\n`);
  });
}

interface Row {
  readonly task: string;
  readonly from: string;
  readonly to: string;
  readonly why: string;
}

/** What would happen to each task, and what would mend it for those that wait or may not leave. Empty: nothing would. */
export function foretoldText(screen: Screen, { moves, stops, waits, stays }: SimulateResponse): string {
  const fresh = waits.filter(({ already }) => !already);
  const rows: Row[] = [
    ...moves.map(({ taskName: task, from, to, why }) => ({ task, from: from || "-", to, why })),
    ...stops.map(({ taskName: task, node, why }) => ({ task, from: node || "-", to: "(ends)", why })),
    ...fresh.map(({ taskName: task, from, why }) => ({ task, from: from || "-", to: "(waits)", why })),
    ...stays.map(({ taskName: task, node, why }) => ({ task, from: node, to: "(stays)", why })),
  ];
  if (rows.length === 0) return "";
  const shown = table<Row>(
    screen,
    [
      { title: "TASK", value: ({ task }) => task, shrinkTo: 16 },
      { title: "FROM", value: ({ from }) => from },
      {
        title: "TO",
        value: ({ to }) => to,
        style: ({ to }) => (["(waits)", "(stays)"].includes(to) ? "red" : undefined),
      },
      { title: "WHY", value: ({ why }) => why, shrinkTo: 10, wish: 40 },
    ],
    rows,
  );
  const forced = "With --force the drain takes tasks that stay all the same.\n";
  return [shown, ...remedies(fresh), ...(stays.length > 0 ? [forced] : [])].join("");
}

/** For tasks that would wait: what the nearest node lacks. The same is said once. */
function remedies(waits: readonly PlannedWait[]): string[] {
  const lines = waits.flatMap(({ taskName, nearest }) => {
    if (nearest?.score === undefined) return [];
    const fixes = nearest.reasons.map(({ fix }) => oneLine(fix)).join(" ");
    return [{ taskName, node: nearest.score.nodeName, fixes }];
  });
  const groups = Map.groupBy(lines, ({ node, fixes }) => `${node} ${fixes}`);
  return [...groups.values()].map(([first, ...others]) => {
    const names = `${first?.taskName}${others.length > 0 ? ` and ${others.length} more` : ""}`;
    return `${names}: nearest is ${first?.node}. ${first?.fixes}\n`;
  });
}

function summary({ moves, stops, waits, stays }: SimulateResponse): string {
  const fresh = waits.filter(({ already }) => !already).length;
  const moved = moves.filter(({ from }) => from !== "").length;
  const would = (number: number, verb: string) => (number > 0 ? [`${count(number, "task")} would ${verb}`] : []);
  const parts = [
    ...would(moved, "move"),
    ...would(moves.length - moved, "be placed"),
    ...would(stops.length, "end"),
    ...would(fresh, "wait"),
    ...would(stays.length, "stay"),
  ];
  const already = waits.length - fresh;
  const still = already > 0 ? `; ${already} that ${already === 1 ? "waits" : "wait"} now would go on waiting` : "";
  return `${parts.length > 0 ? parts.join(", ") : "no task would move"}${still}. Nothing was changed.`;
}

function collect(value: string, before: string[] | undefined): string[] {
  return [...(before ?? []), value];
}

function parseSize(word: string): NewNodes {
  const [, cpus = "", memory = "", number = "1"] =
    word.match(/^(\d+(?:\.\d{1,3})?)x([\d.]+[a-z]*?)(?:x(\d{1,5}))?$/i) ?? [];
  const size = {
    milliCpus: Math.round(Number(cpus) * 1_000),
    memoryBytes: parseBytes(memory) ?? 0,
    count: Number(number),
  };
  if (size.milliCpus > 0 && size.memoryBytes > 0 && size.count > 0) return size;
  throw new ClusterError(`${JSON.stringify(word)} is no size of nodes`, {
    code: "invalid",
    subject: word,
    hint: "Give CPUs, memory and maybe how many, such as 4x8g or 0.5x512mx3.",
  });
}
