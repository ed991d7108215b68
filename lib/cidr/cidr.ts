import { IPv4, IPv4CidrRange, IPv4Prefix } from "ip-num";
import { ClusterError, messageOf } from "../errors/errors.ts";

/** An IPv4 block. Addresses are unsigned 32-bit numbers, so that they compare, sort and count as numbers. */
export interface Cidr {
  /** First address; host bits are zero. */
  readonly base: number;
  /** 0-32. */
  readonly prefix: number;
}

/** The number of a dotted IPv4 address. Throws `invalid`. */
export function parseAddress(text: string): number {
  try {
    return Number(IPv4.fromString(text).value);
  } catch (cause) {
    throw new ClusterError(`not an IPv4 address: ${JSON.stringify(text)} (${messageOf(cause)})`, {
      code: "invalid",
      subject: text,
      hint: "Write four numbers of 0-255: 10.0.0.1.",
      cause,
    });
  }
}

/** Is the text a dotted IPv4 address? */
export function isAddress(text: string): boolean {
  try {
    IPv4.fromString(text);
    return true;
  } catch {
    return false;
  }
}

/** Inverse of parseAddress. Throws `invalid` outside 0 to 2^32-1. */
export function formatAddress(address: number): string {
  if (!Number.isInteger(address) || address < 0 || address > 0xffff_ffff) {
    throw new ClusterError(`not an IPv4 address: ${address}`, { code: "invalid" });
  }
  return `${address >>> 24}.${(address >>> 16) & 255}.${(address >>> 8) & 255}.${address & 255}`;
}

/** The block of "10.96.0.0/20". Throws `invalid`, also for an address within a block (10.96.0.1/20). */
export function parseCidr(text: string): Cidr {
  let range: IPv4CidrRange;
  try {
    range = IPv4CidrRange.fromCidr(text);
  } catch (cause) {
    throw new ClusterError(`not an IPv4 block: ${JSON.stringify(text)} (${messageOf(cause)})`, {
      code: "invalid",
      subject: text,
      hint: "Write an address and a prefix length: 10.0.0.0/24.",
      cause,
    });
  }
  const cidr = { base: Number(range.getFirst().value), prefix: Number(range.cidrPrefix.value) };
  if (text.slice(0, text.indexOf("/")) !== formatAddress(cidr.base)) {
    throw new ClusterError(`${text} is an address within a block, not a block`, {
      code: "invalid",
      subject: text,
      hint: `Write the block's first address: ${formatCidr(cidr)}.`,
    });
  }
  return cidr;
}

/** Inverse of parseCidr. */
export function formatCidr(cidr: Cidr): string {
  return new IPv4CidrRange(
    IPv4.fromNumber(BigInt(cidr.base)),
    IPv4Prefix.fromNumber(BigInt(cidr.prefix)),
  ).toCidrString();
}

/** How many addresses the block has: 1 to 2^32. */
export function sizeOf(cidr: Cidr): number {
  return 2 ** (32 - cidr.prefix);
}

/** The last address of the block. */
export function lastOf(cidr: Cidr): number {
  return cidr.base + sizeOf(cidr) - 1;
}

/** Does the block hold the address, or the whole other block? */
export function contains(cidr: Cidr, inner: number | Cidr): boolean {
  const [first, last] = typeof inner === "number" ? [inner, inner] : [inner.base, lastOf(inner)];
  return first >= cidr.base && last <= lastOf(cidr);
}

/** Do the two blocks share an address? */
export function overlaps(a: Cidr, b: Cidr): boolean {
  return a.base <= lastOf(b) && b.base <= lastOf(a);
}

/** The n-th address, 0 being the block's first. Throws `exhausted` past its end. */
export function nthAddress(cidr: Cidr, n: number): number {
  if (!Number.isInteger(n) || n < 0 || n >= sizeOf(cidr)) {
    throw new ClusterError(`${formatCidr(cidr)} has no address number ${n}`, {
      code: "exhausted",
      subject: formatCidr(cidr),
    });
  }
  return cidr.base + n;
}

/** The n-th block of that prefix length within the block. Throws `exhausted` past its end, `invalid` for a prefix that is shorter. */
export function nthBlock(cidr: Cidr, prefix: number, n: number): Cidr {
  if (!Number.isInteger(prefix) || prefix < cidr.prefix || prefix > 32) {
    throw new ClusterError(`${formatCidr(cidr)} has no blocks of /${prefix}`, {
      code: "invalid",
      subject: formatCidr(cidr),
      hint: `The prefix length must be ${cidr.prefix}-32.`,
    });
  }
  if (!Number.isInteger(n) || n < 0 || n >= 2 ** (prefix - cidr.prefix)) {
    throw new ClusterError(`${formatCidr(cidr)} has no /${prefix} number ${n}`, {
      code: "exhausted",
      subject: formatCidr(cidr),
    });
  }
  return { base: cidr.base + n * 2 ** (32 - prefix), prefix };
}

/** Every block of that prefix length within the block, in ascending order. Throws `invalid` like nthBlock. */
export function* blocksOf(cidr: Cidr, prefix: number): Generator<Cidr> {
  const first = nthBlock(cidr, prefix, 0);
  const count = 2 ** (prefix - cidr.prefix);
  for (let n = 0; n < count; n++) yield { base: first.base + n * 2 ** (32 - prefix), prefix };
}
