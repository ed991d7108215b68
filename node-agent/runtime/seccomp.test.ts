import { describe, expect, it } from "vitest";
import { resolveSeccomp, type SeccompProfile } from "./seccomp.ts";

const rule = (name: string, more: object = {}) => ({ names: [name], action: "SCMP_ACT_ALLOW", ...more });
const profile: SeccompProfile = {
  defaultAction: "SCMP_ACT_ERRNO",
  defaultErrnoRet: 38,
  syscalls: [
    rule("always", { args: [], includes: {}, excludes: {} }),
    rule("admin", { includes: { caps: ["CAP_SYS_ADMIN"] } }),
    rule("not_admin", { excludes: { caps: ["CAP_SYS_ADMIN"] }, errnoRet: 1 }),
    rule("intel", { includes: { arches: ["amd64", "x32"] } }),
    rule("not_intel", { excludes: { arches: ["amd64"] } }),
    rule("new", { includes: { minKernel: "4.8" } }),
    rule("newer", { includes: { minKernel: "6.2" } }),
    rule("valued", { args: [{ index: 0, value: 8, op: "SCMP_CMP_EQ" }] }),
  ],
};
const names = (capabilities: readonly string[], architecture = "amd64", kernel = "6.1.0-13-amd64") =>
  resolveSeccomp(profile, { capabilities, architecture, kernel }).syscalls.flatMap((one) => one.names);

describe("resolveSeccomp", () => {
  it("keeps the rules that hold for capabilities, architecture and kernel", () => {
    expect(names([])).toEqual(["always", "not_admin", "intel", "new", "valued"]);
    expect(names(["CAP_SYS_ADMIN"])).toEqual(["always", "admin", "intel", "new", "valued"]);
    expect(names([], "arm64", "4.4.0")).toEqual(["always", "not_admin", "not_intel", "valued"]);
  });

  it("holds the native architecture only, and what a runtime does not know is left out", () => {
    const resolved = resolveSeccomp(profile, { capabilities: [], architecture: "arm64", kernel: "6.1" });
    expect(resolved).toMatchObject({
      defaultAction: "SCMP_ACT_ERRNO",
      defaultErrnoRet: 38,
      architectures: ["SCMP_ARCH_AARCH64"],
    });
    expect(resolved.syscalls[0]).toEqual({ names: ["always"], action: "SCMP_ACT_ALLOW" });
    expect(resolved.syscalls[1]).toEqual({ names: ["not_admin"], action: "SCMP_ACT_ALLOW", errnoRet: 1 });
  });
});
