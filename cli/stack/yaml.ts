import { isAlias, isMap, isScalar, isSeq, type Node, type Pair, parseAllDocuments } from "yaml";
import type { Report } from "./diagnostics.ts";
import type { Position, Source } from "./source.ts";
import type { Entry, MapTree, MergeTag, ScalarTree, Tree } from "./tree.ts";
import { parsePlainYaml } from "./yaml-plain.ts";

/** Values that a file may stand for once its anchors are written out; a bomb of anchors is refused before it is walked. */
const MAX_VALUES = 500_000;
/** Levels of nesting. A stack file needs about ten; each level costs the parser a few stack frames. */
const MAX_DEPTH = 100;
const MAX_DOCUMENTS = 20;
const MAX_SYNTAX_ERRORS = 20;

/**
 * Reads YAML 1.2 with anchors, merge keys (`<<`), `!reset` and `!override`. One tree for each document of the file; an
 * empty document gives none. What is wrong goes into the report, with its place.
 */
export function parseYaml(source: Source, report: Report): Tree[] {
  return parsePlainYaml(source, { values: MAX_VALUES, depth: MAX_DEPTH }) ?? parseWholeYaml(source, report);
}

/** The same by the whole parser, which has the say where the text is not plain. */
export function parseWholeYaml(source: Source, report: Report): Tree[] {
  const { text } = source;
  if (tooDeep(text)) {
    report.error("limit", [], { source, start: 0, end: 0 }, `is nested more than ${MAX_DEPTH} levels deep`);
    return [];
  }
  let documents: ReturnType<typeof parseAllDocuments>;
  try {
    documents = parseAllDocuments(text, {
      uniqueKeys: false,
      logLevel: "silent",
      prettyErrors: false,
      version: "1.2",
      stringKeys: false,
    });
  } catch (error) {
    // The parser recurses, so nesting that the scan above cannot see ends its stack.
    const message = error instanceof RangeError ? "is nested too deep" : "cannot be parsed";
    report.error("limit", [], { source, start: 0, end: 0 }, message);
    return [];
  }
  if (!Array.isArray(documents)) return [];
  if (documents.length > MAX_DOCUMENTS) {
    report.error("limit", [], { source, start: 0, end: 0 }, `holds more than ${MAX_DOCUMENTS} documents`);
    return [];
  }
  const trees: Tree[] = [];
  for (const document of documents) {
    if (document.errors.length > 0) {
      for (const { pos, message, code } of untilCause(document.errors, text).slice(0, MAX_SYNTAX_ERRORS)) {
        if (isVariable(text, pos)) {
          reportVariable(source, pos[0], report);
          continue;
        }
        const friendly = code === "BAD_INDENT" && message.startsWith("Flow") ? UNCLOSED : SYNTAX[code];
        report.error(
          "syntax",
          [],
          { source, start: pos[0], end: pos[1] },
          friendly?.message ?? `is not YAML: ${lowerFirst(message)}`,
          friendly?.hint === undefined ? {} : { hint: friendly.hint },
        );
      }
      continue;
    }
    const root = document.contents as Node | null;
    if (root === null || (isScalar(root) && root.value === null && root.tag === undefined)) continue;
    const tree = new Composer(source, report).compose(root, 0);
    if (tree !== undefined) trees.push(tree);
  }
  return trees;
}

/** The errors as they come, up to the first tab or bare variable: what follows one says the same again, or what comes of it. */
function untilCause<E extends { readonly code: string; readonly pos: readonly [number, number] }>(
  errors: readonly E[],
  text: string,
): readonly E[] {
  const cause = errors.findIndex(({ code, pos }) => code === "TAB_AS_INDENT" || isVariable(text, pos));
  return cause < 0 ? errors : errors.slice(0, cause + 1);
}

/** Does the brace of a `${` stand there, that YAML takes for the beginning of a mapping? */
function isVariable(text: string, [at]: readonly [number, number]): boolean {
  return text[at] === "{" && text[at - 1] === "$";
}

