import { once } from "node:events";
import { InvalidArgumentError, Option } from "commander";
import type { Run } from "../../lib/logs/batches.ts";
import type { LogBatch, LogChunk } from "../../proto/gen/embassy/v1/api.ts";
import { globalOptions, type Register, withCluster } from "../cli.ts";
import { parseSince } from "../duration.ts";
import { exitCodes } from "../exit.ts";
import { type Screen, styled, styleFor } from "../render/style.ts";

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
        const { messages, merged } = await import("../stream.ts");
        const { chunksOf, mergedByTime } = await import("../../lib/logs/batches.ts");
        const request = { follow: options.follow === true, tail: options.tail, sinceMs: options.since ?? 0 };
        const { followed, Outages } = await import("../followed-logs.ts");
        const batches = async function* (read: AsyncIterable<LogBatch>): AsyncGenerator<LogChunk[]> {
          for await (const batch of read) yield chunksOf(batch);
        };
        const say = (text: string) => cli.err.write(`${styled(cli.err, "yellow", "warning:")} ${text}\n`);
        const outages = new Outages(say);
        const streams = [...new Set(targets)].map((target) =>
          request.follow
            ? followed((resume) => client.logs({ ...request, target, resume }), outages, cli.signal)
            : batches(messages(client.logs({ ...request, target, resume: undefined }), cli.signal)),
        );
        // A task that two targets mean writes once.
        const ownerOf = new Map<string, number>();
        const isRepeated = ({ taskId }: { taskId: string }, stream: number) => {
          const owner = ownerOf.get(taskId) ?? stream;
          ownerOf.set(taskId, owner);
          return owner !== stream;
        };
        const write = options.timestamps === true ? "with times" : "plain";
        const formatter = new Formatter(cli.out, global.output === "json" ? "json" : write);
        const runs = async function* (): AsyncGenerator<readonly Run<LogChunk>[]> {
          if (!request.follow) yield* mergedByTime(streams, ({ timeUs }) => timeUs, mostTogether);
          else for await (const [items, stream] of merged(streams)) yield [{ items, stream }];
        };
        try {
          for await (const together of runs()) {
            const parts: Uint8Array[] = [];
            for (const { items, stream } of together) {
              for (const chunk of items) {
                if (isRepeated(chunk, stream)) continue;
                if (chunk.warning !== "" && global.output !== "json") say(chunk.warning);
                else formatter.add(chunk, parts);
              }
            }
            // A reader that is slow holds up the cluster, and not this program's memory.
            if (parts.length > 0 && !cli.stdout.write(Buffer.concat(parts))) {
              await once(cli.stdout, "drain", { signal: cli.signal });
            }
          }
        } catch (error) {
          if (!cli.signal.aborted) throw error;
          // An interrupt is how following ends: nothing to tell, but to whoever looks at the exit code.
          cli.exitCode = exitCodes.interrupted;
        }
      });
    });
};

/** Lines that are written at once. */
const mostTogether = 1_024;

/** What lines look like on the screen, or to a program. */
class Formatter {
  readonly #out: Screen;
  readonly #form: "plain" | "with times" | "json";
  /** A line that goes on must not get a second prefix, nor another task's line into its middle. */
  readonly #unfinished = new Map<string, Uint8Array[]>();
  readonly #prefixes = new Map<string, Buffer>();

  constructor(out: Screen, form: "plain" | "with times" | "json") {
    this.#out = out;
    this.#form = form;
  }

  /** Adds what the chunk is to `parts`: nothing while its line goes on. */
  add(chunk: LogChunk, parts: Uint8Array[]): void {
    if (this.#form === "json") {
      // How the reading goes on is between this program and the cluster.
      const { taskId, taskName, nodeName, timeUs, stderr, partial, warning } = chunk;
      const line = Buffer.from(chunk.line).toString();
      const json = { taskId, taskName, nodeName, timeUs, stderr, line, partial, warning };
      parts.push(Buffer.from(`${JSON.stringify(json)}\n`));
      return;
    }
    const { taskId, stderr, partial, taskName, timeUs, line } = chunk;
    const isWhole = !partial && this.#unfinished.size === 0;
    const key = isWhole ? "" : `${taskId} ${stderr}`;
    const before = isWhole ? undefined : this.#unfinished.get(key);
    if (partial) {
      this.#unfinished.set(key, [...(before ?? []), line]);
      return;
    }
    if (before !== undefined) this.#unfinished.delete(key);
    if (this.#form === "with times") parts.push(Buffer.from(`${new Date(timeUs / 1_000).toISOString()} `));
    parts.push(this.#prefix(taskName), ...(before ?? []), line, newline);
  }

  #prefix(taskName: string): Buffer {
    let prefix = this.#prefixes.get(taskName);
    if (prefix === undefined) {
      prefix = Buffer.from(`${styled(this.#out, styleFor(taskName), taskName)} | `);
      this.#prefixes.set(taskName, prefix);
    }
    return prefix;
  }
}

const newline = Buffer.from("\n");

function parseTail(text: string): number {
  if (text === "all") return -1;
  if (/^\d{1,9}$/.test(text)) return Number(text);
  throw new InvalidArgumentError("Give a whole number of at least 0, or all.");
}
