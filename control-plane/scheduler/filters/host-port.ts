import { type NodeRecord, portKey, type TaskRecord } from "../state/records.ts";
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
    const key = refused && portKey(refused.port, refused.protocol);
    const task = key && node.ports?.get(key)?.name;
    const holder = task ?? node.spec.busyPorts?.find((one) => keyOf(one) === key)?.by;
    if (refused === undefined || refused.port === 0 || holder === undefined) {
      const [first, last] = refused?.range ?? defaultPortRange;
      return {
        kind: "host-port",
        text: `no free port in ${first}-${last}`,
        fix: "Widen the port range, or add a node.",
      };
    }
    const port = `port ${refused.port}${refused.protocol === "udp" ? "/udp" : ""}`;
    return {
      kind: "host-port",
      text: `${port} held by ${holder}`,
      fix: `Publish another port, or stop ${holder}.`,
      together: task === undefined ? `${port} held by programs of the hosts` : `${port} taken`,
    };
  },
};

const keyOf = ({ port, protocol }: BusyHostPort) => portKey(port, protocol);

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
  for (const { port, protocol, range } of ports) {
    if (port !== 0) {
      if (!isFree(portKey(port, protocol), node, leaving)) return undefined;
      given.push(port);
      continue;
    }
    const [first, last] = range ?? defaultPortRange;
    let number = first;
    while (
      number <= last &&
      (!isFree(portKey(number, protocol), node, leaving) ||
        ports.some((other, i) => other.protocol === protocol && (other.port === number || given[i] === number)))
    ) {
      number++;
    }
    if (number > last) return undefined;
    given.push(number);
  }
  return given;
}

function isFree(key: number, { ports, spec }: NodeRecord, leaving: ReadonlySet<TaskRecord> | undefined): boolean {
  const holder = ports?.get(key);
  if (holder !== undefined && leaving?.has(holder) !== true) return false;
  return spec.busyPorts === undefined || !spec.busyPorts.some((one) => keyOf(one) === key);
}
