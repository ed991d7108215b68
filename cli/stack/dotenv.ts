import type { Report } from "./diagnostics.ts";
import { interpolate, type Variables } from "./interpolate.ts";
import type { Source } from "./source.ts";

const LINE = /^[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*(?:([=:])[ \t]*|$)/;

/**
 * Reads a file of variables as Compose does: `KEY=value`, `KEY: value`, `export KEY=value`, comments, single quotes (as it
 * is), double quotes (escapes and variables), quotes over several lines. A key without a value is taken from `variables`
 * and left out when it has none. Later lines win, and may use earlier ones.
 */
export function parseEnvFile(source: Source, variables: Variables, report: Report): Map<string, string> {
  const values = new Map<string, string>();
  const lookup: Variables = (name) => variables(name) ?? values.get(name);
  const { text } = source;
  let at = 0;
  while (at < text.length) {
    const lineStart = at;
    const lineEnd = endOfLine(text, at);
    const line = text.slice(at, lineEnd).replace(/\r$/, "");
    at = lineEnd + 1;
    if (/^[ \t]*(#|$)/.test(line)) continue;
    const match = LINE.exec(line);
    const name = match?.[1];
    if (match === null || name === undefined) {
      report.error(
        "syntax",
        [],
        { source, start: lineStart, end: lineStart + line.length },
        "is not a line of a file of variables",
        { hint: "A line is KEY=VALUE, or a comment that begins with #." },
      );
      continue;
    }
    if (match[2] === undefined) {
      const inherited = variables(name);
      if (inherited !== undefined) values.set(name, inherited);
      continue;
    }
    const valueStart = lineStart + match[0].length;
    const quote = text[valueStart];
    if (quote === "'" || quote === '"') {
      const close = closingQuote(text, valueStart + 1, quote);
      if (close === -1) {
        report.error(
          "syntax",
          [],
          { source, start: valueStart, end: lineStart + line.length },
          "a quote is not closed",
        );
        return values;
      }
      const inside = text.slice(valueStart + 1, close);
      values.set(
        name,
        quote === "'"
          ? inside.replaceAll("\\'", "'")
          : replace(unescaped(inside), lookup, source, valueStart, close, report),
      );
      at = endOfLine(text, close) + 1;
      continue;
    }
    const bare = line
      .slice(match[0].length)
      .replace(/(^|[ \t])#.*$/, "")
      .trimEnd();
    values.set(name, replace(bare, lookup, source, valueStart, lineStart + line.length, report));
  }
  return values;
}

/** `format: raw`: each line is KEY=value, taken to its end as it is. */
export function parseRawEnvFile(source: Source, variables: Variables): Map<string, string> {
  const values = new Map<string, string>();
  for (const line of source.text.split(/\r?\n/)) {
    const trimmed = line.trimStart();
    if (trimmed === "" || trimmed.startsWith("#")) continue;
    const cut = trimmed.indexOf("=");
    if (cut !== -1) values.set(trimmed.slice(0, cut), trimmed.slice(cut + 1));
    else {
      const inherited = variables(trimmed);
      if (inherited !== undefined) values.set(trimmed, inherited);
    }
  }
  return values;
}

function endOfLine(text: string, from: number): number {
  const end = text.indexOf("\n", from);
  return end === -1 ? text.length : end;
}

function closingQuote(text: string, from: number, quote: string): number {
  for (let at = from; at < text.length; at++) {
    if (text[at] === "\\") at++;
    else if (text[at] === quote) return at;
  }
  return -1;
}

const ESCAPES: Readonly<Record<string, string>> = { n: "\n", r: "\r", t: "\t", '"': '"', "\\": "\\", $: "$$" };

function unescaped(text: string): string {
  return text.replace(/\\([nrt"\\$])/g, (_, character: string) => ESCAPES[character] ?? character);
}

function replace(text: string, lookup: Variables, source: Source, start: number, end: number, report: Report): string {
  if (!text.includes("$")) return text;
  const { text: result, failures } = interpolate(text, lookup);
  for (const failure of failures) {
    report.error("interpolation", [], { source, start, end }, failure.message, {
      hint: failure.hint,
    });
  }
  return result;
}
