import { integer, matching, oneOf } from "../scalars.ts";
import { Bad, key, list, object, type ScalarType, scalarType } from "../schema.ts";
import { describeKind, type ScalarTree, type Tree, treeOf } from "../tree.ts";
import { byKeys, ipAddress, isIpv4, isIpv6 } from "./common.ts";

/** Ports from one to another, both included. */
export interface PortRange {
  readonly from: number;
  readonly to: number;
}

/** `80` or `8000-8010`, both ends from 1 (or 0 where that means "any") to 65535. */
export function parsePortRange(written: string): PortRange | undefined {
  const match = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(written);
  if (match === null) return undefined;
  const from = Number(match[1]);
  const to = match[2] === undefined ? from : Number(match[2]);
  return from >= 1 && to >= from && to <= 65535 ? { from, to } : undefined;
}

function formatRange(range: PortRange): string {
  return range.from === range.to ? String(range.from) : `${range.from}-${range.to}`;
}

function published(): ScalarType<PortRange> {
  const accepts = "a port or a range such as 8080 or 8000-8010";
  return scalarType({
    accepts,
    parse: (scalar) => parsePortRange(scalar.text) ?? new Bad(`takes ${accepts}, and found ${describeKind(scalar)}`),
    format: formatRange,
  });
}

/** Ports that links open. */
export interface Exposed extends PortRange {
  readonly protocol: "tcp" | "udp";
}

/** An item of `expose`. */
export function exposed(): ScalarType<Exposed> {
  const accepts = "a port or a range such as 3000, 3000-3010 or 53/udp";
  return scalarType<Exposed>({
    accepts,
    parse(scalar) {
      const [ports = "", protocol = "tcp", ...rest] = scalar.text.split("/");
      const range = parsePortRange(ports);
      if (range === undefined || rest.length > 0) return new Bad(`takes ${accepts}, and found ${describeKind(scalar)}`);
      if (protocol !== "tcp" && protocol !== "udp")
        return new Bad(`the protocol is tcp or udp, and found ${JSON.stringify(protocol)}`);
      return { ...range, protocol };
    },
    format: (value) => `${formatRange(value)}${value.protocol === "udp" ? "/udp" : ""}`,
  });
}

const SHORT_FORMS = 'a port such as "80", "8080:80", "127.0.0.1:8080:80" or "53:53/udp"';

/** `[[HOST_IP:]PUBLISHED:]TARGET[/PROTOCOL]`, where both ports may be ranges; one line may stand for many ports. */
function shortPort(scalar: ScalarTree): Tree[] | Bad {
  const bad = (why: string, hint?: string): Bad =>
    new Bad(`${why}, in ${JSON.stringify(scalar.text)}`, hint ?? `It takes ${SHORT_FORMS}.`);
  const slash = scalar.text.lastIndexOf("/");
  const protocol = slash === -1 ? "tcp" : scalar.text.slice(slash + 1).toLowerCase();
  if (protocol !== "tcp" && protocol !== "udp") {
    return protocol === "sctp"
      ? bad("sctp is not carried by published ports", "Use tcp or udp.")
      : bad(`the protocol is tcp or udp, and found ${JSON.stringify(protocol)}`);
  }
  let rest = slash === -1 ? scalar.text : scalar.text.slice(0, slash);
  let hostIp: string | undefined;
  const bracketed = /^\[([^\]]*)\]:(.*)$/.exec(rest);
  if (bracketed !== null) {
    hostIp = bracketed[1] ?? "";
    rest = bracketed[2] ?? "";
    if (!isIpv6(hostIp)) return bad(`${JSON.stringify(hostIp)} is not an IPv6 address`);
    if (!rest.includes(":")) return bad("an address needs a published port, or an empty place for one");
  }
  const parts = rest.split(":");
  if (hostIp === undefined && parts.length === 3) {
    hostIp = parts.shift() ?? "";
    if (!isIpv4(hostIp)) return bad(`${JSON.stringify(hostIp)} is not an IPv4 address`);
  }
  if (parts.length > 2) {
    return bad(
      "has too many colons",
      parts.length > 4 ? `Write an IPv6 address in brackets: "[::1]:8080:80".` : undefined,
    );
  }
  const target = parsePortRange(parts[parts.length - 1] ?? "");
  if (target === undefined) return bad(`${JSON.stringify(parts[parts.length - 1])} is not a port from 1 to 65535`);
  const outsideText = parts.length === 2 ? (parts[0] ?? "") : "";
  const outside = outsideText === "" || outsideText === "0" ? undefined : parsePortRange(outsideText);
  if (outsideText !== "" && outsideText !== "0" && outside === undefined)
    return bad(`${JSON.stringify(outsideText)} is not a port from 1 to 65535`);
  if (parts.length === 2 && outsideText === "" && hostIp === undefined) return bad("the published port is missing");

  const make = (targetPort: number, publishedText: string | undefined): Tree =>
    treeOf({ target: targetPort, published: publishedText, host_ip: hostIp, protocol }, scalar.at);
  const count = target.to - target.from + 1;
  if (outside === undefined) return Array.from({ length: count }, (_, index) => make(target.from + index, undefined));
  if (count === 1) return [make(target.from, formatRange(outside))];
  if (outside.to - outside.from + 1 !== count) {
    return bad(`${outside.to - outside.from + 1} published ports do not fit ${count} ports of the container`);
  }
  return Array.from({ length: count }, (_, index) => make(target.from + index, String(outside.from + index)));
}

