import { ClusterError, hasCode } from "../../lib/errors/errors.ts";
import { call } from "../../lib/grpc/client.ts";
import { compareTexts } from "../../lib/words/compare.ts";
import type {
  ListVolumesRequest,
  ListVolumesResponse,
  NodeFailure,
  RemoveVolumeRequest,
  RemoveVolumeResponse,
} from "../../proto/gen/embassy/v1/api.ts";
import type { NodeSpec, VolumeHome } from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { hasEnded, observedState, serviceFullName, taskName } from "../domain/tasks.ts";
import { homeProblem, volumesOf } from "../domain/volumes.ts";
import type { Store, Write } from "../store/types.ts";
import type { Agents, OpenAgent } from "./agents.ts";
import { resolveNode } from "./resolve.ts";

interface VolumesDeps {
  readonly index: ClusterIndex;
  readonly agents: Pick<Agents, "open">;
  readonly store: Pick<Store, "commit">;
}

const deadlineMs = 5_000;

/** The homes of volumes, and what volumes the nodes have, each node asked; those that do not answer are named. */
export async function listVolumes(
  { index, agents }: Pick<VolumesDeps, "index" | "agents">,
  { sizes }: ListVolumesRequest,
): Promise<ListVolumesResponse> {
  const { answers, failures } = await ofEach(agents, nodesOf(index), async ({ client }) => {
    return await call(client.listVolumes.bind(client), { sizes }, { deadlineMs });
  });
  const volumes = answers.flatMap(({ node, answer: { names, bytes } }) =>
    names.map((name) => ({ name, nodeName: node.name, bytes: bytes[name] })),
  );
  const homes = [...index.view.volumeHomes.values()].map((home) => ({
    home,
    nodeName: index.view.nodes.get(home.nodeId)?.name ?? home.nodeId,
    problem: homeProblem(index.view, home.nodeId) ?? "",
  }));
  return {
    volumes: volumes.toSorted((a, b) => compareTexts(a.name, b.name)),
    failures,
    homes: homes.toSorted(
      (a, b) =>
        compareTexts(a.home.volume, b.home.volume) || a.home.slot - b.home.slot || compareTexts(a.nodeName, b.nodeName),
    ),
  };
}

/**
 * Removes a volume from the nodes that have it, or only says which those are. Its homes are forgotten before its data: a task placed from
 * then on begins anew, and one that is placed in the same moment makes this fail. The nodes look again whether a task mounts it. Throws
 * `conflict` when it is in use, `not-found` when no node that answers has it, `unavailable` when a home, or the one node asked, does not
 * answer: nothing is removed then, as it would come back with that node.
 */
export async function removeVolume(
  { index, agents, store }: VolumesDeps,
  { name, node: word, dryRun }: RemoveVolumeRequest,
): Promise<RemoveVolumeResponse> {
  const only = word === "" ? undefined : resolveNode(index, word);
  requireUnused(index, name, only);
  const { answers, failures } = await ofEach(agents, only === undefined ? nodesOf(index) : [only], async ({ client }) =>
    (await call(client.listVolumes.bind(client), { sizes: false }, { deadlineMs })).names.includes(name),
  );
  const holders = answers.filter(({ answer }) => answer).map(({ node }) => node);
  const homes = [...index.view.volumeHomes.entries()].filter(
    ([, { volume, nodeId }]) => volume === name && (only === undefined || nodeId === only.id),
  );
  requireAnswers(index, name, homes, failures);
  if (holders.length === 0 && homes.length === 0) throw absent(name, only, failures);
  if (dryRun) return { nodes: holders.map((node) => node.name), failures };
  const forget = homes.map(([id]): Write => {
    return { table: "volumeHomes", id, value: undefined, ifRevision: index.view.volumeHomes.revisionOf(id) };
  });
  try {
    if (forget.length > 0) await store.commit(forget);
  } catch (cause) {
    if (!hasCode(cause, "conflict")) throw cause;
    throw new ClusterError(`volume ${name} is in use: a task was placed with it just now`, {
      code: "conflict",
      subject: `volume/${name}`,
      cause,
    });
  }
  const asked = await ofEach(agents, holders, async ({ client }): Promise<ClusterError | undefined> => {
    try {
      await call(client.removeVolume.bind(client), { name }, { deadlineMs });
    } catch (error) {
      if (hasCode(error, "conflict")) return error as ClusterError;
      if (!hasCode(error, "not-found")) throw error;
    }
    return undefined;
  });
  const removed = asked.answers.filter(({ answer }) => answer === undefined).map(({ node }) => node);
  const kept = new Set(holders.filter((node) => !removed.includes(node)).map(({ id }) => id));
  const left = homes.filter(([, { nodeId }]) => kept.has(nodeId));
  if (left.length > 0) {
    // Their data is to be found again.
    await store.commit(left.map(([id, value]): Write => ({ table: "volumeHomes", id, value, ifRevision: 0 })));
  }
  for (const { answer } of asked.answers) if (answer !== undefined) throw answer;
  return { nodes: removed.map((node) => node.name), failures: [...failures, ...asked.failures] };
}

function requireAnswers(
  index: ClusterIndex,
  name: string,
  homes: readonly (readonly [string, VolumeHome])[],
  failures: readonly NodeFailure[],
): void {
  for (const { nodeName, why } of failures) {
    const nodeId = index.nodeByName(nodeName)?.id;
    if (!homes.some(([, home]) => home.nodeId === nodeId)) continue;
    throw new ClusterError(`volume ${name} has data on ${nodeName}: ${why}`, {
      code: "unavailable",
      subject: `volume/${name}`,
      hint: `Nothing was removed. Bring ${nodeName} back, or forget it with all that it has: \`clusterctl node rm --force ${nodeName}\`.`,
    });
  }
}

function absent(name: string, only: NodeSpec | undefined, failures: readonly NodeFailure[]): ClusterError {
  if (only !== undefined && failures[0] !== undefined) {
    return new ClusterError(failures[0].why, { code: "unavailable", subject: `node/${only.name}` });
  }
  const unasked = failures.map(({ nodeName }) => nodeName).join(", ");
  return new ClusterError(
    only === undefined ? `no node has a volume ${name}` : `node ${only.name} has no volume ${name}`,
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
    const user = [...view.services.values()].find(({ spec }) => volumesOf(spec?.container).includes(name));
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
      volumesOf(one.spec?.container).includes(name) &&
      (node === undefined || one.nodeId === node.id),
  );
  if (task !== undefined) refuse(`task ${taskName(view, task)}`, "Wait until it has ended, or move it away first.");
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
