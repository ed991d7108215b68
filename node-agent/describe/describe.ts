import { readFile } from "node:fs/promises";
import { arch, cpus, hostname, release, totalmem } from "node:os";
import type { NodeDescription } from "../../proto/gen/embassy/v1/state.ts";
import type { RuntimeProbe } from "../runtime/types.ts";

export interface NodeFacts {
  readonly underlay: string;
  /** host:port of the Agent service, as the control plane reaches it. */
  readonly agentAddress: string;
  readonly version: string;
  readonly probe: RuntimeProbe;
  /** How many there are of each kind. */
  readonly genericResources: Readonly<Record<string, number>>;
}

/** What this host has and is, for the control plane. */
export async function describeNode(facts: NodeFacts): Promise<NodeDescription> {
  return {
    hostname: hostname(),
    os: "linux",
    arch: ociArch(arch()),
    milliCpus: cpus().length * 1_000,
    memoryBytes: totalmem(),
    pids: await maxPids(),
    generic: { ...facts.genericResources },
    underlayAddress: facts.underlay,
    agentAddress: facts.agentAddress,
    runtime: facts.probe.version,
    cgroups: facts.probe.cgroups,
    kernel: release(),
    version: facts.version,
  };
}

/** Node's name of an architecture as OCI says it. */
export function ociArch(name: string): string {
  const names: Partial<Record<string, string>> = { x64: "amd64", ia32: "386" };
  return names[name] ?? name;
}

/** How many processes and threads the kernel lets there be: the lower of its two bounds. */
async function maxPids(): Promise<number> {
  const bounds = await Promise.all(
    ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"].map(async (path) => {
      const value = Number((await readFile(path, "utf8")).trim());
      return Number.isFinite(value) && value > 0 ? value : Number.POSITIVE_INFINITY;
    }),
  );
  const least = Math.min(...bounds);
  return Number.isFinite(least) ? least : 0;
}
