import type { Position } from "./source.ts";
import { formatPath, type Path } from "./tree.ts";

/** What a program may tell apart; people read the message. */
export type DiagnosticCode =
  | "syntax" // not YAML, or a YAML feature that a stack file cannot use
  | "file" // a file that cannot be read
  | "limit" // too large, too deep, too many
  | "interpolation"
  | "unknown-key"
  | "unsupported-later"
  | "unsupported"
  | "type"
  | "value"
  | "missing"
  | "reference"
  | "cycle"
  | "conflict"
  | "not-in-cluster" // loaded, but the cluster of this version does not run it
  | "note";

/** One thing that is wrong, or worth a word, with its place. */
export interface Diagnostic {
  readonly severity: "error" | "warning";
  readonly code: DiagnosticCode;
  /** From the top of the stack file; empty for what concerns a file as a whole. */
  readonly path: Path;
  /** What is wrong and what was found, without path and place. */
  readonly message: string;
  /** What to do. */
  readonly hint?: string;
  /** The nearest valid spelling. */
  readonly suggestion?: string;
  readonly at?: Position;
}

const MAX_ERRORS = 1000;

/** Collects what a load finds, so that one run shows all of a file's errors. */
export class Report {
  readonly errors: Diagnostic[] = [];
  readonly warnings: Diagnostic[] = [];

  /** Errors beyond the first thousand, which nobody reads, are only counted. */
  more = 0;

  error(code: DiagnosticCode, path: Path, at: Position | undefined, message: string, extra: Extra = {}): void {
    if (this.errors.length >= MAX_ERRORS) {
      this.more++;
      return;
    }
    this.errors.push({ severity: "error", code, path, message, ...(at && { at }), ...extra });
  }

  warn(path: Path, at: Position | undefined, message: string, extra: Extra = {}): void {
    this.warnings.push({ severity: "warning", code: "note", path, message, ...(at && { at }), ...extra });
  }
}

/** What a diagnostic may say besides its message. */
export interface Extra {
  readonly hint?: string;
  readonly suggestion?: string;
}

/** A diagnostic for programs: `--output json`. Lines and columns count from 1. */
export interface DiagnosticJson {
  readonly severity: "error" | "warning";
  readonly code: DiagnosticCode;
  readonly path: string;
  readonly message: string;
  readonly hint?: string;
  readonly suggestion?: string;
  readonly file?: string;
  readonly line?: number;
  readonly column?: number;
}

/** The diagnostic as plain data. */
export function diagnosticJson(diagnostic: Diagnostic): DiagnosticJson {
  const { severity, code, path, message, hint, suggestion, at } = diagnostic;
  return {
    severity,
    code,
    path: formatPath(path),
    message,
    ...(hint !== undefined && { hint }),
    ...(suggestion !== undefined && { suggestion }),
    ...(at && { file: at.source.name, ...at.source.lineColumn(at.start) }),
  };
}

/** One line: `stack.yml:12:9: services.web.links[0]: no service is called "database" (hint)`. */
export function formatDiagnosticLine(diagnostic: Diagnostic): string {
  const { at, path, message, hint, suggestion } = diagnostic;
  const place = at === undefined ? "" : `${at.source.name}:${placeOf(at)}: `;
  const where = path.length > 0 ? `${formatPath(path)}: ` : "";
  const guess = suggestion === undefined ? "" : ` Did you mean ${suggestion}?`;
  return escaped(`${place}${where}${message}${guess}${hint === undefined ? "" : ` ${hint}`}`);
}

/**
 * A diagnostic as people read it, with the line of the file and a caret:
 *
 *     error: services.web.links[0]: no service is called "database"
 *       --> stack.yml:12:9
 *        |
 *     12 |       - database:db
 *        |         ^^^^^^^^^^^
 *        = did you mean db?
 *        = services of this stack: db, web
 */
export function formatDiagnostic(diagnostic: Diagnostic): string {
  const { severity, at, path, message, hint, suggestion } = diagnostic;
  const lines = [escaped(`${severity}: ${path.length > 0 ? `${formatPath(path)}: ` : ""}${message}`)];
  let margin = "  ";
  if (at !== undefined) {
    const { line, column } = at.source.lineColumn(at.start);
    margin = " ".repeat(String(line).length);
    lines.push(`${margin}--> ${escaped(at.source.name)}:${line}:${column}`, ...excerpt(at, line, column, margin));
  }
  if (suggestion !== undefined) lines.push(`${margin} = did you mean ${escaped(suggestion)}?`);
  if (hint !== undefined) lines.push(`${margin} = ${escaped(hint)}`);
  return lines.join("\n");
}

/** All of them, in the order of the files and lines, errors and warnings alike, separated by an empty line. */
export function formatDiagnostics(diagnostics: readonly Diagnostic[]): string {
  return diagnostics.map(formatDiagnostic).join("\n\n");
}

/** By file in order of first mention, then by place. Those without a place come first. */
export function sortDiagnostics(diagnostics: readonly Diagnostic[]): Diagnostic[] {
  const order = new Map<unknown, number>();
  for (const { at } of diagnostics) if (at && !order.has(at.source)) order.set(at.source, order.size);
  const rank = (diagnostic: Diagnostic): number => (diagnostic.at ? (order.get(diagnostic.at.source) ?? 0) + 1 : 0);
  return diagnostics.toSorted((a, b) => rank(a) - rank(b) || (a.at?.start ?? 0) - (b.at?.start ?? 0));
}

const EXCERPT_WIDTH = 120;

function excerpt(at: Position, line: number, column: number, margin: string): string[] {
  const full = visible(at.source.lineText(line));
  // A very long line (minified JSON) is cut so that the caret stays in view.
  const from = column > EXCERPT_WIDTH - 20 ? column - 40 : 0;
  const cut = full.slice(from, from + EXCERPT_WIDTH);
  const text = `${from > 0 ? "..." : ""}${cut}${from + EXCERPT_WIDTH < full.length ? "..." : ""}`;
  const before = (from > 0 ? 3 : 0) + column - 1 - from;
  const length = Math.max(1, Math.min(at.end - at.start, text.length - before));
  // Tabs before the caret stay tabs, so that it stands under its character however wide a terminal makes them.
  const pad = text.slice(0, before).replace(/[^\t]/g, " ").padEnd(before);
  return [`${margin} |`, `${line} | ${text}`, `${margin} | ${pad}${"^".repeat(length)}`];
}

// What moves the cursor, ends the line, or turns the direction of writing would let a file write to the terminal.
const unwritable = /[^\P{Cc}\t]|[\u2028-\u202e\u2066-\u2069]/gu;

/** An excerpt, in which everything keeps its width. */
function visible(text: string): string {
  return text.replace(unwritable, "\u{fffd}");
}

/** Words around the excerpt, on their lines. */
function escaped(text: string): string {
  return text.replace(unwritable, (character) =>
    character === "\n" ? character : `\\u{${character.codePointAt(0)?.toString(16)}}`,
  );
}

function placeOf(at: Position): string {
  const { line, column } = at.source.lineColumn(at.start);
  return `${line}:${column}`;
}
