import { globalOptions, type Register, withCluster } from "../cli.ts";
import { parseCount, parseSince } from "../duration.ts";
import { styled, styleFor } from "../render/style.ts";

interface LogsOptions {
  readonly follow?: boolean;
  readonly tail: number;
  readonly since?: string;
  readonly timestamps?: boolean;
}

export const registerLogs: Register = (program, cli) => {
  program
    .command("logs")
    .summary("print what tasks wrote")
    .description("Prints what tasks wrote to stdout and stderr, those of several tasks merged.")
    .argument("<target>", "stack, <stack>_<service>, service, task name, or task id")
    .option("-f, --follow", "go on with new lines")
    .option("-n, --tail <lines>", "lines of each task, from its end; all: every line", tail, -1)
    .option("--since <time>", "not before: 10m (ago), or 2025-01-31T12:00:00Z")
    .option("-t, --timestamps", "the time before each line")
    .action(async (target: string, options: LogsOptions, command) => {
      const global = globalOptions(command);
      const sinceMs = options.since === undefined ? 0 : parseSince(options.since, Date.now());
      await withCluster(cli, global, async (client) => {
        const { messages } = await import("../stream.ts");
        const { LogChunk } = await import("../../proto/gen/embassy/v1/api.ts");
        const request = { target, follow: options.follow === true, tail: options.tail, sinceMs };
        // A line that goes on must not get a second prefix, nor another task's line into its middle.
        const unfinished = new Map<string, Buffer[]>();
        try {
          for await (const chunk of messages(client.logs(request), cli.signal)) {
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

function tail(text: string): number {
  return text === "all" ? -1 : parseCount(0)(text);
}
