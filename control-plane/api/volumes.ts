import { ClusterError, hasCode } from "../../lib/errors/errors.ts";
import { call } from "../../lib/grpc/client.ts";
import type {
  ListVolumesResponse,
  NodeFailure,
  RemoveVolumeRequest,
  RemoveVolumeResponse,
} from "../../proto/gen/embassy/v1/api.ts";
import { type ContainerSpec, MountType } from "../../proto/gen/embassy/v1/stack.ts";
import type { NodeSpec } from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { hasEnded, observedState, serviceFullName, taskName } from "../domain/tasks.ts";
import type { Agents, OpenAgent } from "./agents.ts";
import { resolveNode } from "./resolve.ts";

interface VolumesDeps {
  readonly index: ClusterIndex;
  readonly agents: Pick<Agents, "open">;
}

const deadlineMs = 5_000;

/** What volumes the nodes have, each node asked; those that do not answer are named. */
export async function listVolumes({ index, agents }: VolumesDeps): Promise<ListVolumesResponse> {
  const { answers, failures } = await ofEach(agents, nodesOf(index), async ({ client }) => {
    return (await call(client.listVolumes.bind(client), {}, { deadlineMs })).names;
  });
  const volumes = answers.flatMap(({ node, answer }) => answer.map((name) => ({ name, nodeName: node.name })));
  return { volumes: volumes.toSorted((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0)), failures };
}

/**
 * Removes a volume from the nodes that have it, or only says which those are. The nodes look again whether a task mounts it. Throws `conflict` when it is in
 * use, `not-found` when no node that answers has it, `unavailable` when the one node asked does not answer.
 */
export async function removeVolume(
  { index, agents }: VolumesDeps,
  { name, node: word, dryRun }: RemoveVolumeRequest,
): Promise<RemoveVolumeResponse> {
  const nodes = word === "" ? nodesOf(index) : [resolveNode(index, word)];
  requireUnused(index, name, word === "" ? undefined : nodes[0]);
  const { answers, failures } = await ofEach(agents, nodes, async ({ client }) => {
    if (dryRun) return (await call(client.listVolumes.bind(client), {}, { deadlineMs })).names.includes(name);
    try {
      await call(client.removeVolume.bind(client), { name }, { deadlineMs });
      return true;
    } catch (error) {
      if (hasCode(error, "not-found")) return false;
      throw error;
    }
  });
  const removed = answers.filter(({ answer }) => answer).map(({ node }) => node.name);
  if (removed.length === 0 && word !== "" && failures[0] !== undefined) {
    throw new ClusterError(failures[0].why, { code: "unavailable", subject: `node/${failures[0].nodeName}` });
  }
  if (removed.length === 0) {
    const unasked = failures.map(({ nodeName }) => nodeName).join(", ");
    throw new ClusterError(
      word === "" ? `no node has a volume ${name}` : `node ${nodes[0]?.name} has no volume ${name}`,
      {
        code: "not-found",
        subject: `volume/${name}`,
        hint:
          unasked === ""
            ? "`clusterctl volumes` lists those there are."
            : `Not asked, as it does not answer: ${unasked}.`,
      },
    );
  }
  return { nodes: removed, failures };
}

/** With a node, only what runs there counts: a service may have left data behind where none of its tasks is any more. */
function requireUnused(index: ClusterIndex, name: string, node: NodeSpec | undefined): void {
  const { view } = index;
  const refuse = (who: string, hint: string): never => {
    throw new ClusterError(`volume ${name} is in use: ${who} mounts it`, {
      code: "conflict",
      subject: `volume/${name}`,
      hint,
    });
  };
  if (node === undefined) {
    const user = [...view.services.values()].find(({ spec }) => mounts(spec?.container, name));
    if (user !== undefined) {
      refuse(
        `service ${serviceFullName(user)}`,
        "Remove the service first; --node removes it from a node where no task of it is.",
      );
    }
  }
  const task = [...view.tasks.values()].find(
    (one) =>
      !hasEnded(observedState(view, one)) &&
      mounts(one.spec?.container, name) &&
      (node === undefined || one.nodeId === node.id),
  );
  if (task !== undefined) refuse(`task ${taskName(view, task)}`, "Wait until it has ended, or move it away first.");
}

function mounts(container: ContainerSpec | undefined, volume: string): boolean {
  return (
    container?.mounts.some(({ type, source }) => type === MountType.MOUNT_TYPE_VOLUME && source === volume) === true
  );
}

function nodesOf(index: ClusterIndex): NodeSpec[] {
  return [...index.view.nodes.values()].sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
}

/** Asks nodes side by side. Only a node that says no, rather than nothing, makes it throw. */
async function ofEach<T>(
  agents: Pick<Agents, "open">,
  nodes: readonly NodeSpec[],
  ask: (agent: OpenAgent) => Promise<T>,
): Promise<{ answers: { readonly node: NodeSpec; readonly answer: T }[]; failures: NodeFailure[] }> {
  const all = await Promise.all(
    nodes.map(async (node): Promise<{ readonly node: NodeSpec; readonly answer: T } | NodeFailure> => {
      try {
        using agent = agents.open(node.id);
        return { node, answer: await ask(agent) };
      } catch (error) {
        if (!hasCode(error, "unavailable")) throw error;
        const why = `the agent of node ${node.name} does not answer`;
        return { nodeName: node.name, why: error.message.includes(node.name) ? error.message : why };
      }
    }),
  );
  return {
    answers: all.flatMap((one) => ("node" in one ? [one] : [])),
    failures: all.flatMap((one) => ("node" in one ? [] : [one])),
  };
}
