import type { Report } from "./diagnostics.ts";
import type { Position } from "./source.ts";
import type { Entry, Path, ScalarTree, Tree } from "./tree.ts";

/** Variables that a file may use: a name gives its value, or undefined when it is not set. */
export type Variables = (name: string) => string | undefined;

/** Something that cannot be replaced: why, and which part of the text. */
export interface Failure {
  readonly message: string;
  readonly hint: string;
  readonly start: number;
  readonly end: number;
}

export interface Interpolated {
  readonly text: string;
  readonly failures: readonly Failure[];
  /** Names that were not set and had no default: replaced by nothing. */
  readonly unset: readonly string[];
}

const NAME = /[a-zA-Z_][a-zA-Z0-9_]*/y;
const MAX_NESTING = 20;
/** Longest text that a replacement may give; a chain of defaults cannot double itself without end. */
const MAX_LENGTH = 1_000_000;

/**
 * Replaces `$NAME`, `${NAME}`, `${NAME-default}`, `${NAME:-default}`, `${NAME?error}`, `${NAME:?error}`,
 * `${NAME+instead}` and `${NAME:+instead}`, nested to any sensible depth; `$$` is a dollar sign. With a colon an empty
 * value counts as not set. Defaults are only looked at when they are used, so an error in the others is none.
 */
export function interpolate(text: string, variables: Variables): Interpolated {
  const failures: Failure[] = [];
  const unset: string[] = [];
  const result = new Interpolator(text, variables, failures, unset).run();
  return { text: result, failures, unset };
}

const DOLLAR = "A dollar sign that is meant as one is written $$.";

class Interpolator {
  readonly #text: string;
  readonly #variables: Variables;
  readonly #failures: Failure[];
  readonly #unset: string[];
  #at = 0;

  constructor(text: string, variables: Variables, failures: Failure[], unset: string[]) {
    this.#text = text;
    this.#variables = variables;
    this.#failures = failures;
    this.#unset = unset;
  }

  run(): string {
    return this.#until(undefined, true, 0);
  }

  /** Reads up to a closing brace (consumed) or the end. With `live` false the text is only skipped. */
  #until(close: "}" | undefined, live: boolean, depth: number): string {
    const text = this.#text;
    let result = "";
    while (this.#at < text.length) {
      const character = text[this.#at] ?? "";
      if (character === close) {
        this.#at++;
        return result;
      }
      if (character !== "$") {
        result += character;
        this.#at++;
        continue;
      }
      const next = text[this.#at + 1];
      if (next === "$") {
        result += "$";
        this.#at += 2;
      } else if (next === "{") {
        result += this.#braced(live, depth);
      } else {
        const name = this.#name(this.#at + 1);
        if (name === undefined) {
          if (live) this.#fail(this.#at, this.#at + 1, "a $ stands before what is not a variable");
          this.#at++;
        } else {
          this.#at += 1 + name.length;
          if (live) result += this.#value(name);
        }
      }
      if (result.length > MAX_LENGTH) {
        this.#fail(0, text.length, `becomes longer than ${MAX_LENGTH} characters`);
        this.#at = text.length;
        return "";
      }
    }
    return result;
  }

  #braced(live: boolean, depth: number): string {
    const start = this.#at;
    const text = this.#text;
    if (depth >= MAX_NESTING) {
      this.#fail(start, text.length, `holds variables nested more than ${MAX_NESTING} deep`);
      this.#at = text.length;
      return "";
    }
    const name = this.#name(start + 2);
    if (name === undefined) {
      this.#at = this.#skipTo(start + 2);
      if (live) this.#fail(start, this.#at, `${JSON.stringify(text.slice(start, this.#at))} names no variable`);
      return "";
    }
    this.#at = start + 2 + name.length;
    const operator = /^(:?[-?+])?/.exec(text.slice(this.#at, this.#at + 2))?.[0] ?? "";
    const value = this.#variables(name);
    const present = value !== undefined && !(operator.startsWith(":") && value === "");
    const kind = operator.at(-1);
    if (kind === undefined) {
      if (text[this.#at] !== "}") {
        this.#at = this.#skipTo(this.#at);
        if (live)
          this.#fail(start, this.#at, `${JSON.stringify(text.slice(start, this.#at))} is not a form of variable`);
        return "";
      }
      this.#at++;
      return live ? this.#value(name) : "";
    }
    this.#at += operator.length;
    const useWord = live && (kind === "+" ? present : !present);
    const wordStart = this.#at;
    const word = this.#until("}", useWord, depth + 1);
    if (text[this.#at - 1] !== "}" || this.#at <= wordStart) {
      if (live) this.#fail(start, text.length, "a ${ is not closed");
      return "";
    }
    if (!live) return "";
    if (kind === "+") return present ? word : "";
    if (present) return value;
    if (kind === "-") return word;
    this.#fail(
      start,
      this.#at,
      `the variable ${name} is ${value === "" ? "empty" : "not set"}${word === "" ? "" : `: ${word}`}`,
      `Set ${name} in the environment or in an env file.`,
    );
    return "";
  }

  #value(name: string): string {
    const value = this.#variables(name);
    if (value === undefined) this.#unset.push(name);
    return value ?? "";
  }

  #name(at: number): string | undefined {
    NAME.lastIndex = at;
    return NAME.exec(this.#text)?.[0];
  }

  #skipTo(at: number): number {
    const close = this.#text.indexOf("}", at);
    return close === -1 ? this.#text.length : close + 1;
  }

  #fail(start: number, end: number, message: string, hint = DOLLAR): void {
    this.#failures.push({ message, hint, start, end });
  }
}

