import { dirname, isAbsolute, join, relative, resolve as resolvePath } from "node:path";
import type { Report } from "./diagnostics.ts";
import { parseEnvFile } from "./dotenv.ts";
import { FileProblem, type Files } from "./files.ts";
import { interpolateTree, type Variables } from "./interpolate.ts";
import { service as serviceType } from "./keys/service.ts";
import { STACK_NAME, stack as stackType } from "./keys/stack.ts";
import { merge } from "./merge.ts";
import { normalize } from "./normalize.ts";
import { type Position, Source } from "./source.ts";
import { describeKind, type Entry, type MapTree, type Path, type ScalarTree, type Tree } from "./tree.ts";
import { parseYaml } from "./yaml.ts";

/** A stack file of 500 services is about 400 KB. */
export const MAX_STACK_FILE_BYTES = 2 * 2 ** 20;
const MAX_ENV_FILE_BYTES = 2 ** 20;
const MAX_INCLUDE_DEPTH = 20;
/** Stack files, included and extended ones together. */
const MAX_FILES = 500;

/** What a load knows wherever it is in the files. */
export interface LoadContext {
  readonly files: Files;
  readonly report: Report;
  /** Directory that names in messages are relative to. */
  readonly workingDirectory: string;
  /** Included and extended files must lie below it; undefined: anywhere. */
  readonly root: string | undefined;
  readonly environment: Readonly<Record<string, string | undefined>>;
  /** Variables that were asked for and found. */
  readonly used: Map<string, UsedVariable>;
  /** Names that a warning about a missing value was given for. */
  readonly warned: Set<string>;
  /** Sources by path, so that one file is read once. */
  readonly sources: Map<string, Source | undefined>;
  /** Canonical trees of files that `extends` names, by path and project directory. */
  readonly extended: Map<string, MapTree | undefined>;
  filesLeft: { count: number };
}

/** A set of files that are merged into one: those of `-f`, or one item of `include`. */
export interface Project {
  readonly paths: readonly string[];
  /** Relative paths are relative to it. */
  readonly directory: string;
  readonly variables: Variables;
  /** Real paths of the files that led here through `include`. */
  readonly chain: readonly string[];
}

const EMPTY = new Source("", "", "");
const NOWHERE: Position = { source: EMPTY, start: 0, end: 0 };

/** The merged canonical tree of a project's files, with `extends` and `include` carried out. */
export function loadProject(project: Project, context: LoadContext): MapTree {
  let merged: MapTree = { kind: "map", entries: new Map(), at: NOWHERE };
  for (const path of project.paths) {
    for (const tree of readStackFile(path, project, context)) {
      const extended = applyExtends(tree, merged, path, project, context);
      const isFirst = merged.entries.size === 0;
      // Only a file with tags has anything for the merge of a first file to do.
      const result =
        isFirst && !extended.at.source.text.includes("!")
          ? extended
          : merge(isFirst ? undefined : merged, extended, stackType);
      if (result?.kind === "map") merged = result;
    }
  }
  return applyIncludes(merged, project, context);
}

/** Reads text from a file, checks that it is UTF-8 and free of control characters. Undefined when it cannot be read. */
export function readSource(
  path: string,
  maxBytes: number,
  context: LoadContext,
  named?: { readonly path: Path; readonly at: Position },
): Source | undefined {
  if (context.sources.has(path)) return context.sources.get(path);
  const source = readText(path, maxBytes, context, named);
  context.sources.set(path, source);
  return source;
}

