import { type ContainerSpec, MountType, OnNodeLoss } from "../../proto/gen/embassy/v1/stack.ts";
import { Availability, type Task, TaskState } from "../../proto/gen/embassy/v1/state.ts";
import type { View } from "../store/types.ts";
import type { ClusterIndex } from "./index.ts";
import { mayTake, seatOf } from "./seats.ts";
import { givesAway } from "./service-tasks.ts";
import { isNodeLost, isNodeSilent, isNodeUp, isWanted, observedState } from "./tasks.ts";

const none: readonly string[] = Object.freeze([]);

/** Names of the volumes that a container mounts and that outlive it on their node, each once. */
export function volumesOf(container: ContainerSpec | undefined): readonly string[] {
  // Most containers mount nothing, and placing their tasks asks for each.
  if (container === undefined || container.mounts.length === 0) return none;
  const named = container.mounts.filter(({ type, source }) => type === MountType.MOUNT_TYPE_VOLUME && source !== "");
  return [...new Set(named.map(({ source }) => source))];
}

/** Key of the table `volumeHomes`: a volume has a home for each seat, whichever service's. */
export function homeId(volume: string, task: Pick<Task, "slot" | "onlyNode">): string {
  return `${volume}/${seatOf(task)}`;
}

/** Has the volume a home, or does a service of another stack make it? */
export function volumeExists({ view }: ClusterIndex, volume: string, stack: string): boolean {
  for (const home of view.volumeHomes.values()) if (home.volume === volume) return true;
  return [...view.services.values()].some(
    (service) =>
      service.stack !== stack &&
      !service.removed &&
      service.spec?.container?.mounts.some(({ source, external }) => source === volume && !external) === true,
  );
}

/** Where the homes of its volumes let a task run. */
export type Bound =
  | { readonly kind: "anywhere" }
  /** There and nowhere else. `waits`: even when the node is lost or drained. */
  | { readonly kind: "home"; readonly nodeId: string; readonly volume: string; readonly waits: boolean }
  /** Nowhere, as its volumes have homes on several nodes. */
  | { readonly kind: "apart"; readonly why: string };

const anywhere: Bound = { kind: "anywhere" };

/**
 * Where a task may run, by the homes of the volumes that it mounts. A home on a node that was removed counts no more, and one whose
 * node is lost or gives it away only when its volume is one to wait for: as the service says now, since the task may be older.
 */
export function boundOf(index: ClusterIndex, task: Task): Bound {
  const volumes = volumesOf(task.spec?.container);
  // A global service's task has its volumes on the one node that it may run on.
  if (volumes.length === 0 || task.onlyNode !== "") return anywhere;
  const { view } = index;
  let bound: Extract<Bound, { kind: "home" }> | undefined;
  for (const volume of volumes) {
    const nodeId = view.volumeHomes.get(homeId(volume, task))?.nodeId;
    const node = nodeId === undefined ? undefined : view.nodes.get(nodeId);
    if (nodeId === undefined || node === undefined) continue;
    const waits = waitsForHome(index, task, volume);
    if (!waits && (isNodeLost(view, nodeId) || givesAway(node, task))) continue;
    if (bound === undefined || (waits && !bound.waits)) bound = { kind: "home", nodeId, volume, waits };
    else if (waits && bound.nodeId !== nodeId) {
      const other = view.nodes.get(bound.nodeId)?.name;
      const why = `its volumes are on different nodes: ${bound.volume} on ${other}, ${volume} on ${node.name}`;
      return { kind: "apart", why };
    }
  }
  return bound ?? anywhere;
}

/**
 * Why a task that was lost with its node is left as it is: nothing else could do its work before that node is back, and it may run there
 * still. undefined: it is to be replaced, or is not lost.
 */
export function awaitsNode(index: ClusterIndex, task: Task): string | undefined {
  const { view } = index;
  if (!isWanted(task) || observedState(view, task) !== TaskState.TASK_STATE_ORPHANED) return undefined;
  const bound = boundOf(index, task);
  if (bound.kind !== "home" || !bound.waits || bound.nodeId !== task.nodeId) return undefined;
  return givesAway(view.nodes.get(task.nodeId), task) ? undefined : waitsForNode(view, bound, "");
}

/** Do its volumes keep the task from every node that could take it, however much room there is? */
export function isShutOut(index: ClusterIndex, task: Task): boolean {
  const bound = boundOf(index, task);
  if (bound.kind !== "home") return bound.kind === "apart";
  const home = index.view.nodes.get(bound.nodeId);
  return home !== undefined && !mayTake(index.view, home, task.spec?.placement);
}

/** Does the task wait for the volume's home when that is lost or drained, rather than begin with an empty one? */
function waitsForHome(index: ClusterIndex, task: Task, volume: string): boolean {
  const now = index.view.services.get(task.serviceId)?.spec?.container;
  const mount = [...(now?.mounts ?? []), ...(task.spec?.container?.mounts ?? [])].find(
    ({ type, source }) => type === MountType.MOUNT_TYPE_VOLUME && source === volume,
  );
  return mount?.onNodeLoss !== OnNodeLoss.ON_NODE_LOSS_RECREATE;
}

/** Why no task can be placed on a node, whatever it needs: "down", "drained"; undefined: one can. */
export function homeProblem(view: View, nodeId: string): string | undefined {
  const node = view.nodes.get(nodeId);
  if (node === undefined) return "removed";
  if (isNodeSilent(view, nodeId)) return "silent";
  if (!isNodeUp(view, nodeId)) return "down";
  if (node.availability === Availability.AVAILABILITY_DRAIN) return "drained";
  return node.availability === Availability.AVAILABILITY_PAUSE ? "paused" : undefined;
}

/** Why a task waits for the node that has its volume; `otherwise`: what keeps it off although the node takes tasks. */
export function waitsForNode(view: View, bound: Extract<Bound, { kind: "home" }>, otherwise: string): string {
  const problem = homeProblem(view, bound.nodeId);
  const name = view.nodes.get(bound.nodeId)?.name ?? bound.nodeId;
  return `its volume ${bound.volume} is on ${name}, ${problem === undefined ? `where ${otherwise}` : `which is ${problem}`}`;
}
