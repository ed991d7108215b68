import { bool, integer, matching, oneOf, text } from "../scalars.ts";
import { Bad, type Fail, key, later, list, object, record, reject, type ScalarType, scalarType } from "../schema.ts";
import { describeKind, type MapTree, scalar, type Tree } from "../tree.ts";
import { cidr4, formatIpv4, ipv4, ipv4Number, isIpv4, isIpv6, labels, parseCidr4, texts } from "./common.ts";

/** A name that DNS can carry: one or more labels. */
export function dnsName(accepts = "a DNS name"): ScalarType<string> {
  return text(accepts, (value) => checkDnsName(value));
}

/** Why DNS cannot carry a name, or undefined. */
export function checkDnsName(value: string): Bad | undefined {
  const hint = "Use letters, digits and hyphens, at most 63 to a label.";
  if (
    value.length > 253 ||
    !value.split(".").every((label) => /^[a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?$/.test(label))
  ) {
    return new Bad(`DNS cannot carry the name ${JSON.stringify(value)}`, hint);
  }
  return undefined;
}

/** Whether a thing exists already; the old form names it, which `hoistExternalName` turns into `name` beside it. */
export const externalKey = key(bool(), {
  doc: "True when it exists already and is not made or removed with this stack. `{name: ...}` is the old way to name it.",
  example: "true",
  default: false,
  below: ["name"],
});

/** `external: {name: other}` means `external: true` with `name: other`. */
export function hoistExternalName(tree: MapTree, fail: Fail): MapTree {
  const external = tree.entries.get("external");
  if (external?.value.kind !== "map") return tree;
  const entries = new Map(tree.entries);
  entries.set("external", { key: external.key, value: scalar(true, external.value.at) });
  for (const [key, entry] of external.value.entries) {
    if (key !== "name")
      fail(entry.value, "is not a key of external", "It takes `name`, or just true.", ["external", key]);
    else if (tree.entries.has("name"))
      fail(entry.value, "is named twice, here and by `name` beside external", "Keep `name`.", ["external", key]);
    else entries.set("name", entry);
  }
  return { ...tree, entries };
}

function mtu(): ScalarType<number> {
  return integer(576, 65535, "a size in bytes from 576 to 65535");
}

/** `networks.*` */
export const network = object(
  {
    name: key(matching(/^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/, "a name of letters, digits, _, . and -"), {
      doc: "Name in the cluster. One with `external: true` is the other stack's network, `<stack>_<network>`.",
      example: "shared_backbone",
      defaultNote: "`<stack>_<key>`",
    }),
    driver: key(
      text("overlay", (value) => {
        if (["overlay", "host", "none", "null"].includes(value)) return undefined;
        if (value === "bridge")
          return new Bad(
            "a bridge joins containers of one host only",
            "Leave `driver` out: networks are overlays, which reach across hosts.",
          );
        if (["macvlan", "ipvlan"].includes(value))
          return new Bad(
            `${value} networks are not supported yet`,
            "Use an overlay, and publish ports with mode: host where the node's own network matters.",
          );
        return new Bad(
          `takes overlay, and found ${JSON.stringify(value)}`,
          "Leave `driver` out: networks are overlays.",
        );
      }),
      {
        doc: "`overlay`: all networks reach across hosts. `host` and `none` only with `external`.",
        example: "overlay",
        default: "overlay",
      },
    ),
    driver_opts: key(
      object(
        {
          encrypted: key(flagText(), { doc: "Encrypts traffic between hosts.", example: '"true"' }),
          icc: key(flagText(), { doc: '"false": members reach only what they link.', example: '"false"' }),
          mtu: key(mtu(), {
            doc: "Largest packet on the network, in bytes.",
            example: "1400",
            defaultNote: "what the hosts' own network carries, less 50",
          }),
          vni: key(integer(1, 16_777_215, "a number from 1 to 16777215"), {
            doc: "VXLAN network identifier.",
            example: "4242",
            defaultNote: "given by the cluster",
          }),
        },
        { accepts: "a mapping of options", extensions: false },
      ),
      { doc: "Options of the overlay.", example: '{icc: "false"}' },
    ),
    attachable: key(bool(), { doc: "Whether containers outside a service may join.", example: "true", default: false }),
    internal: key(bool(), { doc: "No way out of the cluster from this network.", example: "true", default: false }),
    external: externalKey,
    labels: key(labels(), { doc: "Labels of the network.", example: "{tier: back}" }),
    enable_ipv4: key(
      scalarType<boolean>({
        accepts: "true",
        parse(tree) {
          const value = bool().parse(tree);
          return value === false ? new Bad("networks without IPv4 are not supported yet", "Leave it out.") : value;
        },
        format: (value) => value,
      }),
      { doc: "Always true: networks carry IPv4.", example: "true", default: true },
    ),
    enable_ipv6: key(
      scalarType<boolean>({
        accepts: "false",
        parse(tree) {
          const value = bool().parse(tree);
          return value === true
            ? new Bad("networks do not carry IPv6 yet", "Leave it out, or set it to false.")
            : value;
        },
        format: (value) => value,
      }),
      { doc: "Always false: networks do not carry IPv6 yet.", example: "false", default: false },
    ),
    ipam: key(
      object({
        driver: key(
          text("default", (value) =>
            value === "default"
              ? undefined
              : new Bad(
                  `takes default, and found ${JSON.stringify(value)}`,
                  "Addresses are given by the cluster; leave `driver` out.",
                ),
          ),
          { doc: "Always `default`: the cluster gives the addresses.", example: "default", default: "default" },
        ),
        config: key(
          list(
            object(
              {
                subnet: key(cidr4(), { doc: "The network's addresses.", example: "10.20.0.0/16" }),
                ip_range: key(cidr4(), {
                  doc: "The part of the subnet that tasks get addresses from.",
                  example: "10.20.128.0/17",
                  beside: "subnet: 10.20.0.0/16",
                }),
                gateway: key(ipv4(), {
                  doc: "An address of the subnet that is kept free. The gateway itself is the same on every network.",
                  example: "10.20.0.1",
                  beside: "subnet: 10.20.0.0/16",
                }),
                aux_addresses: key(record(ipv4(), { accepts: "a mapping of names to addresses" }), {
                  doc: "Addresses of the subnet that tasks do not get.",
                  example: "{printer: 10.20.0.9}",
                  beside: "subnet: 10.20.0.0/16",
                }),
              },
              { required: ["subnet"], check: checkPool },
            ),
            { accepts: "a list with one pool of addresses", merge: "replace" },
          ),
          { doc: "The network's addresses: one IPv4 pool.", example: "[{subnet: 10.20.0.0/16}]" },
        ),
        options: reject({
          doc: "Options of an IPAM driver.",
          example: "{foo: bar}",
          why: "they belong to IPAM drivers, and the cluster has none but its own",
          instead: "leave them out",
          below: ["*"],
        }),
      }),
      {
        doc: "Addresses of the network.",
        example: "{config: [{subnet: 10.20.0.0/16}]}",
        defaultNote: "a free subnet of the cluster's pool",
      },
    ),
  },
  { prepare: hoistExternalName },
);

/** "true" or "false" as text, as driver options are written. */
function flagText(): ScalarType<boolean> {
  return scalarType({
    accepts: '"true" or "false"',
    parse(tree) {
      // Docker takes an empty value for "encrypted" as true.
      if (tree.text === "") return true;
      const parsed = bool().parse(tree);
      return parsed instanceof Bad ? new Bad(`takes "true" or "false", and found ${describeKind(tree)}`) : parsed;
    },
    format: (value) => String(value),
  });
}

function checkPool(tree: MapTree, fail: Fail): void {
  const textOf = (name: string): string | undefined => {
    const value = tree.entries.get(name)?.value;
    return value?.kind === "scalar" ? String(value.value) : undefined;
  };
  const subnet = parseCidr4(textOf("subnet") ?? "");
  if (subnet === undefined) return;
  if (subnet.prefix > 29 || subnet.prefix < 8)
    fail(
      tree,
      `a subnet of /${subnet.prefix} is ${subnet.prefix > 29 ? "too small" : "too large"}`,
      "Use a prefix from /8 to /29.",
      ["subnet"],
    );
  const outside = (address: number): boolean => address < subnet.base || address > subnet.last;
  const where = `${formatIpv4(subnet.base)}/${subnet.prefix}`;
  const range = parseCidr4(textOf("ip_range") ?? "");
  if (range !== undefined && (outside(range.base) || outside(range.last)))
    fail(tree, `${textOf("ip_range")} does not lie in ${where}`, undefined, ["ip_range"]);
  const gateway = textOf("gateway");
  if (gateway !== undefined && outside(ipv4Number(gateway)))
    fail(tree, `${gateway} does not lie in ${where}`, undefined, ["gateway"]);
  const aux = tree.entries.get("aux_addresses")?.value;
  if (aux?.kind === "map") {
    for (const [name, entry] of aux.entries) {
      const address = entry.value.kind === "scalar" ? String(entry.value.value) : "";
      if (outside(ipv4Number(address)))
        fail(entry.value, `${address} does not lie in ${where}`, undefined, ["aux_addresses", name]);
    }
  }
}

/** `services.*.networks.*` */
export const serviceNetwork = object(
  {
    aliases: key(texts(dnsName("a list of names"), "a list of names"), {
      doc: "Further names of the service on this network.",
      example: "[database]",
    }),
    ipv4_address: key(ipv4(), { doc: "A fixed address, for a service of one task.", example: "10.9.0.5" }),
    ipv6_address: later({
      doc: "A fixed IPv6 address.",
      example: "fd00::5",
      why: "networks do not carry IPv6 yet",
      instead: "use ipv4_address",
    }),
    driver_opts: key(
      object(
        { mtu: key(mtu(), { doc: "Largest packet of the task's interface.", example: "1400" }) },
        { extensions: false },
      ),
      {
        doc: "Options of the task's interface: `mtu`.",
        example: "{mtu: 1400}",
      },
    ),
    priority: key(integer(-1_000_000, 1_000_000, "a whole number"), {
      doc: "Order of the networks: the highest comes first.",
      example: "100",
      default: 0,
    }),
    gw_priority: key(integer(-1_000_000, 1_000_000, "a whole number"), {
      doc: "The network with the highest carries the default route.",
      example: "1",
      default: 0,
    }),
    interface_name: key(matching(/^[a-zA-Z0-9_.-]{1,15}$/, "an interface name of at most 15 characters"), {
      doc: "Name of the interface in the container.",
      example: "eth9",
    }),
    mac_address: later({
      doc: "A fixed hardware address.",
      example: "02:42:ac:11:00:02",
      why: "overlays have no use for a fixed hardware address yet",
      instead: "use ipv4_address to fix the address",
    }),
    link_local_ips: reject({
      doc: "Link-local addresses.",
      example: "[169.254.8.8]",
      why: "the overlay routes and has no link-local scope",
      instead: "use ipv4_address",
    }),
  },
  { accepts: "a mapping, or nothing" },
);

const EXTERNAL_SCHEMES = ["tcp", "udp"];

/** `tcp://db.example.com:5432` */
export const externalService = object(
  {
    address: key(
      text("a host name or an IP address", (value) =>
        isIpv4(value) || isIpv6(value) ? undefined : checkDnsName(value),
      ),
      {
        doc: "Name or address outside the cluster; a name is resolved again as its TTL says.",
        example: "db.example.com",
        beside: "port: 5432",
      },
    ),
    port: key(integer(1, 65535, "a port from 1 to 65535"), {
      doc: "Port there, and the one that consumers use.",
      example: "5432",
      beside: "address: db.example.com",
    }),
    protocol: key(oneOf("tcp", "udp"), {
      doc: "Transport protocol.",
      example: "udp",
      beside: "address: 10.0.0.2\nport: 53",
      default: "tcp",
    }),
  },
  {
    accepts: "an address such as tcp://db.example.com:5432",
    required: ["address", "port"],
    extensions: false,
    short: (scalar) => {
      const match = /^([a-z]+):\/\/(?:\[([^\]]+)\]|([^:/[\]]+)):(\d{1,5})\/?$/.exec(scalar.text);
      if (match === null || !EXTERNAL_SCHEMES.includes(match[1] ?? "")) {
        return new Bad(`takes an address such as tcp://db.example.com:5432, and found ${JSON.stringify(scalar.text)}`);
      }
      const entry = (value: string): { key: typeof scalar.at; value: Tree } => ({
        key: scalar.at,
        value: { kind: "scalar", value, text: value, at: scalar.at },
      });
      return {
        kind: "map",
        at: scalar.at,
        entries: new Map([
          ["address", entry(match[2] ?? match[3] ?? "")],
          ["port", entry(match[4] ?? "")],
          ["protocol", entry(match[1] ?? "tcp")],
        ]),
      };
    },
  },
);
