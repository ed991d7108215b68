import { basename, dirname, isAbsolute, join } from "node:path";
import { compareTexts } from "../../lib/words/compare.ts";
import { nearest } from "../../lib/words/nearest.ts";
import { checkStack } from "./checks.ts";
import { type Diagnostic, Report, sortDiagnostics } from "./diagnostics.ts";
import { FileProblem, type Files, STANDARD_INPUT } from "./files.ts";
import { finish } from "./finish.ts";
import type { Variables } from "./interpolate.ts";
import { STACK_NAME, stack as stackType } from "./keys/stack.ts";
import {
  type LoadContext,
  loadProject,
  MAX_FILES,
  nameOfDirectory,
  readDefaultEnvFile,
  readEnvFiles,
  type UsedVariable,
} from "./load.ts";
import type { RawStack, Stack } from "./model.ts";
import { chooseServices } from "./profiles.ts";
import { resolveStack } from "./resolve.ts";
import type { Position, Source } from "./source.ts";
import type { MapTree, Path, Tree } from "./tree.ts";

export { canBeLeftOut } from "./cluster.ts";
export { convertStack as toStackSpec, notInCluster } from "./convert.ts";
export {
  type Diagnostic,
  type DiagnosticJson,
  diagnosticJson,
  formatDiagnostic,
  formatDiagnosticLine,
  formatDiagnostics,
} from "./diagnostics.ts";
export { findStackFiles } from "./discover.ts";
export { diskFiles } from "./disk.ts";
export { formatStack, serviceHashes, stackFile } from "./emit.ts";
export { FileProblem, type Files, memoryFiles } from "./files.ts";
export type * from "./model.ts";

/** What to load, and the machine that it is loaded on. */
export interface LoadOptions {
  /** Stack files, merged in this order; relative to `workingDirectory`, `-` is the standard input. At least one. */
  readonly files: readonly string[];
  readonly workingDirectory: string;
  readonly reader: Files;
  /** The process's environment: goes before every env file. */
  readonly environment: Readonly<Record<string, string | undefined>>;
  /** Env files instead of the project directory's `.env`; later ones win. */
  readonly envFiles?: readonly string[];
  /** Relative paths in the files are relative to it. Default: the directory of the first file; of `-`, the working directory. */
  readonly projectDirectory?: string;
  /** Stack name that goes before `name:` and COMPOSE_PROJECT_NAME. */
  readonly name?: string;
  /** Profiles chosen, besides those of COMPOSE_PROFILES. `*` chooses all. */
  readonly profiles?: readonly string[];
  /** Lets `include` and `extends` name files outside the project directory. */
  readonly allowOutside?: boolean;
  /** Keys (`attach`, or `services.web.attach`) that are left out with a warning, if the cluster of this version cannot run them. */
  readonly ignoreUnsupported?: readonly string[];
}

/** A stack, and where each part of it is written. */
export interface LoadedStack {
  readonly ok: true;
  readonly stack: Stack;
  /** Content of `secrets` and `configs`, by "secrets.<key>" and "configs.<key>"; none for external ones. */
  readonly contents: ReadonlyMap<string, Uint8Array>;
  /** Where a path of the stack is written; for what no file says, the nearest thing above it that one does. */
  readonly positionOf: (path: Path) => Position | undefined;
  readonly warnings: readonly Diagnostic[];
  /** Variables that the files used, by name ascending, and where each came from. */
  readonly variables: ReadonlyMap<string, UsedVariable>;
}

/** Why there is no stack. Never partial: one error, and there is none. */
export interface FailedLoad {
  readonly ok: false;
  /** In the order of the files and lines; at least one. */
  readonly errors: readonly Diagnostic[];
  readonly warnings: readonly Diagnostic[];
}

export type LoadResult = LoadedStack | FailedLoad;

/**
 * Loads stack files into one resolved model, or says everything that is wrong with them. Nothing is ever ignored: a key is
 * in the model, or it is an error. Reads files only through `options.reader`; never throws for what files hold.
 */