function readText(
  path: string,
  maxBytes: number,
  context: LoadContext,
  named?: { readonly path: Path; readonly at: Position },
): Source | undefined {
  const name = displayName(path, context.workingDirectory);
  const fail = (message: string, at?: Position): undefined => {
    context.report.error(
      "file",
      named?.path ?? [],
      at ?? named?.at,
      at === undefined ? `the file ${name} ${message}` : message,
    );
    return undefined;
  };
  let bytes: Uint8Array;
  try {
    bytes = context.files.read(path, maxBytes);
  } catch (error) {
    if (!(error instanceof FileProblem)) throw error;
    return fail(error.kind === "too-large" ? `is larger than ${maxBytes / 2 ** 20} MiB` : error.message);
  }
  if ((bytes[0] === 0xff && bytes[1] === 0xfe) || (bytes[0] === 0xfe && bytes[1] === 0xff))
    return fail("is UTF-16; save it as UTF-8");
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    const loose = new TextDecoder("utf-8").decode(bytes);
    // What it says would be noise.
    if (bytes.includes(0)) return fail("is not a text file");
    const at = loose.indexOf("\u{fffd}");
    return fail("is not UTF-8 here", {
      source: new Source(name, path, loose),
      start: Math.max(at, 0),
      end: Math.max(at, 0) + 1,
    });
  }
  const source = new Source(name, path, text);
  const control = findControl(text);
  if (control !== -1) {
    const code = text.charCodeAt(control).toString(16).padStart(2, "0");
    return fail(`holds the control character 0x${code}, which a text file cannot have`, {
      source,
      start: control,
      end: control + 1,
    });
  }
  return source;
}

/** Control characters but tab, line feed and carriage return. */
function findControl(text: string): number {
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at);
    if ((code < 0x20 && code !== 0x09 && code !== 0x0a && code !== 0x0d) || code === 0x7f) return at;
  }
  return -1;
}

function displayName(path: string, workingDirectory: string): string {
  const name = relative(workingDirectory, path);
  return name === "" || name.startsWith("..") ? path : name;
}

function readStackFile(
  path: string,
  project: Project,
  context: LoadContext,
  named?: { readonly path: Path; readonly at: Position },
): MapTree[] {
  if (context.filesLeft.count <= 0) return [];
  context.filesLeft.count--;
  if (context.filesLeft.count === 0) {
    context.report.error("limit", named?.path ?? [], named?.at, `the stack has more than ${MAX_FILES} files`);
    return [];
  }
  const source = readSource(path, MAX_STACK_FILE_BYTES, context, named);
  if (source === undefined) return [];
  const trees: MapTree[] = [];
  for (const raw of parseYaml(source, context.report)) {
    if (raw.kind !== "map") {
      context.report.error(
        "type",
        [],
        raw.at,
        `a stack file is a mapping of services, networks and so on, and this is ${describeKind(raw)}`,
      );
      continue;
    }
    if (isFirstVersion(raw)) {
      reportFirstVersion(raw, context);
      continue;
    }
    const tree = source.text.includes("$")
      ? interpolateTree(raw, project.variables, context.report, context.warned)
      : raw;
    const normal = normalize(tree, stackType, [], {
      report: context.report,
      absolute: (name) => absolutePath(name, project.directory, context),
    });
    if (normal?.kind === "map") trees.push(noteVersion(normal, context));
  }
  return trees;
}

/** A path of this machine: `~` is HOME, a relative one lies below the directory; an address (https://...) stays as it is. */
export function absolutePath(name: string, directory: string, context: LoadContext): string {
  const home = context.environment["HOME"];
  if ((name === "~" || name.startsWith("~/")) && home !== undefined) return join(home, name.slice(1));
  return isRemote(name) ? name : resolvePath(directory, name);
}

function isRemote(name: string): boolean {
  return /^([a-z][a-z0-9+.-]*:\/\/|git@|oci:)/.test(name);
}

const FIRST_VERSION_KEYS = [
  "image",
  "build",
  "command",
  "links",
  "ports",
  "volumes",
  "environment",
  "net",
  "volumes_from",
];
const TOP_KEYS = Object.keys(stackType.keys);

/** Files of before Compose 2 have their services at the top. */
function isFirstVersion(tree: MapTree): boolean {
  if (tree.entries.has("services") || tree.entries.has("include")) return false;
  return [...tree.entries].some(
    ([name, { value }]) =>
      !TOP_KEYS.includes(name) &&
      !name.startsWith("x-") &&
      value.kind === "map" &&
      FIRST_VERSION_KEYS.some((key) => value.entries.has(key)),
  );
}

function reportFirstVersion(tree: MapTree, context: LoadContext): void {
  const [first] = [...tree.entries].filter(([name]) => !TOP_KEYS.includes(name));
  if (first === undefined) return;
  context.report.error(
    "syntax",
    [first[0]],
    first[1].key,
    "this is a file of the first Compose format, with its services at the top",
    {
      hint: "Write `services:` in the first line and indent the rest by two spaces; replace net by network_mode, dockerfile by image, and log_driver by logging.driver.",
    },
  );
}

