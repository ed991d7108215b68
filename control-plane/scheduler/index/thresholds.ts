import type { ClusterState } from "../state/cluster.ts";
import { claimOf, type PortClaim } from "../state/ports.ts";
import type { GroupRecord, Need, NodeRecord } from "../state/records.ts";

/** What one bit of a tree promises: a node without the bit cannot hold a task that needs this much or more. */
interface Threshold {
  readonly needs: readonly Need[];
  readonly ports: readonly PortClaim[];
}

/** Bits of an Int32. */
const mostBits = 32;
/** Groups remembered between two choices. */
const mostSamples = 256;

/**
 * Chooses what the bits of a view's trees mean, from the groups whose searches looked at nodes in vain.
 *
 * Few distinct needs get a bit each, which makes their searches exact. Many (random sizes) get a grid over the quantiles
 * of CPU and memory, which leaves only the nodes between two grid lines to be looked at in vain. Until searches fail, no
 * bits are used, and they cost nothing.
 */
export class Thresholds {
  /** Counts choices, so that a memo of `required` can tell whether it is still valid. */
  epoch = 0;
  #chosen: readonly Threshold[] = [];
  #wasted = 0;
  /** Groups that searched in vain since the last choice, and between the last two. */
  #samples = new Map<string, Threshold>();
  #older = new Map<string, Threshold>();

  /** The bits that the node has. */
  bitsOf(state: ClusterState, node: NodeRecord): number {
    const chosen = this.#chosen;
    let bits = 0;
    for (let i = 0; i < chosen.length; i++) {
      const { needs, ports } = chosen[i] as Threshold;
      let has = state.table.fits(node.index, needs);
      if (has && ports.length > 0 && node.ports !== undefined)
        has = !ports.some((port) => node.ports?.holder(port) !== undefined);
      if (has) bits |= 1 << i;
    }
    return bits;
  }

  /** The bits without which a node cannot hold the group. */
  required(group: GroupRecord): number {
    const chosen = this.#chosen;
    if (chosen.length === 0) return 0;
    const { memo } = group;
    if (memo.owner === this && memo.epoch === this.epoch) return memo.bits;
    let bits = 0;
    const own = fixedPorts(group);
    for (let i = 0; i < chosen.length; i++) {
      const { needs, ports } = chosen[i] as Threshold;
      if (
        needs.every(({ dimension, amount }) => amountOf(group, dimension) >= amount) &&
        ports.every((port) => own.some((other) => includes(other, port)))
      ) {
        bits |= 1 << i;
      }
    }
    memo.owner = this;
    memo.epoch = this.epoch;
    memo.bits = bits;
    return bits;
  }

  /** Notes nodes looked at in vain. True when there were enough to pay for a new choice over `nodes` nodes. */
  wasted(group: GroupRecord, visits: number, nodes: number): boolean {
    this.#wasted += visits;
    const key = signatureOf(group);
    if (!this.#samples.has(key) && this.#samples.size < mostSamples) {
      this.#samples.set(key, { needs: group.needs, ports: fixedPorts(group) });
    }
    return this.#wasted > 4 * nodes + 256;
  }

  /** Chooses anew. All bits must be computed again afterwards. */
  choose(): void {
    // What the last choice served counts too, or two alternating workloads would push each other out.
    const both = [...new Map([...this.#older, ...this.#samples]).values()];
    const recent = [...this.#samples.values()];
    this.#chosen = both.length <= mostBits ? both : recent.length <= mostBits ? recent : grid(both);
    this.#older = this.#samples;
    this.#samples = new Map();
    this.#wasted = 0;
    this.epoch++;
  }
}

function grid(samples: readonly Threshold[]): readonly Threshold[] {
  const ported = new Map<string, Threshold>();
  for (const { ports } of samples)
    if (ports.length > 0 && ported.size < 8) ported.set(textOf(ports), { needs: [], ports });
  const cpu = quantiles(samples, 0, 5);
  const memory = quantiles(samples, 1, 6);
  const lines = cpu.flatMap((c) =>
    memory.map((m) => ({
      needs: [
        { dimension: 0, amount: c },
        { dimension: 1, amount: m },
      ].filter(({ amount }) => amount > 0),
      ports: [],
    })),
  );
  return [...ported.values(), ...lines].slice(0, mostBits);
}

/** `count` amounts that divide the samples' needs of a resource evenly, the least first. */
function quantiles(samples: readonly Threshold[], dimension: number, count: number): readonly number[] {
  const amounts = samples
    .map(({ needs }) => needs.find((need) => need.dimension === dimension)?.amount ?? 0)
    .sort((a, b) => a - b);
  return Array.from({ length: count }, (_, i) => amounts[Math.floor((i * amounts.length) / count)] as number);
}

function amountOf(group: GroupRecord, dimension: number): number {
  for (const need of group.needs) if (need.dimension === dimension) return need.amount;
  return 0;
}

function fixedPorts(group: GroupRecord): readonly PortClaim[] {
  const { ports } = group.spec;
  if (ports === undefined) return none;
  return ports.filter(({ port }) => port !== 0).map((port) => claimOf(port));
}

/** Is whatever is in the way of `part` in the way of `whole` too? */
function includes(whole: PortClaim, part: PortClaim): boolean {
  return whole.key === part.key && (whole.address === undefined || whole.address === part.address);
}

function textOf(ports: readonly PortClaim[]): string {
  return ports.map(({ key, address }) => (address === undefined ? key : `${key} ${address}`)).join();
}

const none: readonly PortClaim[] = [];

function signatureOf(group: GroupRecord): string {
  let key = "";
  for (const { dimension, amount } of group.needs) key += `${dimension}:${amount},`;
  return key + textOf(fixedPorts(group));
}
