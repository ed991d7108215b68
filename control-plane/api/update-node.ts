import type { UpdateNodeRequest } from "../../proto/gen/embassy/v1/api.ts";
import { Availability, type NodeSpec } from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { changeTaints } from "../domain/taints.ts";
import type { Write } from "../store/types.ts";
import { resolveNode } from "./resolve.ts";
import { checkLabels, checkTaints } from "./validate.ts";

export interface NodeUpdate {
  /** The nodes as they are then, in the order in which they are named. */
  readonly specs: readonly NodeSpec[];
  /** One transaction: what waits is placed on all nodes that are activated, and nothing moves to one that is drained as well. */
  readonly writes: readonly Write[];
}

/** What a change of one or more nodes comes to. Pure. Throws `not-found` and `invalid`. */
export function planNodeUpdate(index: ClusterIndex, request: UpdateNodeRequest): NodeUpdate {
  const nodes = [...new Set([request.node, ...request.more].map((word) => resolveNode(index, word)))];
  const specs = nodes.map((node): NodeSpec => {
    const labels = { ...node.labels, ...request.setLabels };
    for (const name of request.removeLabels) delete labels[name];
    checkLabels(request.setLabels, `node/${node.name}`);
    checkTaints(request.setTaints, `node/${node.name}`);
    const taints = changeTaints(node.taints, request.removeTaints, request.setTaints);
    const { availability, force } = request;
    if (availability === undefined) return { ...node, labels, taints };
    const drainForced = force && availability === Availability.AVAILABILITY_DRAIN;
    return { ...node, labels, taints, availability, drainForced };
  });
  const writes = specs.map((value): Write => {
    return { table: "nodes", id: value.id, value, ifRevision: index.view.nodes.revisionOf(value.id) };
  });
  return { specs, writes };
}