export function loadStack(options: LoadOptions): LoadResult {
  const report = new Report();
  const absolute = (path: string): string => (isAbsolute(path) ? path : join(options.workingDirectory, path));
  const paths = options.files.map((path) => (path === "-" ? STANDARD_INPUT : absolute(path)));
  const [first] = paths;
  if (first === undefined) {
    report.error("file", [], undefined, "no stack file was named");
    return failed(report);
  }
  const directory = absolute(options.projectDirectory ?? (first === STANDARD_INPUT ? "." : dirname(first)));
  const context: LoadContext = {
    files: options.reader,
    report,
    workingDirectory: options.workingDirectory,
    root: options.allowOutside === true ? undefined : realRoot(directory, options.reader),
    environment: options.environment,
    used: new Map(),
    warned: new Set(),
    sources: new Map<string, Source | undefined>(),
    extended: new Map(),
    filesLeft: { count: MAX_FILES },
  };
  const environment: Variables = (name) =>
    Object.hasOwn(options.environment, name) ? options.environment[name] : undefined;
  const fromFiles =
    options.envFiles === undefined
      ? readDefaultEnvFile(directory, environment, context)
      : readEnvFiles(
          options.envFiles.map((path) => ({ path: absolute(path) })),
          environment,
          [],
          context,
        );
  const given = options.name ?? environment("COMPOSE_PROJECT_NAME") ?? fromFiles.get("COMPOSE_PROJECT_NAME")?.value;
  const variables: Variables = (name) => {
    const own = environment(name);
    const found = own === undefined ? fromFiles.get(name) : { value: own, file: undefined };
    if (found !== undefined) context.used.set(name, found);
    if (found === undefined && name === "COMPOSE_PROJECT_NAME") return given ?? nameOfDirectory(directory);
    return found?.value;
  };

  const merged = loadProject({ paths, directory, variables, chain: [realOf(first, options.reader)] }, context);
  const profiles = new Set([
    ...(options.profiles ?? []),
    ...(variables("COMPOSE_PROFILES") ?? "").split(",").filter((name) => name !== ""),
  ]);
  const chosen = chooseServices(merged, profiles);
  warnOfProfiles(options.profiles ?? [], chosen.known, report);
  const name = stackName(given, chosen.tree, directory, report);
  const positionOf = (path: Path): Position | undefined => positionIn(chosen.tree, path);
  const raw = finish(chosen.tree, stackType, [], report, new Set(options.ignoreUnsupported ?? [])) as RawStack;
  const services = chosen.tree.entries.get("services")?.value;
  if (report.errors.length === 0 && (services?.kind !== "map" || services.entries.size === 0)) {
    const off =
      chosen.off.length > 0
        ? `Every service belongs to a profile: choose one with --profile (${chosen.profiles.join(", ")}).`
        : "Write them under services.";
    report.error("missing", ["services"], positionOf(["services"]) ?? positionOf([]), "the stack has no services", {
      hint: off,
    });
  }
  const stack = resolveStack(raw, { ...context, name, variables, positionOf });
  const contents = checkStack(stack, { ...context, positionOf, variables, off: chosen.off, profiles: chosen.profiles });
  if (report.errors.length > 0) return failed(report);
  return {
    ok: true,
    stack,
    contents,
    positionOf,
    warnings: sortDiagnostics(report.warnings),
    variables: new Map([...context.used].toSorted(([a], [b]) => compareTexts(a, b))),
  };
}

/** Of those of COMPOSE_PROFILES nothing is said: that may be meant for other stacks too. */
function warnOfProfiles(named: readonly string[], known: ReadonlySet<string>, report: Report): void {
  for (const name of new Set(named)) {
    if (name === "*" || known.has(name)) continue;
    const suggestion = nearest(name, known);
    const all = [...known].toSorted(compareTexts).join(", ");
    report.warn([], undefined, `no service has the profile ${JSON.stringify(name)}`, {
      ...(suggestion !== undefined && { suggestion }),
      hint: all === "" ? "No service has a profile: leave --profile out." : `Profiles of the files: ${all}.`,
    });
  }
}

function failed(report: Report): FailedLoad {
  const errors = sortDiagnostics(report.errors);
  if (report.more > 0)
    errors.push({ severity: "error", code: "limit", path: [], message: `and ${report.more} errors more` });
  return { ok: false, errors, warnings: sortDiagnostics(report.warnings) };
}

function stackName(given: string | undefined, tree: MapTree, directory: string, report: Report): string {
  const written = tree.entries.get("name")?.value;
  if (given !== undefined) {
    if (STACK_NAME.test(given)) return given;
    report.error("value", ["name"], undefined, `${JSON.stringify(given)} cannot name a stack`, {
      hint: "Up to 63 of a-z, 0-9, _ and -, beginning with a letter or digit.",
    });
    return "stack";
  }
  if (written?.kind === "scalar" && typeof written.value === "string") return written.value;
  const name = nameOfDirectory(directory);
  if (name === undefined && report.errors.length === 0) {
    report.error("missing", ["name"], undefined, `the directory ${basename(directory) || "/"} cannot name the stack`, {
      hint: "Give the stack a name: in the first line of the file, or with --name.",
    });
  }
  return name ?? "stack";
}

function realRoot(directory: string, files: Files): string {
  return realOf(directory, files);
}

function realOf(path: string, files: Files): string {
  try {
    return files.realpath(path) ?? path;
  } catch (error) {
    if (error instanceof FileProblem) return path;
    throw error;
  }
}

function positionIn(tree: Tree, path: Path): Position | undefined {
  let found: Position | undefined = tree.at.source.text === "" ? undefined : tree.at;
  let here: Tree | undefined = tree;
  for (const part of path) {
    if (here?.kind === "map" && typeof part === "string") {
      const entry = here.entries.get(part);
      if (entry === undefined) return found;
      here = entry.value;
      found = here.kind === "scalar" && here.value !== null ? here.at : entry.key;
    } else if (here?.kind === "list" && typeof part === "number") {
      here = here.items[part];
      if (here === undefined) return found;
      found = here.at;
    } else return found;
  }
  return found;
}