function noteVersion(tree: MapTree, context: LoadContext): MapTree {
  const version = tree.entries.get("version");
  if (version === undefined) return tree;
  if (!context.warned.has("version:"))
    context.report.warn(["version"], version.key, "is not used: there is one format", { hint: "Remove the line." });
  context.warned.add("version:");
  const entries = new Map(tree.entries);
  entries.delete("version");
  return { ...tree, entries };
}

// ---- extends

function applyExtends(tree: MapTree, earlier: MapTree, path: string, project: Project, context: LoadContext): MapTree {
  const services = tree.entries.get("services");
  if (
    services?.value.kind !== "map" ||
    ![...services.value.entries.values()].some((entry) => extendsOf(entry.value) !== undefined)
  )
    return tree;
  const resolved = new Map<string, Entry>();
  for (const [name, entry] of services.value.entries) {
    const value = extendService(name, entry.value, { tree, earlier, path, project }, [], context);
    resolved.set(name, { key: entry.key, value });
  }
  const entries = new Map(tree.entries).set("services", {
    key: services.key,
    value: { ...services.value, entries: resolved },
  });
  return { ...tree, entries };
}

interface ExtendPlace {
  readonly tree: MapTree;
  readonly earlier: MapTree | undefined;
  readonly path: string;
  readonly project: Project;
}

function extendsOf(service: Tree): { readonly target: ScalarTree; readonly file: ScalarTree | undefined } | undefined {
  if (service.kind !== "map") return undefined;
  const value = service.entries.get("extends")?.value;
  if (value?.kind !== "map") return undefined;
  const target = value.entries.get("service")?.value;
  const file = value.entries.get("file")?.value;
  return target?.kind === "scalar" ? { target, file: file?.kind === "scalar" ? file : undefined } : undefined;
}

function extendService(
  name: string,
  service: Tree,
  place: ExtendPlace,
  chain: readonly string[],
  context: LoadContext,
): Tree {
  const wanted = extendsOf(service);
  if (wanted === undefined || service.kind !== "map") return service;
  const own: MapTree = { ...service, entries: new Map([...service.entries].filter(([key]) => key !== "extends")) };
  const { target, file } = wanted;
  const errorPath = ["services", name, "extends"];
  const here = `${place.path}#${name}`;
  if (chain.includes(here)) {
    const circle = [...chain.slice(chain.indexOf(here)), here].map((step) => step.slice(step.lastIndexOf("#") + 1));
    context.report.error("cycle", errorPath, target.at, `extends goes round in a circle: ${circle.join(" -> ")}`);
    return own;
  }
  const elsewhere = file === undefined ? place : fileToExtend(String(file.value), file, place, errorPath, context);
  if (elsewhere === undefined) return own;
  const base =
    serviceIn(elsewhere.tree, target.text) ??
    (file === undefined && place.earlier ? serviceIn(place.earlier, target.text) : undefined);
  if (base === undefined) {
    const names = serviceNames(elsewhere.tree).filter((other) => other !== name || file !== undefined);
    context.report.error(
      "reference",
      errorPath,
      target.at,
      `no service is called ${JSON.stringify(target.text)}${file === undefined ? "" : ` in ${displayName(elsewhere.path, context.workingDirectory)}`}`,
      {
        hint: names.length > 0 ? `Services there: ${names.slice(0, 20).join(", ")}.` : "There are no services there.",
      },
    );
    return own;
  }
  const whole = extendService(target.text, base, elsewhere, [...chain, here], context);
  return merge(whole, own, serviceType) ?? own;
}

function serviceIn(tree: MapTree, name: string): Tree | undefined {
  const services = tree.entries.get("services")?.value;
  return services?.kind === "map" ? services.entries.get(name)?.value : undefined;
}

function serviceNames(tree: MapTree): string[] {
  const services = tree.entries.get("services")?.value;
  return services?.kind === "map" ? [...services.entries.keys()].toSorted() : [];
}

