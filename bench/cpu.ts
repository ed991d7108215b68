import { readdirSync, readFileSync } from "node:fs";

interface Use {
  readonly parent: number;
  readonly name: string;
  /** Clock ticks of the process itself. */
  readonly own: number;
  /** Clock ticks of the children that it has waited for, and of theirs. */
  readonly children: number;
}

const ticksPerSecond = 100;

function read(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return ""; // It has ended since it was listed.
  }
}

/** The processes of a cluster, and this one, by pid. */
function list(cluster: string): Map<number, Use> {
  const all = new Map<number, Use>();
  for (const entry of readdirSync("/proc")) {
    if (!/^\d+$/.test(entry)) continue;
    const stat = read(`/proc/${entry}/stat`);
    // The name stands in parentheses and may hold any character; the fields after it begin with the state.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    const [, daemon] = /\/dist\/(\w+)\.mjs/.exec(read(`/proc/${entry}/cmdline`)) ?? [];
    all.set(Number(entry), {
      parent: Number(fields[1]),
      name: daemon ?? stat.slice(stat.indexOf("(") + 1, stat.lastIndexOf(")")),
      own: Number(fields[11]) + Number(fields[12]),
      children: Number(fields[13]) + Number(fields[14]),
    });
  }
  const marked = (pid: number) =>
    read(`/proc/${pid}/environ`)
      .split("\0")
      .some((line) => line.startsWith("EMBASSY_LAB=") && line.endsWith(`/${cluster}`));
  const belongs = (pid: number): boolean => {
    const parent = all.get(pid)?.parent ?? 0;
    return parent > 0 && (marked(pid) || belongs(parent));
  };
  return new Map([...all].filter(([pid]) => pid === process.pid || belongs(pid)));
}

/**
 * CPU seconds of a cluster's processes and of this one's children (the CLI), by program, each with the children that it
 * waited for. Containers count once they are gone: a short process' share is lost in the ticks of one, and kept in the sum of
 * all in their host's init. What the kernel does by itself is in none.
 */
export class CpuAccount {
  readonly #cluster: string;
  #before: ReadonlyMap<number, Use>;

  constructor(cluster: string) {
    this.#cluster = cluster;
    this.#before = list(cluster);
  }

  /** Since the last call. */
  take(): ReadonlyMap<string, number> {
    const now = list(this.#cluster);
    const sums = new Map<string, number>();
    const add = (what: string, ticks: number) => sums.set(what, (sums.get(what) ?? 0) + ticks / ticksPerSecond);
    for (const [pid, { name, parent, own, children }] of now) {
      const was = this.#before.get(pid) ?? { own: 0, children: 0 };
      if (pid === process.pid) add("clusterctl", children - was.children);
      else if (name === "tini") add("containers (conmon, runtime, programs)", own - was.own + children - was.children);
      else if (["clusterd", "etcd", "noded", "netd"].includes(name)) {
        add(name, own - was.own);
        // etcd, the helper and its like, which live on, are added below.
        add(`${name}'s children`, children - was.children);
      } else {
        const daemon = now.get(parent)?.name ?? "";
        if (["noded", "netd"].includes(daemon)) add(`${daemon}'s children`, own - was.own + children - was.children);
      }
    }
    this.#before = now;
    return sums;
  }
}
