import { Command, CommanderError, Option } from "commander";
import { ClusterError, messageOf } from "../lib/errors/errors.ts";
import { version } from "../lib/version/version.ts";
import { type Cli, outputs, type Register } from "./cli.ts";
import { registerCompletion } from "./commands/completion.ts";
import { registerConfig } from "./commands/config.ts";
import { registerContext } from "./commands/context.ts";
import { registerDeploy } from "./commands/deploy.ts";
import { registerExec } from "./commands/exec.ts";
import { registerInfo } from "./commands/info.ts";
import { registerInspect } from "./commands/inspect.ts";
import { registerLab } from "./commands/lab.ts";
import { registerLists } from "./commands/lists.ts";
import { registerLogs } from "./commands/logs.ts";
import { registerManager } from "./commands/manager.ts";
import { registerNode } from "./commands/node.ts";
import { registerPs } from "./commands/ps.ts";
import { registerRebalance } from "./commands/rebalance.ts";
import { registerRestart } from "./commands/restart.ts";
import { registerRemove } from "./commands/rm.ts";
import { registerRollback } from "./commands/rollback.ts";
import { registerScale } from "./commands/scale.ts";
import { registerSimulate } from "./commands/simulate.ts";
import { registerStored } from "./commands/stored.ts";
import { registerToken } from "./commands/token.ts";
import { everyCommand, pathOf } from "./commands/tree.ts";
import { registerVersion } from "./commands/version.ts";
import { registerWhy } from "./commands/why.ts";
import { formatDuration, parseDuration } from "./duration.ts";
import { examples } from "./examples.ts";
import { exitCodeOf, exitCodes, Interrupted } from "./exit.ts";
import { styled } from "./render/style.ts";
import { inOwnWords, insteadOf, takesNext } from "./usual-words.ts";

const registers: readonly Register[] = [
  registerDeploy,
  registerConfig,
  registerPs,
  registerLists,
  registerStored,
  registerLogs,
  registerExec,
  registerInspect,
  registerScale,
  registerRestart,
  registerRebalance,
  registerRollback,
  registerWhy,
  registerSimulate,
  registerRemove,
  registerNode,
  registerManager,
  registerToken,
  registerContext,
  registerLab,
  registerInfo,
  registerVersion,
  registerCompletion,
];

/** The whole command line, ready to be parsed once. */
export function makeProgram(cli: Cli): Command {
  const program = new Command("clusterctl")
    .description("Runs Compose stacks across hosts.")
    .version(`clusterctl ${version}`, "--version", "print the version")
    .addOption(new Option("--context <name|file>", "cluster to talk to, instead of the current context"))
    .addOption(new Option("-o, --output <form>", "how to print what is read").choices(outputs).default("table"))
    .helpCommand(false)
    .showSuggestionAfterError(true)
    .enablePositionalOptions(false);
  for (const register of registers) register(program, cli);
  const globals = program.options.filter(({ long }) => long !== "--version");
  for (const command of everyCommand(program)) {
    for (const option of command.options) {
      if (option.parseArg === parseDuration && typeof option.defaultValue === "number") {
        option.defaultValueDescription = formatDuration(option.defaultValue);
      }
    }
    const lines = (examples[pathOf(command)] ?? []).map((line) => `  clusterctl ${line}`);
    if (lines.length > 0) command.addHelpText("after", `\nExamples:\n${lines.join("\n")}`);
    command
      .exitOverride()
      .helpCommand(false)
      .configureHelp({
        minWidthToWrap: 15,
        showGlobalOptions: true,
        visibleGlobalOptions: () => globals.filter(() => command !== program),
      })
      .configureOutput({
        // A wrong command line is told in one place, with the other errors.
        outputError: () => {},
        writeErr: () => {},
        writeOut: (text) => cli.out.write(text),
      });
  }
  return program;
}

