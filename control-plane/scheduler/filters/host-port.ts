import { claimOf, clash, type PortClaim } from "../state/ports.ts";
import type { NodeRecord, TaskRecord } from "../state/records.ts";
import { type BusyHostPort, defaultPortRange, type HostPort } from "../types.ts";
import type { Filter } from "./filter.ts";

/** Every host port that the group asks for is free on the node. */
export const hostPort: Filter = {
  kind: "host-port",
  looksAt: "node",
  applies: (group) => (group.spec.ports ?? []).length > 0,
  passes(_state, group, node) {
    const { ports } = group;
    if (ports === undefined || ports.length === 0) return true;
    // Several may stand in each other's way, even on a node where none is taken.
    const none = (node.ports === undefined || node.ports.size === 0) && node.spec.busyPorts === undefined;
    if (ports.length === 1 && none) return true;
    return givePorts(ports, node) !== undefined;
  },
  reason(_state, group, node) {
    const ports = group.spec.ports ?? [];
    // The first that cannot be had beside those before it.
    const refused = ports.find((_, i) => givePorts(ports.slice(0, i + 1), node) === undefined);
    const task = refused && node.ports?.holder(claimOf(refused))?.name;
    const holder = task ?? (refused && programAt(claimOf(refused), node)?.by);
    if (refused === undefined || refused.port === 0 || holder === undefined) {
      const [first, last] = refused?.range ?? defaultPortRange;
      return {
        kind: "host-port",
        text: `no free port in ${first}-${last}`,
        fix: "Widen the port range, or add a node.",
      };
    }
    const { protocol, address } = refused;
    const port = `port ${refused.port}${protocol === "udp" ? "/udp" : ""}${address === undefined ? "" : ` at ${address}`}`;
    return {
      kind: "host-port",
      text: `${port} held by ${holder}`,
      fix: `Publish another port, or stop ${holder}.`,
      together: task === undefined ? `${port} held by programs of the hosts` : `${port} taken`,
    };
  },
};

/**
 * The number for each port asked for, lowest free first within a range; undefined when one of them cannot be had. What
 * tasks of `leaving` hold counts as free.
 */
export function givePorts(
  ports: readonly HostPort[],
  node: NodeRecord,
  leaving?: ReadonlySet<TaskRecord>,
): readonly number[] | undefined {
  const given: number[] = [];
  for (const wanted of ports) {
    const { port, range } = wanted;
    if (port !== 0) {
      if (!isFree(claimOf(wanted), node, leaving)) return undefined;
      given.push(port);
      continue;
    }
    const [first, last] = range ?? defaultPortRange;
    let number = first;
    for (; number <= last; number++) {
      const claim = claimOf(wanted, number);
      // Those before it have their numbers, and those after it what they ask for.
      if (isFree(claim, node, leaving) && !ports.some((other, i) => clash(claimOf(other, given[i]), claim))) break;
    }
    if (number > last) return undefined;
    given.push(number);
  }
  return given;
}

function isFree(claim: PortClaim, node: NodeRecord, leaving: ReadonlySet<TaskRecord> | undefined): boolean {
  return node.ports?.holder(claim, leaving) === undefined && programAt(claim, node) === undefined;
}

/** The program of the host that is in the claim's way. */
function programAt(claim: PortClaim, { spec }: NodeRecord): BusyHostPort | undefined {
  return spec.busyPorts?.find((busy) => clash(claimOf(busy), claim));
}
