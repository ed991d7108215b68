import { chownSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { basename, dirname, join } from "node:path";
import { ClusterError, isErrno, messageOf } from "../../lib/errors/errors.ts";

/** How to reach a cluster and as whom: the file that `clusterd init` writes and `context import` takes. */
export interface Context {
  readonly name: string;
  /** "host:port" of control-plane members. */
  readonly endpoints: readonly string[];
  /** PEM. */
  readonly ca: string;
  readonly certificate: string;
  readonly key: string;
}

const importHint =
  "Bring up a lab with `clusterctl lab up`, or take in the file admin.json of `clusterd init` with `clusterctl context import FILE`.";

/** Parses a context file. Throws `invalid`, naming the file and the field. */
export function parseContext(text: string, source: string): Context {
  const bad = (words: string, cause?: unknown) =>
    new ClusterError(`${source} is not a context file: ${words}`, {
      code: "invalid",
      subject: source,
      hint: "Use the file admin.json that `clusterd init` wrote.",
      cause,
    });
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw bad("it is not JSON", cause);
  }
  if (typeof value !== "object" || value === null) throw bad("it holds no object");
  const fields = value as Record<string, unknown>;
  const text_ = (key: string): string => {
    const found = fields[key];
    if (typeof found !== "string" || found === "") throw bad(`${key} is missing`);
    return found;
  };
  const endpoints = fields["endpoints"];
  if (!Array.isArray(endpoints) || endpoints.length === 0 || !endpoints.every((e) => typeof e === "string")) {
    throw bad("endpoints is missing");
  }
  const name = text_("name");
  checkContextName(name);
  return { name, endpoints, ca: text_("ca"), certificate: text_("certificate"), key: text_("key") };
}

/** Checks a context's name, which is also its file's. Throws `invalid`. */
export function checkContextName(name: string): void {
  if (/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/.test(name)) return;
  throw new ClusterError(`the context name ${JSON.stringify(name)} is not valid`, {
    code: "invalid",
    hint: "Use letters, digits, dots, dashes and underscores, a letter or digit first.",
  });
}

/**
 * The contexts of a user, one file each in a directory that only its owner can read, and which of them is the current one.
 * Under sudo they are those of the user who called it, so that `sudo clusterctl lab up` serves both.
 */
export class Contexts {
  readonly #directory: string;
  readonly #environment: NodeJS.ProcessEnv;

  constructor(environment: NodeJS.ProcessEnv) {
    this.#environment = environment;
    this.#directory = environment["EMBASSY_CONFIG_DIR"] || join(homeOf(environment), ".config/embassy");
  }

  get directory(): string {
    return this.#directory;
  }

  names(): string[] {
    try {
      return readdirSync(join(this.#directory, "contexts"))
        .filter((file) => file.endsWith(".json"))
        .map((file) => file.slice(0, -".json".length))
        .sort();
    } catch (error) {
      if (isErrno(error, "ENOENT")) return [];
      throw error;
    }
  }

  /** Name of the current context: EMBASSY_CONTEXT's, else the one chosen by `context use`. */
  current(): string | undefined {
    const named = this.#environment["EMBASSY_CONTEXT"];
    if (named !== undefined && named !== "") return named;
    const file = join(this.#directory, "current");
    return existsSync(file) ? readFileSync(file, "utf8").trim() || undefined : undefined;
  }

  /**
   * The context to use: `chosen` (a name, or the path of a file: anything with a slash), else the current one.
   * Throws `unavailable` when none is chosen, `not-found` when there is none of that name.
   */
  resolve(chosen: string | undefined): Context {
    const wanted = chosen ?? this.current();
    if (wanted === undefined) {
      const names = this.names();
      const hint =
        names.length === 0
          ? importHint
          : `${listed(names)} Choose it with \`clusterctl context use ${names.length === 1 ? names[0] : "NAME"}\`.`;
      throw new ClusterError("no cluster is chosen", { code: "unavailable", hint });
    }
    const isFile = wanted.includes("/");
    const file = isFile ? wanted : this.#file(wanted);
    let text: string;
    try {
      text = readFileSync(file, "utf8");
    } catch (cause) {
      if (!isErrno(cause, "ENOENT")) {
        throw new ClusterError(`the context ${wanted} cannot be read: ${messageOf(cause)}`, { code: "denied", cause });
      }
      const names = this.names();
      throw new ClusterError(isFile ? `there is no context file ${file}` : `there is no context ${wanted}`, {
        code: "not-found",
        subject: wanted,
        hint: names.length === 0 ? importHint : listed(names),
        cause,
      });
    }
    return parseContext(text, file);
  }

  /** Stores a context under its name, over one of the same name. */
  save(context: Context): void {
    checkContextName(context.name);
    this.#write(this.#file(context.name), `${JSON.stringify(context, null, 2)}\n`);
  }

  /** Makes it the current one. Throws `not-found`. */
  use(name: string): void {
    this.resolve(name);
    this.#write(join(this.#directory, "current"), `${name}\n`);
  }

  /** Forgets it; if it was the current one, there is none. False: there was none of that name. */
  remove(name: string): boolean {
    checkContextName(name);
    if (!existsSync(this.#file(name))) return false;
    rmSync(this.#file(name));
    const file = join(this.#directory, "current");
    if (existsSync(file) && readFileSync(file, "utf8").trim() === name) rmSync(file);
    return true;
  }

  #file(name: string): string {
    return join(this.#directory, "contexts", `${name}.json`);
  }

  #write(file: string, content: string): void {
    this.#makeDirectory(dirname(file));
    rmSync(file, { force: true });
    writeFileSync(file, content, { mode: 0o600 });
    this.#giveToUser(file);
  }

  #makeDirectory(directory: string): void {
    if (existsSync(directory)) return;
    this.#makeDirectory(dirname(directory));
    mkdirSync(directory, { mode: 0o700 });
    this.#giveToUser(directory);
  }

  #giveToUser(path: string): void {
    const uid = Number(this.#environment["SUDO_UID"]);
    const gid = Number(this.#environment["SUDO_GID"]);
    if (isSudo(this.#environment) && uid > 0 && Number.isInteger(gid)) chownSync(path, uid, gid);
  }
}

function isSudo(environment: NodeJS.ProcessEnv): boolean {
  return process.getuid?.() === 0 && environment["SUDO_UID"] !== undefined && !environment["EMBASSY_CONFIG_DIR"];
}

function homeOf(environment: NodeJS.ProcessEnv): string {
  if (isSudo(environment)) {
    const line = readFileSync("/etc/passwd", "utf8")
      .split("\n")
      .find((entry) => entry.split(":")[2] === environment["SUDO_UID"]);
    const home = line?.split(":")[5];
    if (home !== undefined && home !== "") return home;
  }
  return homedir();
}

/** The name that a file's context gets when none is given: the file's own, without extension. */
export function nameOfFile(file: string): string {
  return basename(file).replace(/\.json$/, "");
}

function listed(names: readonly string[]): string {
  return names.length === 1 ? `There is only ${names[0]}.` : `There are ${names.join(", ")}.`;
}
