import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { effort } from "../arbitraries.ts";
import { aNode } from "../builders.ts";
import { parseConstraint } from "./parse.ts";
import { parsePattern } from "./pattern.ts";
import { compareVersions, parseVersion } from "./version.ts";

const node = aNode("n1", {
  hostname: "Alpha",
  role: "manager",
  labels: { zone: "a", cores: "16", kernel: "v6.1.10", "com.example/disk": "ssd", empty: "" },
});

function holds(text: string): boolean {
  const parsed = parseConstraint(text);
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.error));
  return parsed.constraint.matches(node);
}

describe("constraints", () => {
  it.each([
    ["node.id == n1", true],
    ["node.id==n1", true],
    ["node.hostname == alpha", true],
    ["node.hostname != beta", true],
    ["node.role == worker", false],
    ["node.platform.os == linux", true],
    ["node.platform.arch in (arm64, amd64)", true],
    ["node.platform.arch in arm64,amd64", true],
    ["node.platform.arch not in (arm64, amd64)", false],
    ["node.platform.arch == x86_64", true],
    ["node.platform.arch in (aarch64, X86_64)", true],
    ["node.platform.arch != x86_64", false],
    ["node.platform.arch == aarch64", false],
    ["node.labels.zone == A", true],
    ["node.labels.Zone == a", false],
    ["node.labels.com.example/disk == 'ssd'", true],
    ["node.labels.absent == a", false],
    ["node.labels.absent != a", true],
    ["node.labels.absent not in (a)", true],
    ["node.labels.absent !~ .*", true],
    ["node.labels.empty exists", true],
    ["node.labels.absent exists", false],
    ["node.labels.absent not exists", true],
    ["node.labels.cores > 9", true],
    ["node.labels.cores >= 16", true],
    ["node.labels.cores < 16", false],
    ["node.labels.kernel < 6.2", true],
    ["node.labels.kernel > 6.1.9", true],
    ["node.labels.kernel <= 6.1.10", true],
    ["node.labels.zone < 5", false],
    ["node.labels.absent < 5", false],
    ["node.hostname =~ ^Al(ph|f)a$", true],
    ["node.hostname =~ lph", true],
    ["node.hostname =~ ^alpha$", false],
    ["node.hostname !~ [0-9]+", true],
  ])("%s is %s", (text, expected) => {
    expect(holds(text)).toBe(expected);
  });

  it.each([
    ["", "a constraint starts with a node attribute", 0],
    ["  node.lables.zone == a", 'unknown attribute "node.lables.zone"', 2],
    ["engine.labels.x == a", 'unknown attribute "engine.labels.x"', 0],
    ["node.labels. == a", 'unknown attribute "node.labels."', 0],
    ["node.id = a", '"=" is no operator', 8],
    ["node.id", 'no operator after "node.id"', 7],
    ["node.id ==", '"==" needs a value', 10],
    ["node.id inside (a)", '"inside" is no operator', 8],
    ["node.id in (a, b", "the list has no closing parenthesis", 16],
    ["node.id in (a,,b)", "empty or unclosed value in the list", 14],
    ["node.id exists yes", '"exists" takes no value, found "yes"', 15],
    ["node.id == 'a", "unclosed quote in 'a", 11],
    ["node.labels.x > big", '"big" is no number or version', 16],
    ["node.id =~ (a", '"(" is not closed', 11],
    ["node.id =~ a{3,1}", "count {3,1} runs backwards", 12],
    ["node.id =~ (?=a)", "look-around and named groups are not supported", 11],
    ["node.id =~ a{999}{999}", "the expression is too large", 11],
    ["node.id =~ (){999}{999}{999}", "the expression is too large", 11],
    ["node.id =~ (a{0}|b{0}){999}{999}", "the expression is too large", 11],
    [`node.id =~ a${"?".repeat(20_000)}`, "the expression is too long", 1_011],
  ])("%j is refused: %s at %i", (text, message, at) => {
    const parsed = parseConstraint(text);
    expect(parsed.ok ? "accepted" : [parsed.error.message, parsed.error.at]).toEqual([message, at]);
    expect(parsed.ok || parsed.error.allowed).toBeTruthy();
  });
});

