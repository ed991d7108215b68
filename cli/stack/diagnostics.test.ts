import { describe, expect, it } from "vitest";
import { nearest } from "../../lib/words/nearest.ts";
import {
  type Diagnostic,
  diagnosticJson,
  formatDiagnostic,
  formatDiagnosticLine,
  formatDiagnostics,
  sortDiagnostics,
} from "./diagnostics.ts";
import { loadStack, memoryFiles } from "./index.ts";
import { Source } from "./source.ts";

function diagnostic(text: string, word: string, more: Partial<Diagnostic> = {}): Diagnostic {
  const source = new Source("stack.yml", "/stack.yml", text);
  const start = text.indexOf(word);
  return {
    severity: "error",
    code: "value",
    path: ["services", "web", "links", 0],
    message: "is wrong",
    at: { source, start, end: start + word.length },
    ...more,
  };
}

it("shows the line with a caret under what is wrong", () => {
  const one = diagnostic("services:\n  web:\n    links: [databse]\n", "databse", {
    suggestion: "database",
    hint: "Look again.",
  });
  expect(formatDiagnostic(one)).toBe(
    [
      "error: services.web.links[0]: is wrong",
      " --> stack.yml:3:13",
      "  |",
      "3 |     links: [databse]",
      "  |             ^^^^^^^",
      "  = did you mean database?",
      "  = Look again.",
    ].join("\n"),
  );
  expect(formatDiagnosticLine(one)).toBe(
    "stack.yml:3:13: services.web.links[0]: is wrong Did you mean database? Look again.",
  );
  expect(diagnosticJson(one)).toEqual({
    severity: "error",
    code: "value",
    path: "services.web.links[0]",
    message: "is wrong",
    hint: "Look again.",
    suggestion: "database",
    file: "stack.yml",
    line: 3,
    column: 13,
  });
});

it("keeps tabs before the caret, so that it stands under its character", () => {
  expect(formatDiagnostic(diagnostic("\ta:\tword\n", "word")).split("\n").slice(3)).toEqual([
    "1 | \ta:\tword",
    "  | \t  \t^^^^",
  ]);
});

it("cuts long lines around the caret and ends the caret with the line", () => {
  const lines = formatDiagnostic(diagnostic(`${"x".repeat(500)}word${"y".repeat(500)}`, "word")).split("\n");
  expect(lines[3]?.length).toBeLessThan(140);
  expect(lines[3]?.slice(lines[4]?.indexOf("^"), (lines[4]?.lastIndexOf("^") ?? 0) + 1)).toBe("word");
  const over = formatDiagnostic(diagnostic("a: [b,\n  c]\n", "[b,\n  c]")).split("\n");
  expect(over[4]).toBe("  |    ^^^");
});

it("does not write a file's control characters to the terminal", () => {
  expect(formatDiagnostic(diagnostic("a: \u001b[31mred\n", "red"))).not.toContain("\u001b");
});

it("sorts by file and place", () => {
  const text = "one two three";
  const [a, b, c] = [diagnostic(text, "three"), diagnostic(text, "one"), { ...diagnostic(text, "two") }];
  const { at: _, ...nowhere } = a;
  const source = a.at?.source ?? new Source("", "", "");
  const place = (one: Diagnostic) => ({ ...one, at: { source, start: one.at?.start ?? 0, end: one.at?.end ?? 0 } });
  expect(sortDiagnostics([place(a), place(b), place(c), nowhere])).toEqual([nowhere, place(b), place(c), place(a)]);
});

it.each([
  ["imagee", "image"],
  ["port", "ports"],
  ["restart-policy", "restart_policy"],
  ["prots", "ports"],
  ["Image", "image"],
  ["xyz", undefined],
  ["x".repeat(100), undefined],
])("nearest to %s is %s", (word, expected) => {
  expect(nearest(word, ["image", "ports", "restart_policy", "networks"])).toBe(expected);
});

describe("a file that would write to the terminal", () => {
  it.each([
    ["an escape in a name", 'services: {"we\\u001b[31mb": {imag: a}}'],
    ["a name that turns the direction", "services: {web: {image: a, links: [\u202egnol]}}"],
  ])("is escaped: %s", (_what, text) => {
    const reader = memoryFiles({ "/x/stack.yml": Buffer.from(text) });
    const loaded = loadStack({ files: ["stack.yml"], workingDirectory: "/x", reader, environment: {} });
    const result = loaded.ok ? "" : formatDiagnostics(loaded.errors);
    for (const character of ["\u001b", "\u202e"]) expect(result).not.toContain(character);
    expect(result).toMatch(/\\u\{?(?:1b|001b|202e)|\u{fffd}/u);
  });

  it("is not shown when it is no text at all", () => {
    const reader = memoryFiles({ "/x/stack.yml": Uint8Array.of(0x7f, 0x45, 0x4c, 0x46, 0x02, 0x00, 0xff, 0x00) });
    const loaded = loadStack({ files: ["stack.yml"], workingDirectory: "/x", reader, environment: {} });
    expect(loaded.ok ? "" : formatDiagnostics(loaded.errors)).toBe("error: the file stack.yml is not a text file");
  });
});
