import type { ClientDuplexStream } from "@grpc/grpc-js";
import { ClusterError } from "../../lib/errors/errors.ts";
import type { ExecInput, ExecOutput } from "../../proto/gen/embassy/v1/api.ts";
import { type Cli, globalOptions, type Register, withCluster } from "../cli.ts";

interface ExecOptions {
  readonly interactive?: boolean;
  readonly tty?: boolean;
  readonly env?: string[];
  readonly user?: string;
  readonly workdir?: string;
}

const collect = (value: string, before: string[] = []) => [...before, value];

export const registerExec: Register = (program, cli) => {
  program
    .command("exec")
    .summary("run a command in a task")
    .description(
      "Runs a command in a running task: clusterctl exec -it counter_web.1 sh. Exits with the command's exit code. Options stand before the task: what follows it is the command.",
    )
    .argument("<task>", "task name or id, or a service with one running task")
    .argument("<command...>", "command and its arguments")
    .option("-i, --interactive", "pass stdin on")
    .option("-t, --tty", "give it a terminal")
    .option(
      "-e, --env <name[=value]>",
      "environment variable, without a value that of this shell; may be given again",
      collect,
    )
    .option("-u, --user <user>", "run as this user")
    .option("-w, --workdir <path>", "directory to run in")
    .action(async (target: string, command: string[], options: ExecOptions, self) => {
      const tty = options.tty === true;
      if (tty && !cli.stdin.isTTY) {
        throw new ClusterError("-t needs a terminal, and stdin is none", { code: "invalid", hint: "Leave -t out." });
      }
      const environment = environmentOf(options.env ?? [], tty, cli.environment);
      await withCluster(cli, globalOptions(self), async (client) => {
        const { messages } = await import("../stream.ts");
        const stream = client.exec();
        const outputs = messages(stream, cli.signal);
        const start: ExecInput = {
          message: {
            $case: "start",
            value: {
              target,
              command,
              tty,
              stdin: options.interactive === true,
              environment,
              user: options.user ?? "",
              workingDir: options.workdir ?? "",
              size: sizeOf(cli),
            },
          },
        };
        stream.write(start);
        cli.exitCode = await converse(cli, stream, outputs, options.interactive === true, tty);
      });
    });
};

/** NAME=VALUE as it is; of NAME alone the caller's value, or nothing where the caller has none. Throws `invalid`. */
function environmentOf(words: readonly string[], tty: boolean, own: NodeJS.ProcessEnv): Record<string, string> {
  const term = tty && own["TERM"] ? { TERM: own["TERM"] } : {};
  const given = words.flatMap((word): [string, string][] => {
    const equals = word.indexOf("=");
    if (equals === 0 || word === "") {
      throw new ClusterError(`--env ${JSON.stringify(word)} has no name`, {
        code: "invalid",
        subject: "--env",
        hint: "Give NAME=VALUE, or NAME alone for the value that it has in this shell.",
      });
    }
    if (equals > 0) return [[word.slice(0, equals), word.slice(equals + 1)]];
    const value = own[word];
    return value === undefined ? [] : [[word, value]];
  });
  return { ...term, ...Object.fromEntries(given) };
}

function sizeOf(cli: Cli): { rows: number; columns: number } {
  return { rows: cli.stdout.rows ?? 0, columns: cli.stdout.columns ?? 0 };
}

/** Passes both directions on until the command ends. Returns its exit code. */
async function converse(
  cli: Cli,
  stream: ClientDuplexStream<ExecInput, ExecOutput>,
  outputs: AsyncIterable<ExecOutput>,
  interactive: boolean,
  tty: boolean,
): Promise<number> {
  const { stdin, stdout, stderr } = cli;
  const resize = () => {
    stream.write({ message: { $case: "resize", value: sizeOf(cli) } });
  };
  const pump = async () => {
    if (!interactive) {
      stream.write({ message: { $case: "stdinClosed", value: true } });
      return;
    }
    for await (const chunk of stdin) {
      const more = stream.write({ message: { $case: "stdin", value: chunk as Buffer } });
      if (!more) await new Promise<void>((resolve) => stream.once("drain", () => resolve()));
    }
    stream.write({ message: { $case: "stdinClosed", value: true } });
  };
  if (tty && interactive) stdin.setRawMode(true);
  if (tty) stdout.on("resize", resize);
  // Ends with the process, or with stdin; what it fails with, the stream fails with too.
  pump().catch(() => {});
  try {
    let exitCode: number | undefined;
    // Without a terminal, our SIGINT ends the command; with one, control-C is a byte like any other.
    for await (const { message } of outputs) {
      if (message?.$case === "stdout") await write(stdout, message.value);
      else if (message?.$case === "stderr") await write(stderr, message.value);
      else if (message?.$case === "exitCode") exitCode = message.value;
    }
    if (exitCode !== undefined) return exitCode;
    throw new ClusterError("the connection ended before the command did", { code: "unavailable" });
  } finally {
    stdout.off("resize", resize);
    if (tty && interactive) stdin.setRawMode(false);
    stream.end();
    stdin.destroy();
  }
}

async function write(stream: NodeJS.WriteStream, data: Uint8Array): Promise<void> {
  if (!stream.write(data)) await new Promise<void>((resolve) => stream.once("drain", () => resolve()));
}