describe("versions", () => {
  it("sort as versions: by number, releases after their pre-releases", () => {
    const sorted = [
      "-20",
      "-3",
      "0",
      "0.9",
      "1.0.0-alpha",
      "1.0.0-alpha.1",
      "1.0.0-alpha.beta",
      "1.0.0-beta",
      "1.0.0-beta.2",
      "1.0.0-beta.11",
      "1.0.0-rc2",
      "1.0.0-rc10",
      "v1",
      "2.9",
      "2.10",
      "5.15.0-91-generic",
      "5.15.0-100-generic",
      "5.15.1",
      "100",
    ];
    const versions = sorted.map((text) => parseVersion(text));
    for (const [i, a] of versions.entries()) {
      for (const [j, b] of versions.entries()) {
        if (a === undefined || b === undefined) throw new Error("no version");
        expect([sorted[i], sorted[j], Math.sign(compareVersions(a, b))]).toEqual([
          sorted[i],
          sorted[j],
          Math.sign(i - j),
        ]);
      }
    }
  });

  it.each(["", "x", "1.", ".5", "1e3", "--1", "1.2.3-", "v", "-v1", "1 2"])("%j is none", (text) => {
    expect(parseVersion(text)).toBeUndefined();
  });

  it.each([
    ["1.2", "1.2.0"],
    ["V1.2", "1.2+build5"],
    ["-0", "0"],
  ])("%s equals %s", (a, b) => {
    const [first, second] = [parseVersion(a), parseVersion(b)];
    expect(first !== undefined && second !== undefined && compareVersions(first, second)).toBe(0);
  });
});

describe("patterns", () => {
  it("agree with JavaScript's engine wherever both know the syntax", () => {
    const expressions = [
      "a*b+c?",
      "^(a|b)*$",
      "a{2}",
      "a{1,}b{0,2}",
      "[^ab]",
      "[a-c]+$",
      "^$",
      "",
      "(ab|a)(bc|c)?$",
      "\\w+\\.\\d",
      "(a|)b",
      "^a.c$",
      "[]a]",
      "x|^y",
      "(?:ab){2,3}",
      "[\\d-]+c",
    ];
    const texts = [
      "",
      "a",
      "b",
      "ab",
      "abc",
      "aab",
      "aaabbc",
      "a.1",
      "abab",
      "ababab",
      "xyz",
      "y",
      "]",
      "a-c",
      "1-2c",
      "cab",
      "ac",
      "bbbb",
    ];
    for (const expression of expressions) {
      const parsed = parsePattern(expression);
      if (!parsed.ok) throw new Error(`${expression}: ${parsed.error.message}`);
      const theirs = new RegExp(expression === "[]a]" ? "[\\]a]" : expression, "s");
      for (const text of texts)
        expect([expression, text, parsed.pattern.test(text)]).toEqual([expression, text, theirs.test(text)]);
    }
  });

  it("agree with it on any expression of their syntax, and on one text after another", () => {
    const atom = fc.constantFrom("a", "b", ".", "[ab]", "[^a]", "\\w", "^", "$", "");
    const { expression } = fc.letrec<{ expression: string; part: string }>((tie) => ({
      part: fc.oneof(
        { weight: 4, arbitrary: atom },
        { weight: 2, arbitrary: tie("expression").map((inner) => `(${inner})`) },
        fc
          .tuple(tie("expression"), fc.constantFrom("*", "+", "?", "{0}", "{2}", "{0,2}", "{1,}"))
          .map(([inner, repeat]) => `(${inner})${repeat}`),
      ),
      expression: fc.oneof(
        { maxDepth: 4 },
        { weight: 2, arbitrary: tie("part") },
        fc.tuple(tie("part"), tie("expression")).map(([a, b]) => a + b),
        fc.tuple(tie("part"), tie("expression")).map(([a, b]) => `${a}|${b}`),
      ),
    }));
    const texts = fc.array(fc.string({ unit: fc.constantFrom("a", "b", "c"), maxLength: 7 }), { maxLength: 8 });
    fc.assert(
      fc.property(expression, texts, (source, given) => {
        const parsed = parsePattern(source);
        if (!parsed.ok) throw new Error(`${source}: ${parsed.error.message}`);
        const theirs = new RegExp(source, "s");
        for (const text of given) expect([text, parsed.pattern.test(text)]).toEqual([text, theirs.test(text)]);
      }),
      effort(1_000),
    );
  });

  it("take linear time on expressions that make a backtracking engine hang", () => {
    const parsed = parsePattern("^(a+)+(a|aa)*(a*)*$");
    if (!parsed.ok) throw new Error(parsed.error.message);
    expect(parsed.pattern.test(`${"a".repeat(5_000)}b`)).toBe(false);
  });

  it("remember no more than they may, and still agree", () => {
    // Some 2^14 sets of states can be met, each of some ten.
    const parsed = parsePattern("(a|b)*a(a|b){13}c$");
    if (!parsed.ok) throw new Error(parsed.error.message);
    let bits = 1;
    let text = "";
    for (let i = 0; i < 20_000; i++) {
      bits = (bits >>> 1) ^ (bits & 1 ? 0xb400 : 0);
      text += bits & 1 ? "a" : "b";
    }
    expect(parsed.pattern.test(`${text}a${"b".repeat(13)}c`)).toBe(true);
    expect(parsed.pattern.test(`${text}b${"b".repeat(13)}c`)).toBe(false);
  });
});
