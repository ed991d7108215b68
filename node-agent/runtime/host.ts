import { readFile } from "node:fs/promises";
import { release } from "node:os";
import { hostPlatform } from "../images/platform.ts";
import { parseCapabilityMask } from "./capabilities.ts";
import type { SeccompProfile } from "./seccomp.ts";

/** What this process may give to containers. Root on a rented or nested machine often lacks a part of it. */
export interface HostFacts {
  /** Of this process's bounding set. */
  readonly capabilities: readonly string[];
  /** Hard limits by OCI name (RLIMIT_NOFILE); Infinity: unlimited. */
  readonly rlimits: Readonly<Record<string, number>>;
  /** Whether hard limits may be raised and oom_score_adj lowered. */
  readonly mayRaise: boolean;
  readonly oomScoreAdj: number;
  /** OCI name. */
  readonly architecture: string;
  readonly kernel: string;
  /** This boot's id: what was recorded in another one is gone. */
  readonly bootId: string;
}

const limitNames: Readonly<Record<string, string>> = {
  "Max cpu time": "RLIMIT_CPU",
  "Max file size": "RLIMIT_FSIZE",
  "Max data size": "RLIMIT_DATA",
  "Max stack size": "RLIMIT_STACK",
  "Max core file size": "RLIMIT_CORE",
  "Max resident set": "RLIMIT_RSS",
  "Max processes": "RLIMIT_NPROC",
  "Max open files": "RLIMIT_NOFILE",
  "Max locked memory": "RLIMIT_MEMLOCK",
  "Max address space": "RLIMIT_AS",
  "Max file locks": "RLIMIT_LOCKS",
  "Max pending signals": "RLIMIT_SIGPENDING",
  "Max msgqueue size": "RLIMIT_MSGQUEUE",
  "Max nice priority": "RLIMIT_NICE",
  "Max realtime priority": "RLIMIT_RTPRIO",
  "Max realtime timeout": "RLIMIT_RTTIME",
};

/** Hard limits out of /proc/<pid>/limits. */
export function parseLimits(text: string): Record<string, number> {
  const limits: Record<string, number> = {};
  for (const line of text.split("\n")) {
    const [, title = "", hard = ""] = /^(Max [a-z ]+?)\s{2,}\S+\s+(\S+)/.exec(line) ?? [];
    const name = limitNames[title];
    if (name !== undefined) limits[name] = hard === "unlimited" ? Number.POSITIVE_INFINITY : Number(hard);
  }
  return limits;
}

export async function readHostFacts(): Promise<HostFacts> {
  const status = await readFile("/proc/self/status", "utf8");
  const mask = (name: string) => new RegExp(`^${name}:\\s*([0-9a-f]+)`, "m").exec(status)?.[1] ?? "0";
  return {
    capabilities: parseCapabilityMask(mask("CapBnd")),
    rlimits: parseLimits(await readFile("/proc/self/limits", "utf8")),
    mayRaise: parseCapabilityMask(mask("CapEff")).includes("SYS_RESOURCE"),
    oomScoreAdj: Number(await readFile("/proc/self/oom_score_adj", "utf8")),
    architecture: hostPlatform().architecture,
    kernel: release(),
    bootId: (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim(),
  };
}

/** The distribution's seccomp profile (Debian: package golang-github-containers-common). */
export async function readSeccompProfile(path: string): Promise<SeccompProfile> {
  return JSON.parse(await readFile(path, "utf8")) as SeccompProfile;
}
