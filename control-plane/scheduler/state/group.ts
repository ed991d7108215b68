import { ClusterError } from "../../../lib/errors/errors.ts";
import { type Constraint, parseConstraint } from "../constraint/parse.ts";
import { defaultPortRange, type SpreadPreference, type Strategy, type TaskGroup } from "../types.ts";
import type { DomainSpace } from "./domains.ts";
import { claimOf, clash, type PortClaim } from "./ports.ts";
import type { GroupRecord, GroupRules, Need, ServiceRecord, SpreadLevel } from "./records.ts";

/** What compiling a group needs of the state. */
export interface GroupContext {
  readonly strategy: Strategy;
  /** Column of a resource; a new column when the kind is new. */
  dimension(kind: string): number;
  space(path: readonly string[]): DomainSpace;
  service(id: string): ServiceRecord;
  /** The same list for equal needs. */
  shared(needs: readonly Need[]): readonly Need[];
}

/**
 * Points of one task in a domain of equal share, innermost level. Above every other term together, so that a preference
 * that someone wrote down is kept as long as a node of the domain fits.
 */
const spreadWeight = 1_000_000;
/**
 * How much more the outermost level weighs than the innermost. A level outweighs that many tasks of the next one further in (of
 * two levels; each of several has its root), and with 100,000 tasks of a service costs are still exact integers.
 */
const outermostFactor = 90_000;

/**
 * Parses and looks up everything in a group once.
 * @throws ClusterError `invalid` naming the group and the bad part.
 */
export function compileGroup(spec: TaskGroup, context: GroupContext): GroupRecord {
  checkPorts(spec);
  const levels = spec.spread ?? [];
  const affinities = spec.affinities ?? [];
  return {
    spec,
    service: context.service(spec.service),
    needs: context.shared(needsOf(spec, context)),
    ports: spec.ports,
    volumes: spec.volumes,
    gang: spec.gang,
    priority: spec.priority ?? 0,
    rules: noRules,
    ownView: undefined,
    waiting: undefined,
    placed: 0,
    tasks: 0,
    constraints: mapped(spec.constraints, (text, i) => constraintOf(spec, text, `constraints[${i}]`)),
    spread: mapped(spec.spread, (level, i) => spreadLevel(spec, level, i, levels, context)),
    nodeAffinities: mapped(affinities, (affinity, i) =>
      affinity.kind === "node"
        ? { matches: constraintOf(spec, affinity.constraint, `affinities[${i}]`).matches, weight: affinity.weight }
        : undefined,
    ),
    serviceAffinities: mapped(affinities, (affinity) =>
      affinity.kind === "service"
        ? {
            service: context.service(affinity.service),
            space: affinity.over === "node.id" ? undefined : context.space([affinity.over]),
            weight: affinity.weight,
          }
        : undefined,
    ),
    links: mapped(spec.links, (link) => ({
      service: context.service(link.service),
      bytesPerSecond: link.bytesPerSecond,
    })),
    image: undefined,
    binpack: (spec.strategy ?? context.strategy) === "binpack",
    failures: noFailures,
    waitingOn: undefined,
    memo: { owner: undefined, epoch: 0, bits: 0 },
  };
}

/** What it gives for each item, without undefined; one shared list when there is nothing. */
function mapped<T, U>(items: readonly T[] | undefined, of: (item: T, i: number) => U | undefined): readonly U[] {
  if (items === undefined || items.length === 0) return nothing;
  return items.map(of).filter((value) => value !== undefined);
}

const nothing: readonly never[] = Object.freeze([]);

/** Shared by all groups that have not failed anywhere; never written to. */
export const noFailures = new Map<number, number>();

const noRules: GroupRules = {
  domainFilters: [],
  nodeFilters: [],
  domainScores: [],
  nodeScores: [],
  view: { entry: undefined, rules: [] },
};

function checkPorts(spec: TaskGroup): void {
  const invalid = (what: string): ClusterError =>
    new ClusterError(`group ${spec.id}: ${what}`, { code: "invalid", subject: spec.id });
  const fixed: PortClaim[] = [];
  for (const wanted of spec.ports ?? []) {
    const { port, protocol, range = defaultPortRange } = wanted;
    const [first, last] = port === 0 ? range : [port, port];
    if (!(first >= 1 && first <= last && last <= 65_535)) throw invalid(`there is no port in ${first}-${last}`);
    if (port === 0) continue;
    const claim = claimOf(wanted);
    if (fixed.some((other) => clash(other, claim))) throw invalid(`port ${port}/${protocol} is asked for twice`);
    fixed.push(claim);
  }
}

function needsOf(spec: TaskGroup, context: GroupContext): Need[] {
  const { milliCpus, memoryBytes, pids = 0, generic = {} } = spec.reservations;
  const amounts: readonly (readonly [string, number])[] = [
    ["cpu", milliCpus],
    ["memory", memoryBytes],
    ["pids", pids],
    ...Object.entries(generic).map(([kind, amount]) => [`generic/${kind}`, amount] as const),
  ];
  for (const [kind, amount] of amounts) {
    if (!(amount >= 0 && amount <= Number.MAX_SAFE_INTEGER)) {
      throw new ClusterError(`group ${spec.id} reserves ${amount} of ${kind}`, {
        code: "invalid",
        subject: spec.id,
        hint: "Reserve zero or more.",
      });
    }
  }
  return amounts
    .filter(([, amount]) => amount > 0)
    .map(([kind, amount]) => ({ dimension: context.dimension(kind), amount }));
}

function constraintOf(spec: TaskGroup, text: string, where: string): Constraint {
  const parsed = parseConstraint(text);
  if (parsed.ok) return parsed.constraint;
  const { message, at, allowed } = parsed.error;
  throw new ClusterError(`group ${spec.id}, ${where}: ${message} at character ${at + 1} of "${text}"`, {
    code: "invalid",
    subject: spec.id,
    hint: `Allowed there: ${allowed}.`,
  });
}

function spreadLevel(
  spec: TaskGroup,
  level: SpreadPreference,
  index: number,
  levels: readonly SpreadPreference[],
  context: GroupContext,
): SpreadLevel {
  const { shares, otherShare = 1 } = level;
  const given = [...Object.values(shares ?? {}), otherShare];
  if (given.some((share) => !(share >= 0 && share <= 1e6)) || (level.maxSkew !== undefined && !(level.maxSkew >= 1))) {
    throw new ClusterError(`group ${spec.id}, spread[${index}]: shares must be 0 to 1,000,000 and maxSkew at least 1`, {
      code: "invalid",
      subject: spec.id,
    });
  }
  const average = shares === undefined ? 1 : given.reduce((a, b) => a + b, 0) / given.length || 1;
  return {
    space: context.space(levels.slice(0, index + 1).map(({ over }) => over)),
    shareOf:
      shares === undefined
        ? () => 1
        : (value) => (Object.hasOwn(shares, value) ? (shares[value] as number) : otherShare) / average,
    weight:
      spreadWeight * Math.floor(outermostFactor ** (1 / Math.max(1, levels.length - 1))) ** (levels.length - 1 - index),
    maxSkew: level.maxSkew ?? Number.POSITIVE_INFINITY,
    over: level.over,
  };
}
