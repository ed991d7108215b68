import type { SchedulerNode } from "../types.ts";
import { type Attribute, attributeNames, attributeOf } from "./attributes.ts";
import { type Pattern, parsePattern } from "./pattern.ts";
import { compareVersions, parseVersion, type Version } from "./version.ts";

/**
 * The constraint language:
 *
 *     <attribute> == value             <attribute> in (a, b, c)          <attribute> exists
 *     <attribute> != value             <attribute> not in (a, b, c)      <attribute> not exists
 *     <attribute> =~ expression        <attribute> !~ expression
 *     <attribute> < 2.10               and <=, >, >=, on numbers and versions
 *
 * Values compare without regard to case, as in swarm; expressions and label keys with regard to it. A value may stand in
 * single or double quotes, and an architecture under its kernel name (x86_64, aarch64). An absent label equals nothing: `!=`,
 * `not in`, `!~` and `not exists` hold, all others do not; neither does an order comparison with a value that is not a number
 * or version.
 */
export type Operator = "==" | "!=" | "in" | "not in" | "=~" | "!~" | "<" | "<=" | ">" | ">=" | "exists" | "not exists";

export interface Constraint {
  /** As written, trimmed. */
  readonly text: string;
  readonly attribute: string;
  readonly operator: Operator;
  /** Operands: one, several for `in` and `not in`, none for `exists`. */
  readonly values: readonly string[];
  /** Does it hold on this node? */
  readonly matches: (node: SchedulerNode) => boolean;
}

/** What is wrong, where, and what would be right. */
export interface ConstraintError {
  readonly message: string;
  /** Index of the first wrong character in the text. */
  readonly at: number;
  readonly allowed: string;
}

export type ParsedConstraint =
  | { readonly ok: true; readonly constraint: Constraint }
  | { readonly ok: false; readonly error: ConstraintError };

const operatorNames = '"==", "!=", "in", "not in", "=~", "!~", "<", "<=", ">", ">=", "exists" or "not exists"';
const operatorAt = /==|!=|=~|!~|<=|>=|<|>|not\s+in(?![\w.-])|in(?![\w.-])|not\s+exists(?![\w.-])|exists(?![\w.-])/iy;
const attributeAt = /[^\s=!<>~]+/y;

/** Parses one constraint. Never throws. */
export function parseConstraint(text: string): ParsedConstraint {
  const start = text.length - text.trimStart().length;
  attributeAt.lastIndex = start;
  const name = attributeAt.exec(text)?.[0];
  if (name === undefined) return failure("a constraint starts with a node attribute", start, attributeNames);
  const attribute = attributeOf(name);
  if (attribute === undefined) return failure(`unknown attribute "${name}"`, start, attributeNames);

  const operatorStart = skipSpace(text, start + name.length);
  operatorAt.lastIndex = operatorStart;
  const operatorText = operatorAt.exec(text)?.[0];
  if (operatorText === undefined) {
    const found = /^\S+/.exec(text.slice(operatorStart))?.[0];
    return failure(
      found === undefined ? `no operator after "${name}"` : `"${found}" is no operator`,
      operatorStart,
      operatorNames,
    );
  }
  const operator = operatorText.toLowerCase().replace(/\s+/, " ") as Operator;
  const operandStart = skipSpace(text, operatorStart + operatorText.length);
  const operand = text.slice(operandStart).trimEnd();
  const done = (values: readonly string[], matches: Constraint["matches"]): ParsedConstraint => ({
    ok: true,
    constraint: { text: text.trim(), attribute: name, operator, values, matches },
  });

  if (operator === "exists" || operator === "not exists") {
    if (operand !== "") return failure(`"${operator}" takes no value, found "${operand}"`, operandStart, "end of text");
    const wanted = operator === "exists";
    return done([], (node) => (attribute(node) !== undefined) === wanted);
  }
  if (operand === "") return failure(`"${operator}" needs a value`, text.length, operandHelp(operator));

  if (operator === "in" || operator === "not in") {
    const values = parseList(operand, operandStart);
    if (!Array.isArray(values)) return { ok: false, error: values as ConstraintError };
    return done(values, matchSet(attribute, canonical(name, values), operator === "in"));
  }
  const value = unquote(operand);
  if (value === undefined) return failure(`unclosed quote in ${operand}`, operandStart, "a closing quote at the end");
  switch (operator) {
    case "==":
    case "!=":
      return done([value], matchSet(attribute, canonical(name, [value]), operator === "=="));
    case "=~":
    case "!~": {
      const pattern = parsePattern(value);
      if (!pattern.ok) {
        const quote = operand === value ? 0 : 1;
        return failure(pattern.error.message, operandStart + quote + pattern.error.at, pattern.error.allowed);
      }
      return done([value], matchPattern(attribute, pattern.pattern, operator === "=~"));
    }
    default: {
      const version = parseVersion(value);
      if (version === undefined) {
        return failure(`"${value}" is no number or version`, operandStart, operandHelp(operator));
      }
      return done([value], matchOrder(attribute, operator, version));
    }
  }
}

