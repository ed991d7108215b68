import { type Cidr, contains, formatAddress, parseAddress, sizeOf } from "../../lib/cidr/cidr.ts";

/**
 * An address keeps out of use at least this long, when no other is left: a block is small, and a task that waits for an
 * address is worse off than a client whose late packet is refused by another task.
 */
export const minRestMs = 1_000;
/** After this long it is as good as one that never was in use. */
export const fullRestMs = 120_000;

/** First addresses of a block that are nobody's: the block's own, and this host's in it. */
const reserved = 2;

export type Choice =
  | { readonly kind: "address"; readonly address: string }
  /** All are in use or resting; the first has rested after that time. */
  | { readonly kind: "wait"; readonly waitMs: number }
  /** All are in use. */
  | { readonly kind: "full"; readonly inUse: number };

/**
 * Chooses an address out of the host's blocks of a network. Pure. Takes the lowest that has never been in use or has rested
 * fully, else the one that has rested longest, as long as that is enough.
 *
 * @param resting When each address was released, in milliseconds.
 */
export function chooseAddress(
  blocks: readonly Cidr[],
  inUse: ReadonlySet<string>,
  resting: ReadonlyMap<string, number>,
  nowMs: number,
): Choice {
  let rested: { readonly address: string; readonly sinceMs: number } | undefined;
  for (const block of blocks) {
    for (let n = reserved; n < sizeOf(block); n++) {
      const address = formatAddress(block.base + n);
      if (inUse.has(address)) continue;
      const sinceMs = resting.get(address);
      if (sinceMs === undefined || nowMs - sinceMs >= fullRestMs) return { kind: "address", address };
      if (rested === undefined || sinceMs < rested.sinceMs) rested = { address, sinceMs };
    }
  }
  if (rested === undefined) {
    const within = [...inUse].filter((address) => blocks.some((block) => contains(block, parseAddress(address))));
    return { kind: "full", inUse: within.length };
  }
  const waitMs = rested.sinceMs + minRestMs - nowMs;
  return waitMs <= 0 ? { kind: "address", address: rested.address } : { kind: "wait", waitMs };
}
