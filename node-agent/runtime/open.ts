import { chmod, copyFile, mkdir, mkdtemp, rm, stat, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { ClusterError, messageOf } from "../../lib/errors/errors.ts";
import type { Log } from "../../lib/log/log.ts";
import type { Spawner } from "../../lib/process/spawner.ts";
import type { OciConfig } from "./bundle.ts";
import { type CgroupTree, hasSwapAccounting, readCgroupTree, readLimits } from "./cgroups.ts";
import type { RuntimeProgram } from "./conmon.ts";
import { Containers, type ContainersDeps } from "./containers.ts";
import { type HostFacts, readHostFacts, readSeccompProfile } from "./host.ts";
import type { Runtime, RuntimeProbe } from "./types.ts";

export interface RuntimeOptions {
  readonly nodeId: string;
  /** What is kept over a reboot. */
  readonly stateDir: string;
  /** Bundles, and what conmon and the OCI runtime keep; a tmpfs, of this node alone. */
  readonly runDir: string;
  readonly logDir: string;
  readonly log: Log;
  readonly spawner: Spawner;
  /** "auto": the first of crun and runc that works; or a name, or a path. */
  readonly runtime?: string;
  /** Default "/embassy-<nodeId>". */
  readonly cgroupParent?: string;
  /** Default /usr/bin/tini-static. */
  readonly initPath?: string;
  /** Default: Debian's. No container runs without a filter. */
  readonly seccompPath?: string;
  /** Default 1000. */
  readonly monitorIntervalMs?: number;
}

type BaseDeps = Omit<ContainersDeps, "probe" | "program">;

const unifiedHierarchy = "/sys/fs/cgroup/unified";
const probeMemoryBytes = 64 * 1024 * 1024;
const probePids = 32;

/**
 * Finds an OCI runtime that works on this machine, by running a container with limits, and opens the node's containers with
 * it. `adopt` comes next. Throws `unavailable` with what each runtime said when none works.
 */
export async function openRuntime(options: RuntimeOptions): Promise<Runtime> {
  const base = await baseDeps(options);
  const failures: string[] = [];
  for (const program of await candidates(options, base.tree)) {
    try {
      const probe = await probeRuntime(program, base);
      options.log.info("runtime chosen", { runtime: probe.version, cgroups: probe.cgroups, path: probe.path });
      return new Containers({ ...base, probe, program });
    } catch (error) {
      options.log.warn("a container runtime does not work here", { path: program.path, error });
      failures.push(`${program.path}: ${messageOf(error)}`);
    }
  }
  throw new ClusterError(`no container runtime works here: ${failures.join("; ")}`, {
    code: "unavailable",
    hint: "Install crun or runc, and conmon, and run noded as root.",
  });
}

async function baseDeps(options: RuntimeOptions): Promise<BaseDeps> {
  const host = await readHostFacts();
  const initPath = options.initPath ?? "/usr/bin/tini-static";
  const seccompPath = options.seccompPath ?? "/usr/share/containers/seccomp.json";
  await requireFile(initPath, "Install the package tini.");
  await requireFile(seccompPath, "Install the package golang-github-containers-common.");
  const seccomp = await readSeccompProfile(seccompPath);
  return {
    paths: { runDir: options.runDir, logDir: options.logDir },
    log: options.log,
    spawner: options.spawner,
    tree: await readCgroupTree(),
    host,
    seccomp,
    cgroupParent: options.cgroupParent ?? `/embassy-${options.nodeId}`,
    initPath,
    monitorIntervalMs: options.monitorIntervalMs ?? 1_000,
  };
}

async function requireFile(path: string, hint: string): Promise<void> {
  const found = await stat(path).catch(() => undefined);
  if (found?.isFile() !== true) throw new ClusterError(`the file ${path} is missing`, { code: "unavailable", hint });
}

/** Programs to try, in order. */
async function candidates(options: RuntimeOptions, tree: CgroupTree): Promise<readonly RuntimeProgram[]> {
  const wanted = options.runtime ?? "auto";
  const names = wanted === "auto" ? ["crun", "runc"] : [wanted];
  const programs: RuntimeProgram[] = [];
  for (const name of names) {
    const direct = await findProgram(name);
    if (direct === undefined) continue;
    // crun refuses a machine with v1 and v2 hierarchies side by side: it is run where it does not see the v2 one.
    const hide = basename(direct) === "crun" && tree.mode === "hybrid" ? unifiedHierarchy : undefined;
    const path = hide === undefined ? direct : await writeCrunWrapper(options.stateDir, direct, hide);
    programs.push({ path, direct, hide });
  }
  if (programs.length === 0) {
    throw new ClusterError(`there is no runtime ${names.join(" or ")} on this host`, {
      code: "unavailable",
      hint: "Install crun or runc.",
    });
  }
  return programs;
}

async function findProgram(name: string): Promise<string | undefined> {
  const places = name.includes("/")
    ? [name]
    : ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"].map((folder) =>
        join(folder, name),
      );
  for (const place of places) {
    const found = await stat(place).catch(() => undefined);
    if (found?.isFile() === true) return place;
  }
  return undefined;
}

