import type { ClusterClient, PlannedMove } from "../../proto/gen/embassy/v1/api.ts";
import { globalOptions, printJson, type Register, withCluster } from "../cli.ts";
import { parseDuration } from "../duration.ts";
import { goingOn } from "../exit.ts";
import { jsonOf } from "../json.ts";
import { count, formatSeconds } from "../render/format.ts";
import { table } from "../render/table.ts";

interface RebalanceOptions {
  readonly dryRun?: boolean;
  readonly timeout: number;
  readonly detach?: boolean;
}

export const registerRebalance: Register = (program, cli) => {
  program
    .command("rebalance")
    .summary("spread tasks over the nodes again")
    .description(
      "Moves tasks to nodes that have fewer of their service, as few as it takes: after a drained node was activated, or a lost one came back. Of each service one task at a time, each started before the one that it replaces is stopped. Services with volumes stay where their data is. Prints the moves, and waits until they are made.",
    )
    .argument("[stack|service]", "stack, <stack>_<service>, or service")
    .option("--dry-run", "only print the moves")
    .option("--timeout <time>", "how long to wait", parseDuration, 300_000)
    .option("-d, --detach", "do not wait")
    .action(async (target: string | undefined, options: RebalanceOptions, command) => {
      const startedMs = performance.now();
      const global = globalOptions(command);
      const say = (text: string) => {
        if (global.output !== "json") cli.err.write(`${text}\n`);
      };
      let stacks: readonly string[] = [];
      const work = async (client: ClusterClient) => {
        const { call } = await import("../../lib/grpc/client.ts");
        const { RebalanceResponse } = await import("../../proto/gen/embassy/v1/api.ts");
        const { stackOrService } = await import("../lookup.ts");
        const chosen =
          target === undefined ? { stack: "", service: "" } : await stackOrService(client, target, cli.signal);
        const dryRun = options.dryRun === true;
        const response = await call(client.rebalance.bind(client), { ...chosen, dryRun }, { signal: cli.signal });
        const { moves } = response;
        if (global.output === "json") printJson(cli, jsonOf(RebalanceResponse, response));
        else if (moves.length > 0) cli.out.write(movesTable(cli, moves));
        if (moves.length === 0)
          say("nothing to move: no node has two tasks more of a service than another that could take one");
        if (dryRun || options.detach === true || moves.length === 0) return;
        stacks = [...new Set(moves.map(({ stack }) => stack))];
        const moved = new Set(moves.map(({ taskName }) => taskName.slice(0, taskName.lastIndexOf("."))));
        const { follow } = await import("../convergence/follow.ts");
        const { isSettled } = await import("../convergence/judge.ts");
        for (const stack of stacks) {
          await follow(client, {
            stack,
            revision: 1,
            until: ({ services }) => services.filter(({ name }) => moved.has(`${stack}_${name}`)).every(isSettled),
            late: `${stack} has not come to rest`,
            timeoutMs: options.timeout,
            judged: true,
            isUnchanged: () => true,
            screen: cli.err,
            signal: cli.signal,
          });
        }
        say(`${count(moves.length, "task")} moved after ${formatSeconds(performance.now() - startedMs)}`);
      };
      const hint = () =>
        stacks.length === 0
          ? "`clusterctl rebalance --dry-run` shows what is left to move."
          : `The cluster goes on with it: ${stacks.map((stack) => `\`clusterctl ps ${stack}\``).join(", ")} shows how it goes.`;
      await goingOn(cli.signal, hint, async () => await withCluster(cli, global, work));
    });
};

function movesTable(cli: Parameters<Register>[1], moves: readonly PlannedMove[]): string {
  return table<PlannedMove>(
    cli.out,
    [
      { title: "TASK", value: ({ taskName }) => taskName, shrinkTo: 16 },
      { title: "FROM", value: ({ from }) => from },
      { title: "TO", value: ({ to }) => to },
      { title: "WHY", value: ({ why }) => why, shrinkTo: 10, wish: 40 },
    ],
    moves,
  );
}
