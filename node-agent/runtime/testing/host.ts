import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { silentLog } from "../../../lib/log/log.ts";
import { Spawner } from "../../../lib/process/spawner.ts";
import { ContainerSpec } from "../../../proto/gen/embassy/v1/stack.ts";
import type { ImageConfig } from "../../images/types.ts";
import { parseCgroupMounts } from "../cgroups.ts";
import { openRuntime, type RuntimeOptions } from "../open.ts";
import type { CreateRequest, Runtime } from "../types.ts";

/** Where a test's node has its things; as JSON it tells another process. */
export interface TestPlace {
  readonly nodeId: string;
  readonly folder: string;
  readonly runDir: string;
  readonly netns: string;
}

/** A node's directories, a root file system of busybox and an empty network namespace, all removed at the end. */
export function makeTestPlace(): TestPlace & Disposable {
  const nodeId = `test-${randomBytes(4).toString("hex")}`;
  const folder = mkdtempSync(join(tmpdir(), "embassy-runtime-"));
  const place: TestPlace = { nodeId, folder, runDir: `/run/embassy-${nodeId}`, netns: `embassy-${nodeId}` };
  const root = join(folder, "rootfs");
  for (const name of ["bin", "etc", "proc", "dev", "sys", "tmp", "data"])
    mkdirSync(join(root, name), { recursive: true });
  chmodSync(join(root, "tmp"), 0o1777);
  copyFileSync("/bin/busybox", join(root, "bin/busybox"));
  for (const applet of "sh sleep cat id env echo kill stty tty true false head dd ulimit hostname mount ping ps ls touch wc sed".split(
    " ",
  )) {
    linkSync(join(root, "bin/busybox"), join(root, "bin", applet));
  }
  writeFileSync(join(root, "etc/passwd"), "root:x:0:0::/root:/bin/sh\nwww:x:33:33::/www:/bin/sh\n");
  writeFileSync(join(root, "etc/group"), "root:x:0:\nwww:x:33:\nlogs:x:44:www\n");
  execFileSync("ip", ["netns", "add", place.netns]);
  return {
    ...place,
    [Symbol.dispose]: () => {
      execFileSync("ip", ["netns", "del", place.netns]);
      rmSync(folder, { recursive: true, force: true });
      rmSync(place.runDir, { recursive: true, force: true });
    },
  };
}

export async function openTestRuntime(place: TestPlace, options: Partial<RuntimeOptions> = {}): Promise<Runtime> {
  return await openRuntime({
    nodeId: place.nodeId,
    stateDir: join(place.folder, "state"),
    runDir: place.runDir,
    logDir: join(place.folder, "logs"),
    log: silentLog,
    spawner: new Spawner("test: spawner"),
    monitorIntervalMs: 50,
    ...options,
  });
}

const image: ImageConfig = {
  os: "linux",
  architecture: "amd64",
  entrypoint: [],
  command: ["sleep", "1000"],
  environment: ["PATH=/bin"],
  user: "",
  workingDir: "",
  exposedPorts: [],
  volumes: [],
  stopSignal: "",
  labels: {},
  healthcheck: undefined,
};

/** A container of busybox; `sh -c script` if one is given. */
export function testRequest(
  place: TestPlace,
  id: string,
  options: Partial<Omit<CreateRequest, "container">> & { script?: string; container?: Partial<ContainerSpec> } = {},
): CreateRequest {
  const { script, container, ...rest } = options;
  const run = script === undefined ? {} : { commandSet: true, command: ["sh", "-c", script] };
  return {
    id,
    name: `stack_${id}`,
    container: ContainerSpec.create({ ...run, ...container }),
    resources: undefined,
    image,
    rootfs: join(place.folder, "rootfs"),
    netnsPath: `/run/netns/${place.netns}`,
    environment: {},
    mounts: [],
    hosts: [],
    address: undefined,
    resolver: { nameservers: [], search: [], options: [] },
    ...rest,
  };
}

/** Every trace that containers of this node have on the machine: cgroups, processes, files; empty when there is none. */
export function tracesOf(place: TestPlace): readonly string[] {
  const mounts = parseCgroupMounts(readFileSync("/proc/self/mountinfo", "utf8"));
  const cgroups = mounts.map(({ path }) => join(path, `embassy-${place.nodeId}`)).filter((path) => existsSync(path));
  const processes = readdirSync("/proc").filter((name) => {
    if (!/^[0-9]+$/.test(name)) return false;
    try {
      return readFileSync(`/proc/${name}/cmdline`, "utf8").includes(`${place.runDir}/`);
    } catch {
      return false;
    }
  });
  const files = ["containers", "oci", "persist", "exits", "exec"]
    .map((name) => join(place.runDir, name))
    .filter((path) => existsSync(path))
    .flatMap((path) => readdirSync(path).map((name) => join(path, name)));
  return [...cgroups, ...processes.map((pid) => `process ${pid}`), ...files];
}

/** Pids in a container's cgroup. */
export function pidsOf(place: TestPlace, id: string): readonly number[] {
  for (const { path } of parseCgroupMounts(readFileSync("/proc/self/mountinfo", "utf8"))) {
    const file = join(path, `embassy-${place.nodeId}`, id, "cgroup.procs");
    if (!existsSync(file)) continue;
    const pids = readFileSync(file, "utf8")
      .split("\n")
      .filter((line) => line !== "");
    if (pids.length > 0) return pids.map(Number);
  }
  return [];
}