/** For those who start the runtime themselves: a program that runs crun where it does not see that hierarchy. */
async function writeCrunWrapper(stateDir: string, crun: string, hide: string): Promise<string> {
  await mkdir(stateDir, { recursive: true, mode: 0o700 });
  const path = join(stateDir, "crun-hybrid");
  const inner = `mount -t tmpfs tmpfs ${hide} && exec ${crun} "$@"`;
  await writeFile(path, `#!/bin/sh\nexec unshare --mount --propagation slave sh -c '${inner}' crun "$@"\n`, {
    mode: 0o755,
  });
  return path;
}

/**
 * Runs a static program under conmon with limits on memory and processes, and reads the limits back: `--version` proves
 * nothing. Throws what went wrong.
 */
export async function probeRuntime(program: RuntimeProgram, base: BaseDeps): Promise<RuntimeProbe> {
  await mkdir(base.paths.runDir, { recursive: true, mode: 0o700 });
  const folder = await mkdtemp(join(base.paths.runDir, "probe-"));
  const version = await readVersion(program.direct, base.spawner);
  const draft: RuntimeProbe = { version, path: program.path, cgroups: base.tree.mode, swapAccounting: false };
  const id = "probe";
  const cgroupsPath = `${base.cgroupParent}-${id}/${id}`;
  const deps = {
    ...base,
    probe: draft,
    program,
    paths: { runDir: join(folder, "run"), logDir: join(folder, "logs") },
    cgroupParent: `${base.cgroupParent}-${id}`,
  };
  await using containers = new Containers(deps);
  try {
    const rootfs = join(folder, "rootfs");
    for (const name of ["proc", "dev"]) await mkdir(join(rootfs, name), { recursive: true });
    await copyFile(base.initPath, join(rootfs, "program"));
    await chmod(join(rootfs, "program"), 0o755);
    await containers.open();
    await containers.createBundle(id, probeConfig(rootfs, cgroupsPath, base.host), {});
    try {
      await containers.monitored(id, { tty: false, stdinOpen: false });
      const limits = await readLimits(base.tree, cgroupsPath);
      if (limits.memoryBytes !== probeMemoryBytes || limits.pids !== probePids) {
        throw new ClusterError(
          `limits are not in force: memory ${limits.memoryBytes ?? "unknown"}, processes ${limits.pids ?? "unknown"}`,
          { code: "unavailable", hint: "Enable the memory and pids controllers of cgroups." },
        );
      }
      const swapAccounting = await hasSwapAccounting(base.tree, cgroupsPath);
      const ended = new Promise<number>((resolve) => {
        containers.watchExits((exit) => resolve(exit.exitCode));
      });
      await containers.start(id);
      const exitCode = await ended;
      if (exitCode !== 0) throw new ClusterError(`its program ended with ${exitCode}`, { code: "unavailable" });
      return { ...draft, swapAccounting };
    } finally {
      await containers.delete(id);
      await containers.discard(id);
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function readVersion(path: string, spawner: Spawner): Promise<string> {
  const { stdout } = await spawner.run(path, ["--version"]);
  const [, name, version] = /^(\S+) version ([0-9][0-9.]*)/m.exec(stdout) ?? [];
  return name === undefined || version === undefined ? basename(path) : `${name} ${version}`;
}

function probeConfig(rootfs: string, cgroupsPath: string, host: HostFacts): OciConfig {
  const none = { bounding: [], effective: [], permitted: [] };
  return {
    ociVersion: "1.0.2",
    process: {
      terminal: false,
      user: { uid: 0, gid: 0, additionalGids: [] },
      args: ["/program", "--version"],
      env: [],
      cwd: "/",
      capabilities: none,
      rlimits: [],
      noNewPrivileges: true,
      oomScoreAdj: Math.max(0, host.oomScoreAdj),
    },
    root: { path: rootfs, readonly: true },
    hostname: "probe",
    mounts: [
      { destination: "/proc", type: "proc", source: "proc", options: ["nosuid", "noexec", "nodev"] },
      // The program lies in the run directory, and systemd mounts /run without devices: runc opens /dev/null.
      { destination: "/dev", type: "tmpfs", source: "tmpfs", options: ["nosuid", "mode=755", "size=64k"] },
    ],
    annotations: {},
    linux: {
      namespaces: ["pid", "network", "mount", "uts", "ipc", "cgroup"].map((type) => ({ type })),
      cgroupsPath,
      resources: { memory: { limit: probeMemoryBytes }, pids: { limit: probePids } },
      sysctl: {},
      maskedPaths: [],
      readonlyPaths: [],
    },
  };
}
