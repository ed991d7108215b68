import { ClusterError } from "../../lib/errors/errors.ts";
import type { Log } from "../../lib/log/log.ts";
import type { Assignments } from "../../proto/gen/embassy/v1/dispatcher.ts";
import { type NodeFile, writeNodeFile } from "./node.ts";

export interface LeaveDeps {
  readonly log: Log;
  readonly stateDir: string;
  readonly node: NodeFile;
  readonly tasks: {
    assign(assignments: Assignments): Promise<void>;
    untilEmpty(signal: AbortSignal): Promise<void>;
  };
}

/**
 * Stops the tasks of a node that was told that it was removed: stop signal, grace, then everything of theirs but volumes and
 * images. Noted in node.json before and after, so that the next process goes on with it. Until the signal is aborted.
 */
export async function leaveCluster({ log, stateDir, node, tasks }: LeaveDeps, signal: AbortSignal): Promise<void> {
  const { nodeId, name, clusterId } = node;
  log.warn("this node was removed from its cluster: its tasks are stopped, its volumes stay", {
    nodeId,
    name,
    clusterId,
  });
  // A full disk must not keep them running: the next process is told again.
  await writeNodeFile(stateDir, { ...node, removed: "stopping" }).catch((error: unknown) =>
    log.warn("node.json could not be written", { error }),
  );
  await tasks.assign({ revision: 0, complete: true, set: [], remove: [] });
  await tasks.untilEmpty(signal);
  if (signal.aborted) return;
  await writeNodeFile(stateDir, { ...node, removed: "done" });
  log.warn("nothing of the removed node's tasks is left", { nodeId, name });
}

/** What noded ends with on a host that was removed. */
export function removedHost({ name, nodeId, clusterId }: NodeFile): ClusterError {
  return new ClusterError(`this host was node ${name} (${nodeId}) of cluster ${clusterId}, and was removed from it`, {
    code: "not-found",
    subject: `node/${nodeId}`,
    hint: "Its tasks are stopped, its volumes are kept. Run `noded join --manager HOST --token TOKEN` to join again.",
  });
}
