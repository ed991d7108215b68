import { ClusterError, hasCode } from "../errors/errors.ts";

/**
 * The control plane's definite word to a node with a good certificate: it was removed, and stays so, as ids are given once. Said
 * only of what etcd has just confirmed: the node stops all its tasks then.
 */
export function removedNode(nodeId: string): ClusterError {
  return new ClusterError(`node ${nodeId} is not part of the cluster`, {
    code: "not-found",
    subject: `node/${nodeId}`,
    hint: "It was removed: join it again with `noded join`.",
  });
}

/** Was this node told that it was removed? */
export function isRemovedNode(error: unknown, nodeId: string): boolean {
  return hasCode(error, "not-found") && error.subject === `node/${nodeId}`;
}
