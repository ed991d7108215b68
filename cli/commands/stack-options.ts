import { type Command, InvalidArgumentError } from "commander";
import { ClusterError } from "../../lib/errors/errors.ts";
import type { LoadOptions } from "../stack/index.ts";

/** The options that say which stack files are read and how: those of every command that reads some. */
export interface StackOptions {
  readonly file?: string[];
  readonly envFile?: string[];
  readonly profile?: string[];
  readonly name?: string;
  readonly projectDirectory?: string;
  readonly allowOutside?: boolean;
  readonly ignoreUnsupported?: string[];
}

/** Adds the options of StackOptions to a command. */
export function withStackOptions(command: Command): Command {
  return command
    .option("-f, --file <path>", "a stack file, - for stdin; may be given several times", collect)
    .option("--env-file <path>", "file with variables, instead of .env; may be given several times", collect)
    .option("--profile <name>", "a profile to choose, * for all; may be given several times", collect)
    .option("-n, --name <stack>", "name of the stack", stackName)
    .option("--project-directory <path>", "directory that relative paths are relative to")
    .option("--allow-outside", "let include and extends name files outside the project directory")
    .option(
      "--ignore-unsupported <keys>",
      "leave these keys out, with a warning, where the cluster cannot run them: KEY,KEY or services.web.KEY",
      commas,
    );
}

type Loader = Pick<typeof import("../stack/index.ts"), "diskFiles" | "findStackFiles">;

/**
 * What to load: the files named before the options, then those of `-f`, else those that the working directory has.
 * Throws `invalid` when there is none.
 */
export function loadOptions(
  loader: Loader,
  positional: readonly string[],
  options: StackOptions,
  environment: NodeJS.ProcessEnv,
): LoadOptions {
  const workingDirectory = process.cwd();
  const reader = loader.diskFiles();
  const named = [...positional, ...(options.file ?? [])];
  const files = named.length > 0 ? named : loader.findStackFiles(workingDirectory, environment, reader);
  if (files.length === 0) {
    throw new ClusterError("no stack file was named, and there is none here", {
      code: "invalid",
      hint: "Name one with -f, or go where a compose.yaml or stack.yml is.",
    });
  }
  return {
    files,
    workingDirectory,
    reader,
    environment,
    ...(options.envFile && { envFiles: options.envFile }),
    ...(options.profile && { profiles: options.profile }),
    ...(options.name !== undefined && { name: options.name }),
    ...(options.projectDirectory !== undefined && { projectDirectory: options.projectDirectory }),
    ...(options.allowOutside && { allowOutside: true }),
    ...(options.ignoreUnsupported && { ignoreUnsupported: options.ignoreUnsupported }),
  };
}

function collect(value: string, before: string[] | undefined): string[] {
  return [...(before ?? []), value];
}

function commas(value: string, before: string[] | undefined): string[] {
  return [...(before ?? []), ...value.split(",").filter((part) => part !== "")];
}

function stackName(value: string): string {
  if (!/^[a-z0-9][a-z0-9_-]{0,62}$/.test(value))
    throw new InvalidArgumentError("up to 63 of a-z, 0-9, _ and -, beginning with a letter or digit.");
  return value;
}
