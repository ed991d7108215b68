import fc from "fast-check";
import { expect, it } from "vitest";
import { mutatedTexts } from "../../test/conformance/fuzz.ts";
import { readStackCases } from "../../test/conformance/stacks.ts";
import { Report } from "./diagnostics.ts";
import { Source } from "./source.ts";
import type { Tree } from "./tree.ts";
import { parseWholeYaml } from "./yaml.ts";
import { parsePlainYaml } from "./yaml-plain.ts";

/** A tree as it is compared: ends of collections and blocks are where the next thing begins, which nobody reads. */
function comparable(tree: Tree): unknown {
  const place = (at: Tree["at"]) => at.start;
  if (tree.kind === "scalar") {
    const isBlock = tree.at.source.text[tree.at.start] === "|";
    return [tree.value, tree.text, place(tree.at), isBlock ? 0 : tree.at.end];
  }
  if (tree.kind === "list") return [place(tree.at), tree.items.map(comparable)];
  return [
    place(tree.at),
    [...tree.entries].map(([name, entry]) => [name, entry.key.start, entry.key.end, comparable(entry.value)]),
  ];
}

const LIMITS = { values: 500_000, depth: 100 };

/** Whether the plain parser took the text; throws unless it then says what the whole parser says. */
function compare(text: string): boolean {
  const source = new Source("a.yml", "/a.yml", text);
  const plain = parsePlainYaml(source, LIMITS);
  if (plain === undefined) return false;
  const report = new Report();
  const whole = parseWholeYaml(source, report);
  expect(report.errors.map((error) => error.message)).toEqual([]);
  expect(plain.map(comparable)).toEqual(whole.map(comparable));
  return true;
}

it("the plain parser reads the whole files as the whole parser does, and most of them at all", () => {
  const texts = readStackCases()
    .flatMap((one) => (one.expected?.kind === "stack" ? Object.entries(one.files) : []))
    .flatMap(([path, bytes]) => (path.endsWith(".yml") ? [new TextDecoder().decode(bytes)] : []));
  const taken = texts.filter(compare).length;
  expect(taken / texts.length).toBeGreaterThan(0.6);
});

it("and mutations of them", () => {
  let taken = 0;
  fc.assert(
    fc.property(mutatedTexts(), (text) => {
      if (compare(text)) taken++;
    }),
    { seed: 3, numRuns: 400 },
  );
  expect(taken).toBeGreaterThan(50);
});

it.each([
  "a:\n- b\n- c\nd: e\n",
  "a:\n  - b: c\n    d: e\n  - f\n",
  "a: &x {b: c}\nd: *x\n",
  "a: &x\n  b: c\nd:\n  <<: *x\n  e: f\n",
  "a: &x\n- b\nc: *x\n",
  "a: |\n  one\n   two\n\n  three\n\n\nb: c\n",
  "a: |-\n  one\nb: c\n",
  "a: 'it''s' # comment\nb: \"\\\"q\\\" \\n\"\n",
  "a: b # comment\n# another\n\nc: d#e\n",
  "a: [b, 'c', 1, 1.5, true, null, ~, -1, --x]\nb: {c: , d: 1, \"e\": f, g: {h: [i]}}\n",
  "a:\n  b:\n  c: d\n",
  "80: a\ntrue: b\n1.10: c\n",
  "a: 1.10\nb: 010\nc: -5\nd: .5\ne: 1_000\nf: 2024-01-01\ng: 12:30\n",
  "a: http://b:80/c\nd: e:f\n",
  "a: {b: c:d, e: http://f}\n",
  "a: - b\n",
  "a: b: c\n",
  "a: b\n  c\n",
  "a: b\n c: d\n",
  "a:\n    b: c\n  d: e\n",
  "a: [b\n",
  'a: "b\n',
  "- a\n- b\n",
  "a: !x b\n",
  "a: *none\n",
  "---\na: b\n",
  "a: b\n...\n",
  "%YAML 1.2\n",
  "a: >\n  folded\n",
  "? a\n: b\n",
  "a:b\n",
  "a: b\na: c\n",
  "a : b\n",
  "a: @b\n",
  "a: 0x1f\nb: 0o17\nc: 1e3\nd: .inf\n",
  "a: [b, ]\nc: [d: e]\n",
  "a: {b}\n",
  'a: "b":c\n',
  "a:\n- b\n- - c\n",
  "a:\n  - &x b: c\n",
  "a: &x\nb: c\n",
  "a: |\n\n  b\n",
  "a: |\n  b",
  "a: |",
  "a: b",
  "a:",
  "  a: b\n  c: d\n",
])("%j is read alike or left to the whole parser", (text) => {
  compare(text);
});

it.each([
  ["a:\n  ports:\n    - {published: @{P:-9090}, target: 80}\n  b: {image: x}\n", "@{P:-9090}"],
  ["a: {command: [a, @{B}, c]}\n", "@{B}"],
  ["a: {image: reg/@{APP}:@{TAG:-1}, c: 1}\n", "reg/@{APP}:@{TAG:-1}"],
  ["a: [@{X}]\n", "@{X}"],
])("a bare variable in a flow mapping is one error, with what to write: %j", (...words) => {
  const [text = "", variable = ""] = words.map((word) => word.replaceAll("@", "$"));
  const report = new Report();
  parseWholeYaml(new Source("a.yml", "/a.yml", text), report);
  expect(report.errors).toHaveLength(1);
  const [error] = report.errors;
  expect(error).toMatchObject({
    message: expect.stringMatching(/^a variable between .* needs quotes/),
    hint: `Write "${variable}".`,
  });
  expect(text.slice(error?.at?.start, error?.at?.end)).toBe(variable);
  const quoted = new Report();
  parseWholeYaml(new Source("a.yml", "/a.yml", text.replace(variable, `"${variable}"`)), quoted);
  expect(quoted.errors).toEqual([]);
});
