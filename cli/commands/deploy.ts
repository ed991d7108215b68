import type { Command } from "commander";
import { ClusterError } from "../../lib/errors/errors.ts";
import type { ClusterClient, DeployResponse, StackProgress } from "../../proto/gen/embassy/v1/api.ts";
import type { StackSpec } from "../../proto/gen/embassy/v1/stack.ts";
import { type Cli, globalOptions, printJson, type Register, withCluster } from "../cli.ts";
import { parseDuration } from "../duration.ts";
import { CommandFailure, exitCodes, goingOn } from "../exit.ts";
import { jsonOf } from "../json.ts";
import { count, formatSeconds } from "../render/format.ts";
import type { Diagnostic } from "../stack/index.ts";
import { loadOptions, type StackOptions, withStackOptions } from "./stack-options.ts";

interface DeployOptions extends StackOptions {
  readonly timeout: number;
  readonly settle: number;
  readonly detach?: boolean;
}

export const registerDeploy: Register = (program, cli) => {
  withStackOptions(program.command("deploy"))
    .summary("deploy a stack file and wait until it runs")
    .description(
      "Deploys a stack file and waits until every service runs as written. What the file no longer names is removed.",
    )
    .usage("[options] [file] [name]\n       clusterctl deploy [options] -f <file>... [name]")
    .argument("[file]", "stack file, - for stdin; default: the compose.yaml or stack.yml of this directory")
    .argument("[name]", "name of the stack, instead of the file's")
    .option("--timeout <time>", "how long to wait", parseDuration, 300_000)
    .option("--settle <time>", "how long all must run without a break before it counts", parseDuration, 1_000)
    .option("-d, --detach", "do not wait")
    .action(async (first: string | undefined, second: string | undefined, _options: unknown, command: Command) => {
      const startedMs = performance.now();
      const options = command.opts<DeployOptions>();
      const spec = await load(cli, [first, second], options);
      const global = globalOptions(command);
      const work = async (client: ClusterClient) => {
        const { call } = await import("../../lib/grpc/client.ts");
        const response = await call(client.deploy.bind(client), { spec }, { deadlineMs: 30_000, signal: cli.signal });
        cli.err.write(`${summary(spec.name, response)}\n`);
        let progress: StackProgress | undefined;
        const unchanged = new Set(response.unchanged.map((subject) => subject.replace(/^service\//, "")));
        if (options.detach !== true) {
          const { follow } = await import("../convergence/follow.ts");
          progress = await follow(client, {
            stack: spec.name,
            revision: response.revision,
            until: (p) => p.converged && p.revision >= response.revision,
            // Something new may end as soon as it has started.
            settleMs: response.created.length + response.updated.length > 0 ? options.settle : 0,
            late: `${spec.name} has not converged`,
            timeoutMs: options.timeout,
            judged: true,
            isUnchanged: (service) => unchanged.has(service),
            screen: cli.err,
            signal: cli.signal,
          });
          if (progress.revision > response.revision) {
            throw new ClusterError(
              `another deploy of ${spec.name} came after this one (revision ${progress.revision})`,
              {
                code: "conflict",
                subject: `stack/${spec.name}`,
                hint: "What runs now is the other's.",
              },
            );
          }
          for (const warning of progress.warnings) cli.err.write(`warning: ${warning}\n`);
          const running = progress.services.reduce((sum, service) => sum + service.running, 0);
          cli.err.write(
            `stack ${spec.name} runs: ${count(progress.services.length, "service")}, ${count(running, "task")}, after ${formatSeconds(performance.now() - startedMs)}\n`,
          );
        }
        if (global.output === "json") {
          const api = await import("../../proto/gen/embassy/v1/api.ts");
          printJson(cli, {
            stack: spec.name,
            ...(jsonOf(api.DeployResponse, response) as object),
            ...(progress === undefined ? {} : { progress: jsonOf(api.StackProgress, progress) }),
          });
        }
      };
      const hint = () =>
        `The cluster goes on with what was deployed: \`clusterctl ps ${spec.name}\` shows how it goes, \`clusterctl rm ${spec.name}\` removes it.`;
      await goingOn(cli.signal, hint, async () => await withCluster(cli, global, work));
    });
};

function summary(stack: string, { revision, created, updated, removed, unchanged }: DeployResponse): string {
  const parts = Object.entries({ created, updated, removed })
    .filter(([, subjects]) => subjects.length > 0)
    .map(([verb, subjects]) => `${verb} ${subjects.join(", ")}`);
  if (parts.length === 0) parts.push(unchanged.length > 0 ? "nothing changed" : "empty");
  return `stack ${stack}, revision ${revision}: ${parts.join("; ")}`;
}

/** FILE and NAME of the command line. After -f there is no FILE: the one word left is the name. Throws `invalid`. */
function wordsOf(words: readonly (string | undefined)[], options: StackOptions): { files: string[]; name?: string } {
  const given = words.filter((word) => word !== undefined);
  const files = options.file === undefined ? given.splice(0, 1) : [];
  const [word, more] = given;
  const refuse = (message: string, hint: string) => new ClusterError(message, { code: "invalid", hint });
  if (more !== undefined) throw refuse("a stack file is given in two ways", "Give each file with -f, then the name.");
  if (word !== undefined && options.name !== undefined && word !== options.name) {
    throw refuse(`the stack has two names: ${word} and ${options.name}`, "Leave --name out, or the last word.");
  }
  const name = word ?? options.name;
  return name === undefined ? { files } : { files, name };
}

/** The stack that files declare. Prints its warnings; throws with every error, each with its place. */
async function load(cli: Cli, words: readonly (string | undefined)[], options: DeployOptions): Promise<StackSpec> {
  const { files, ...named } = wordsOf(words, options);
  const loader = await import("../stack/index.ts");
  const { formatDiagnostics, loadStack, toStackSpec } = loader;
  const loaded = loadStack(loadOptions(loader, files, { ...options, ...named }, cli.environment));
  if (loaded.warnings.length > 0) cli.err.write(`${formatDiagnostics(loaded.warnings)}\n`);
  const converted = loaded.ok ? toStackSpec(loaded) : loaded;
  if (converted.ok) return converted.spec;
  // Each says what it is; for the first, what prints a failure says it.
  const message = formatDiagnostics(converted.errors).replace(/^error: /, "");
  const wayOut = withoutThem(converted.errors, loader);
  throw new CommandFailure(message, exitCodes.error, { hint: `\nNothing was changed.${wayOut}` });
}

/** How to deploy the stack all the same, when that is all that stands against it. */
function withoutThem(errors: readonly Diagnostic[], { canBeLeftOut }: typeof import("../stack/index.ts")): string {
  if (!errors.every(({ code, path }) => code === "not-in-cluster" && canBeLeftOut(path))) return "";
  const keys = [...new Set(errors.map(({ path }) => path.at(-1)))];
  return ` To deploy it without ${keys.length === 1 ? "that" : "those"}: --ignore-unsupported ${keys.join(",")}`;
}
