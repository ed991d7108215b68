import { capabilityNames as names } from "../../lib/capabilities/capabilities.ts";
import { ClusterError } from "../../lib/errors/errors.ts";

/** default_capabilities of Debian's containers.conf. NET_RAW is not among them: ping works by net.ipv4.ping_group_range. */
const defaults =
  "CHOWN DAC_OVERRIDE FOWNER FSETID KILL NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID SYS_CHROOT".split(" ");

/** Names of the capabilities in a mask as /proc/<pid>/status writes it. */
export function parseCapabilityMask(hex: string): readonly string[] {
  const mask = BigInt(`0x${hex}`);
  return names.filter((_, number) => (mask & (1n << BigInt(number))) !== 0n);
}

/**
 * A container's capabilities, "CAP_X", by number: the defaults, less `drop`, plus `add`; ALL means every one. What the node itself
 * lacks cannot be given: it is left out and named in `lacking` when it was asked for by name. Throws `invalid` for unknown names.
 */
export function planCapabilities(
  add: readonly string[],
  drop: readonly string[],
  node: readonly string[],
): { readonly capabilities: readonly string[]; readonly lacking: readonly string[] } {
  const plain = (name: string) => name.toUpperCase().replace(/^CAP_/, "");
  const added = add.map(plain);
  const dropped = drop.map(plain);
  for (const name of [...added, ...dropped]) {
    if (name !== "ALL" && !names.includes(name)) {
      throw new ClusterError(`there is no capability ${name}`, {
        code: "invalid",
        hint: "See capabilities(7); write it without CAP_.",
      });
    }
  }
  const wanted = new Set(added.includes("ALL") ? names : defaults);
  if (dropped.includes("ALL")) wanted.clear();
  for (const name of dropped) wanted.delete(name);
  for (const name of added) if (name !== "ALL") wanted.add(name);
  const has = new Set(node);
  return {
    capabilities: names.filter((name) => wanted.has(name) && has.has(name)).map((name) => `CAP_${name}`),
    lacking: names.filter((name) => added.includes(name) && !has.has(name)),
  };
}
