/**
 * Regular expressions that cannot blow up: all states of the expression at once (Thompson), so a test costs at most (length of
 * text) x (size of expression), whatever the expression; sets of states met before are remembered, so as a rule it costs the
 * length of the text. JavaScript's own engine backtracks, and one label constraint such as `(a+)+$` would stop the control plane.
 *
 * Syntax: literals, `.`, `[a-z]`, `[^a-z]`, `\d \w \s` and their capitals, `\` before a special character, groups `( )`,
 * `|`, `*`, `+`, `?`, `{n}`, `{n,}`, `{n,m}`, `^` and `$`. An expression matches anywhere in the value unless anchored.
 * No look-around, no back-references.
 */
export interface Pattern {
  readonly test: (text: string) => boolean;
}

export interface PatternError {
  readonly message: string;
  readonly at: number;
  readonly allowed: string;
}

export type ParsedPattern =
  | { readonly ok: true; readonly pattern: Pattern }
  | { readonly ok: false; readonly error: PatternError };

/** Characters of an expression: as deep as it can be nested. */
const maxLength = 1_000;
/** Steps that compiling may take, and so states: `x{1000}{1000}` would be a million. */
const maxStates = 2_000;

type CharTest = (code: number) => boolean;

type Ast =
  | { readonly kind: "empty" }
  | { readonly kind: "char"; readonly test: CharTest }
  | { readonly kind: "anchor"; readonly end: boolean }
  | { readonly kind: "seq"; readonly items: readonly Ast[] }
  | { readonly kind: "alt"; readonly items: readonly Ast[] }
  | { readonly kind: "repeat"; readonly item: Ast; readonly min: number; readonly max: number };

/** Parses an expression; the error says where and what is allowed there. Never throws. */
export function parsePattern(source: string): ParsedPattern {
  try {
    if (source.length > maxLength)
      throw new PatternFailure("the expression is too long", maxLength, `at most ${maxLength} characters`);
    const ast = new Parser(source).parse();
    return { ok: true, pattern: compile(ast) };
  } catch (error) {
    if (error instanceof PatternFailure) return { ok: false, error: error.error };
    throw error;
  }
}

class PatternFailure extends Error {
  readonly error: PatternError;
  constructor(message: string, at: number, allowed: string) {
    super(message);
    this.error = { message, at, allowed };
  }
}

const word: CharTest = (c) => (c >= 48 && c <= 57) || (c >= 65 && c <= 90) || (c >= 97 && c <= 122) || c === 95;
const digit: CharTest = (c) => c >= 48 && c <= 57;
const space: CharTest = (c) => c === 32 || (c >= 9 && c <= 13);
const not =
  (test: CharTest): CharTest =>
  (c) =>
    !test(c);
const classes: Readonly<Record<string, CharTest>> = {
  d: digit,
  w: word,
  s: space,
  D: not(digit),
  W: not(word),
  S: not(space),
};

class Parser {
  readonly #source: string;
  #at = 0;
  #depth = 0;

  constructor(source: string) {
    this.#source = source;
  }