/** The values in the words that nodes use: OCI has names of its own for what Docker and the kernel call x86_64 and aarch64. */
function canonical(name: string, values: readonly string[]): readonly string[] {
  if (name.toLowerCase() !== "node.platform.arch") return values;
  return values.map((value) => ociNames.get(value.toLowerCase()) ?? value);
}

const ociNames: ReadonlyMap<string, string> = new Map([
  ["x86_64", "amd64"],
  ["x86-64", "amd64"],
  ["aarch64", "arm64"],
]);

function matchSet(attribute: Attribute, values: readonly string[], wanted: boolean): Constraint["matches"] {
  const folded = new Set(values.map((value) => value.toLowerCase()));
  return (node) => {
    const actual = attribute(node);
    return (actual !== undefined && folded.has(actual.toLowerCase())) === wanted;
  };
}

function matchPattern(attribute: Attribute, pattern: Pattern, wanted: boolean): Constraint["matches"] {
  return (node) => {
    const actual = attribute(node);
    return (actual !== undefined && pattern.test(actual)) === wanted;
  };
}

function matchOrder(attribute: Attribute, operator: "<" | "<=" | ">" | ">=", wanted: Version): Constraint["matches"] {
  const holds = {
    "<": (o: number) => o < 0,
    "<=": (o: number) => o <= 0,
    ">": (o: number) => o > 0,
    ">=": (o: number) => o >= 0,
  }[operator];
  return (node) => {
    const actual = attribute(node);
    const version = actual === undefined ? undefined : parseVersion(actual);
    return version !== undefined && holds(compareVersions(version, wanted));
  };
}

function parseList(operand: string, at: number): readonly string[] | ConstraintError {
  const opens = operand.startsWith("(");
  if (opens !== operand.endsWith(")")) {
    return {
      message: opens ? "the list has no closing parenthesis" : "the list has no opening parenthesis",
      at: opens ? at + operand.length : at,
      allowed: "(a, b, c)",
    };
  }
  const values: string[] = [];
  let position = at + (opens ? 1 : 0);
  for (const part of (opens ? operand.slice(1, -1) : operand).split(",")) {
    const value = unquote(part.trim());
    if (value === undefined || value === "")
      return { message: "empty or unclosed value in the list", at: position, allowed: "(a, b, c)" };
    values.push(value);
    position += part.length + 1;
  }
  return values;
}

/** The text without its quotes; undefined when a quote is opened and not closed. */
function unquote(text: string): string | undefined {
  const quote = text[0];
  if (quote !== '"' && quote !== "'") return text;
  return text.length > 1 && text.endsWith(quote) ? text.slice(1, -1) : undefined;
}

function operandHelp(operator: Operator): string {
  switch (operator) {
    case "in":
    case "not in":
      return "(a, b, c)";
    case "=~":
    case "!~":
      return "a regular expression";
    case "<":
    case "<=":
    case ">":
    case ">=":
      return 'a number or version: "8", "2.10", "v1.2.3"';
    default:
      return "a value, plain or quoted";
  }
}

function skipSpace(text: string, at: number): number {
  let index = at;
  while (index < text.length && /\s/.test(text[index] as string)) index++;
  return index;
}

function failure(message: string, at: number, allowed: string): ParsedConstraint {
  return { ok: false, error: { message, at, allowed } };
}
