import { ClusterError } from "../../lib/errors/errors.ts";
import { planCapabilities } from "./capabilities.ts";
import type { HostFacts } from "./host.ts";
import { type OciSeccomp, resolveSeccomp, type SeccompProfile } from "./seccomp.ts";
import type { CgroupMode, ContainerMount, CreateRequest } from "./types.ts";
import type { ContainerUser } from "./users.ts";

const unlimited = "\u0000unlimited";

/** A configuration or a part of it as JSON; Infinity becomes RLIM_INFINITY, 2^64 - 1, which no JavaScript number is. */
export function formatOci(value: OciConfig | OciProcess): string {
  const text = JSON.stringify(value, (_, part: unknown) => (part === Number.POSITIVE_INFINITY ? unlimited : part));
  return text.replaceAll(JSON.stringify(unlimited), "18446744073709551615");
}

/** The process part of an OCI configuration; what `exec` takes is one of these too. */
export interface OciProcess {
  readonly terminal: boolean;
  readonly consoleSize?: { readonly height: number; readonly width: number };
  readonly user: { readonly uid: number; readonly gid: number; readonly additionalGids: readonly number[] };
  readonly args: readonly string[];
  readonly env: readonly string[];
  readonly cwd: string;
  readonly capabilities: {
    readonly bounding: readonly string[];
    readonly effective: readonly string[];
    readonly permitted: readonly string[];
  };
  readonly rlimits: readonly { readonly type: string; readonly soft: number; readonly hard: number }[];
  readonly noNewPrivileges: boolean;
  readonly oomScoreAdj: number;
}

export interface OciMount {
  readonly destination: string;
  readonly type: string;
  readonly source: string;
  readonly options: readonly string[];
}

/** An OCI runtime configuration (config.json), as far as it is used here. */
export interface OciConfig {
  readonly ociVersion: string;
  readonly process: OciProcess;
  readonly root: { readonly path: string; readonly readonly: boolean };
  readonly hostname: string;
  readonly mounts: readonly OciMount[];
  readonly annotations: Readonly<Record<string, string>>;
  readonly linux: {
    readonly namespaces: readonly { readonly type: string; readonly path?: string }[];
    readonly cgroupsPath: string;
    readonly resources: object;
    readonly sysctl: Readonly<Record<string, string>>;
    readonly seccomp?: OciSeccomp;
    readonly maskedPaths: readonly string[];
    readonly readonlyPaths: readonly string[];
  };
}

/** What the configuration depends on besides the request. */
export interface BundleContext {
  readonly user: ContainerUser;
  readonly host: HostFacts;
  readonly seccomp: SeccompProfile;
  /** "/embassy-<node>/<task>". */
  readonly cgroupsPath: string;
  readonly cgroups: CgroupMode;
  readonly swapAccounting: boolean;
  /** Holds the files resolv.conf, hosts and hostname. */
  readonly bundleDir: string;
  /** A static init on the host. */
  readonly initPath: string;
}

export interface PlannedBundle {
  readonly config: OciConfig;
  readonly files: Readonly<Record<"resolv.conf" | "hosts" | "hostname", string>>;
  readonly warnings: readonly string[];
}

const defaultShmBytes = 64 * 1024 * 1024;
const maxOpenFiles = 1024 * 1024;
const initTarget = "/dev/init";

// As Docker and Podman hide them: they tell about the host or change it.
const maskedPaths =
  "/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/sched_debug /proc/scsi /proc/timer_list /proc/timer_stats /sys/devices/virtual/powercap /sys/firmware".split(
    " ",
  );
const readonlyPaths = "/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger".split(" ");

/**
 * The bundle of a container. Pure. `warnings` name what was asked for and this node cannot give. Throws `invalid` for what
 * no node can.
 */