  parse(): Ast {
    const ast = this.#alternatives();
    if (this.#at < this.#source.length) throw new PatternFailure('")" without "("', this.#at, "an escaped \\)");
    return ast;
  }

  #alternatives(): Ast {
    if (++this.#depth > 50) throw new PatternFailure("groups nested too deeply", this.#at, "at most 50 levels");
    const items = [this.#sequence()];
    while (this.#source[this.#at] === "|") {
      this.#at++;
      items.push(this.#sequence());
    }
    this.#depth--;
    return items.length === 1 ? (items[0] as Ast) : { kind: "alt", items };
  }

  #sequence(): Ast {
    const items: Ast[] = [];
    for (;;) {
      const char = this.#source[this.#at];
      if (char === undefined || char === "|" || char === ")") return { kind: "seq", items };
      items.push(this.#repeated());
    }
  }

  #repeated(): Ast {
    const start = this.#at;
    let item = this.#atom();
    for (;;) {
      const bounds = this.#bounds();
      if (bounds === undefined) return item;
      if (item.kind === "anchor") throw new PatternFailure("an anchor cannot repeat", start, "a character or group");
      item = { kind: "repeat", item, min: bounds[0], max: bounds[1] };
    }
  }

  #bounds(): readonly [number, number] | undefined {
    const char = this.#source[this.#at];
    if (char === "*" || char === "+" || char === "?") {
      this.#at++;
      return char === "*" ? [0, Infinity] : char === "+" ? [1, Infinity] : [0, 1];
    }
    if (char !== "{") return undefined;
    const match = /^\{(\d{1,4})(,(\d{1,4})?)?\}/.exec(this.#source.slice(this.#at));
    if (match === null)
      throw new PatternFailure('"{" begins no count', this.#at, "{n}, {n,} or {n,m}, or an escaped \\{");
    const min = Number(match[1]);
    const max = match[2] === undefined ? min : match[3] === undefined ? Infinity : Number(match[3]);
    if (max < min) throw new PatternFailure(`count {${min},${max}} runs backwards`, this.#at, "{n,m} with n <= m");
    this.#at += match[0].length;
    return [min, max];
  }

  #atom(): Ast {
    const at = this.#at++;
    const char = this.#source[at] as string;
    switch (char) {
      case "(": {
        if (this.#source[this.#at] === "?") {
          if (!this.#source.startsWith("?:", this.#at)) {
            throw new PatternFailure("look-around and named groups are not supported", at, "( ) or (?: )");
          }
          this.#at += 2;
        }
        const inner = this.#alternatives();
        if (this.#source[this.#at] !== ")") throw new PatternFailure('"(" is not closed', at, "a closing )");
        this.#at++;
        return inner;
      }
      case "[":
        return { kind: "char", test: this.#set(at) };
      case ".":
        return { kind: "char", test: () => true };
      case "^":
        return { kind: "anchor", end: false };
      case "$":
        return { kind: "anchor", end: true };
      case "*":
      case "+":
      case "?":
      case "{":
        throw new PatternFailure(
          `"${char}" has nothing to repeat`,
          at,
          `a character or group before it, or an escaped \\${char}`,
        );
      case "\\":
        return { kind: "char", test: this.#escape(at) };
      default: {
        const code = char.charCodeAt(0);
        return { kind: "char", test: (c) => c === code };
      }
    }
  }

  #escape(at: number): CharTest {
    const char = this.#source[this.#at++];
    if (char === undefined) throw new PatternFailure("the expression ends in a backslash", at, "\\\\ for a backslash");
    if (Object.hasOwn(classes, char)) return classes[char] as CharTest;
    const code = char.charCodeAt(0);
    if (word(code))
      throw new PatternFailure(
        `unknown escape \\${char}`,
        at,
        "\\d \\w \\s \\D \\W \\S, or \\ before a special character",
      );
    return (c) => c === code;
  }

  #set(at: number): CharTest {
    const negated = this.#source[this.#at] === "^";
    if (negated) this.#at++;
    const tests: CharTest[] = [];
    for (let first = true; ; first = false) {
      const position = this.#at;
      const char = this.#source[this.#at++];
      if (char === undefined) throw new PatternFailure('"[" is not closed', at, "a closing ]");
      if (char === "]" && !first) break;
      if (char === "\\") {
        tests.push(this.#escape(position));
        continue;
      }
      const from = char.charCodeAt(0);
      const next = this.#source[this.#at + 1];
      if (this.#source[this.#at] === "-" && next !== undefined && next !== "]") {
        const to = next.charCodeAt(0);
        if (to < from) throw new PatternFailure(`range ${char}-${next} runs backwards`, position, "a range as a-z");
        this.#at += 2;
        tests.push((c) => c >= from && c <= to);
      } else {
        tests.push((c) => c === from);
      }
    }
    const any: CharTest = (c) => tests.some((test) => test(c));
    return negated ? not(any) : any;
  }
}

type State =
  | { readonly kind: "char"; readonly test: CharTest; next: number }
  | { readonly kind: "split"; next: number; other: number }
  | { readonly kind: "anchor"; readonly end: boolean; next: number }
  | { readonly kind: "accept" };

function compile(ast: Ast): Pattern {
  const states: State[] = [{ kind: "accept" }];
  let steps = 0;
  const add = (state: State): number => states.push(state) - 1;
  /** Builds states for `node` that continue at `next`; returns where they begin. */
  const build = (node: Ast, next: number): number => {
    // Counts steps and not states: repeats of nothing, as in `(){1000}{1000}`, make none.
    if (++steps > maxStates)
      throw new PatternFailure("the expression is too large", 0, `at most ${maxStates} characters with all repeats`);
    switch (node.kind) {
      case "empty":
        return next;
      case "char":
        return add({ kind: "char", test: node.test, next });
      case "anchor":
        return add({ kind: "anchor", end: node.end, next });
      case "seq":
        return node.items.reduceRight((after, item) => build(item, after), next);
      case "alt":
        return node.items
          .map((item) => build(item, next))
          .reduceRight((other, one) => add({ kind: "split", next: one, other }));
      case "repeat": {
        let after = next;
        if (node.max === Infinity) {
          const loop = add({ kind: "split", next, other: next });
          (states[loop] as { next: number }).next = build(node.item, loop);
          after = loop;
        } else {
          for (let i = node.min; i < node.max; i++)
            after = add({ kind: "split", next: build(node.item, after), other: next });
        }
        for (let i = 0; i < node.min; i++) after = build(node.item, after);
        return after;
      }
    }
  };
  const matcher = new Matcher(states, build(ast, 0));
  return { test: (text) => matcher.test(text) };
}

/** The states that an expression can be in after some text, and what follows from them. */
interface StateSet {
  /** Those that wait for a character. */
  readonly chars: readonly number[];
  /** Something before here has matched. */
  readonly accepts: boolean;
  /** Something matches if the text ends here. */
  readonly acceptsAtEnd: boolean;
  /** The set after one more character. */
  readonly next: Map<number, StateSet>;
}

/** States and steps in all remembered sets together. */
const mostRemembered = 100_000;

class Matcher {
  readonly #states: readonly State[];
  readonly #start: number;
  readonly #sets = new Map<string, StateSet>();
  #remembered = 0;
  #first: StateSet | undefined;

  constructor(states: readonly State[], start: number) {
    this.#states = states;
    this.#start = start;
  }

  test(text: string): boolean {
    this.#first ??= this.#setOf([this.#start], true);
    let set = this.#first;
    for (let position = 0; position < text.length && !set.accepts; position++) {
      const code = text.charCodeAt(position);
      let next = set.next.get(code);
      if (next === undefined) {
        next = this.#after(set, code);
        set.next.set(code, next);
      }
      set = next;
    }
    return set.accepts || set.acceptsAtEnd;
  }

  #after(set: StateSet, code: number): StateSet {
    if (this.#remembered > mostRemembered) {
      this.#sets.clear();
      this.#remembered = 0;
      this.#first = undefined;
    }
    const entered: number[] = [];
    for (const index of set.chars) {
      const state = this.#states[index];
      if (state?.kind === "char" && state.test(code)) entered.push(state.next);
    }
    // A match may begin anywhere.
    entered.push(this.#start);
    this.#remembered++;
    return this.#setOf(entered, false);
  }

  /** The set of these states and all that follow without a character. */
  #setOf(entered: readonly number[], atStart: boolean): StateSet {
    const { chars, accepts } = this.#follow(entered, atStart, false);
    const acceptsAtEnd = accepts || this.#follow(entered, atStart, true).accepts;
    const key = `${chars.join()} ${accepts} ${acceptsAtEnd}`;
    const known = this.#sets.get(key);
    if (known !== undefined) return known;
    const set = { chars, accepts, acceptsAtEnd, next: new Map<number, StateSet>() };
    this.#sets.set(key, set);
    this.#remembered += chars.length + 1;
    return set;
  }

  #follow(
    entered: readonly number[],
    atStart: boolean,
    atEnd: boolean,
  ): { chars: readonly number[]; accepts: boolean } {
    const seen = new Set<number>();
    const chars: number[] = [];
    let accepts = false;
    const stack = [...entered];
    for (let index = stack.pop(); index !== undefined; index = stack.pop()) {
      if (seen.has(index)) continue;
      seen.add(index);
      const state = this.#states[index] as State;
      switch (state.kind) {
        case "accept":
          accepts = true;
          break;
        case "split":
          stack.push(state.next, state.other);
          break;
        case "anchor":
          if (state.end ? atEnd : atStart) stack.push(state.next);
          break;
        case "char":
          chars.push(index);
          break;
        default:
          state satisfies never;
      }
    }
    return { chars: chars.sort((a, b) => a - b), accepts };
  }
}
