import { ClusterError } from "../lib/errors/errors.ts";
import { answeringOf, type EmbeddedDeps, EmbeddedEtcd } from "./embedded.ts";
import { hostOf } from "./store/client.ts";
import { forgetOthers } from "./store/members.ts";

/**
 * Makes this member the only manager of its cluster, when so many are lost for good that the rest has no quorum. etcd drops the
 * others from its own membership first, then their records go, and last this member's own note of them: killed in between, it is
 * done again from the start. Resolves with the names of the managers that were forgotten. Throws `invalid` unless
 * `othersAreLost`, or when there are no others; `conflict` when one of them answers; `unavailable` when etcd does not serve.
 */
export async function recoverAlone(
  deps: EmbeddedDeps,
  othersAreLost: boolean,
  signal: AbortSignal,
): Promise<readonly string[]> {
  const { keeper } = deps;
  const { member, etcd } = keeper.value;
  if (etcd === undefined || !etcd.started || etcd.others.length === 0) {
    throw new ClusterError(`manager ${member} has no others beside it`, {
      code: "invalid",
      subject: `manager/${member}`,
      hint: "Start it with `clusterd run`.",
    });
  }
  const [answering] = await answeringOf(deps, etcd.others);
  if (answering !== undefined) {
    throw new ClusterError(`the manager on ${hostOf(answering)} is not lost: its etcd answers`, {
      code: "conflict",
      subject: `manager/${member}`,
      hint: "Start clusterd on as many managers as can be started. When more than half of them run, remove the rest with `clusterctl manager rm`.",
    });
  }
  if (!othersAreLost) {
    const others = etcd.others.map(hostOf).join(", ");
    throw new ClusterError(`this makes ${member} the only manager, and forgets those on ${others}`, {
      code: "invalid",
      subject: "--others-are-lost",
      hint: "Run it again with --others-are-lost if none of them will ever start again as it is. What they had agreed on and this one had not heard is lost.",
    });
  }
  await using embedded = await EmbeddedEtcd.start(deps, signal, { alone: true });
  await embedded.serving(signal);
  const forgotten = await forgetOthers(embedded.client, member, signal);
  await keeper.change({ etcd: { ...etcd, others: [] } });
  return forgotten;
}