export function planBundle(request: CreateRequest, context: BundleContext): PlannedBundle {
  const { container, image } = request;
  const { host, user } = context;
  const warnings: string[] = [];
  const { capabilities, lacking } = planCapabilities(container.capAdd, container.capDrop, host.capabilities);
  for (const name of lacking) warnings.push(`capability ${name} is not given: this node does not have it itself`);
  // Without a dot: the resolver takes what follows one for a domain, and asks for every name in it.
  const hostname = planHostname(container.hostname === "" ? request.name.replaceAll(".", "-") : container.hostname);
  const config: OciConfig = {
    ociVersion: "1.0.2",
    process: {
      terminal: container.tty,
      user: { uid: user.uid, gid: user.gid, additionalGids: user.groups },
      args: planArguments(request),
      env: planEnvironment(request, user, hostname),
      cwd: container.workingDir || image.workingDir || "/",
      // No inheritable ones: a program with file capabilities would pick them up (CVE-2022-24769).
      capabilities: { bounding: capabilities, effective: capabilities, permitted: capabilities },
      rlimits: planRlimits(request, host, warnings),
      noNewPrivileges: !container.allowNewPrivileges,
      oomScoreAdj: planOomScore(container.oomScoreAdj, host, warnings),
    },
    root: { path: request.rootfs, readonly: container.readOnly },
    hostname,
    mounts: planMounts(request, context),
    annotations: container.annotations,
    linux: {
      namespaces: [
        { type: "pid" },
        { type: "network", path: request.netnsPath },
        { type: "mount" },
        { type: "uts" },
        { type: "ipc" },
        { type: "cgroup" },
      ],
      cgroupsPath: context.cgroupsPath,
      resources: planResources(request, context),
      sysctl: planSysctls(container.sysctls),
      seccomp: resolveSeccomp(context.seccomp, {
        capabilities,
        architecture: host.architecture,
        kernel: host.kernel,
      }),
      maskedPaths,
      readonlyPaths,
    },
  };
  return { config, files: planFiles(request, hostname), warnings };
}

/** Entrypoint and command by Docker's rule: a new entrypoint drops the image's command too. */
function planArguments({ container, image }: CreateRequest): readonly string[] {
  const entrypoint = container.entrypointSet ? container.entrypoint : image.entrypoint;
  const command = container.commandSet ? container.command : container.entrypointSet ? [] : image.command;
  const args = [...entrypoint, ...command];
  if (args.length === 0 || args[0] === "") {
    throw new ClusterError("neither the image nor the service says what to run", {
      code: "invalid",
      hint: "Set command: in the stack file.",
    });
  }
  return container.init ? [initTarget, "--", ...args] : args;
}

