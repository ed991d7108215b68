import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { type Cidr, formatCidr, overlaps, parseCidr } from "../../lib/cidr/cidr.ts";
import { ClusterError, isErrno } from "../../lib/errors/errors.ts";
import type { LabPaths } from "./layout.ts";
import { run } from "./run.ts";

/** A route of this machine: where its packets go, as `ip -j route` tells it. */
export interface Route {
  readonly destination: Cidr;
  readonly device: string;
}

/** Reads `ip -4 -j route show table all`; default routes and those of single addresses in the table `local` are left out. */
export function parseRoutes(json: string): Route[] {
  const routes: unknown = JSON.parse(json || "[]");
  if (!Array.isArray(routes)) return [];
  return routes.flatMap((route: { dst?: string; dev?: string; type?: string }) => {
    const { dst = "", dev = "", type = "unicast" } = route;
    if (dst === "default" || dst === "" || type === "local" || type === "broadcast" || type === "multicast") return [];
    return [{ destination: parseCidr(dst.includes("/") ? dst : `${dst}/32`), device: dev || type }];
  });
}

/** The machine's routes, without those of the lab's own link. */
export async function machineRoutes(): Promise<Route[]> {
  return parseRoutes(await run(["ip", "-4", "-j", "route", "show", "table", "all"]));
}

/** The route that the subnet clashes with; undefined when it is free. */
export function clashOf(subnet: Cidr, routes: readonly Route[]): Route | undefined {
  return routes.find((route) => overlaps(route.destination, subnet));
}

// clusterd's defaults for networks and virtual addresses.
const clusterPools = ["10.96.0.0/12", "10.112.0.0/16"];

const candidates = Array.from({ length: 256 }, (_, n) => `10.213.${n}.0/24`);

/**
 * Takes a subnet for a lab: the one asked for, or the first of 10.213.<n>.0/24 that no route of the machine and no other
 * lab uses. Throws `invalid` for a bad one, `conflict` for one in use, `exhausted` when none is free.
 */
export async function claimSubnet(paths: LabPaths, asked: string | undefined): Promise<string> {
  const routes = await machineRoutes();
  if (asked !== undefined) {
    const cidr = parseCidr(asked);
    if (cidr.prefix > 24 || cidr.prefix < 8) {
      throw new ClusterError(`--subnet ${asked} has prefix length ${cidr.prefix}; it must be 8-24`, {
        code: "invalid",
        subject: "--subnet",
        hint: "Give a block such as 10.213.0.0/24.",
      });
    }
    const pool = clusterPools.find((one) => overlaps(parseCidr(one), cidr));
    if (pool !== undefined) {
      throw new ClusterError(`subnet ${asked} clashes with ${pool}, from which the cluster gives addresses`, {
        code: "conflict",
        subject: "--subnet",
        hint: "Give another with --subnet, or leave it out to have a free one chosen.",
      });
    }
    const clash = clashOf(cidr, routes);
    if (clash !== undefined) {
      throw new ClusterError(
        `subnet ${asked} clashes with this machine's route ${formatCidr(clash.destination)} (${clash.device})`,
        {
          code: "conflict",
          subject: "--subnet",
          hint: "Give another with --subnet, or leave it out to have a free one chosen.",
        },
      );
    }
    const holder = claim(paths, asked);
    if (holder === undefined) return asked;
    throw new ClusterError(`subnet ${asked} is used by lab ${holder}`, { code: "conflict", subject: "--subnet" });
  }
  for (const subnet of candidates) {
    if (clashOf(parseCidr(subnet), routes) === undefined && claim(paths, subnet) === undefined) return subnet;
  }
  throw new ClusterError("every subnet of 10.213.0.0/16 is in use on this machine", {
    code: "exhausted",
    hint: "Give a free one with --subnet.",
  });
}

/** Returns undefined when it is ours now, else the lab that has it. */
function claim(paths: LabPaths, subnet: string): string | undefined {
  const file = paths.subnetClaim(subnet);
  mkdirSync(dirname(file), { recursive: true });
  try {
    writeFileSync(file, paths.name, { flag: "wx" });
    return undefined;
  } catch (error) {
    if (!isErrno(error, "EEXIST")) throw error;
  }
  const holder = readFileSync(file, "utf8");
  if (holder !== paths.name && existsSync(`${paths.root}/${holder}`)) return holder;
  writeFileSync(file, paths.name);
  return undefined;
}

/** Gives a lab's subnets back. */
export function releaseSubnet(paths: LabPaths, subnet: string): void {
  const file = paths.subnetClaim(subnet);
  if (existsSync(file) && readFileSync(file, "utf8") === paths.name) rmSync(file);
}