function reportVariable(source: Source, brace: number, report: Report): void {
  const { text } = source;
  const before = /[^\s,[\]{}]*\$$/.exec(text.slice(Math.max(0, brace - 200), brace))?.[0] ?? "$";
  const start = brace - before.length;
  const whole = /^(?:[^\s,[\]{}]*\$\{[^{}\n]*\})+[^\s,[\]{}]*/.exec(text.slice(start, start + 1_000))?.[0];
  report.error(
    "syntax",
    [],
    { source, start, end: start + (whole ?? before).length },
    "a variable between { } or [ ] needs quotes: YAML reads its brace as the beginning of a mapping",
    { hint: whole === undefined || whole.includes('"') ? "Put the value in quotes." : `Write "${whole}".` },
  );
}

const SYNTAX: Readonly<Record<string, { readonly message: string; readonly hint?: string }>> = {
  TAB_AS_INDENT: {
    message: "a tab cannot indent YAML",
    hint: "Indent with spaces, on this line and wherever else one is.",
  },
  MULTILINE_IMPLICIT_KEY: {
    message: "a key cannot go over more than one line",
    hint: "Look for a colon or a quote that is missing on this line or the one before.",
  },
  BLOCK_AS_IMPLICIT_KEY: {
    message: "a mapping cannot begin here",
    hint: "A value that holds ': ' needs quotes; a nested mapping begins on the next line, indented.",
  },
  BAD_INDENT: {
    message: "is indented unlike the lines it belongs to",
    hint: "Keys of one mapping begin in the same column.",
  },
  MISSING_CHAR: { message: "a character is missing: a closing quote or bracket, a comma or a colon" },
  BAD_ALIAS: { message: "this alias has no name, or names no anchor" },
};

const UNCLOSED = {
  message: "a [ or { of a line above is not closed",
  hint: "Close it, or indent what belongs inside it.",
};

function lowerFirst(text: string): string {
  return text.charAt(0).toLowerCase() + text.slice(1);
}

