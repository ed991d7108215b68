import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";
import { ClusterError } from "../../lib/errors/errors.ts";

// What a lab runs, and the Debian package that each comes from.
const programs: Readonly<Record<string, string>> = {
  etcd: "etcd-server",
  runc: "runc",
  conmon: "conmon",
  nft: "nftables",
  ip: "iproute2",
  bridge: "iproute2",
  conntrack: "conntrack",
  "docker-registry": "docker-registry",
  tini: "tini",
  tar: "tar",
  sysctl: "procps",
  unshare: "util-linux",
  nsenter: "util-linux",
  mount: "mount",
};

/** The PATH that everything in a lab runs with: a user's own may lack the sbin directories. */
export const labPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** Programs that are missing, each with its Debian package. */
export function missingPrograms(
  path: string = labPath,
): { readonly program: string; readonly debianPackage: string }[] {
  return Object.entries(programs)
    .filter(([program]) => !path.split(delimiter).some((directory) => isExecutable(join(directory, program))))
    .map(([program, debianPackage]) => ({ program, debianPackage }));
}

/** Throws unless this is root on Linux with every program that a lab needs. */
export function checkMachine(): void {
  requireRoot();
  const missing = missingPrograms();
  if (missing.length === 0) return;
  const packages = [...new Set(missing.map(({ debianPackage }) => debianPackage))].sort();
  throw new ClusterError(`a lab needs programs that this machine lacks: ${missing.map((m) => m.program).join(", ")}`, {
    code: "not-found",
    hint: `On Debian or Ubuntu: apt-get install -y --no-install-recommends ${packages.join(" ")}`,
  });
}

/** Throws `denied` unless this process may make namespaces. */
export function requireRoot(): void {
  if (process.platform !== "linux") {
    throw new ClusterError("a lab needs Linux: its hosts are namespaces of this machine", { code: "invalid" });
  }
  if (process.getuid?.() !== 0) {
    throw new ClusterError("a lab needs root: its hosts are namespaces of this machine", {
      code: "denied",
      hint: "Run it again with sudo.",
    });
  }
}
