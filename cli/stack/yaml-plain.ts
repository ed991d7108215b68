import type { Position, Source } from "./source.ts";
import type { Entry, ListTree, MapTree, ScalarTree, Tree } from "./tree.ts";

/**
 * Reads the plain part of YAML that nearly every stack file stays within, several times faster than a whole parser: block
 * mappings and lists, one-line scalars and flow collections, literal blocks, anchors, aliases and merge keys. Undefined for
 * anything else, errors above all: then the whole parser has the say. What it does read, it reads as the whole parser does;
 * a test compares the two on every file there is and on mutations of them.
 */
export function parsePlainYaml(
  source: Source,
  limits: { readonly values: number; readonly depth: number },
): Tree[] | undefined {
  try {
    return new PlainParser(source, limits).document();
  } catch (error) {
    if (error === UNSURE) return undefined;
    throw error;
  }
}

/** Thrown, and caught above, where the text leaves the plain part. Not an error: it carries nothing. */
const UNSURE = Symbol("not plain YAML");

const NEWLINE = 0x0a;
const SPACE = 0x20;
const QUOTE = 0x22;
const HASH = 0x23;
const AMPERSAND = 0x26;
const APOSTROPHE = 0x27;
const STAR = 0x2a;
const COMMA = 0x2c;
const DASH = 0x2d;
const COLON = 0x3a;
const OPEN_LIST = 0x5b;
const BACKSLASH = 0x5c;
const CLOSE_LIST = 0x5d;
const PIPE = 0x7c;
const OPEN_MAP = 0x7b;
const CLOSE_MAP = 0x7d;

/** How a plain scalar or key may begin here; YAML allows a little more. */
const PLAIN_START = /[A-Za-z0-9_./<$~+=;()^\\\u00a1-\ud7ff\ue000-\ufffd]/;
const NAME = /[A-Za-z0-9_.-]+/y;

class PlainParser {
  readonly #source: Source;
  readonly #text: string;
  readonly #limits: { readonly values: number; readonly depth: number };
  readonly #anchors = new Map<string, Tree>();
  readonly #sizes = new Map<Tree, number>();
  #values = 0;
  /** Where the next thing to read is; after `#nextLine`, the first character of a line that has content. */
  #at = 0;
  /** Column of that line's first character; -1 at the end of the text. */
  #indent = -1;

  constructor(source: Source, limits: { readonly values: number; readonly depth: number }) {
    this.#source = source;
    this.#text = source.text;
    this.#limits = limits;
  }

