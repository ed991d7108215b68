import { type Placement, TaintEffect } from "../../proto/gen/embassy/v1/stack.ts";
import { Availability, type NodeSpec, type Service, type Task } from "../../proto/gen/embassy/v1/state.ts";
import { type Constraint, parseConstraint } from "../scheduler/index.ts";
import type { View } from "../store/types.ts";
import type { ClusterIndex } from "./index.ts";
import { isGlobal, parsePlatform, schedulerNode } from "./scheduler-facts.ts";
import { repels } from "./taints.ts";
import { isNodeSilent, isNodeUp, isWanted } from "./tasks.ts";

/** One place in a service that wants one task: a slot of a replicated service, a node of a global one. */
export interface Seat {
  /** What tasks of this seat have in common: see `seatOf`. */
  readonly key: string;
  readonly slot: number;
  /** Of a global service: the node that the task may run on; else "". */
  readonly onlyNode: string;
}

/** The seat that a task fills or filled. */
export function seatOf(task: Pick<Task, "slot" | "onlyNode">): string {
  return task.slot > 0 ? String(task.slot) : `node:${task.onlyNode}`;
}

/** The seats that a service wants filled now, in order: lowest slot, or smallest node id, first. None when it is being removed. */
export function wantedSeats(index: ClusterIndex, service: Service): Seat[] {
  if (service.removed || service.spec === undefined) return [];
  const mode = service.spec.mode;
  if (isGlobal(service)) {
    return globalNodes(index, service).map(({ id }) => ({ key: `node:${id}`, slot: 0, onlyNode: id }));
  }
  const replicas = mode?.$case === "replicated" ? mode.value.replicas : 1;
  return Array.from({ length: replicas }, (_, n) => ({ key: String(n + 1), slot: n + 1, onlyNode: "" }));
}

/**
 * Nodes that a global service runs on: up, not drained, of its platforms, meeting its constraints and tainted only as it tolerates;
 * a paused or silent one, or one with a taint against new tasks, only if it has a task already. Resources do not count here: a node that is short of them has a task that says so.
 */
function globalNodes(index: ClusterIndex, service: Service): NodeSpec[] {
  const { view } = index;
  const present = new Set(
    index
      .tasksOfService(service.id)
      .filter(isWanted)
      .map(({ onlyNode }) => onlyNode),
  );
  const placement = service.spec?.placement;
  const suits = suiting(view, placement);
  const nodes: NodeSpec[] = [];
  for (const spec of view.nodes.values()) {
    const silent = isNodeSilent(view, spec.id);
    if (spec.availability === Availability.AVAILABILITY_DRAIN || !(silent || isNodeUp(view, spec.id))) continue;
    if (repels(spec, TaintEffect.TAINT_EFFECT_NO_EXECUTE, placement)) continue;
    if (isClosed(view, spec, placement) && !present.has(spec.id)) continue;
    if (suits(spec)) nodes.push(spec);
  }
  return nodes.sort((a, b) => (a.id < b.id ? -1 : 1));
}

/** Is the node given no new tasks of such a placement: not up, not active, or tainted as it does not tolerate? */
function isClosed(view: View, node: NodeSpec, placement: Placement | undefined): boolean {
  return (
    !isNodeUp(view, node.id) ||
    node.availability !== Availability.AVAILABILITY_ACTIVE ||
    repels(node, TaintEffect.TAINT_EFFECT_NO_EXECUTE, placement) ||
    repels(node, TaintEffect.TAINT_EFFECT_NO_SCHEDULE, placement)
  );
}

/** Does a node meet the constraints, and is it of one of the platforms? */
function suiting(view: View, placement: Placement | undefined): (node: NodeSpec) => boolean {
  const constraints: Constraint[] = [];
  for (const text of placement?.constraints ?? []) {
    const parsed = parseConstraint(text);
    if (parsed.ok) constraints.push(parsed.constraint);
  }
  const platforms = (placement?.platforms ?? []).map(parsePlatform);
  return (spec) => {
    const node = schedulerNode(view, spec, view.nodeStatuses.get(spec.id));
    const isOfPlatform = platforms.some(
      ({ os, arch }) => (os === "" || os === node.os) && (arch === "" || arch === node.arch),
    );
    if (platforms.length > 0 && !isOfPlatform) return false;
    return constraints.every((constraint) => constraint.matches(node));
  };
}

/** Could the node be given a task of such a placement, were there room? */
export function mayTake(view: View, node: NodeSpec, placement: Placement | undefined): boolean {
  return !isClosed(view, node, placement) && suiting(view, placement)(node);
}
