import type { Argument, Command, Option } from "commander";
import { pathOf } from "./commands/tree.ts";
import { examples } from "./examples.ts";
import { exitCodes, exitMeanings } from "./exit.ts";
import { dockerWords } from "./usual-words.ts";

/** `docs/cli.md`: every command with its arguments, options and examples, and what exit codes mean. */
export function commandReference(program: Command): string {
  const leaves = leavesOf(program);
  const contents = leaves.map(
    (command) => `- [\`${pathOf(command)}\`](#${anchorOf(command)}): ${firstSentence(command)}`,
  );
  const codes = Object.entries(exitCodes).map(
    ([name, code]) => `| ${code} | ${exitMeanings[name as keyof typeof exitCodes]} |`,
  );
  return `# clusterctl

<!-- Generated from the commands by \`npm run docs\`. Change it there. -->

${program.description()} Words in \`<>\` must be given, those in \`[]\` may be, \`...\` means one or more. \`clusterctl COMMAND --help\` shows
the same.

## Commands

${contents.join("\n")}

## Options of every command

${optionTable(program.options.filter(({ long }) => long !== "--version"))}

\`EMBASSY_CONTEXT\` chooses a context as \`--context\` does, and \`EMBASSY_CONFIG_DIR\` the folder that contexts are kept in
(\`~/.config/embassy\`). Colours are used on a terminal only, and not with \`NO_COLOR\`. \`EMBASSY_DEBUG=1\` adds where an error arose.

Docker's words for some commands are understood too: ${dockerWords.map(([theirs, ours]) => `\`${theirs}\` (\`${ours}\`)`).join(", ")}.

## Output for programs

\`--output json\` prints one document on stdout (\`logs\`: one a line), and nothing else; of what only changes something and has nothing to
give (\`rm\`, \`node drain\`, \`context use\`), nothing at all. Fields are those of
[\`api.proto\`](../proto/embassy/v1/api.proto), each of them always present; what can only be one of several things is a plain word
(\`"running"\`, \`"drain"\`, \`"stop-first"\`), times are milliseconds since 1970. These forms are stable: fields and words are added, not
changed. \`config\` prints the stack in the form of a stack file, and with \`--services\`, \`--images\` and the like one object with a key for
each of them: \`{"services": [...], "hashes": {"web": "..."}}\`. \`completion\` always prints a script, and \`exec\` and \`lab exec\` what their command
prints.

## Exit codes

| code | meaning |
|---|---|
${codes.join("\n")}

\`exec\` and \`lab exec\` pass on the exit code of their command, whatever it is.

${leaves.map(section).join("\n")}`;
}

function leavesOf(command: Command): Command[] {
  return command.commands.length === 0 ? [command] : command.commands.flatMap(leavesOf);
}

function firstSentence(command: Command): string {
  return (/^.*?(?=\.(?: |$)|: )/.exec(command.description())?.[0] ?? "").replace(/^./, (letter) =>
    letter.toLowerCase(),
  );
}

function section(command: Command): string {
  const path = pathOf(command);
  const usage = command.usage().replaceAll("\n       ", "\n");
  const parts = [
    `## ${path}`,
    command.description().replaceAll("<", "&lt;"),
    `\`\`\`\nclusterctl ${path} ${usage}\n\`\`\``,
  ];
  if (command.registeredArguments.length > 0) parts.push(argumentTable(command.registeredArguments));
  if (command.options.length > 0) parts.push(optionTable(command.options));
  const lines = (examples[path] ?? []).map((line) => `clusterctl ${line}`);
  if (lines.length > 0) parts.push(`\`\`\`sh\n${lines.join("\n")}\n\`\`\``);
  return `${parts.join("\n\n")}\n`;
}

function anchorOf(command: Command): string {
  return pathOf(command).replaceAll(" ", "-");
}

function argumentTable(all: readonly Argument[]): string {
  const rows = all.map((one) => {
    const name = `${one.name()}${one.variadic ? "..." : ""}`;
    return `| \`${bars(one.required ? `<${name}>` : `[${name}]`)}\` | ${cell(one.description)} |`;
  });
  return `| argument | |\n|---|---|\n${rows.join("\n")}`;
}

function optionTable(all: readonly Option[]): string {
  const rows = all.map((option) => {
    const choices = option.argChoices === undefined ? "" : `; one of ${option.argChoices.join(", ")}`;
    const normal =
      option.defaultValueDescription ?? (option.defaultValue === undefined ? undefined : String(option.defaultValue));
    return `| \`${bars(option.flags)}\` | ${cell(option.description)}${choices} | ${normal === undefined ? "" : `\`${normal}\``} |`;
  });
  return `| option | | default |\n|---|---|---|\n${rows.join("\n")}`;
}

function cell(text: string): string {
  return bars(text).replaceAll("<", "&lt;").replaceAll("*", "\\*");
}

/** A bar would end the cell of the table. */
function bars(text: string): string {
  return text.replaceAll("|", "\\|");
}
