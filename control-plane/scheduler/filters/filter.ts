import type { ClusterState } from "../state/cluster.ts";
import type { GroupRecord, NodeRecord } from "../state/records.ts";
import type { Reason, ReasonKind } from "../types.ts";

/**
 * A rule that keeps a group's tasks off a node. Deciding, explaining and the brute-force tests all use the same rules.
 *
 * `looksAt` says what an answer depends on, and so when the index asks:
 * - `facts`: on what the node and the group are, never on tasks; asked once per node and set of rules (`key`);
 * - `domain`: on tasks, but the same for all nodes of a spread domain; asked once per domain and decision;
 * - `node`: on the tasks of the node; asked for each node that a decision looks at.
 */
export interface Filter {
  readonly kind: ReasonKind;
  readonly looksAt: "facts" | "domain" | "node";
  /** Of a `facts` rule: everything of the group that it looks at. Absent: nothing. Groups of equal keys share an index. */
  key?(group: GroupRecord): unknown;
  /**
   * Of a `domain` rule: all that can turn a refusal, beside a change of the refused node itself. `facts`: what any node is;
   * `service`: placing or ending a task of the group's service; `volumes`: the end of a task that writes to one of the group's.
   * Absent: nothing else.
   */
  readonly hangsOn?: readonly ("facts" | "service" | "volumes")[];
  /** False when it lets every node pass. Absent: it may refuse. */
  applies?(group: GroupRecord): boolean;
  /** It refuses only tasks that could run elsewhere: one that may run on this node alone passes. Absent: every task. */
  readonly sparesBound?: boolean;
  passes(state: ClusterState, group: GroupRecord, node: NodeRecord): boolean;
  /** Why it does not pass; called only when it does not. */
  reason(state: ClusterState, group: GroupRecord, node: NodeRecord): Reason;
}
