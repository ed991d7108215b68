import { describe, expect, it } from "vitest";
import { choosePlatform, formatPlatform, hostPlatform, parsePlatform } from "./platform.ts";

const choose = (wanted: string, ...offered: string[]) =>
  choosePlatform(offered.map(parsePlatform), parsePlatform(wanted));

describe("platforms", () => {
  it("chooses by os and architecture", () => {
    expect(choose("linux/amd64", "linux/arm64", "windows/amd64", "linux/amd64")).toBe(2);
    expect(choose("linux/amd64", "linux/arm64")).toBeUndefined();
  });

  it("takes the highest variant that runs", () => {
    expect(choose("linux/arm/v7", "linux/arm/v5", "linux/arm/v6", "linux/arm/v8")).toBe(1);
    expect(choose("linux/arm64/v8", "linux/arm64")).toBe(0);
    expect(choose("linux/amd64", "linux/amd64/v3", "linux/amd64")).toBe(1);
  });

  it("names this machine as OCI does", () => {
    expect(formatPlatform(hostPlatform("x64"))).toBe("linux/amd64");
    expect(formatPlatform(hostPlatform("arm64"))).toBe("linux/arm64/v8");
  });

  it("refuses what is none", () => {
    expect(() => parsePlatform("amd64")).toThrow(/is no platform/);
    expect(() => parsePlatform("linux/a/b/c")).toThrow(/is no platform/);
  });
});
