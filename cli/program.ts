import { Command, CommanderError, Option } from "commander";
import { ClusterError, messageOf } from "../lib/errors/errors.ts";
import { type Cli, outputs, type Register } from "./cli.ts";
import { registerConfig } from "./commands/config.ts";
import { registerContext } from "./commands/context.ts";
import { registerDeploy } from "./commands/deploy.ts";
import { registerExec } from "./commands/exec.ts";
import { registerInfo } from "./commands/info.ts";
import { registerInspect } from "./commands/inspect.ts";
import { registerLab } from "./commands/lab.ts";
import { registerLists } from "./commands/lists.ts";
import { registerLogs } from "./commands/logs.ts";
import { registerNode } from "./commands/node.ts";
import { registerPs } from "./commands/ps.ts";
import { registerRemove } from "./commands/rm.ts";
import { registerScale } from "./commands/scale.ts";
import { registerToken } from "./commands/token.ts";
import { registerVersion } from "./commands/version.ts";
import { formatDuration, parseDuration } from "./duration.ts";
import { exitCodeOf, exitCodes, Interrupted } from "./exit.ts";
import { styled } from "./render/style.ts";

const registers: readonly Register[] = [
  registerDeploy,
  registerConfig,
  registerPs,
  registerLists,
  registerLogs,
  registerExec,
  registerInspect,
  registerScale,
  registerRemove,
  registerNode,
  registerToken,
  registerContext,
  registerLab,
  registerInfo,
  registerVersion,
];

function makeProgram(cli: Cli): Command {
  const program = new Command("clusterctl")
    .description("Runs Compose stacks across hosts.")
    .addOption(new Option("--context <name|file>", "cluster to talk to, instead of the current context"))
    .addOption(new Option("-o, --output <form>", "how to print what is read").choices(outputs).default("table"))
    .helpCommand(false)
    .showSuggestionAfterError(true)
    .enablePositionalOptions(false);
  for (const register of registers) register(program, cli);
  for (const command of everyCommand(program)) {
    for (const option of command.options) {
      if (option.parseArg === parseDuration && typeof option.defaultValue === "number") {
        option.defaultValueDescription = formatDuration(option.defaultValue);
      }
    }
    command
      .exitOverride()
      .helpCommand(false)
      .configureOutput({
        // A wrong command line is told in one place, with the other errors.
        outputError: () => {},
        writeErr: () => {},
        writeOut: (text) => cli.out.write(text),
      });
  }
  return program;
}

function everyCommand(command: Command): Command[] {
  return [command, ...command.commands.flatMap(everyCommand)];
}

/** The command that a command line means, as far as it is right. */
function commandOf(program: Command, words: readonly string[]): Command {
  let command = program;
  for (const word of words) {
    const next = command.commands.find((candidate) => candidate.name() === word || candidate.aliases().includes(word));
    if (next !== undefined) command = next;
    else if (!word.startsWith("-")) break;
  }
  return command;
}

/** "usage: clusterctl deploy [options] <file> [name]". */
function usageOf(command: Command): string {
  const names: string[] = [];
  for (let at: Command | null = command; at !== null; at = at.parent) names.unshift(at.name());
  return `usage: ${names.join(" ")} ${command.usage()}`;
}

/** An option of the command that `exec` runs is taken for one of `exec`, unless dashes stand before it. */
function missingDashes(command: Command, words: readonly string[]): string {
  if (command.name() !== "exec" || words.includes("--")) return "";
  return "\nPut -- before the command that is to be run, or its options are taken for those of exec.";
}

function report(cli: Cli, error: unknown): void {
  cli.err.write(`${styled(cli.err, "red", "error:")} ${messageOf(error)}\n`);
  if (error instanceof ClusterError && error.hint !== undefined) cli.err.write(`${error.hint}\n`);
  if (cli.environment["EMBASSY_DEBUG"] && error instanceof Error) cli.err.write(`${error.stack}\n`);
}

/** What other programs call `help` and `--version`, in the words of this one. */
function usualWords(words: readonly string[]): readonly string[] {
  if (words[0] === "help") return [...words.slice(1), "--help"];
  return words.length === 1 && words[0] === "--version" ? ["version"] : words;
}

/** Runs a command line. Returns the process's exit code; errors are told on the screen, message then hint. */
export async function runCli(given: readonly string[], cli: Cli): Promise<number> {
  const words = usualWords(given);
  const program = makeProgram(cli);
  if (words.length === 0) {
    cli.err.write(program.helpInformation());
    return exitCodes.error;
  }
  try {
    await program.parseAsync(words, { from: "user" });
    return cli.exitCode;
  } catch (error) {
    if (error instanceof CommanderError) return reportUsage(cli, program, words, error);
    if (cli.signal.aborted) {
      // What was under way fails in words of its own, which say nothing that the user did not do.
      cli.err.write(error instanceof Interrupted ? `interrupted\n${error.hint}\n` : "interrupted\n");
      return exitCodes.interrupted;
    }
    report(cli, error);
    return exitCodeOf(error);
  }
}

function reportUsage(cli: Cli, program: Command, words: readonly string[], error: CommanderError): number {
  if (error.exitCode === 0) return exitCodes.ok; // --help
  const command = commandOf(program, words);
  const message = error.message.replace(/^error: /, "").replace(/\n\(Did you mean/, " (did you mean");
  const subcommands = command.commands.map((candidate) => candidate.name()).join(", ");
  // commander's own word for a command that needs a subcommand.
  const shown = error.code === "commander.help" ? `a subcommand is missing: one of ${subcommands}` : message;
  report(cli, new ClusterError(shown, { code: "invalid", hint: usageOf(command) + missingDashes(command, words) }));
  return exitCodes.error;
}
