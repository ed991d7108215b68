import { filtersFor } from "../filters/index.ts";
import { lackingOn, shortage } from "../filters/resources.ts";
import { candidateOf, compareNodes } from "../scores/index.ts";
import type { ClusterState } from "../state/cluster.ts";
import type { GroupRecord, NodeRecord } from "../state/records.ts";
import type { Candidate, Explanation, NodeVerdict, Reason, ReasonCount, ReasonKind } from "../types.ts";

/** Classes listed per reason; the rest is in the count. */
const mostClasses = 8;
/** Reasons that a summary names; it is written into every task that it is about. */
const mostReasons = 8;

/**
 * Why the nodes (all, or the one of `onlyNode`) that refuse the group do. Each of them counts under the first filter that
 * refuses it. Costs a look at every node.
 */
export function explainGroup(state: ClusterState, group: GroupRecord, onlyNode?: string): Explanation {
  const nodes = [...state.nodes.values()].filter((node) => onlyNode === undefined || node.spec.id === onlyNode);
  const byText = new Map<
    string,
    { kind: ReasonKind; text: string; lack: number; count: number; classes: Map<string, number> }
  >();
  let nearest: { node: NodeRecord; distance: number } | undefined;
  for (const node of nodes) {
    const lack = shortage(state, group, node);
    let distance = 0;
    let first: ReturnType<typeof filtersFor>[number] | undefined;
    for (const filter of filtersFor(onlyNode)) {
      if (filter.passes(state, group, node)) continue;
      distance += filter.kind === "resources" ? lack : 1;
      first ??= filter;
    }
    if (first === undefined) continue;
    const reason = first.reason(state, group, node);
    // Amounts differ from node to node: of those that lack the same, the text is that of the one which lacks least.
    const byLack = first.kind === "resources";
    const key = byLack ? `lacks ${lackingOn(state, group, node)}` : (reason.together ?? reason.text);
    const entry = byText.get(key);
    if (entry === undefined)
      byText.set(key, { kind: first.kind, text: reason.text, lack, count: 1, classes: new Map([[classOf(node), 1]]) });
    else {
      entry.count++;
      entry.classes.set(classOf(node), (entry.classes.get(classOf(node)) ?? 0) + 1);
      if (!byLack && entry.text !== reason.text) entry.text = key;
      if (byLack && lack < entry.lack) {
        entry.lack = lack;
        entry.text = reason.text;
      }
    }
    if (nearest === undefined || distance < nearest.distance) nearest = { node, distance };
  }
  const reasons: ReasonCount[] = [...byText.values()]
    .sort((a, b) => b.count - a.count || (a.text < b.text ? -1 : 1))
    .map(({ kind, text, count, classes }) => ({
      kind,
      text,
      count,
      classes: [...classes]
        .map(([name, n]) => ({ class: name, count: n }))
        .sort((a, b) => b.count - a.count || (a.class < b.class ? -1 : 1))
        .slice(0, mostClasses),
    }));
  return {
    group: group.spec.id,
    summary: summaryOf(reasons, nodes.length, onlyNode),
    nodes: nodes.length,
    reasons,
    nearest:
      nearest === undefined
        ? undefined
        : {
            node: nearest.node.spec.id,
            hostname: nearest.node.spec.hostname,
            reasons: refusalsOf(state, group, nearest.node, onlyNode),
          },
  };
}

/** Every filter that refuses the node (to a task that may run anywhere, or on `onlyNode`), and the cost it would have. */
export function verdictOf(
  state: ClusterState,
  group: GroupRecord,
  node: NodeRecord,
  onlyNode: string | undefined,
): NodeVerdict {
  const reasons = refusalsOf(state, group, node, onlyNode);
  return { node: node.spec.id, fits: reasons.length === 0, reasons, candidate: candidateOf(state, group, node) };
}

/** Stands in where counting nodes was left out. */
export function unexplained(group: GroupRecord): Explanation {
  return { group: group.spec.id, summary: "no node fits; the reasons were not counted", nodes: 0, reasons: [] };
}

/** The nodes (all, or the one of `onlyNode`) that would take a task of the group: how many, and the best of them, at most `limit`. */
export function candidatesOf(
  state: ClusterState,
  group: GroupRecord,
  limit: number,
  onlyNode?: string,
): { readonly fitting: number; readonly candidates: readonly Candidate[] } {
  const fitting = [...state.nodes.values()]
    .filter((node) => onlyNode === undefined || node.spec.id === onlyNode)
    .filter((node) => filtersFor(onlyNode).every((filter) => filter.passes(state, group, node)))
    .map((node) => ({ node, candidate: candidateOf(state, group, node) }))
    .sort((a, b) => compareNodes(a.candidate.cost, a.node, b.candidate.cost, b.node));
  return { fitting: fitting.length, candidates: fitting.slice(0, limit).map(({ candidate }) => candidate) };
}

function refusalsOf(
  state: ClusterState,
  group: GroupRecord,
  node: NodeRecord,
  onlyNode: string | undefined,
): readonly Reason[] {
  return filtersFor(onlyNode)
    .filter((filter) => !filter.passes(state, group, node))
    .map((filter) => filter.reason(state, group, node));
}

function summaryOf(reasons: readonly ReasonCount[], nodes: number, onlyNode: string | undefined): string {
  if (nodes === 0) return onlyNode === undefined ? "there are no nodes" : `node ${onlyNode} is unknown`;
  const rest = reasons.slice(mostReasons).reduce((sum, { count }) => sum + count, 0);
  return [
    ...reasons
      .slice(0, mostReasons)
      .map(({ count, text }, i) => `${count}${i === 0 ? (count === 1 ? " node" : " nodes") : ""}: ${text}`),
    ...(rest > 0 ? [`${rest}: other reasons`] : []),
  ].join("; ");
}

/** What nodes of one class share: platform, role and labels. */
function classOf(node: NodeRecord): string {
  const { spec } = node;
  if (node.classOf === spec) return node.className;
  const labels = Object.entries(spec.labels)
    .map(([key, value]) => `${key}=${value}`)
    .sort();
  node.className = [`${spec.os}/${spec.arch}`, spec.role, ...labels].join(" ");
  node.classOf = spec;
  return node.className;
}
