import { createHash } from "node:crypto";
import { join } from "node:path";
import { formatAddress, nthAddress, parseCidr } from "../../lib/cidr/cidr.ts";
import { ClusterError } from "../../lib/errors/errors.ts";
import { defaultPorts } from "../../lib/net/ports.ts";

/** What a lab is, as its lab.json holds it. */
export interface LabRecord {
  readonly name: string;
  /** CIDR of the underlay; .1 is this machine, .2 the registry, .11 host-1 and so on. */
  readonly subnet: string;
  /** Number of hosts: host-1 to host-<hosts>. */
  readonly hosts: number;
  /** How many of them, from host-1 on, are managers. Default 1. */
  readonly managers?: number;
}

/** A process that is known beyond its pid, which the kernel uses again. */
export interface ProcessRecord {
  readonly pid: number;
  /** Clock ticks after boot at which it started: field 22 of /proc/<pid>/stat. */
  readonly startTime: string;
}

/** The processes that a user can name in `lab kill host-1:noded`. */
export const processNames = ["clusterd", "etcd", "noded", "netd"] as const;
export type ProcessName = (typeof processNames)[number];

/** Those that the lab starts itself. etcd is clusterd's child. */
export const daemonNames = ["clusterd", "noded", "netd"] as const;
export type DaemonName = (typeof daemonNames)[number];

/** The name of a lab that is given none. */
export const defaultLab = "lab";

export const registryPort = 5000;
export const managerPort = defaultPorts.main.port;
export const mostHosts = 100;
export const mostManagers = 5;
const firstHostNumber = 11;

/** Where all labs keep their state: EMBASSY_LAB_DIR, else /var/lib/embassy-lab. Must be on a file system that overlayfs can write to. */
export function labRoot(environment: NodeJS.ProcessEnv): string {
  const root = environment["EMBASSY_LAB_DIR"] || "/var/lib/embassy-lab";
  if (!/^\/[A-Za-z0-9_./-]+$/.test(root)) {
    throw new ClusterError(`EMBASSY_LAB_DIR is ${JSON.stringify(root)}`, {
      code: "invalid",
      hint: "Give an absolute path of letters, digits, dots, dashes and underscores.",
    });
  }
  return root;
}

/** Checks a lab's name. Throws `invalid`. */
export function checkLabName(name: string): string {
  if (/^[a-z0-9][a-z0-9-]{0,30}$/.test(name)) return name;
  throw new ClusterError(`the lab name ${JSON.stringify(name)} is not valid`, {
    code: "invalid",
    hint: "Use up to 31 lower-case letters, digits and dashes, a letter or digit first.",
  });
}

/** The files of one lab, all below one directory. */
export class LabPaths {
  readonly root: string;
  readonly name: string;
  readonly directory: string;

  constructor(root: string, name: string) {
    this.root = root;
    this.name = checkLabName(name);
    this.directory = join(root, name);
  }

  get record(): string {
    return join(this.directory, "lab.json");
  }
  /** There when a lab has made the root itself. */
  get rootMade(): string {
    return join(this.root, ".made");
  }
  get lock(): string {
    return join(this.directory, "lock");
  }
  /** The admin's context, as clusterd wrote it; it names host-1 alone. */
  get admin(): string {
    return join(this.host("host-1"), "lib/clusterd/admin.json");
  }
  /** Of a host, or of "underlay". */
  host(host: string): string {
    return join(this.directory, "hosts", host);
  }
  init(host: string): string {
    return join(this.host(host), "init.json");
  }
  log(host: string, process: string): string {
    return join(this.host(host), "log", `${process}.log`);
  }
  /** Holds the name of the lab that uses a subnet, so that two labs that start at once take two. */
  subnetClaim(subnet: string): string {
    return join(this.root, ".subnets", subnet.replace("/", "_"));
  }
  /** The machine's own end of its link to the underlay. */
  get machineLink(): string {
    return `eml-${createHash("sha256").update(this.directory).digest("hex").slice(0, 8)}`;
  }
}

export function hostNames(count: number): string[] {
  return Array.from({ length: count }, (_, index) => `host-${index + 1}`);
}

function address(lab: LabRecord, n: number): string {
  return formatAddress(nthAddress(parseCidr(lab.subnet), n));
}

/** This machine's own address on the underlay. */
export function machineAddress(lab: LabRecord): string {
  return address(lab, 1);
}

export function registryAddress(lab: LabRecord): string {
  return address(lab, 2);
}

/** The underlay address of host-<n>. */
export function hostAddress(lab: LabRecord, host: string): string {
  return address(lab, firstHostNumber - 1 + Number(host.slice("host-".length)));
}

/** A target of the fault commands: a host, or one process on it. */
export interface FaultTarget {
  readonly host: string;
  readonly process: ProcessName | undefined;
}

/** Parses "host-1" or "host-1:noded" for a lab. Throws `invalid` or `not-found` with the names that exist. */
export function parseTarget(text: string, lab: LabRecord): FaultTarget {
  const [host = "", process, ...rest] = text.split(":");
  const known = hostNames(lab.hosts);
  if (!known.includes(host)) {
    throw new ClusterError(`lab ${lab.name} has no host ${JSON.stringify(host)}`, {
      code: "not-found",
      hint: `Its hosts: ${known.join(", ")}.`,
    });
  }
  if (process === undefined) return { host, process: undefined };
  const name = processNames.find((candidate) => candidate === process);
  if (name === undefined || rest.length > 0) {
    throw new ClusterError(`${JSON.stringify(text)} names no process of a host`, {
      code: "invalid",
      hint: `Give HOST, or HOST:PROC with PROC one of ${processNames.join(", ")}.`,
    });
  }
  return { host, process: name };
}

/** The hosts of the control plane. */
export function managersOf(lab: LabRecord): string[] {
  return hostNames(lab.managers ?? 1);
}

/** Which daemons run on a host. */
export function daemonsOf(lab: LabRecord, host: string): readonly DaemonName[] {
  return managersOf(lab).includes(host) ? daemonNames : ["noded", "netd"];
}
