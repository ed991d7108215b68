import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { parseCidr } from "../../lib/cidr/cidr.ts";
import { ClusterError } from "../../lib/errors/errors.ts";
import { findDetached, logTail, startDetached } from "./daemons.ts";
import {
  hostAddress,
  type LabPaths,
  type LabRecord,
  machineAddress,
  type ProcessRecord,
  registryAddress,
  registryPort,
} from "./layout.ts";
import { boot, ipBatch, readInit } from "./namespaces.ts";
import { run } from "./run.ts";

/** The name under which the underlay is kept beside the hosts. It is a host without daemons that holds the bridge and the registry. */
export const underlayName = "underlay";

/**
 * The hardware address for an address on the underlay. Fixed, as that of a real card is: after a host has booted again, or the
 * bridge has gained or lost a port, the others' neighbour tables must not lead astray for half a minute.
 */
function macOf(address: string): string {
  const bytes = address.split(".").map((part) => Number(part).toString(16).padStart(2, "0"));
  return ["02", "6c", ...bytes].join(":");
}

/** The underlay: a bridge in namespaces of its own, this machine joined to it by one link. */
export async function ensureUnderlay(paths: LabPaths, lab: LabRecord): Promise<ProcessRecord> {
  const running = readInit(paths, underlayName);
  if (running !== undefined) return running;
  await deleteMachineLink(paths);
  const init = await boot(paths, underlayName);
  const { prefix } = parseCidr(lab.subnet);
  await ipBatch(init, [
    "link set lo up",
    `link add br0 address ${macOf(registryAddress(lab))} type bridge`,
    `address add ${registryAddress(lab)}/${prefix} dev br0`,
    "link set br0 up",
  ]);
  const link = paths.machineLink;
  await ipBatch(undefined, [
    `link add ${link} address ${macOf(machineAddress(lab))} type veth peer name machine netns ${init.pid}`,
    `address add ${machineAddress(lab)}/${prefix} dev ${link}`,
    `link set ${link} up`,
  ]);
  await ipBatch(init, ["link set machine master br0", "link set machine up"]);
  return init;
}

/** Removes the machine's end of its link to the underlay, and with it the other end. */
export async function deleteMachineLink(paths: LabPaths): Promise<void> {
  const exists = () => existsSync(`/sys/class/net/${paths.machineLink}`);
  if (!exists()) return;
  try {
    await run(["ip", "link", "delete", paths.machineLink]);
  } catch (error) {
    // The kernel takes it away by itself a moment after the underlay's last process has ended.
    if (exists()) throw error;
  }
}

/** Joins a host to the underlay: its eth0, with its address. */
export async function attachHost(
  lab: LabRecord,
  underlay: ProcessRecord,
  host: string,
  init: ProcessRecord,
): Promise<void> {
  const { prefix } = parseCidr(lab.subnet);
  // One may be left of the host before this boot, until the kernel gets to it; what else fails, the next lines say.
  await ipBatch(underlay, [`link delete ${host}`]).catch(() => {});
  await ipBatch(underlay, [
    `link add ${host} type veth peer name eth0 address ${macOf(hostAddress(lab, host))} netns ${init.pid}`,
    `link set ${host} master br0`,
    `link set ${host} up`,
  ]);
  await ipBatch(init, [
    "link set lo up",
    `address add ${hostAddress(lab, host)}/${prefix} dev eth0`,
    "link set eth0 up",
  ]);
}

/** Is the host joined to the underlay? `lab cut` takes its port on the bridge down. */
export async function isCut(underlay: ProcessRecord, host: string): Promise<boolean> {
  const words = await run([
    "nsenter",
    `--target=${underlay.pid}`,
    "--net",
    "--",
    "ip",
    "-br",
    "link",
    "show",
    "dev",
    host,
  ]);
  return !/[<,]UP[,>]/.test(words);
}

/** Takes the host's link down, or up again. */
export async function setLink(underlay: ProcessRecord, host: string, state: "up" | "down"): Promise<void> {
  await ipBatch(underlay, [`link set ${host} ${state}`]);
}

const registryConfiguration = (directory: string, address: string) => `version: 0.1
log:
  accesslog:
    disabled: true
  level: warn
storage:
  filesystem:
    rootdirectory: ${directory}
  delete:
    enabled: true
http:
  addr: ${address}
`;

/** Debian's docker-registry on the underlay, plain HTTP, its images in the lab's directory. */
export async function ensureRegistry(paths: LabPaths, lab: LabRecord, underlay: ProcessRecord): Promise<void> {
  const address = registryAddress(lab);
  if (findDetached(underlay, "registry") === undefined) {
    // The underlay sees its part of the lab's directory as /var/lib/embassy, like a host.
    const configuration = join(paths.host(underlayName), "lib/registry.yml");
    mkdirSync(join(paths.host(underlayName), "lib/registry"), { recursive: true });
    writeFileSync(configuration, registryConfiguration("/var/lib/embassy/registry", `${address}:${registryPort}`));
    await startDetached(paths, underlayName, "registry", ["docker-registry", "serve", "/var/lib/embassy/registry.yml"]);
  }
  const deadline = performance.now() + 20_000;
  while (!(await accepts(address, registryPort))) {
    if (performance.now() > deadline || findDetached(underlay, "registry") === undefined) {
      throw new ClusterError(`the registry does not answer: ${logTail(paths, underlayName, "registry", 3)}`, {
        code: "internal",
        hint: `Its log: ${paths.log(underlayName, "registry")}`,
      });
    }
    await delay(20);
  }
}

/** Does something accept connections there? */
async function accepts(host: string, port: number): Promise<boolean> {
  return await new Promise((resolve) => {
    const socket = connect({ host, port, timeout: 1_000 });
    const answer = (yes: boolean) => {
      socket.destroy();
      resolve(yes);
    };
    socket.on("connect", () => answer(true));
    socket.on("error", () => answer(false));
    socket.on("timeout", () => answer(false));
  });
}
