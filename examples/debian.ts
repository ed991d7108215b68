import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";

/**
 * Unpacks Debian packages of this machine's own release into a directory: the beginning of a root file system. Takes the
 * packages named and not what they depend on. Packages are downloaded once and kept in `cache`.
 * Throws with apt's own words when a package cannot be had. What takes its time is told to `say`.
 */
export function unpackDebianPackages(
  packages: readonly string[],
  into: string,
  cache: string,
  say: (text: string) => void,
): void {
  mkdirSync(into, { recursive: true });
  for (const file of fetchDebianPackages(packages, cache, say)) must("dpkg-deb", ["--extract", file, into]);
}

/** Downloads into `cache` what is not in it yet, and returns the packages' files. Throws and says as above. */
export function fetchDebianPackages(
  packages: readonly string[],
  cache: string,
  say: (text: string) => void,
): readonly string[] {
  mkdirSync(cache, { recursive: true });
  return packages.map((name) => {
    const cached = cachedPackage(name, cache);
    if (cached === undefined) say(`downloading ${name} from Debian`);
    return cached ?? download(name, cache);
  });
}

function cachedPackage(name: string, cache: string): string | undefined {
  const file = readdirSync(cache).find((entry) => entry.startsWith(`${name}_`) && entry.endsWith(".deb"));
  return file === undefined ? undefined : join(cache, file);
}

function download(name: string, cache: string): string {
  // Downloaded beside its place and then moved, so that an interrupted download is never taken for a package.
  const work = mkdtempSync(join(cache, "download-"));
  try {
    must("apt-get", ["-o", "APT::Sandbox::User=root", "download", name], work);
    const [file] = readdirSync(work);
    if (file === undefined) throw new Error(`apt-get download ${name} wrote no file`);
    must("mv", [join(work, file), join(cache, file)]);
    return join(cache, file);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

function must(command: string, args: readonly string[], cwd?: string): void {
  const result = spawnSync(command, args, { encoding: "utf8", ...(cwd === undefined ? {} : { cwd }) });
  if (result.status === 0) return;
  const why = result.error?.message ?? result.stderr.trim();
  throw new Error(`${command} ${args.join(" ")} failed: ${why}`);
}