function planEnvironment(request: CreateRequest, user: ContainerUser, hostname: string): readonly string[] {
  const environment = new Map<string, string>();
  environment.set("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
  environment.set("HOSTNAME", hostname);
  environment.set("HOME", user.home);
  if (request.container.tty) environment.set("TERM", "xterm");
  for (const line of request.image.environment) {
    const equals = line.indexOf("=");
    if (equals > 0) environment.set(line.slice(0, equals), line.slice(equals + 1));
  }
  for (const [name, value] of Object.entries(request.environment)) environment.set(name, value);
  for (const [name, value] of Object.entries(request.container.environment)) environment.set(name, value);
  return [...environment].map(([name, value]) => `${name}=${value}`);
}

/** A valid hostname of at most 63 characters out of any name. */
export function planHostname(name: string): string {
  const mended = name
    .replaceAll(/[^A-Za-z0-9.-]/g, "-")
    .slice(0, 63)
    .replaceAll(/^[.-]+|[.-]+$/g, "");
  return mended === "" ? "container" : mended;
}

function planRlimits(request: CreateRequest, host: HostFacts, warnings: string[]): OciProcess["rlimits"] {
  const limits = new Map<string, { soft: number; hard: number }>();
  const nodeFiles = host.rlimits["RLIMIT_NOFILE"] ?? 1024;
  const files = host.mayRaise ? maxOpenFiles : Math.min(maxOpenFiles, nodeFiles);
  limits.set("RLIMIT_NOFILE", { soft: files, hard: files });
  for (const { name, soft, hard } of request.container.ulimits) {
    const type = `RLIMIT_${name.toUpperCase()}`;
    const own = host.rlimits[type];
    if (own === undefined) {
      throw new ClusterError(`there is no resource limit "${name}"`, {
        code: "invalid",
        hint: "See getrlimit(2), for example nofile.",
      });
    }
    const wantedHard = asLimit(hard);
    const wantedSoft = Math.min(asLimit(soft), wantedHard);
    const most = host.mayRaise ? Number.POSITIVE_INFINITY : own;
    if (wantedHard > most) {
      warnings.push(`ulimit ${name} is ${most} in place of ${formatLimit(wantedHard)}: this node may not go higher`);
    }
    limits.set(type, { soft: Math.min(wantedSoft, most), hard: Math.min(wantedHard, most) });
  }
  return [...limits].map(([type, { soft, hard }]) => ({ type, soft, hard }));
}

function asLimit(value: number): number {
  return value < 0 ? Number.POSITIVE_INFINITY : value;
}

function formatLimit(value: number): string {
  return value === Number.POSITIVE_INFINITY ? "unlimited" : String(value);
}

function planOomScore(wanted: number, host: HostFacts, warnings: string[]): number {
  if (wanted >= host.oomScoreAdj || host.mayRaise) return wanted;
  if (wanted !== 0)
    warnings.push(`oom_score_adj is ${host.oomScoreAdj} in place of ${wanted}: this node may not go lower`);
  return host.oomScoreAdj;
}

function planResources({ resources }: CreateRequest, { cgroups, swapAccounting }: BundleContext): object {
  const limits = resources?.limits;
  const reserved = resources?.reservations?.milliCpus ?? 0;
  const memory = limits?.memoryBytes ?? 0;
  const quota = limits?.milliCpus ?? 0;
  return {
    devices: [{ allow: false, access: "rwm" }],
    cpu: {
      ...(reserved === 0 || cgroups === "v2" ? {} : { shares: Math.max(2, Math.round((reserved * 1024) / 1000)) }),
      // The kernel takes no quota below 1 ms.
      ...(quota === 0 ? {} : { period: 100_000, quota: Math.max(1_000, quota * 100) }),
    },
    // Memory and swap together: a limit that swapping gets around is none.
    memory: memory === 0 ? {} : { limit: memory, ...(swapAccounting ? { swap: memory } : {}) },
    ...((limits?.pids ?? 0) === 0 ? {} : { pids: { limit: limits?.pids } }),
    // In proportion, one CPU being what a container has that reserves none, as with shares. The runtimes make weight 39 out of
    // 1024 shares: less than the 100 of a container without a reservation.
    ...(reserved === 0 || cgroups !== "v2"
      ? {}
      : { unified: { "cpu.weight": String(Math.min(10_000, Math.max(1, Math.round(reserved / 10)))) } }),
  };
}

const ipcSysctls =
  "kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem kernel.shmall kernel.shmmax kernel.shmmni kernel.shm_rmid_forced".split(
    " ",
  );

function planSysctls(wanted: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
  for (const name of Object.keys(wanted)) {
    if (!name.startsWith("net.") && !name.startsWith("fs.mqueue.") && !ipcSysctls.includes(name)) {
      throw new ClusterError(`sysctl ${name} is the whole host's and cannot be set for one container`, {
        code: "invalid",
        hint: "Only net.*, fs.mqueue.* and the IPC ones of kernel.* belong to a container.",
      });
    }
  }
  return {
    // ping without NET_RAW, and ports below 1024 for every user: the namespace is the container's own.
    "net.ipv4.ping_group_range": "0 2147483647",
    "net.ipv4.ip_unprivileged_port_start": "0",
    ...wanted,
  };
}

function planMounts(request: CreateRequest, context: BundleContext): readonly OciMount[] {
  const { container } = request;
  const shm = container.shmBytes === 0 ? defaultShmBytes : container.shmBytes;
  const file = (name: string): OciMount => ({
    destination: `/etc/${name}`,
    type: "bind",
    source: `${context.bundleDir}/${name}`,
    options: ["rbind", "rprivate", ...(container.readOnly ? ["ro"] : [])],
  });
  const system: OciMount[] = [
    { destination: "/proc", type: "proc", source: "proc", options: ["nosuid", "noexec", "nodev"] },
    {
      destination: "/dev",
      type: "tmpfs",
      source: "tmpfs",
      options: ["nosuid", "strictatime", "mode=755", "size=65536k"],
    },
    {
      destination: "/dev/pts",
      type: "devpts",
      source: "devpts",
      options: ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    },
    { destination: "/sys", type: "sysfs", source: "sysfs", options: ["nosuid", "noexec", "nodev", "ro"] },
    {
      destination: "/sys/fs/cgroup",
      type: "cgroup",
      source: "cgroup",
      options: ["nosuid", "noexec", "nodev", "relatime", "ro"],
    },
    { destination: "/dev/mqueue", type: "mqueue", source: "mqueue", options: ["nosuid", "noexec", "nodev"] },
    {
      destination: "/dev/shm",
      type: "tmpfs",
      source: "shm",
      options: ["nosuid", "noexec", "nodev", "mode=1777", `size=${shm}`],
    },
    file("resolv.conf"),
    file("hosts"),
    file("hostname"),
    ...(container.init
      ? [{ destination: initTarget, type: "bind", source: context.initPath, options: ["bind", "ro"] }]
      : []),
  ];
  const own = request.mounts.map(planMount);
  const taken = new Set(own.map((mount) => mount.destination));
  if (taken.size < own.length) {
    throw new ClusterError("two mounts have the same target", {
      code: "invalid",
      hint: "Give each mount a target of its own.",
    });
  }
  // Outer ones first: a mount made before the one that it lies in would be hidden by it.
  own.sort((a, b) => a.destination.split("/").length - b.destination.split("/").length);
  return [...system.filter((mount) => !taken.has(mount.destination)), ...own];
}

function planMount(mount: ContainerMount): OciMount {
  if (!mount.target.startsWith("/") || mount.target.split("/").includes("..")) {
    throw new ClusterError(`mount target "${mount.target}" is no absolute path`, { code: "invalid" });
  }
  const destination = mount.target.length > 1 ? mount.target.replace(/\/+$/, "") : mount.target;
  const access = mount.readOnly ? "ro" : "rw";
  switch (mount.type) {
    case "bind":
      return { destination, type: "bind", source: mount.source, options: ["rbind", "rprivate", access] };
    case "tmpfs": {
      const mode = (mount.mode === 0 ? 0o1777 : mount.mode).toString(8);
      const size = mount.sizeBytes === 0 ? [] : [`size=${mount.sizeBytes}`];
      return {
        destination,
        type: "tmpfs",
        source: "tmpfs",
        options: ["nosuid", "nodev", access, `mode=${mode}`, ...size],
      };
    }
    default:
      return mount satisfies never;
  }
}

function planFiles(request: CreateRequest, hostname: string): PlannedBundle["files"] {
  const { nameservers, search, options } = request.resolver;
  const lines = (list: readonly string[]) => list.map((line) => `${line}\n`).join("");
  const own = request.address === undefined ? [] : [`${request.address}\t${hostname}`];
  return {
    "resolv.conf": lines([
      ...nameservers.map((address) => `nameserver ${address}`),
      ...(search.length === 0 ? [] : [`search ${search.join(" ")}`]),
      ...(options.length === 0 ? [] : [`options ${options.join(" ")}`]),
    ]),
    hosts: lines([
      "127.0.0.1\tlocalhost",
      "::1\tlocalhost ip6-localhost ip6-loopback",
      ...own,
      ...request.hosts.map(({ address, names }) => `${address}\t${names.join(" ")}`),
    ]),
    hostname: `${hostname}\n`,
  };
}
