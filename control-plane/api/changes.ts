import { ClusterError } from "../../lib/errors/errors.ts";
import type { NewNodes, SimulateRequest } from "../../proto/gen/embassy/v1/api.ts";
import { Availability, NodeDescription, NodeSpec, NodeState, NodeStatus } from "../../proto/gen/embassy/v1/state.ts";
import { areMost } from "../controllers/nodes/plan.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { isNodeUp } from "../domain/tasks.ts";
import type { Write } from "../store/types.ts";
import { resolveNode } from "./resolve.ts";
import { scaled } from "./scale.ts";

/** Of the controllers' settings, what decides where tasks go. */
export interface SimulatedSettings {
  readonly blockPrefix: number;
  readonly silentHoldMs: number;
}

/** What a request would change. */
export interface Changes {
  readonly writes: Write[];
  /** Nodes that are drained or lost. */
  readonly gone: string[];
  readonly added: string[];
  readonly scaledServices: string[];
  readonly notes: string[];
}

/** What the request names, as writes. Pure. Throws `not-found` and `invalid`. */
export function changesOf(index: ClusterIndex, request: SimulateRequest, settings: SimulatedSettings): Changes {
  const { view } = index;
  const drained = new Map(request.drain.map((word) => resolveNode(index, word)).map((node) => [node.id, node]));
  const lost = new Map(request.lose.flatMap((word) => nodesMeant(index, word)).map((node) => [node.id, node]));
  const added = newNodes(index, request.add);
  const services = new Map(
    request.scale.map(({ service, replicas }) => scaled(index, service, replicas)).map((one) => [one.id, one]),
  );
  if (drained.size + lost.size + added.length + services.size === 0) {
    throw new ClusterError("there is nothing to simulate", {
      code: "invalid",
      hint: "Say what is to change: nodes to drain, to lose or to add, or services to scale.",
    });
  }
  const writes: Write[] = [
    ...[...drained.values()].map((node): Write => {
      const value = { ...node, availability: Availability.AVAILABILITY_DRAIN, drainForced: request.force };
      return { table: "nodes", id: node.id, value };
    }),
    ...[...lost.keys()].map((id): Write => {
      const status = view.nodeStatuses.get(id) ?? NodeStatus.create({ id });
      return { table: "nodeStatuses", id, value: { ...status, state: NodeState.NODE_STATE_DOWN } };
    }),
    ...added.flatMap(({ spec, status }): Write[] => [
      { table: "nodes", id: spec.id, value: spec },
      { table: "nodeStatuses", id: spec.id, value: status },
    ]),
    ...[...services.values()].map((service): Write => ({ table: "services", id: service.id, value: service })),
  ];
  return {
    writes,
    gone: [...drained.keys(), ...lost.keys()],
    added: added.map(({ spec }) => spec.id),
    scaledServices: [...services.keys()],
    notes: notesOf(index, lost, drained, settings),
  };
}

/** A node by name or id, or all with a label. */
function nodesMeant(index: ClusterIndex, word: string): NodeSpec[] {
  const equals = word.indexOf("=");
  if (equals < 1) return [resolveNode(index, word)];
  const [key, value] = [word.slice(0, equals), word.slice(equals + 1)];
  const found = [...index.view.nodes.values()].filter(({ labels }) => labels[key] === value);
  if (found.length > 0) return found.sort((a, b) => (a.name < b.name ? -1 : 1));
  throw new ClusterError(`no node has the label ${word}`, {
    code: "not-found",
    subject: `label/${word}`,
    hint: "`clusterctl nodes` shows the labels of the nodes.",
  });
}

/** In one question: each takes memory of this member. */
const mostNewNodes = 10_000;

function newNodes(index: ClusterIndex, add: readonly NewNodes[]): { spec: NodeSpec; status: NodeStatus }[] {
  const { view } = index;
  const total = add.reduce((sum, { count }) => sum + count, 0);
  if (total > mostNewNodes || add.some((one) => !(one.count > 0 && one.milliCpus > 0 && one.memoryBytes > 0))) {
    throw new ClusterError(`${total} nodes cannot be added`, {
      code: "invalid",
      hint: `Give CPUs and memory of more than zero, and 1 to ${mostNewNodes} nodes.`,
    });
  }
  const sizes = add.flatMap(({ milliCpus, memoryBytes, count }) => {
    return Array.from({ length: count }, () => ({ milliCpus, memoryBytes }));
  });
  // Like the first that says what it is.
  const like = [...view.nodeStatuses.values()].find(({ description }) => description !== undefined)?.description;
  const names = new Set([...view.nodes.values()].flatMap(({ id, name }) => [id, name]));
  let number = 0;
  const nextName = (): string => {
    for (;;) {
      const name = `new-${++number}`;
      if (!names.has(name)) return name;
    }
  };
  return sizes.map((size) => {
    const name = nextName();
    const description = NodeDescription.create({ os: like?.os ?? "linux", arch: like?.arch ?? "amd64", ...size });
    return {
      spec: NodeSpec.create({ id: name, name }),
      status: NodeStatus.create({ id: name, state: NodeState.NODE_STATE_READY, description }),
    };
  });
}

function notesOf(
  { view }: ClusterIndex,
  lost: ReadonlyMap<string, NodeSpec>,
  drained: ReadonlyMap<string, NodeSpec>,
  { silentHoldMs }: SimulatedSettings,
): string[] {
  const isDrained = (node: NodeSpec) => drained.has(node.id) || node.availability === Availability.AVAILABILITY_DRAIN;
  const counted = [...view.nodes.values()].filter((node) => isNodeUp(view, node.id) && !isDrained(node));
  const missing = counted.filter(({ id }) => lost.has(id)).length;
  if (silentHoldMs === 0 || !areMost(missing, counted.length)) return [];
  const hold = `${Math.round(silentHoldMs / 1_000)} s`;
  return [
    `${missing} of ${counted.length} nodes lost at about the same time count as silent: nothing of this happens for ${hold}, unless they are drained or removed`,
  ];
}
