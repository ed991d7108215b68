import type { Command } from "commander";
import { ClusterError } from "../../lib/errors/errors.ts";
import type { ClusterClient } from "../../proto/gen/embassy/v1/api.ts";
import type { StackSpec } from "../../proto/gen/embassy/v1/stack.ts";
import { type Cli, globalOptions, printJson, type Register, withCluster } from "../cli.ts";
import { parseDuration } from "../duration.ts";
import { CommandFailure, exitCodes, goingOn } from "../exit.ts";
import { jsonOf } from "../json.ts";
import type { Diagnostic, LoadedStack } from "../stack/index.ts";
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
      const { spec, placed } = await load(cli, [first, second], options);
      const global = globalOptions(command);
      const work = async (client: ClusterClient) => {
        const { call } = await import("../../lib/grpc/client.ts");
        const limits = { deadlineMs: 30_000, signal: cli.signal };
        const response = await call(client.deploy.bind(client), { spec }, limits).catch((error: unknown) => {
          throw placed(error);
        });
        const { summary } = await import("../convergence/deployed.ts");
        cli.err.write(`${summary(spec.name, response)}\n`);
        const { untilDeployed } = await import("../convergence/deployed.ts");
        const waits = { startedMs, timeoutMs: options.timeout, settleMs: options.settle, cli };
        const progress = options.detach === true ? undefined : await untilDeployed(client, spec.name, response, waits);
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

interface Loaded {
  readonly spec: StackSpec;
  /** What the cluster refuses, as what is wrong in a file: with its place. Any other failure as it is. */
  readonly placed: (error: unknown) => unknown;
}

/** The stack that files declare. Prints its warnings; throws with every error, each with its place. */
async function load(cli: Cli, words: readonly (string | undefined)[], options: DeployOptions): Promise<Loaded> {
  const { files, ...named } = wordsOf(words, options);
  const loader = await import("../stack/index.ts");
  const { formatDiagnostics, loadStack, toStackSpec } = loader;
  const loaded = loadStack(loadOptions(loader, files, { ...options, ...named }, cli.environment));
  if (loaded.warnings.length > 0) cli.err.write(`${formatDiagnostics(loaded.warnings)}\n`);
  const converted = loaded.ok ? toStackSpec(loaded) : loaded;
  if (converted.ok && loaded.ok) return { spec: converted.spec, placed: (error) => refused(error, loaded, loader) };
  // Each says what it is; for the first, what prints a failure says it.
  const errors = converted.ok ? [] : converted.errors;
  const message = formatDiagnostics(errors).replace(/^error: /, "");
  const wayOut = withoutThem(errors, loader);
  throw new CommandFailure(message, exitCodes.error, { hint: `\nNothing was changed.${wayOut}` });
}

/** A deploy is one transaction: what the cluster refuses for what it is has changed nothing. */
function refused(
  error: unknown,
  loaded: LoadedStack,
  { formatDiagnostic }: typeof import("../stack/index.ts"),
): unknown {
  if (!(error instanceof ClusterError) || !["invalid", "not-found", "conflict", "exhausted"].includes(error.code)) {
    return error;
  }
  const { code, subject = "", cause, hint } = error;
  const unchanged = "Nothing was changed.";
  // "services.web.ports": names have no dots.
  const path = /^(services|networks|volumes|configs|secrets)\./.test(subject) ? subject.split(".") : [];
  const at = path.length === 0 ? undefined : loaded.positionOf(path);
  if (at === undefined) {
    const told = hint === undefined ? unchanged : `${hint}\n${unchanged}`;
    return new ClusterError(error.message, { code, subject, hint: told, cause });
  }
  const diagnostic = { severity: "error", code: "conflict", path, at, message: error.message } as const;
  const told = formatDiagnostic(hint === undefined ? diagnostic : { ...diagnostic, hint });
  return new ClusterError(told.replace(/^error: /, ""), { code, subject, hint: `\n${unchanged}`, cause });
}

/** How to deploy the stack all the same, when that is all that stands against it. */
function withoutThem(errors: readonly Diagnostic[], { canBeLeftOut }: typeof import("../stack/index.ts")): string {
  if (!errors.every(({ code, path }) => code === "not-in-cluster" && canBeLeftOut(path))) return "";
  const keys = [...new Set(errors.map(({ path }) => path.at(-1)))];
  return ` To deploy it without ${keys.length === 1 ? "that" : "those"}: --ignore-unsupported ${keys.join(",")}`;
}
