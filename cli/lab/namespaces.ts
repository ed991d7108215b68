import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { ClusterError } from "../../lib/errors/errors.ts";
import type { LabPaths, ProcessRecord } from "./layout.ts";
import { findProcess, isAlive } from "./processes.ts";
import { labPath } from "./requirements.ts";
import { run } from "./run.ts";

/** The checkout or bundle that this program runs from: a lab runs the daemons beside it. */
export const installation = findInstallation();

function findInstallation(): string {
  // From cli/lab/ of the checkout, or from wherever in dist/ the bundler put this.
  let directory = import.meta.dirname;
  const isIt = () => existsSync(join(directory, "package.json")) || existsSync(join(directory, "dist"));
  while (directory !== "/" && !isIt()) directory = dirname(directory);
  return directory;
}

/** The environment of everything in a lab: no more than a service manager would give, and the mark that `lab down` finds. */
export function labEnvironment(paths: LabPaths): NodeJS.ProcessEnv {
  return { PATH: labPath, HOME: "/root", LANG: "C.UTF-8", EMBASSY_LAB: paths.directory };
}

// Runs as pid 1 of the new namespaces, $1 being the host's directory, $2 its name, and the rest directories below
// /var/lib that must stay visible. It says its pid as the machine sees it before it covers /proc.
const bootScript = `
set -eu
read -r outer rest </proc/self/stat
directory=$1; name=$2; shift 2
echo "$name" >/proc/sys/kernel/hostname
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$directory/etc,workdir=$directory/etc.work" /etc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/embassy /run/lock /run/lab
mount -t tmpfs -o mode=755 tmpfs "$directory/stage"
mkdir "$directory/stage/embassy"
mount --bind "$directory/lib" "$directory/stage/embassy"
for kept in "$@"; do
  mkdir -p "$directory/stage/$kept"
  mount --rbind "/var/lib/$kept" "$directory/stage/$kept"
done
mount --move "$directory/stage" /var/lib
mkdir /run/cgroup
mount --rbind /sys/fs/cgroup /run/cgroup
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount --move /run/cgroup /sys/fs/cgroup
rmdir /run/cgroup
mount -t proc -o nosuid,nodev,noexec proc /proc
echo "booted $outer"
exec tini -- sleep infinity </dev/null >/dev/null 2>&1
`;

/** The directories right below /var/lib that this program itself lives in: a host's own /var/lib covers the machine's. */
function keptBelowVarLib(): string[] {
  const kept = [installation, process.execPath].flatMap((path) => path.match(/^\/var\/lib\/([^/]+)/)?.[1] ?? []);
  return [...new Set(kept)];
}

/** The recorded init of a host; undefined when there is none or it has ended. */
export function readInit(paths: LabPaths, host: string): ProcessRecord | undefined {
  const file = paths.init(host);
  if (!existsSync(file)) return undefined;
  const record = JSON.parse(readFileSync(file, "utf8")) as ProcessRecord;
  return isAlive(record) ? record : undefined;
}

/** Like readInit, for commands that need the host. Throws `unavailable` when it is down. */
export function requireInit(paths: LabPaths, host: string): ProcessRecord {
  const init = readInit(paths, host);
  if (init !== undefined) return init;
  throw new ClusterError(`${host} of lab ${paths.name} is down`, {
    code: "conflict",
    subject: host,
    hint: `Boot it with: clusterctl lab start ${paths.name === "lab" ? "" : `--name ${paths.name} `}${host}`,
  });
}

/**
 * Makes the namespaces of a host (mount, pid, network, uts) with an init that reaps and does nothing else, and records
 * it. A host keeps its /var/lib/embassy from boot to boot and loses its /run, like a real one.
 */
export async function boot(paths: LabPaths, host: string): Promise<ProcessRecord> {
  const directory = paths.host(host);
  for (const name of ["lib", "log", "etc", "etc.work", "stage"]) mkdirSync(join(directory, name), { recursive: true });
  const command = ["--mount", "--pid", "--net", "--uts", "--fork", "--", "sh", "-s", directory, host];
  const child = spawn("unshare", [...command, ...keptBelowVarLib()], {
    cwd: "/",
    detached: true,
    stdio: ["pipe", "pipe", "pipe"],
    env: labEnvironment(paths),
  });
  child.stdin.on("error", () => {}); // What ended it is on its stderr.
  child.stdin.end(bootScript);
  const pid = await new Promise<number>((resolve, reject) => {
    let stdout = "";
    let stderr = "";
    const fail = (words: string, cause?: unknown) =>
      reject(
        new ClusterError(`${host} does not boot: ${words}`, {
          code: "internal",
          subject: host,
          hint: words.includes("overlay")
            ? `${paths.root} must be on a file system that overlayfs can write to (ext4, xfs, btrfs): set EMBASSY_LAB_DIR.`
            : "A lab needs the capabilities of root: CAP_SYS_ADMIN and CAP_NET_ADMIN.",
          cause,
        }),
      );
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
      const booted = stdout.match(/^booted (\d+)$/m)?.[1];
      if (booted !== undefined) resolve(Number(booted));
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
    });
    child.on("error", (error) => fail(error.message, error));
    child.on("close", () => fail(stderr.trim() || "its init ended"));
  });
  child.stdout.destroy();
  child.stderr.destroy();
  child.unref();
  const process = findProcess(pid);
  if (process === undefined) throw new ClusterError(`${host} ended as it booted`, { code: "internal", subject: host });
  const record: ProcessRecord = { pid, startTime: process.startTime };
  writeFileSync(paths.init(host), JSON.stringify(record));
  return record;
}

/** The command that runs another one within a host. */
export function inside(init: ProcessRecord, command: readonly string[]): string[] {
  return ["nsenter", `--target=${init.pid}`, "--mount", "--uts", "--net", "--pid", "--wd=/", "--", ...command];
}

/** Runs a program within a host to its end and returns its stdout. Throws `internal` with its words. */
export async function runInside(
  paths: LabPaths,
  host: string,
  command: readonly string[],
  signal?: AbortSignal,
): Promise<string> {
  const environment = labEnvironment(paths);
  return await run(inside(requireInit(paths, host), command), { environment, signal });
}

/** Runs `ip -batch` with those lines in a network namespace. */
export async function ipBatch(init: ProcessRecord | undefined, lines: readonly string[]): Promise<void> {
  const enter = init === undefined ? [] : ["nsenter", `--target=${init.pid}`, "--net", "--"];
  await run([...enter, "ip", "-batch", "-"], { input: `${lines.join("\n")}\n` });
}

/** A path within a host, as the machine sees it while the host is up. */
export function outsidePath(init: ProcessRecord, path: string): string {
  return `/proc/${init.pid}/root${path}`;
}