function fileToExtend(
  path: string,
  named: ScalarTree,
  place: ExtendPlace,
  errorPath: Path,
  context: LoadContext,
): ExtendPlace | undefined {
  const real = checkInside(path, errorPath, named.at, context);
  if (real === undefined) return undefined;
  const project: Project = { ...place.project, directory: dirname(path) };
  if (!context.extended.has(real)) {
    context.extended.set(real, undefined);
    const [tree] = readStackFile(path, project, context, { path: errorPath, at: named.at });
    context.extended.set(real, tree);
  }
  const tree = context.extended.get(real);
  return tree === undefined ? undefined : { tree, earlier: undefined, path, project };
}

/** The real path of a file that another names, if it lies below the root. */
function checkInside(path: string, errorPath: Path, at: Position, context: LoadContext): string | undefined {
  const name = displayName(path, context.workingDirectory);
  if (isRemote(path)) {
    context.report.error("file", errorPath, at, `${path} is not a file: only files of this machine can be named here`, {
      hint: "Fetch it first.",
    });
    return undefined;
  }
  try {
    const real = context.files.realpath(path);
    if (real === undefined) {
      context.report.error("file", errorPath, at, `the file ${name} does not exist`);
      return undefined;
    }
    if (context.root !== undefined && !isBelow(real, context.root)) {
      context.report.error(
        "file",
        errorPath,
        at,
        `the file ${name} lies outside the project directory ${context.root}`,
        {
          hint: "Give --project-directory a directory that holds both, or allow it with --allow-outside.",
        },
      );
      return undefined;
    }
    return real;
  } catch (error) {
    if (!(error instanceof FileProblem)) throw error;
    context.report.error("file", errorPath, at, `the file ${name} ${error.message}`);
    return undefined;
  }
}

function isBelow(path: string, root: string): boolean {
  const way = relative(root, path);
  return way === "" || (!way.startsWith("..") && !isAbsolute(way));
}

// ---- include

function applyIncludes(tree: MapTree, project: Project, context: LoadContext): MapTree {
  const include = tree.entries.get("include");
  if (include === undefined) return tree;
  const entries = new Map(tree.entries);
  entries.delete("include");
  let result: MapTree = { ...tree, entries };
  if (include.value.kind !== "list") return result;
  for (const [index, item] of include.value.items.entries()) {
    if (item.kind !== "map") continue;
    const included = loadInclude(item, ["include", index], project, context);
    if (included !== undefined) result = addIncluded(result, included, context);
  }
  return result;
}

function loadInclude(item: MapTree, path: Path, project: Project, context: LoadContext): MapTree | undefined {
  const texts = (name: string): ScalarTree[] => {
    const value = item.entries.get(name)?.value;
    const list = value?.kind === "list" ? value.items : value === undefined ? [] : [value];
    return list.filter((part) => part.kind === "scalar");
  };
  const reals: string[] = [];
  const paths: string[] = [];
  for (const part of texts("path")) {
    const real = checkInside(String(part.value), path, part.at, context);
    if (real === undefined) continue;
    if (project.chain.includes(real)) {
      const circle = [...project.chain.slice(project.chain.indexOf(real)), real].map((name) =>
        displayName(name, context.workingDirectory),
      );
      context.report.error("cycle", path, part.at, `include goes round in a circle: ${circle.join(" -> ")}`);
      continue;
    }
    reals.push(real);
    paths.push(String(part.value));
  }
  const [first] = paths;
  if (first === undefined) return undefined;
  if (project.chain.length >= MAX_INCLUDE_DEPTH) {
    context.report.error("limit", path, item.at, `include is nested more than ${MAX_INCLUDE_DEPTH} deep`);
    return undefined;
  }
  const [directory] = texts("project_directory");
  const projectDirectory = directory === undefined ? dirname(first) : String(directory.value);
  const envFiles = texts("env_file");
  const own =
    envFiles.length > 0
      ? readEnvFiles(
          envFiles.map((part) => ({ path: String(part.value), at: part.at })),
          project.variables,
          path,
          context,
        )
      : readDefaultEnvFile(projectDirectory, project.variables, context);
  // What the including project knows goes before the included one's own file.
  const variables: Variables = (name) => {
    const outer = project.variables(name);
    const value = outer === undefined ? own.get(name) : undefined;
    if (value !== undefined) context.used.set(name, value);
    return outer ?? value?.value;
  };
  return loadProject({ paths, directory: projectDirectory, variables, chain: [...project.chain, ...reals] }, context);
}

