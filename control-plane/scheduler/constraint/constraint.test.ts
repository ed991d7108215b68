import { describe, expect, it } from "vitest";
import { aNode } from "../builders.ts";
import { parseConstraint } from "./parse.ts";
import { parsePattern } from "./pattern.ts";

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
  ])("%j is refused: %s at %i", (text, message, at) => {
    const parsed = parseConstraint(text);
    expect(parsed.ok ? "accepted" : [parsed.error.message, parsed.error.at]).toEqual([message, at]);
    expect(parsed.ok || parsed.error.allowed).toBeTruthy();
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

  it("take linear time on expressions that make a backtracking engine hang", () => {
    const parsed = parsePattern("^(a+)+(a|aa)*(a*)*$");
    if (!parsed.ok) throw new Error(parsed.error.message);
    expect(parsed.pattern.test(`${"a".repeat(5_000)}b`)).toBe(false);
  });
});