  document(): Tree[] {
    if (this.#text.includes("\t") || this.#text.includes("\r")) throw UNSURE;
    this.#nextLine(0);
    if (this.#indent === -1) return [];
    const root = this.#block(this.#indent, 0);
    // A line that is deeper than the value before it (one that would go on with a scalar) ends every loop below, and shows here.
    if (this.#indent !== -1 || root.kind !== "map") throw UNSURE;
    return [root];
  }

  /** Goes to the first line with content at or after `from`, which is the beginning of a line. */
  #nextLine(from: number): void {
    const text = this.#text;
    let start = from;
    while (start < text.length) {
      let at = start;
      while (text.charCodeAt(at) === SPACE) at++;
      const code = text.charCodeAt(at);
      if (at < text.length && code !== NEWLINE && code !== HASH) {
        // A marker of documents.
        if (at === start && (text.startsWith("---", at) || text.startsWith("...", at) || code === 0x25)) throw UNSURE;
        this.#at = at;
        this.#indent = at - start;
        return;
      }
      const end = text.indexOf("\n", at);
      if (end === -1) break;
      start = end + 1;
    }
    this.#at = text.length;
    this.#indent = -1;
  }

  /** After a value: nothing may follow on its line but a comment. */
  #endLine(): void {
    const text = this.#text;
    let at = this.#at;
    while (text.charCodeAt(at) === SPACE) at++;
    if (at < text.length && text.charCodeAt(at) !== NEWLINE) {
      if (text.charCodeAt(at) !== HASH || at === this.#at) throw UNSURE;
      const end = text.indexOf("\n", at);
      at = end === -1 ? text.length : end;
    }
    this.#nextLine(at + 1);
  }

  /** A mapping or a list whose first character is here, in column `indent`. */
  #block(indent: number, depth: number): Tree {
    if (depth > this.#limits.depth) throw UNSURE;
    return this.#isDash(this.#at) ? this.#list(indent, depth) : this.#map(indent, depth);
  }

  #isDash(at: number): boolean {
    const next = this.#text.charCodeAt(at + 1);
    return this.#text.charCodeAt(at) === DASH && (next === SPACE || next === NEWLINE || at + 1 >= this.#text.length);
  }

  #list(indent: number, depth: number): ListTree {
    const start = this.#at;
    const items: Tree[] = [];
    let end = start;
    while (this.#indent === indent && this.#isDash(this.#at)) {
      const dash = this.#at;
      this.#at++;
      while (this.#text.charCodeAt(this.#at) === SPACE) this.#at++;
      const item = this.#isLineEnd()
        ? this.#below(indent, false, depth)
        : this.#inline(indent, this.#at - dash + indent, depth);
      // An empty item: no stack file has a use for one.
      if (item === undefined) throw UNSURE;
      items.push(item);
      end = this.#at;
    }
    return this.#counted({ kind: "list", items, at: this.#position(start, end) });
  }

  #map(indent: number, depth: number): MapTree {
    const start = this.#at;
    const entries = new Map<string, Entry>();
    const merged: Tree[] = [];
    let end = start;
    // The first key of a mapping inside a list item stands behind the dash; the others have the line to themselves.
    let isFirst = true;
    while (isFirst || (this.#indent === indent && !this.#isDash(this.#at))) {
      isFirst = false;
      const { name, position } = this.#key();
      while (this.#text.charCodeAt(this.#at) === SPACE) this.#at++;
      const value =
        (this.#isLineEnd() ? this.#below(indent, true, depth) : this.#inline(indent, undefined, depth)) ??
        this.#null(position);
      end = this.#at;
      if (name === "<<") merged.push(value);
      else if (entries.has(name)) throw UNSURE;
      else entries.set(name, { key: position, value });
    }
    for (const value of merged) this.#mergeInto(entries, value);
    return this.#counted({ kind: "map", entries, at: this.#position(start, end) });
  }

  #mergeInto(entries: Map<string, Entry>, value: Tree): void {
    for (const part of value.kind === "list" ? value.items : [value]) {
      if (part.kind !== "map") throw UNSURE;
      for (const [name, entry] of part.entries) if (!entries.has(name)) entries.set(name, entry);
    }
  }

  #isLineEnd(): boolean {
    const code = this.#text.charCodeAt(this.#at);
    return (
      this.#at >= this.#text.length ||
      code === NEWLINE ||
      (code === HASH && this.#text.charCodeAt(this.#at - 1) === SPACE)
    );
  }

  /** What stands in the lines below a key or dash; undefined when that is nothing. A list may stand in its key's own column. */
  #below(indent: number, isKey: boolean, depth: number): Tree | undefined {
    this.#endLine();
    if (this.#indent > indent) return this.#block(this.#indent, depth + 1);
    return isKey && this.#indent === indent && this.#isDash(this.#at) ? this.#listOfKey(indent, depth) : undefined;
  }

  #listOfKey(indent: number, depth: number): ListTree {
    if (depth + 1 > this.#limits.depth) throw UNSURE;
    const list = this.#list(indent, depth + 1);
    if (this.#indent === indent && this.#isDash(this.#at)) throw UNSURE;
    return list;
  }

  /**
   * A value that begins on this line. `column` is where it begins, if it may be a mapping that goes on in the lines below
   * (the item of a list).
   */
  #inline(indent: number, column: number | undefined, depth: number): Tree {
    const code = this.#text.charCodeAt(this.#at);
    if (code === AMPERSAND) return this.#anchored(indent, depth, column === undefined);
    if (code === STAR) return this.#alias();
    if (code === PIPE) return this.#literal(indent);
    if (code === OPEN_LIST || code === OPEN_MAP) {
      const flow = this.#flow(depth + 1);
      this.#endLine();
      return flow;
    }
    if (column !== undefined && this.#isKeyHere()) return this.#map(column, depth + 1);
    const scalar = code === QUOTE || code === APOSTROPHE ? this.#quoted() : this.#plain();
    this.#endLine();
    return this.#counted(scalar);
  }

  #anchored(indent: number, depth: number, isKey: boolean): Tree {
    NAME.lastIndex = this.#at + 1;
    const name = NAME.exec(this.#text)?.[0];
    if (name === undefined) throw UNSURE;
    this.#at += 1 + name.length;
    const before = this.#values;
    const after = this.#text.charCodeAt(this.#at);
    if (after !== SPACE && after !== NEWLINE) throw UNSURE;
    while (this.#text.charCodeAt(this.#at) === SPACE) this.#at++;
    if ([AMPERSAND, STAR].includes(this.#text.charCodeAt(this.#at))) throw UNSURE;
    const tree = this.#isLineEnd() ? this.#below(indent, isKey, depth) : this.#inline(indent, undefined, depth);
    if (tree === undefined) throw UNSURE;
    this.#anchors.set(name, tree);
    this.#sizes.set(tree, this.#values - before);
    return tree;
  }

  #alias(): Tree {
    NAME.lastIndex = this.#at + 1;
    const name = NAME.exec(this.#text)?.[0] ?? "";
    const tree = this.#anchors.get(name);
    if (tree === undefined) throw UNSURE;
    this.#at += 1 + name.length;
    this.#endLine();
    this.#values += this.#sizes.get(tree) ?? 0;
    if (this.#values > this.#limits.values) throw UNSURE;
    return tree;
  }

  /** `|` and `|-`. */
  #literal(indent: number): ScalarTree {
    const text = this.#text;
    const start = this.#at;
    this.#at++;
    const strip = text.charCodeAt(this.#at) === DASH;
    if (strip) this.#at++;
    if (text.charCodeAt(this.#at) !== NEWLINE) throw UNSURE;
    const lines: string[] = [];
    let own = -1;
    let line = this.#at + 1;
    let end = line;
    while (line < text.length) {
      let at = line;
      while (text.charCodeAt(at) === SPACE) at++;
      const stop = text.indexOf("\n", at) === -1 ? text.length : text.indexOf("\n", at);
      const isBlank = at === stop;
      if (own === -1 && isBlank) throw UNSURE;
      if (own === -1) own = at - line;
      if (own <= indent) throw UNSURE;
      if (!isBlank && at - line < own) break;
      if (isBlank && at - line > own) throw UNSURE;
      lines.push(isBlank ? "" : text.slice(line + own, stop));
      if (!isBlank) end = stop;
      line = stop + 1;
    }
    while (lines.at(-1) === "") lines.pop();
    if (lines.length === 0 || line > text.length) throw UNSURE;
    const value = lines.join("\n") + (strip ? "" : "\n");
    this.#nextLine(line);
    return this.#counted({ kind: "scalar", value, text: value, at: this.#position(start, end) });
  }

  /** Whether a key begins here: a word or a quoted text, with a colon behind it. */
  #isKeyHere(): boolean {
    const { text } = this.#source;
    const code = text.charCodeAt(this.#at);
    if (code === QUOTE || code === APOSTROPHE) {
      const at = this.#at;
      this.#quoted();
      const isKey = text.charCodeAt(this.#at) === COLON;
      this.#at = at;
      return isKey;
    }
    for (let at = this.#at; at < text.length; at++) {
      const here = text.charCodeAt(at);
      if (here === NEWLINE || (here === HASH && text.charCodeAt(at - 1) === SPACE)) return false;
      if (here === COLON && isGap(text.charCodeAt(at + 1), at + 1 >= text.length)) return true;
    }
    return false;
  }

  /** A key and its colon. */
  #key(): { readonly name: string; readonly position: Position } {
    const text = this.#text;
    const start = this.#at;
    const code = text.charCodeAt(start);
    if (code === QUOTE || code === APOSTROPHE) {
      const { text: name } = this.#quoted();
      const position = this.#position(start, this.#at);
      if (text.charCodeAt(this.#at) !== COLON || !isGap(text.charCodeAt(this.#at + 1), this.#at + 1 >= text.length))
        throw UNSURE;
      this.#at++;
      return { name, position };
    }
    if (!PLAIN_START.test(text[start] ?? "")) throw UNSURE;
    let at = start;
    for (; ; at++) {
      const here = text.charCodeAt(at);
      if (at >= text.length || here === NEWLINE || here === HASH) throw UNSURE;
      if (here === COLON && isGap(text.charCodeAt(at + 1), at + 1 >= text.length)) break;
    }
    const name = text.slice(start, at);
    if (name.endsWith(" ") || name.length > 500 || isNull(name)) throw UNSURE;
    this.#at = at + 1;
    return { name, position: this.#position(start, at) };
  }

  /** A plain scalar up to the end of the line or a comment. */
  #plain(): ScalarTree {
    const text = this.#text;
    const start = this.#at;
    const first = text[start] ?? "";
    const next = text.charCodeAt(start + 1);
    if (!PLAIN_START.test(first) && !(first === "-" && !isGap(next, false) && start + 1 < text.length)) throw UNSURE;
    let end = start;
    for (let at = start; at < text.length; at++) {
      const here = text.charCodeAt(at);
      if (here === NEWLINE) break;
      if (here === HASH && text.charCodeAt(at - 1) === SPACE) break;
      if (here === COLON && isGap(text.charCodeAt(at + 1), at + 1 >= text.length)) throw UNSURE;
      if (here !== SPACE) end = at + 1;
    }
    this.#at = end;
    return this.#resolved(text.slice(start, end), this.#position(start, end));
  }

  /** A quoted scalar on one line. */
  #quoted(): ScalarTree {
    const text = this.#text;
    const start = this.#at;
    const quote = text.charCodeAt(start);
    let value = "";
    let from = start + 1;
    for (let at = from; ; at++) {
      const here = text.charCodeAt(at);
      if (at >= text.length || here === NEWLINE) throw UNSURE;
      if (here === BACKSLASH && quote === QUOTE) {
        const character = ESCAPES[text[at + 1] ?? ""];
        if (character === undefined) throw UNSURE;
        value += text.slice(from, at) + character;
        at++;
        from = at + 1;
      } else if (here === quote) {
        if (quote === APOSTROPHE && text.charCodeAt(at + 1) === APOSTROPHE) {
          value += text.slice(from, at + 1);
          at++;
          from = at + 1;
          continue;
        }
        value += text.slice(from, at);
        this.#at = at + 1;
        return { kind: "scalar", value, text: value, at: this.#position(start, at + 1) };
      }
    }
  }

  /** A flow collection on one line. */
  #flow(depth: number): Tree {
    if (depth > this.#limits.depth) throw UNSURE;
    const isList = this.#text.charCodeAt(this.#at) === OPEN_LIST;
    const close = isList ? CLOSE_LIST : CLOSE_MAP;
    const start = this.#at;
    const items: Tree[] = [];
    const entries = new Map<string, Entry>();
    const merged: Tree[] = [];
    this.#at++;
    for (let isFirst = true; ; isFirst = false) {
      this.#spaces();
      if (this.#text.charCodeAt(this.#at) === close && isFirst) break;
      if (isList) items.push(this.#flowValue(depth));
      else {
        const { key, value } = this.#flowPair(depth);
        if (key.text === "<<") merged.push(value);
        else if (entries.has(key.text)) throw UNSURE;
        else entries.set(key.text, { key: key.at, value });
      }
      this.#spaces();
      const code = this.#text.charCodeAt(this.#at);
      if (code === close) break;
      if (code !== COMMA) throw UNSURE;
      this.#at++;
    }
    this.#at++;
    for (const value of merged) this.#mergeInto(entries, value);
    const at = this.#position(start, this.#at);
    return this.#counted(isList ? { kind: "list", items, at } : { kind: "map", entries, at });
  }

  #flowPair(depth: number): { readonly key: ScalarTree; readonly value: Tree } {
    const code = this.#text.charCodeAt(this.#at);
    const isQuoted = code === QUOTE || code === APOSTROPHE;
    const key = isQuoted ? this.#quoted() : this.#flowPlain();
    if (!isQuoted && isNull(key.text)) throw UNSURE;
    // The name of a key is its text, whatever it would be as a value.
    const name: ScalarTree = isQuoted ? key : { ...key, text: this.#text.slice(key.at.start, key.at.end) };
    this.#spaces();
    if (this.#text.charCodeAt(this.#at) !== COLON) throw UNSURE;
    this.#at++;
    const after = this.#text.charCodeAt(this.#at);
    if (after === COMMA || after === CLOSE_MAP) return { key: name, value: this.#null(name.at) };
    if (after !== SPACE) throw UNSURE;
    this.#spaces();
    const next = this.#text.charCodeAt(this.#at);
    if (next === COMMA || next === CLOSE_MAP) return { key: name, value: this.#null(name.at) };
    return { key: name, value: this.#flowValue(depth) };
  }

  #flowValue(depth: number): Tree {
    const code = this.#text.charCodeAt(this.#at);
    if (code === OPEN_LIST || code === OPEN_MAP) return this.#flow(depth + 1);
    if (code === STAR || code === AMPERSAND) throw UNSURE;
    const scalar = this.#counted(code === QUOTE || code === APOSTROPHE ? this.#quoted() : this.#flowPlain());
    const after = this.#text.charCodeAt(this.#at);
    if (after !== SPACE && after !== COMMA && after !== CLOSE_LIST && after !== CLOSE_MAP) throw UNSURE;
    return scalar;
  }

  #flowPlain(): ScalarTree {
    const text = this.#text;
    const start = this.#at;
    const first = text[start] ?? "";
    const next = text.charCodeAt(start + 1);
    if (
      !PLAIN_START.test(first) &&
      !(first === "-" && !isGap(next, false) && next !== COMMA && next !== CLOSE_LIST && next !== CLOSE_MAP)
    )
      throw UNSURE;
    let end = start;
    for (let at = start; ; at++) {
      const here = text.charCodeAt(at);
      if (
        at >= text.length ||
        here === NEWLINE ||
        here === HASH ||
        here === OPEN_LIST ||
        here === OPEN_MAP ||
        here === QUOTE
      )
        throw UNSURE;
      if (here === COMMA || here === CLOSE_LIST || here === CLOSE_MAP) break;
      if (here === COLON) {
        const after = text.charCodeAt(at + 1);
        if (isGap(after, at + 1 >= text.length)) break;
        if (
          after === COMMA ||
          after === CLOSE_LIST ||
          after === CLOSE_MAP ||
          after === OPEN_LIST ||
          after === OPEN_MAP
        ) {
          if (at + 1 < text.length && after !== OPEN_LIST && after !== OPEN_MAP) break;
          throw UNSURE;
        }
      }
      if (here !== SPACE) end = at + 1;
    }
    this.#at = end;
    return this.#resolved(text.slice(start, end), this.#position(start, end));
  }

  #spaces(): void {
    while (this.#text.charCodeAt(this.#at) === SPACE) this.#at++;
  }

  /** What YAML 1.2's core schema makes of a plain word. */
  #resolved(written: string, at: Position): ScalarTree {
    const code = written.charCodeAt(0);
    const isWord = (code >= 0x61 && code <= 0x7a) || (code >= 0x41 && code <= 0x5a);
    if (isWord && !WORDS.has(written)) return { kind: "scalar", value: written, text: written, at };
    if (isNull(written)) return { kind: "scalar", value: null, text: "", at };
    if (WORDS.has(written)) return { kind: "scalar", value: /^t/i.test(written), text: written, at };
    if (/^[-+]?[0-9]+$/.test(written))
      return { kind: "scalar", value: Number.parseInt(written, 10), text: written, at };
    if (/^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)$/.test(written))
      return { kind: "scalar", value: Number.parseFloat(written), text: written, at };
    // Hexadecimal, octal, exponents, infinities: rare enough for the whole parser.
    if (/^[-+]?(?:\.[0-9]|[0-9]|\.inf|\.nan)/i.test(written) && /^[-+]?(0x|0o|\.inf|\.nan|[0-9.]+e)/i.test(written))
      throw UNSURE;
    return { kind: "scalar", value: written, text: written, at };
  }

  #null(at: Position): ScalarTree {
    return this.#counted({ kind: "scalar", value: null, text: "", at });
  }

  #counted<T extends Tree>(tree: T): T {
    this.#values++;
    if (this.#values > this.#limits.values) throw UNSURE;
    return tree;
  }

  #position(start: number, end: number): Position {
    return { source: this.#source, start, end };
  }
}

const WORDS = new Set(["null", "Null", "NULL", "true", "True", "TRUE", "false", "False", "FALSE"]);
const ESCAPES: Readonly<Record<string, string>> = { n: "\n", t: "\t", '"': '"', "\\": "\\", "/": "/" };

function isNull(word: string): boolean {
  return word === "~" || word === "" || word === "null" || word === "Null" || word === "NULL";
}

function isGap(code: number, isEnd: boolean): boolean {
  return isEnd || code === SPACE || code === NEWLINE;
}
