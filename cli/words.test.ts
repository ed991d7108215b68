import { describe, expect, it } from "vitest";
import { nearest } from "../lib/words/nearest.ts";
import { parseDuration, parseSince } from "./duration.ts";

describe("parseDuration", () => {
  it.each([
    ["90s", 90_000],
    ["1h30m", 5_400_000],
    ["500ms", 500],
    ["2", 2_000],
    ["1.5s", 1_500],
  ])("%s is %i ms", (text, expected) => expect(parseDuration(text)).toBe(expected));

  it.each(["", "5 m", "m", "5x", "-1s", "1h nonsense"])("refuses %j", (text) => {
    expect(() => parseDuration(text)).toThrow(/Give a time/);
  });
});

describe("parseSince", () => {
  it("takes a time ago and a date", () => {
    expect(parseSince("10s", 1_000_000)).toBe(990_000);
    expect(parseSince("1970-01-01T00:01:00Z", 0)).toBe(60_000);
    expect(() => parseSince("yesterday", 0)).toThrow(/Give a time/);
  });
});

describe("nearest", () => {
  it("finds what was meant, and nothing for something else", () => {
    expect(nearest("counter_wb", ["counter_web", "counter_redis"])).toBe("counter_web");
    expect(nearest("database", ["web", "redis"])).toBeUndefined();
    expect(nearest("b", ["a"])).toBeUndefined();
    expect(nearest("WEB", ["web"])).toBe("web");
  });

  it("is never the word itself", () => {
    expect(nearest("web", ["web"])).toBeUndefined();
    expect(nearest("web", ["web", "wed"])).toBe("wed");
  });
});
