import type { ClusterState } from "../state/cluster.ts";
import type { GroupRecord, NodeRecord } from "../state/records.ts";
import type { Candidate } from "../types.ts";
import { nodeServiceAffinity, serviceAffinity } from "./affinity.ts";
import { nodeAffinity, scarcity, softTaint } from "./facts.ts";
import { failures } from "./failures.ts";
import { image } from "./image.ts";
import { links } from "./links.ts";
import { load, loadPoints } from "./load.ts";
import type { Score } from "./score.ts";
import { service } from "./service.ts";
import { spread } from "./spread.ts";

/** Every term of a node's cost. */
export const scores: readonly Score[] = [
  spread,
  serviceAffinity,
  service,
  failures,
  links,
  nodeServiceAffinity,
  image,
  softTaint,
  scarcity,
  nodeAffinity,
  load,
];

export const factScores: readonly Score[] = scores.filter(({ varies }) => varies === "facts");
export const domainScores: readonly Score[] = scores.filter(({ varies }) => varies === "domain");
export const nodeScores: readonly Score[] = scores.filter(({ varies }) => varies === "node");

/** Terms beyond this many points count as this many, so that costs fit the index's keys. */
export const mostNodePoints = 2 ** 19;

/** The cost of a node for a group: the sum of all terms, those of the node itself within ±`mostNodePoints`. */
export function costOf(state: ClusterState, group: GroupRecord, node: NodeRecord): number {
  const facts = sumOf(factScores, state, group, node);
  const domain = sumOf(domainScores, state, group, node);
  return facts + domain + (loadPoints(state, node.index, group.binpack) + nodePoints(state, group, node));
}

/** Sum of the given terms. */
export function sumOf(terms: readonly Score[], state: ClusterState, group: GroupRecord, node: NodeRecord): number {
  let points = 0;
  for (const score of terms) if (score.applies(group)) points += score.points(state, group, node);
  return points;
}

/** Sum of the terms that vary by node. */
export function nodePoints(state: ClusterState, group: GroupRecord, node: NodeRecord): number {
  const points = sumOf(nodeScores, state, group, node);
  return Math.max(-mostNodePoints, Math.min(mostNodePoints, points));
}

/** The cost with its terms, those that are zero left out. */
export function candidateOf(state: ClusterState, group: GroupRecord, node: NodeRecord): Candidate {
  return {
    node: node.spec.id,
    hostname: node.spec.hostname,
    cost: costOf(state, group, node),
    terms: scores
      .filter((score) => score.applies(group))
      .map((score) => ({ name: score.name, points: score.points(state, group, node) }))
      .filter(({ points }) => points !== 0),
  };
}

/** Which of two nodes a group prefers: below zero for the first. Total: cost, then tie number, then id. */
export function compareNodes(costA: number, a: NodeRecord, costB: number, b: NodeRecord): number {
  return costA - costB || a.tie - b.tie || (a.spec.id < b.spec.id ? -1 : 1);
}
