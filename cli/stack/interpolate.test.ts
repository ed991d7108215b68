// biome-ignore-all lint/suspicious/noTemplateCurlyInString: the forms of variables are what is tested.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { interpolate } from "./interpolate.ts";

const VALUES: Readonly<Record<string, string>> = { A: "a", EMPTY: "", WITH_DOLLAR: "$A" };
const variables = (name: string) => (Object.hasOwn(VALUES, name) ? VALUES[name] : undefined);

describe("interpolate", () => {
  it.each([
    ["plain", "plain"],
    ["$A", "a"],
    ["${A}", "a"],
    ["$A-$A", "a-a"],
    ["$AB", ""],
    ["${A}B", "aB"],
    ["$$A", "$A"],
    ["$$$A", "$a"],
    ["$${A}", "${A}"],
    ["${NONE-d}", "d"],
    ["${NONE:-d}", "d"],
    ["${EMPTY-d}", ""],
    ["${EMPTY:-d}", "d"],
    ["${A-d}", "a"],
    ["${A+r}", "r"],
    ["${A:+r}", "r"],
    ["${EMPTY+r}", "r"],
    ["${EMPTY:+r}", ""],
    ["${NONE+r}", ""],
    ["${A?message}", "a"],
    ["${EMPTY?message}", ""],
    ["${NONE:-${A}}", "a"],
    ["${NONE:-${ALSO:-${A}x}y}", "axy"],
    ["${NONE:-a}b}", "ab}"],
    ["${A:-${NONE:?never looked at}}", "a"],
    ["${NONE:-a:b}", "a:b"],
    ["${NONE:-$$}", "$"],
    ["$WITH_DOLLAR", "$A"],
  ])("%s gives %s", (text, expected) => {
    expect(interpolate(text, variables)).toMatchObject({ text: expected, failures: [] });
  });

  it.each([
    ["$", "a $ stands before what is not a variable"],
    ["a $ b", "a $ stands before what is not a variable"],
    ["$1", "a $ stands before what is not a variable"],
    ["${", '"${" names no variable'],
    ["${}", '"${}" names no variable'],
    ["${1A}", '"${1A}" names no variable'],
    ["${A!b}", '"${A!b}" is not a form of variable'],
    ["${A", '"${A" is not a form of variable'],
    ["${A:-b", "a ${ is not closed"],
    ["${NONE?}", "the variable NONE is not set"],
    ["${NONE:?say it}", "the variable NONE is not set: say it"],
    ["${EMPTY:?say it}", "the variable EMPTY is empty: say it"],
    ["${NONE:-${ALSO?deep}}", "the variable ALSO is not set: deep"],
  ])("%s is refused", (text, message) => {
    expect(interpolate(text, variables).failures.map((failure) => failure.message)).toContain(message);
  });

  it("names what was not set and had no default", () => {
    expect(interpolate("$X ${Y} ${Z:-z}", variables).unset).toEqual(["X", "Y"]);
  });

  it("refuses nesting without end", () => {
    const deep = `${"${N:-".repeat(1000)}x${"}".repeat(1000)}`;
    expect(interpolate(deep, variables).failures[0]?.message).toMatch(/nested more than 20 deep/);
  });

  it("a text with its dollar signs doubled comes back as it was", () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        expect(interpolate(text.replaceAll("$", "$$$$"), variables)).toEqual({ text, failures: [], unset: [] });
      }),
      { seed: 1, numRuns: 300 },
    );
  });
});
