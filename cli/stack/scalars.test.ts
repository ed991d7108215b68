import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { isIpv6, parseCidr4 } from "./keys/common.ts";
import { splitWords } from "./keys/words.ts";
import { bool, cpus, fileMode, formatDuration, parseDuration, text } from "./scalars.ts";
import { Bad, type ScalarType } from "./schema.ts";
import { Source } from "./source.ts";
import type { ScalarTree } from "./tree.ts";

const at = { source: new Source("", "", ""), start: 0, end: 0 };
const read = (type: ScalarType, value: unknown, written = String(value)): unknown => {
  const scalar: ScalarTree = { kind: "scalar", value, text: written, at };
  const parsed = type.parse(scalar);
  return parsed instanceof Bad ? "refused" : parsed;
};

describe("durations", () => {
  it.each([
    ["0", 0],
    ["10s", 10_000],
    ["1m30s", 90_000],
    ["1h2m3s4ms", 3_723_004],
    ["1.5s", 1500],
    [".5s", 500],
    ["100us", 0.1],
    ["2d", 172_800_000],
    ["1w", 604_800_000],
    ["", undefined],
    ["10", undefined],
    ["10 s", undefined],
    ["-1s", undefined],
    ["s", undefined],
    ["1s2", undefined],
  ])("%s is %s ms", (written, ms) => {
    expect(parseDuration(written)).toBe(ms);
  });

  it("formatting is the inverse of parsing", () => {
    fc.assert(
      fc.property(fc.nat(2 ** 31), (ms) => parseDuration(formatDuration(ms)) === ms),
      { seed: 1 },
    );
  });
});

describe("scalars", () => {
  it.each([
    [cpus(), 0.5, "0.5", 500],
    [cpus(), "2", "2", 2000],
    [cpus(), 0.0001, "0.0001", "refused"],
    [cpus(), -1, "-1", "refused"],
    [bool(), true, "true", true],
    [bool(), "yes", "yes", true],
    [bool(), "off", "off", false],
    [bool(), "maybe", "maybe", "refused"],
    // YAML 1.2 reads 0440 as decimal; every author means octal.
    [fileMode(), 440, "0440", 0o440],
    [fileMode(), "0440", "0440", 0o440],
    [fileMode(), "440", "440", 0o440],
    [fileMode(), 288, "0o440", 0o440],
    [fileMode(), 288, "288", 288],
    [fileMode(), "0999", "0999", "refused"],
    [text(), 1.1, "1.10", "1.10"],
    [text(), true, "true", "refused"],
  ] as const)("%#: %j", (type, value, written, expected) => {
    expect(read(type as ScalarType, value, written)).toEqual(expected);
  });
});

describe("words of a command", () => {
  it.each([
    ["a b  c", ["a", "b", "c"]],
    ["'a b' \"c d\"", ["a b", "c d"]],
    ["a\\ b", ["a b"]],
    ['"a \\"b\\" \\n"', ['a "b" \\n']],
    ["'a\\'", ["a\\"]],
    ["''", [""]],
    ["a''b", ["ab"]],
    ["", []],
    ["  ", []],
    ["a|b > c", ["a|b", ">", "c"]],
  ])("%j gives %j", (line, words) => {
    expect(splitWords(line)).toEqual(words);
  });

  it.each(["'a", '"a', "a\\"])("%j is refused", (line) => {
    expect(splitWords(line)).toBeInstanceOf(Bad);
  });
});

describe("addresses", () => {
  it.each([
    ["::", true],
    ["::1", true],
    ["fd00::1:2", true],
    ["1:2:3:4:5:6:7:8", true],
    ["::ffff:10.0.0.1", true],
    ["1:2:3:4:5:6:7", false],
    ["1::2::3", false],
    ["12345::", false],
    ["10.0.0.1", false],
    [":", false],
  ])("%s is an IPv6 address: %s", (address, is) => {
    expect(isIpv6(address)).toBe(is);
  });

  it("a network has a base and a last address", () => {
    expect(parseCidr4("10.1.2.3/16")).toMatchObject({ base: 0x0a010000, last: 0x0a01ffff, prefix: 16 });
    expect(parseCidr4("0.0.0.0/0")).toMatchObject({ base: 0, last: 0xffffffff });
    expect(parseCidr4("10.0.0.0/33")).toBeUndefined();
    expect(parseCidr4("10.0.0.256/8")).toBeUndefined();
  });
});
