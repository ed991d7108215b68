import { InvalidArgumentError, Option } from "commander";
import { globalOptions, type Register, withCluster } from "../cli.ts";
import { parseSince } from "../duration.ts";
import { exitCodes } from "../exit.ts";
import { styled, styleFor } from "../render/style.ts";

interface LogsOptions {
  readonly follow?: boolean;
  readonly tail: number;
  readonly since?: number;
  readonly timestamps?: boolean;
}

export const registerLogs: Register = (program, cli) => {
  program
    .command("logs")
    .summary("print what tasks wrote")
    .description(
      "Prints what tasks wrote to stdout and stderr, each line after the name of its task, those of several tasks merged by time. Following goes on when the connection to the cluster or a node's agent breaks, with the next line: none is lost, and none comes twice. Where that cannot be said, a warning on stderr names the task.",
    )
    .argument("<target...>", "stack, <stack>_<service>, service, task name, or task id")
    .option("-f, --follow", "go on with new lines")
    .addOption(
      new Option("-n, --tail <lines>", "lines of each slot, from its end, over all its tasks")
        .default(-1, "all")
        .argParser(parseTail),
    )
    .option("--since <time>", "not before: 10m (ago), or 2025-01-31T12:00:00Z", (text) => parseSince(text, Date.now()))
    .option("-t, --timestamps", "the time before each name")
    .action(async (targets: string[], options: LogsOptions, command) => {
      const global = globalOptions(command);
      await withCluster(cli, global, async (client) => {
        const { messages, merged, mergedByTime } = await import("../stream.ts");
        const request = { follow: options.follow === true, tail: options.tail, sinceMs: options.since ?? 0 };
        const { followed, Outages } = await import("../followed-logs.ts");
        const say = (text: string) => cli.err.write(`${styled(cli.err, "yellow", "warning:")} ${text}\n`);
        const outages = new Outages(say);
        const streams = [...new Set(targets)].map((target) =>
          request.follow
            ? followed((resume) => client.logs({ ...request, target, resume }), outages, cli.signal)
            : messages(client.logs({ ...request, target, resume: undefined }), cli.signal),
        );
        // A task that two targets mean writes once.
        const ownerOf = new Map<string, number>();
        const isRepeated = ({ taskId }: { taskId: string }, stream: number) => {
          const owner = ownerOf.get(taskId) ?? stream;
          ownerOf.set(taskId, owner);
          return owner !== stream;
        };
        // A line that goes on must not get a second prefix, nor another task's line into its middle.
        const unfinished = new Map<string, Buffer[]>();
        try {
          const all = request.follow ? merged(streams) : mergedByTime(streams, ({ timeUs }) => timeUs);
          for await (const [chunk, from] of all) {
            if (isRepeated(chunk, from)) continue;
            if (global.output === "json") {
              // How the reading goes on is between this program and the cluster.
              const { taskId, taskName, nodeName, timeUs, stderr, partial, warning } = chunk;
              const line = Buffer.from(chunk.line).toString();
              const json = { taskId, taskName, nodeName, timeUs, stderr, line, partial, warning };
              cli.out.write(`${JSON.stringify(json)}\n`);
              continue;
            }
            if (chunk.warning !== "") {
              say(chunk.warning);
              continue;
            }
            const key = `${chunk.taskId} ${chunk.stderr}`;
            const parts = [...(unfinished.get(key) ?? []), Buffer.from(chunk.line)];
            if (chunk.partial) {
              unfinished.set(key, parts);
              continue;
            }
            unfinished.delete(key);
            const time = options.timestamps ? `${new Date(chunk.timeUs / 1_000).toISOString()} ` : "";
            const prefix = styled(cli.out, styleFor(chunk.taskName), chunk.taskName);
            cli.stdout.write(Buffer.concat([Buffer.from(`${time}${prefix} | `), ...parts, Buffer.from("\n")]));
          }
        } catch (error) {
          if (!cli.signal.aborted) throw error;
          // An interrupt is how following ends: nothing to tell, but to whoever looks at the exit code.
          cli.exitCode = exitCodes.interrupted;
        }
      });
    });
};

function parseTail(text: string): number {
  if (text === "all") return -1;
  if (/^\d{1,9}$/.test(text)) return Number(text);
  throw new InvalidArgumentError("Give a whole number of at least 0, or all.");
}