/** The command that a command line means, as far as it is right. */
function commandOf(program: Command, words: readonly string[]): Command {
  let command = program;
  for (let at = 0; at < words.length; at++) {
    const word = words[at] ?? "";
    const next = command.commands.find((candidate) => candidate.name() === word || candidate.aliases().includes(word));
    if (next !== undefined) command = next;
    else if (!word.startsWith("-")) break;
    else if (takesNext([...program.options, ...command.options], word)) at++;
  }
  return command;
}

/** "usage: clusterctl deploy [options] <file> [name]". */
function usageOf(command: Command): string {
  const names: string[] = [];
  for (let at: Command | null = command; at !== null; at = at.parent) names.unshift(at.name());
  return `usage: ${names.join(" ")} ${command.usage()}`;
}

function report(cli: Cli, error: unknown): void {
  cli.err.write(`${styled(cli.err, "red", "error:")} ${messageOf(error)}\n`);
  if (error instanceof ClusterError && error.hint !== undefined) cli.err.write(`${error.hint}\n`);
  if (cli.environment["EMBASSY_DEBUG"] && error instanceof Error) cli.err.write(`${error.stack}\n`);
}

/** What other programs call `help`, in the words of this one. */
function usualWords(program: Command, words: readonly string[]): readonly string[] {
  const [first, ...about] = words;
  if (first !== "help") return words;
  // With --help the parser would not look at a word that is no command.
  const isRight = about.length === 0 || commandOf(program, about) !== program;
  return isRight ? [...about, "--help"] : about;
}

/**
 * Puts `--` before the command that `exec` is to run, as its options are its own: `exec -it web sh -c 'ls -l'`. Whoever has put
 * it there has said so already.
 */
export function withDashes(program: Command, words: readonly string[]): readonly string[] {
  const command = commandOf(program, words);
  if (command.name() !== "exec") return words;
  const options = [...program.options, ...command.options];
  const depth = command.parent === program ? 1 : 2;
  for (let at = 0, operands = 0; at < words.length; at++) {
    const word = words[at] ?? "";
    if (word === "--") return words;
    if (word.startsWith("-") && word !== "-") {
      if (takesNext(options, word)) at++;
    } else if (++operands === depth + 2) return [...words.slice(0, at), "--", ...words.slice(at)];
  }
  return words;
}

/** Runs a command line. Returns the process's exit code; errors are told on the screen, message then hint. */
export async function runCli(given: readonly string[], cli: Cli): Promise<number> {
  const program = makeProgram(cli);
  const own = inOwnWords(given, (word) => takesNext(program.options, word));
  const words = withDashes(program, usualWords(program, own));
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

function hintOf(program: Command, command: Command, words: readonly string[], { code }: CommanderError): string {
  if (code !== "commander.unknownCommand") return usageOf(command);
  const instead = insteadOf(words, (word) => takesNext(program.options, word));
  if (instead !== undefined) return instead;
  if (command === program) return "`clusterctl --help` lists the commands.";
  return `\`clusterctl ${pathOf(command)}\` has ${command.commands.map((candidate) => candidate.name()).join(", ")}.`;
}

function reportUsage(cli: Cli, program: Command, words: readonly string[], error: CommanderError): number {
  if (error.exitCode === 0) return exitCodes.ok; // --help
  const command = commandOf(program, words);
  const message = error.message
    .replace(/^error: (?:command-argument value (.*) is invalid for (argument '.*?')\.)?/, (_all, value, name) =>
      value === undefined ? "" : `${name} cannot be ${value}.`,
    )
    .replace(/\n\(Did you mean/, " (did you mean");
  const subcommands = command.commands.map((candidate) => candidate.name()).join(", ");
  // commander's own word for a command that needs a subcommand.
  const missing = `a subcommand is missing: ${command.commands.length === 1 ? "" : "one of "}${subcommands}`;
  const shown = error.code === "commander.help" ? missing : message;
  report(cli, new ClusterError(shown, { code: "invalid", hint: hintOf(program, command, words, error) }));
  return exitCodes.error;
}