/** A cheap look at brackets and indentation, so that hostile nesting is refused before the parser recurses into it. */
function tooDeep(text: string): boolean {
  const indents: number[] = [];
  let brackets = 0;
  for (let at = 0; at < text.length; ) {
    let end = text.indexOf("\n", at);
    if (end === -1) end = text.length;
    let start = at;
    while (text.charCodeAt(start) === SPACE) start++;
    if (start < end) {
      let dashes = 0;
      while (text.charCodeAt(start + 2 * dashes) === DASH && text.charCodeAt(start + 2 * dashes + 1) === SPACE)
        dashes++;
      const indent = start - at;
      while ((indents.at(-1) ?? -1) >= indent) indents.pop();
      indents.push(indent);
      // Brackets in texts need not close; a key at the beginning of a line ends whatever was open.
      if (indent === 0 && /[\w"']/.test(text[at] ?? "")) brackets = 0;
      for (let index = start; index < end; index++) {
        const code = text.charCodeAt(index);
        if (code === 0x5b || code === 0x7b) brackets++;
        else if ((code === 0x5d || code === 0x7d) && brackets > 0) brackets--;
        if (brackets > 4 * MAX_DEPTH) return true;
      }
      if (indents.length + dashes > MAX_DEPTH) return true;
    }
    at = end + 1;
  }
  return false;
}

const SPACE = 0x20;
const DASH = 0x2d;

/** Turns one document of the parser into a tree. */
class Composer {
  readonly #source: Source;
  readonly #report: Report;
  readonly #anchors = new Map<string, Tree>();
  /** How many values a tree stands for, for those that anchors share. */
  readonly #sizes = new WeakMap<Tree, number>();
  #values = 0;
  #stopped = false;

  constructor(source: Source, report: Report) {
    this.#source = source;
    this.#report = report;
  }

  compose(node: Node, depth: number): Tree | undefined {
    if (this.#stopped) return undefined;
    const at = this.#position(node);
    if (depth > MAX_DEPTH) return this.#stop(at, `is nested more than ${MAX_DEPTH} levels deep`);
    const before = this.#values;
    const tree = this.#composeNode(node, depth, at);
    if (tree === undefined) return undefined;
    this.#values++;
    if (this.#values > MAX_VALUES)
      return this.#stop(at, `stands for more than ${MAX_VALUES} values once its anchors are written out`);
    if (!isAlias(node)) this.#sizes.set(tree, this.#values - before);
    if (!isAlias(node) && node.anchor !== undefined) this.#anchors.set(node.anchor, tree);
    return tree;
  }

  #composeNode(node: Node, depth: number, at: Position): Tree | undefined {
    if (isAlias(node)) {
      const target = this.#anchors.get(node.source);
      if (target === undefined) {
        this.#report.error("syntax", [], at, `*${node.source} names no anchor before it`, {
          hint: `An anchor is written &${node.source}, above its first use, and cannot contain itself.`,
        });
        return undefined;
      }
      this.#values += this.#sizes.get(target) ?? 0;
      return target;
    }
    const tag = this.#tag(node, at);
    if (isScalar(node)) return this.#scalar(node, at, tag);
    if (isSeq(node)) {
      const items: Tree[] = [];
      for (const item of node.items) {
        const tree = this.compose(item as Node, depth + 1);
        if (tree !== undefined) items.push(tree);
      }
      return { kind: "list", items, at, ...(tag && { tag }) };
    }
    if (isMap(node)) return this.#map(node.items as Pair<Node, Node | null>[], depth, at, tag);
    return undefined;
  }

  #scalar(node: { value: unknown; source?: string }, at: Position, tag: MergeTag | undefined): ScalarTree {
    const { value } = node;
    const text = typeof value === "string" ? value : value === null ? "" : (node.source ?? String(value));
    const plain = typeof value === "bigint" ? Number(value) : value;
    return { kind: "scalar", value: plain, text, at, ...(tag && { tag }) };
  }

  #map(pairs: readonly Pair<Node, Node | null>[], depth: number, at: Position, tag: MergeTag | undefined): MapTree {
    const entries = new Map<string, Entry>();
    const merged: Entry[] = [];
    for (const pair of pairs) {
      const keyNode = pair.key as Node | null;
      if (keyNode === null || !isScalar(keyNode) || keyNode.value === null) {
        this.#report.error("syntax", [], keyNode === null ? at : this.#position(keyNode), "a key must be a plain word");
        continue;
      }
      const key = this.#position(keyNode);
      const name = typeof keyNode.value === "string" ? keyNode.value : (keyNode.source ?? String(keyNode.value));
      const value: Tree | undefined =
        pair.value === null ? { kind: "scalar", value: null, text: "", at: key } : this.compose(pair.value, depth + 1);
      if (value === undefined) continue;
      // A value that is left out stands where its key stands.
      const placed =
        value.kind === "scalar" && value.value === null && value.at.start === value.at.end
          ? { ...value, at: key }
          : value;
      if (name === "<<") {
        merged.push({ key, value: placed });
        continue;
      }
      const first = entries.get(name);
      if (first !== undefined) {
        const { line } = this.#source.lineColumn(first.key.start);
        this.#report.error(
          "syntax",
          [],
          key,
          `the key ${JSON.stringify(name)} is here twice; it was first given in line ${line}`,
        );
        continue;
      }
      entries.set(name, { key, value: placed });
    }
    for (const { key, value } of merged) this.#mergeInto(entries, key, value);
    return { kind: "map", entries, at, ...(tag && { tag }) };
  }

  /** `<<: *a` or `<<: [*a, *b]`: what the mapping says itself wins, then the first of the list. */
  #mergeInto(entries: Map<string, Entry>, key: Position, value: Tree): void {
    for (const part of value.kind === "list" ? value.items : [value]) {
      if (part.kind !== "map") {
        this.#report.error("syntax", [], key, "<< takes a mapping or a list of mappings");
        continue;
      }
      for (const [name, entry] of part.entries) if (!entries.has(name)) entries.set(name, entry);
    }
  }

  #tag(node: Node, at: Position): MergeTag | undefined {
    const { tag } = node;
    if (tag === undefined || tag.startsWith("tag:yaml.org,2002:")) {
      const known = tag === undefined || /:(str|int|float|bool|null|map|seq|merge)$/.test(tag);
      if (!known)
        this.#report.error("syntax", [], at, `the tag !!${tag.slice(tag.lastIndexOf(":") + 1)} is not supported`);
      return undefined;
    }
    if (tag === "!reset") return "reset";
    if (tag === "!override") return "override";
    if (tag !== "!")
      this.#report.error("syntax", [], at, `the tag ${tag} is not supported`, {
        hint: "Compose knows !reset and !override.",
      });
    return undefined;
  }

  #position(node: Node): Position {
    const range = node.range ?? [0, 0, 0];
    return { source: this.#source, start: range[0], end: range[1] };
  }

  #stop(at: Position, message: string): undefined {
    if (!this.#stopped) this.#report.error("limit", [], at, message);
    this.#stopped = true;
    return undefined;
  }
}