/** An item of `services.*.ports` */
export const port = object(
  {
    target: key(integer(1, 65535, "a port from 1 to 65535"), { doc: "Port in the container.", example: "80" }),
    published: key(published(), {
      doc: "Port on the hosts, or a range to take a free one from.",
      example: '"8080"',
      beside: "target: 80",
      defaultNote: "a port given by the cluster, from 49000-49900",
    }),
    protocol: key(oneOf("tcp", "udp"), {
      doc: "Transport protocol.",
      example: "udp",
      beside: "target: 53",
      default: "tcp",
    }),
    mode: key(oneOf("ingress", "host"), {
      doc: "`ingress` publishes on every node, `host` on the nodes that run a task. A program of a host that listens there keeps its port, and nothing is published there.",
      example: "host",
      beside: 'target: 80\npublished: "8080"',
      default: "ingress",
    }),
    host_ip: key(ipAddress(), {
      doc: "Address of the host to publish on, and no other.",
      example: "127.0.0.1",
      beside: 'target: 80\npublished: "8080"',
      defaultNote: "every address of the host",
    }),
    name: key(matching(/^[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?$/, "a port name: up to 15 of a-z, 0-9 and -"), {
      doc: "Name of the port; DNS answers SRV queries for it.",
      example: "http",
      beside: "target: 80",
    }),
    app_protocol: key(matching(/^[a-zA-Z0-9._/+-]+$/, "the name of a protocol"), {
      doc: "What is spoken on the port; a hint for probes and logs.",
      example: "http",
      beside: "target: 80",
    }),
    "x-source-ip": key(oneOf("preserve", "proxy", "snat"), {
      doc: "How a connection from outside keeps its client's address: as it is, in a PROXY v2 header, or not at all.",
      example: "proxy",
      beside: "target: 80",
      defaultNote: "the service's `x-source-ip`",
    }),
  },
  { accepts: SHORT_FORMS, required: ["target"], short: shortPort },
);

const byNumbers = byKeys("host_ip", "published", "target");

/** A port without a protocol is the tcp port. */
function identity(item: Tree): string | undefined {
  const protocol = item.kind === "map" ? item.entries.get("protocol")?.value : undefined;
  const numbers = byNumbers(item);
  return numbers && `${numbers}/${protocol?.kind === "scalar" ? protocol.text : "tcp"}`;
}

/** `services.*.ports` */
export const ports = list(port, {
  accepts: "a list of ports",
  unique: identity,
});