const SECTIONS = ["services", "networks", "volumes", "configs", "secrets", "x-external-services"] as const;

function addIncluded(tree: MapTree, included: MapTree, context: LoadContext): MapTree {
  const entries = new Map(tree.entries);
  // Keys of other kinds come along, so that those that are refused are refused here too. The stack has its own name.
  for (const [name, entry] of included.entries) if (name !== "name" && !entries.has(name)) entries.set(name, entry);
  for (const section of SECTIONS) {
    const more = included.entries.get(section);
    if (more?.value.kind !== "map") continue;
    const mine = entries.get(section);
    const all = new Map(mine?.value.kind === "map" ? mine.value.entries : []);
    for (const [name, entry] of more.value.entries) {
      const other = all.get(name);
      if (other === undefined) all.set(name, entry);
      else if (!sameTree(other.value, entry.value)) {
        const { line } = other.key.source.lineColumn(other.key.start);
        context.report.error(
          "conflict",
          [section, name],
          entry.key,
          `is also in ${other.key.source.name}, line ${line}, and says something else there`,
          {
            hint: "Two included files cannot both define it. Rename one, or override it in a file beside: include: [{path: [this.yml, override.yml]}].",
          },
        );
      }
    }
    entries.set(section, {
      key: mine?.key ?? more.key,
      value: { kind: "map", entries: all, at: mine?.value.at ?? more.value.at },
    });
  }
  return { ...tree, entries };
}

function sameTree(a: Tree, b: Tree): boolean {
  if (a === b) return true;
  if (a.kind === "scalar" && b.kind === "scalar")
    return a.value === b.value || JSON.stringify(a.value) === JSON.stringify(b.value);
  if (a.kind === "list" && b.kind === "list")
    return a.items.length === b.items.length && a.items.every((item, index) => sameTree(item, b.items[index] as Tree));
  if (a.kind === "map" && b.kind === "map") {
    const others = b.entries;
    return (
      a.entries.size === others.size &&
      [...a.entries].every(([name, entry]) => {
        const other = others.get(name);
        return other !== undefined && sameTree(entry.value, other.value);
      })
    );
  }
  return false;
}

// ---- variables

/** A variable that interpolation used, and the file it came from; undefined: the environment of the process. */
export interface UsedVariable {
  readonly value: string;
  readonly file: string | undefined;
}

/** Variables of env files by name, with the file each came from. */
export type EnvFileValues = ReadonlyMap<string, { readonly value: string; readonly file: string }>;

/** Variables of env files, later ones over earlier ones. */
export function readEnvFiles(
  files: readonly { readonly path: string; readonly at?: Position }[],
  variables: Variables,
  path: Path,
  context: LoadContext,
): EnvFileValues {
  const values = new Map<string, { readonly value: string; readonly file: string }>();
  for (const file of files) {
    const source = readSource(file.path, MAX_ENV_FILE_BYTES, context, file.at && { path, at: file.at });
    if (source === undefined) continue;
    const lookup: Variables = (wanted) => variables(wanted) ?? values.get(wanted)?.value;
    for (const [name, value] of parseEnvFile(source, lookup, context.report))
      values.set(name, { value, file: source.name });
  }
  return values;
}

/** `.env` of a directory, when there is one. */
export function readDefaultEnvFile(directory: string, variables: Variables, context: LoadContext): EnvFileValues {
  const path = join(directory, ".env");
  try {
    if (context.files.realpath(path) === undefined) return new Map();
  } catch (error) {
    if (!(error instanceof FileProblem)) throw error;
  }
  return readEnvFiles([{ path }], variables, [], context);
}

/** The name that a directory gives its stack, or undefined when nothing of it can be one. */
export function nameOfDirectory(directory: string): string | undefined {
  const last = directory.slice(directory.lastIndexOf("/") + 1);
  const name = last
    .toLowerCase()
    .replace(/[^a-z0-9_-]/g, "")
    .replace(/^[_-]+/, "")
    .slice(0, 63);
  return STACK_NAME.test(name) ? name : undefined;
}

export { MAX_ENV_FILE_BYTES, MAX_FILES };
