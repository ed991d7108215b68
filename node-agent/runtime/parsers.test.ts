import { describe, expect, it } from "vitest";
import { parseCapabilityMask } from "./capabilities.ts";
import { parseCgroupMounts } from "./cgroups.ts";
import { refusal, runtimeWords } from "./conmon.ts";
import { parseLimits } from "./host.ts";
import { parseSignal } from "./signals.ts";

describe("parseSignal", () => {
  it.each([
    ["SIGTERM", 15],
    ["term", 15],
    ["9", 9],
    ["SIGRTMIN+3", 37],
    ["RTMAX-1", 63],
    ["SIGRTMIN", 34],
  ])("%s is %d", (text, number) => {
    expect(parseSignal(text)).toBe(number);
  });

  it.each(["", "SIGNOPE", "0", "65", "RTMIN-1", "RTMAX+1", "-9"])("refuses %j", (text) => {
    expect(() => parseSignal(text)).toThrow(/there is no signal/);
  });
});

describe("parseCapabilityMask", () => {
  it("names bits by their number", () => {
    expect(parseCapabilityMask("0000000000000003")).toEqual(["CHOWN", "DAC_OVERRIDE"]);
    const all = parseCapabilityMask("000001ffffffffff");
    expect(all).toHaveLength(41);
    expect(parseCapabilityMask("000001fffeffffff")).toEqual(all.filter((name) => name !== "SYS_RESOURCE"));
  });
});

describe("parseLimits", () => {
  it("reads hard limits", () => {
    const text = [
      "Limit                     Soft Limit           Hard Limit           Units     ",
      "Max cpu time              unlimited            unlimited            seconds   ",
      "Max open files            1024                 20000                files     ",
      "Max nice priority         0                    0                    ",
    ].join("\n");
    expect(parseLimits(text)).toEqual({ RLIMIT_CPU: Number.POSITIVE_INFINITY, RLIMIT_NOFILE: 20_000, RLIMIT_NICE: 0 });
  });
});

describe("parseCgroupMounts", () => {
  it("finds each hierarchy once, and no bind of a part of one", () => {
    const text = [
      "30 23 0:26 / /sys/fs/cgroup ro shared:4 - tmpfs tmpfs ro",
      "31 30 0:27 / /sys/fs/cgroup/unified rw shared:5 - cgroup2 cgroup2 rw",
      "32 30 0:28 / /sys/fs/cgroup/memory rw shared:6 - cgroup cgroup rw,memory",
      "33 30 0:28 / /sys/fs/cgroup/memory rw shared:6 - cgroup cgroup rw,memory",
      "34 30 0:28 /part /elsewhere rw shared:6 - cgroup cgroup rw,memory",
    ].join("\n");
    expect(parseCgroupMounts(text)).toEqual([
      { path: "/sys/fs/cgroup/unified", version: 2 },
      { path: "/sys/fs/cgroup/memory", version: 1 },
    ]);
  });
});

describe("a runtime's words", () => {
  it("are found in each of its formats", () => {
    expect(runtimeWords('time="x" level=error msg="exec: \\"a\\": not found"')).toBe('exec: "a": not found');
    expect(runtimeWords('{"level":"error","msg":"exec: \\"a\\"","time":"x"}')).toBe('exec: "a"');
    expect(runtimeWords("first\nplain words\n")).toBe("plain words");
  });

  it("tell whose doing it is", () => {
    expect(refusal('exec: "a": executable file not found in $PATH').code).toBe("invalid");
    expect(refusal("cannot allocate memory").code).toBe("internal");
  });
});
