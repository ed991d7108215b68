import type { ClusterState } from "../state/cluster.ts";
import type { GroupRecord, NodeRecord } from "../state/records.ts";

/**
 * A term of a node's cost: whole points, lower is better, below zero where the node is wanted.
 *
 * `varies` says when the points change, and so where the index keeps them:
 * - `load`: with what is reserved on the node, whatever the group (one number per node and strategy);
 * - `facts`: with what node and group are (once per node and set of rules);
 * - `domain`: with the tasks in the node's domain (the same for all nodes of a cell);
 * - `node`: with the tasks on this node, and zero on every node that `nodes` does not name.
 */
export interface Score {
  readonly name: string;
  readonly varies: "load" | "facts" | "domain" | "node";
  /** Of a `facts` term: everything of the group that it looks at. Absent: nothing. */
  key?(group: GroupRecord): unknown;
  /** False when it is zero on every node. */
  applies(group: GroupRecord): boolean;
  points(state: ClusterState, group: GroupRecord, node: NodeRecord): number;
  /** Of a `node` term: indexes of the nodes where it may differ from zero; repeats are harmless. */
  nodes?(group: GroupRecord): Iterable<number>;
}
