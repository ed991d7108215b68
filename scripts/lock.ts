/**
 * `npm run lock`: renews package-lock.json after a change of dependencies. npm leaves platform packages (a linter's binary
 * for another system, say) out of the lock when the registry in use does not carry them, and then `npm ci` refuses that
 * lock everywhere. They are put back here from what their parents name; npm skips them where the platform differs.
 */
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

interface LockedPackage {
  version: string;
  optional?: boolean;
  dev?: boolean;
  os?: string[];
  cpu?: string[];
  libc?: string[];
  optionalDependencies?: Record<string, string>;
}

const systems = ["android", "darwin", "freebsd", "linux", "win32", "openbsd", "netbsd", "sunos", "aix", "openharmony"];
const processors: Record<string, string> = {
  ...Object.fromEntries(
    ["arm64", "x64", "ia32", "arm", "riscv64", "ppc64", "s390x", "loong64", "mips64el", "wasm32"].map((c) => [c, c]),
  ),
  armv7: "arm",
  armhf: "arm",
};

/** The lock entry for a platform package, read off its name: "@esbuild/linux-arm64". */
function platformEntry(name: string, version: string, dev: boolean): LockedPackage {
  const words = (name.split("/").at(-1) ?? name).split(/[-_.]/);
  const os = words.find((word) => systems.includes(word));
  const cpu = words.map((word) => processors[word]).find((word) => word !== undefined);
  const libc = words.some((word) => word.startsWith("musl")) ? "musl" : words.includes("gnu") ? "glibc" : undefined;
  return {
    ...(cpu === undefined ? {} : { cpu: [cpu] }),
    ...(dev ? { dev } : {}),
    ...(libc === undefined || os !== "linux" ? {} : { libc: [libc] }),
    optional: true,
    ...(os === undefined ? {} : { os: [os] }),
    version: version.replace(/^[~^=]/, ""),
  };
}

const path = join(import.meta.dirname, "../package-lock.json");
execFileSync("npm", ["install", "--package-lock-only", "--no-audit", "--no-fund", "--loglevel=error"], {
  cwd: join(import.meta.dirname, ".."),
  stdio: "inherit",
});
const lock = JSON.parse(readFileSync(path, "utf8")) as { packages: Record<string, LockedPackage> };
let added = 0;
for (const [parent, entry] of Object.entries(lock.packages)) {
  if (parent === "") continue;
  for (const [name, version] of Object.entries(entry.optionalDependencies ?? {})) {
    if (lock.packages[`node_modules/${name}`] ?? lock.packages[`${parent}/node_modules/${name}`]) continue;
    lock.packages[`node_modules/${name}`] = platformEntry(name, version, entry.dev === true);
    added++;
  }
}
lock.packages = Object.fromEntries(Object.entries(lock.packages).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)));
writeFileSync(path, `${JSON.stringify(lock, null, 2)}\n`);
console.log(`package-lock.json renewed; ${added} platform packages put back`);
