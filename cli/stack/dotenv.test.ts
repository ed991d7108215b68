// biome-ignore-all lint/suspicious/noTemplateCurlyInString: the forms of variables are what is tested.
import { expect, it } from "vitest";
import { Report } from "./diagnostics.ts";
import { parseEnvFile, parseRawEnvFile } from "./dotenv.ts";
import { Source } from "./source.ts";

const shell = (name: string) => (name === "SHELL_VAR" ? "from shell" : undefined);

function parse(text: string): { values: Record<string, string>; errors: string[] } {
  const report = new Report();
  const values = Object.fromEntries(parseEnvFile(new Source("a.env", "/a.env", text), shell, report));
  return { values, errors: report.errors.map((error) => error.message) };
}

it.each([
  ["A=1", { A: "1" }],
  ["A=1\r\nB=2\r\n", { A: "1", B: "2" }],
  ["  export A = 1", { A: "1" }],
  ["A: 1", { A: "1" }],
  ["A=", { A: "" }],
  ["A=a b # a comment", { A: "a b" }],
  ["A=a#b", { A: "a#b" }],
  ["# only\n\nA=1", { A: "1" }],
  ["A='$B #c'", { A: "$B #c" }],
  ['A="a\\nb"', { A: "a\nb" }],
  ['A="a\nb"\nC=1', { A: "a\nb", C: "1" }],
  ['A="a \\"b\\" \\$c"', { A: 'a "b" $c' }],
  ["A=1\nA=2", { A: "2" }],
  ["A=1\nB=${A}-$A", { A: "1", B: "1-1" }],
  ["B=${SHELL_VAR}", { B: "from shell" }],
  ["B=${NONE:-d}", { B: "d" }],
  ["SHELL_VAR\nNOT_SET", { SHELL_VAR: "from shell" }],
  ["SHELL_VAR=file\nB=$SHELL_VAR", { SHELL_VAR: "file", B: "from shell" }],
])("%j gives %j", (text, expected) => {
  expect(parse(text)).toEqual({ values: expected, errors: [] });
});

it.each([
  ["=1", "is not a line of a file of variables"],
  ["1A=1", "is not a line of a file of variables"],
  ["A B", "is not a line of a file of variables"],
  ['A="open', "a quote is not closed"],
  ["A=${NONE:?needed}", "the variable NONE is not set: needed"],
])("%j is refused: %s", (text, message) => {
  expect(parse(text).errors).toEqual([message]);
});

it("the raw format takes lines as they are", () => {
  const source = new Source("a.env", "/a.env", '# c\nA="q" $X # all\n\nSHELL_VAR\nNONE\n');
  expect(Object.fromEntries(parseRawEnvFile(source, shell))).toEqual({ A: '"q" $X # all', SHELL_VAR: "from shell" });
});
