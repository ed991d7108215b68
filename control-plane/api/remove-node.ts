import { ClusterError } from "../../lib/errors/errors.ts";
import type { RemoveNodeRequest } from "../../proto/gen/embassy/v1/api.ts";
import type { NodeSpec } from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { isNodeUp } from "../domain/tasks.ts";
import type { Write } from "../store/types.ts";
import { resolveNode } from "./resolve.ts";

/** What forgetting a node comes to. */
export interface NodeRemoval {
  readonly node: NodeSpec;
  /** Names of the volumes that have data there, ascending. */
  readonly volumes: readonly string[];
  readonly writes: readonly Write[];
}

/**
 * Forgets a node, and the homes of volumes there: tasks that waited for them may begin elsewhere with empty ones. Throws `conflict` when
 * the node is up, or has homes and it is not forced.
 */
export function planNodeRemoval(index: ClusterIndex, { node: word, force }: RemoveNodeRequest): NodeRemoval {
  const { view } = index;
  const node = resolveNode(index, word);
  if (isNodeUp(view, node.id)) {
    throw new ClusterError(`node ${node.name} is up`, {
      code: "conflict",
      subject: `node/${node.name}`,
      hint: "Drain it, stop noded on it, and remove it once it is down.",
    });
  }
  const homes = [...view.volumeHomes.entries()].filter(([, { nodeId }]) => nodeId === node.id);
  const volumes = [...new Set(homes.map(([, { volume }]) => volume))].sort();
  if (volumes.length > 0 && !force) {
    throw new ClusterError(`volumes have their data on node ${node.name}: ${volumes.join(", ")}`, {
      code: "conflict",
      subject: `node/${node.name}`,
      hint: "Their tasks wait for it. With --force they begin elsewhere with empty volumes.",
    });
  }
  return {
    node,
    volumes,
    writes: [
      { table: "nodes", id: node.id, value: undefined, ifRevision: view.nodes.revisionOf(node.id) },
      { table: "nodeStatuses", id: node.id, value: undefined },
      ...homes.map(([id]): Write => ({ table: "volumeHomes", id, value: undefined })),
    ],
  };
}
