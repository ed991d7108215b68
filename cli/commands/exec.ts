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
    .option("-e, --env <name=value>", "environment variable; may be given again", collect)
    .option("-u, --user <user>", "run as this user")
    .option("-w, --workdir <path>", "directory to run in")
    .action(async (target: string, command: string[], options: ExecOptions, self) => {
      const tty = options.tty === true;
      if (tty && !cli.stdin.isTTY) {
        throw new ClusterError("-t needs a terminal, and stdin is none", { code: "invalid", hint: "Leave -t out." });
      }
      await withCluster(cli, globalOptions(self), async (client) => {
        const stream = client.exec();
        const start: ExecInput = {
          message: {
            $case: "start",
            value: {
              target,
              command,
              tty,
              stdin: options.interactive === true,
              environment: environmentOf(options.env ?? [], tty, cli.environment),
              user: options.user ?? "",
              workingDir: options.workdir ?? "",
              size: sizeOf(cli),
            },
          },
        };
        stream.write(start);
        cli.exitCode = await converse(cli, stream, options.interactive === true, tty);
      });
    });
};

function environmentOf(pairs: readonly string[], tty: boolean, own: NodeJS.ProcessEnv): Record<string, string> {
  const term = tty && own["TERM"] ? { TERM: own["TERM"] } : {};
  const given = pairs.map((pair): [string, string] => {
    const equals = pair.indexOf("=");
    if (equals < 1) {
      throw new ClusterError(`--env ${pair} is not NAME=VALUE`, { code: "invalid", subject: "--env" });
    }
    return [pair.slice(0, equals), pair.slice(equals + 1)];
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
  interactive: boolean,
  tty: boolean,
): Promise<number> {
  const { errorOf } = await import("../../lib/grpc/status.ts");
  const { stdin, stdout, stderr } = cli;
  const resize = () => {
    stream.write({ message: { $case: "resize", value: sizeOf(cli) } });
  };
  // Without a terminal, our SIGINT ends the command; with one, control-C is a byte like any other.
  const stop = () => stream.cancel();
  cli.signal.addEventListener("abort", stop, { once: true });
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
    for await (const output of stream) {
      const { message } = output as ExecOutput;
      if (message?.$case === "stdout") await write(stdout, message.value);
      else if (message?.$case === "stderr") await write(stderr, message.value);
      else if (message?.$case === "exitCode") exitCode = message.value;
    }
    if (exitCode !== undefined) return exitCode;
    throw new ClusterError("the connection ended before the command did", { code: "unavailable" });
  } catch (error) {
    cli.signal.throwIfAborted();
    throw errorOf(error);
  } finally {
    cli.signal.removeEventListener("abort", stop);
    stdout.off("resize", resize);
    if (tty && interactive) stdin.setRawMode(false);
    stream.end();
    stdin.destroy();
  }
}

async function write(stream: NodeJS.WriteStream, data: Uint8Array): Promise<void> {
  if (!stream.write(data)) await new Promise<void>((resolve) => stream.once("drain", () => resolve()));
}
