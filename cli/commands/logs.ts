import { InvalidArgumentError, Option } from "commander";
import { globalOptions, type Register, withCluster } from "../cli.ts";
import { parseSince } from "../duration.ts";
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
      "Prints what tasks wrote to stdout and stderr, each line after the name of its task, those of several tasks merged by time.",
    )
    .argument("<target...>", "stack, <stack>_<service>, service, task name, or task id")
    .option("-f, --follow", "go on with new lines")
    .addOption(
      new Option("-n, --tail <lines>", "lines of each task, from its end").default(-1, "all").argParser(parseTail),
    )
    .option("--since <time>", "not before: 10m (ago), or 2025-01-31T12:00:00Z", (text) => parseSince(text, Date.now()))
    .option("-t, --timestamps", "the time before each name")
    .action(async (targets: string[], options: LogsOptions, command) => {
      const global = globalOptions(command);
      await withCluster(cli, global, async (client) => {
        const { messages, merged, mergedByTime } = await import("../stream.ts");
        const { LogChunk } = await import("../../proto/gen/embassy/v1/api.ts");
        const request = { follow: options.follow === true, tail: options.tail, sinceMs: options.since ?? 0 };
        const streams = [...new Set(targets)].map((target) =>
          messages(client.logs({ ...request, target }), cli.signal),
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
              const json = LogChunk.toJSON(chunk) as Record<string, unknown>;
              cli.out.write(`${JSON.stringify({ ...json, line: Buffer.from(chunk.line).toString() })}\n`);
              continue;
            }
            if (chunk.warning !== "") {
              cli.err.write(`${styled(cli.err, "yellow", "warning:")} ${chunk.warning}\n`);
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
          // An interrupt is how following ends.
          if (!cli.signal.aborted) throw error;
        }
      });
    });
};

function parseTail(text: string): number {
  if (text === "all") return -1;
  if (/^\d{1,9}$/.test(text)) return Number(text);
  throw new InvalidArgumentError("Give a whole number of at least 0, or all.");
}
