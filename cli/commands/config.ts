import { Command, Option } from "commander";
import type { Cli, Register } from "../cli.ts";
import { exitCodes } from "../exit.ts";
import type { Diagnostic, LoadedStack } from "../stack/index.ts";
import { loadOptions, type StackOptions, withStackOptions } from "./stack-options.ts";

// The loader is a tenth of the program's start: commands that do not need it do not pay for it.
const stackLoader = async () => await import("../stack/index.ts");
type StackLoader = Awaited<ReturnType<typeof stackLoader>>;

/** What the command writes to and reads from. */
export type ConfigIo = Pick<Cli, "environment" | "exitCode"> & {
  readonly out: { write(text: string): unknown };
  readonly err: { write(text: string): unknown };
};

interface ConfigOptions extends StackOptions {
  readonly format: "yaml" | "json";
  readonly services?: boolean;
  readonly volumes?: boolean;
  readonly networks?: boolean;
  readonly images?: boolean;
  readonly hash?: boolean;
  readonly environment?: boolean;
  readonly quiet?: boolean;
  readonly strict?: boolean;
  /** Of the program above. */
  readonly output?: string;
}

export const registerConfig: Register = (program, cli) => {
  program.addCommand(configCommand(cli));
};

/**
 * `clusterctl config`: prints the resolved stack, or everything that is wrong with its files. What only the cluster's version
 * stands against is a warning, and with --strict an error. Exit code 0 or 1.
 */
export function configCommand(io: ConfigIo = processIo()): Command {
  const command = new Command("config")
    .summary("check stack files and print what they mean")
    .description("Checks stack files and prints the stack that they describe, with everything resolved.")
    .argument("[files...]", "stack files, merged in this order")
    .addOption(new Option("--format <format>", "how to print the stack").choices(["yaml", "json"]).default("yaml"));
  withStackOptions(command);
  for (const [flag, what] of LISTS) command.option(flag, what);
  return command
    .option("-q, --quiet", "check only")
    .option("--strict", "fail when the cluster of this version does not run something, as deploy does")
    .action(async (files: string[], _options: unknown, self: Command) => {
      run(await stackLoader(), files, self.optsWithGlobals<ConfigOptions>(), io);
    });
}

const LISTS = [
  ["--services", "print the names of the services"],
  ["--volumes", "print the names of the volumes"],
  ["--networks", "print the names of the networks"],
  ["--images", "print the images"],
  ["--hash", "print each service with the hash of its configuration"],
  ["--environment", "print the variables that the files use, and where each comes from"],
] as const;

function run(loader: StackLoader, positional: readonly string[], options: ConfigOptions, io: ConfigIo): void {
  const result = loader.loadStack(loadOptions(loader, positional, options, io.environment));
  const notRun = result.ok && (options.strict || !wantsLists(options)) ? loader.notInCluster(result) : [];
  const fails = !result.ok || (options.strict === true && notRun.length > 0);
  const errors = result.ok ? (options.strict ? notRun : []) : result.errors;
  const diagnostics = [...errors, ...result.warnings];
  if (options.output === "json" && fails)
    io.out.write(`${JSON.stringify(diagnostics.map(loader.diagnosticJson), null, 2)}\n`);
  else printDiagnostics(loader, diagnostics, io);
  if (fails) {
    io.exitCode = exitCodes.error;
    return;
  }
  // Of a file for a later version, or for other tools, there may be many: a line each.
  for (const one of notRun) io.err.write(`warning: ${loader.formatDiagnosticLine(one)}\n`);
  if (!options.quiet) io.out.write(textOf(loader, result, options));
}

function wantsLists(options: ConfigOptions): boolean {
  const { services, volumes, networks, images, hash, environment } = options;
  return [services, volumes, networks, images, hash, environment].includes(true);
}

function printDiagnostics(loader: StackLoader, diagnostics: readonly Diagnostic[], io: ConfigIo): void {
  if (diagnostics.length > 0) io.err.write(`${loader.formatDiagnostics(diagnostics)}\n`);
}

function textOf(loader: StackLoader, loaded: LoadedStack, options: ConfigOptions): string {
  const { stack } = loaded;
  const isJson = options.output === "json";
  if (!wantsLists(options)) return loader.formatStack(stack, isJson ? "json" : options.format);
  const images = [...new Set(Object.values(stack.services).map((service) => service.image))];
  const hashes = options.hash ? loader.serviceHashes(stack) : new Map<string, string>();
  if (isJson) {
    const lists = {
      ...(options.services && { services: Object.keys(stack.services) }),
      ...(options.volumes && { volumes: Object.keys(stack.volumes) }),
      ...(options.networks && { networks: Object.keys(stack.networks) }),
      ...(options.images && { images }),
      ...(options.hash && { hashes: Object.fromEntries(hashes) }),
      ...(options.environment && {
        environment: [...loaded.variables].map(([name, { value, file = "" }]) => ({ name, value, file })),
      }),
    };
    return `${JSON.stringify(lists, null, 2)}\n`;
  }
  const lines: string[] = [];
  if (options.services) lines.push(...Object.keys(stack.services));
  if (options.volumes) lines.push(...Object.keys(stack.volumes));
  if (options.networks) lines.push(...Object.keys(stack.networks));
  if (options.images) lines.push(...images);
  for (const [name, hash] of hashes) lines.push(`${name} ${hash}`);
  if (options.environment) lines.push(...variableLines(loaded));
  return lines.map((line) => `${line}\n`).join("");
}

/** An env file of what was used: each group under the name of where it comes from. */
function variableLines({ variables }: LoadedStack): string[] {
  const groups = new Map<string, string[]>();
  for (const [name, { value, file }] of variables) {
    const from = file ?? "the environment";
    const lines = groups.get(from) ?? [];
    const isPlain = /^[\w./:@%+,-]*$/.test(value);
    lines.push(`${name}=${isPlain ? value : JSON.stringify(value).replaceAll("$", "\\$")}`);
    groups.set(from, lines);
  }
  return [...groups].flatMap(([from, lines]) => [`# from ${from}`, ...lines]);
}

function processIo(): ConfigIo {
  return {
    environment: process.env,
    out: process.stdout,
    err: process.stderr,
    get exitCode() {
      return Number(process.exitCode ?? 0);
    },
    set exitCode(code: number) {
      process.exitCode = code;
    },
  };
}