/** Replaces variables in every value of a tree, but not in keys. Shared parts stay shared. */
export function interpolateTree(tree: Tree, variables: Variables, report: Report, warned: Set<string>): Tree {
  const done = new Map<Tree, Tree>();
  const path: (string | number)[] = [];
  const walk = (part: Tree, step: string | number): Tree => {
    if (part.kind === "scalar") {
      if (typeof part.value !== "string" || !part.text.includes("$")) return part;
    }
    const known = done.get(part);
    if (known !== undefined) return known;
    path.push(step);
    const result = replace(part);
    path.pop();
    done.set(part, result);
    return result;
  };
  const replace = (part: Tree): Tree => {
    if (part.kind === "scalar") return interpolateScalar(part, path.slice(1), variables, report, warned);
    if (part.kind === "list") {
      let changed = false;
      const items = part.items.map((item, index) => {
        const result = walk(item, index);
        changed ||= result !== item;
        return result;
      });
      return changed ? { ...part, items } : part;
    }
    let entries: Map<string, Entry> | undefined;
    for (const [key, entry] of part.entries) {
      const value = walk(entry.value, key);
      if (value !== entry.value) {
        entries ??= new Map(part.entries);
        entries.set(key, { key: entry.key, value });
      }
    }
    return entries === undefined ? part : { ...part, entries };
  };
  return walk(tree, "");
}

function interpolateScalar(
  scalar: ScalarTree,
  path: Path,
  variables: Variables,
  report: Report,
  warned: Set<string>,
): ScalarTree {
  const { text, failures, unset } = interpolate(scalar.text, variables);
  for (const failure of failures) {
    report.error("interpolation", path, partOf(scalar, failure), failure.message, { hint: failure.hint });
  }
  for (const name of unset) {
    if (warned.has(name)) continue;
    warned.add(name);
    report.warn(
      path,
      partOf(scalar, { start: scalar.text.indexOf(`$${name}`), end: 0 }),
      `the variable ${name} is not set; nothing is put in its place`,
      {
        hint: `Set ${name}, or give a default: \${${name}:-default}.`,
      },
    );
  }
  // What could not be replaced has been reported: whoever reads the value need not report it again.
  return failures.length > 0 ? { ...scalar, value: undefined } : { ...scalar, value: text, text };
}

/** The place of a part of a scalar, when the file spells it as it is; else the whole scalar. */
function partOf(scalar: ScalarTree, part: { readonly start: number; readonly end: number }): Position {
  const { source, start, end } = scalar.at;
  const written = source.text.slice(start, end);
  const offset =
    part.start < 0 ? -1 : written.indexOf(scalar.text.slice(part.start, Math.max(part.end, part.start + 1)));
  return offset === -1
    ? scalar.at
    : { source, start: start + offset, end: Math.min(end, start + offset + Math.max(1, part.end - part.start)) };
}
