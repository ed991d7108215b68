import { type Command, InvalidArgumentError, type Option } from "commander";
import type { Register } from "../cli.ts";
import { everyCommand, pathOf } from "./tree.ts";

const shells = ["bash", "zsh"] as const;

export const registerCompletion: Register = (program, cli) => {
  program
    .command("completion")
    .summary("print what completes command lines in a shell")
    .description(
      "Prints a script that completes commands and options: source <(clusterctl completion bash), in ~/.bashrc; with zsh in ~/.zshrc, after compinit.",
    )
    .argument("<shell>", shells.join(" or "), (word) => {
      if (shells.includes(word as (typeof shells)[number])) return word;
      throw new InvalidArgumentError(`Give ${shells.join(" or ")}.`);
    })
    .action((shell: string) => {
      cli.out.write(
        shell === "zsh" ? `autoload -U +X bashcompinit && bashcompinit\n${script(program)}` : script(program),
      );
    });
};

/** A function for bash: the words that may stand next, by the command that the words so far name. */
function script(program: Command): string {
  const commands = everyCommand(program).filter((command) => command !== program);
  const global = wordsOf(program.options);
  const choices = new Map<string, string>();
  for (const option of everyCommand(program).flatMap((command) => command.options)) {
    if (option.argChoices === undefined) continue;
    choices.set([option.short, option.long].filter(Boolean).join("|"), option.argChoices.join(" "));
  }
  const cases = [program, ...commands].map((command) => {
    const own = command === program ? "" : wordsOf(command.options);
    const below = command.commands.map((one) => one.name()).join(" ");
    const files = command.registeredArguments.some((one) => one.name().startsWith("file"));
    return `    ${JSON.stringify(pathOf(command))}) below=${JSON.stringify(below)}; options=${JSON.stringify(`${own} ${global} --help`.trim())}; files=${files ? 1 : ""} ;;`;
  });
  return `# Completion of clusterctl. Made by \`clusterctl completion\`.
_clusterctl() {
  local word=\${COMP_WORDS[COMP_CWORD]} before=\${COMP_WORDS[COMP_CWORD-1]} at="" next i below options files
  for ((i = 1; i < COMP_CWORD; i++)); do
    next="\${at:+$at }\${COMP_WORDS[i]}"
    case "$next" in
      ${commands.map((command) => JSON.stringify(pathOf(command))).join("|")}) at=$next ;;
    esac
  done
  COMPREPLY=()
  case "$before" in
${[...choices].map(([flags, words]) => `    ${flags}) COMPREPLY=($(compgen -W ${JSON.stringify(words)} -- "$word")); return ;;`).join("\n")}
    --file|-f|--env-file|--project-directory) COMPREPLY=($(compgen -f -- "$word")); return ;;
  esac
  case "$at" in
${cases.join("\n")}
  esac
  if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "$options" -- "$word"))
  elif [[ -n $below ]]; then COMPREPLY=($(compgen -W "$below" -- "$word"))
  elif [[ -n $files ]]; then COMPREPLY=($(compgen -f -- "$word"))
  fi
}
complete -o filenames -F _clusterctl clusterctl
`;
}

function wordsOf(options: readonly Option[]): string {
  return options.flatMap(({ long }) => long ?? []).join(" ");
}
