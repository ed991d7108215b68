import type { Clock } from "../../lib/clock/clock.ts";
import type { Log } from "../../lib/log/log.ts";
import { DesiredState } from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { isNodeLost, isNodeSilent } from "../domain/tasks.ts";
import type { Change } from "../store/types.ts";
import type { NetworkHub } from "./network.ts";

/** Longest time that a task is kept running for hosts that do not answer. */
const longestHoldMs = 3_000;
/** Hosts apply a change in milliseconds; those whose member cannot be asked get this long. */
const unknownHoldMs = 500;

export interface CutOverDeps {
  readonly index: ClusterIndex;
  readonly network: Pick<NetworkHub, "knowsEndpoint" | "released">;
  /** Resolves once no host that another member serves leads to the task; false: one of them could not be asked. */
  readonly releasedElsewhere: (taskId: string, revision: number, signal: AbortSignal) => Promise<boolean>;
  /** Is the node's session held here? Its member alone asks the others. */
  readonly serves: (nodeId: string) => boolean;
  readonly clock: Clock;
  readonly log: Log;
  /** Called when a task's node may be told to stop it. */
  readonly onRelease: (nodeId: string, taskId: string) => void;
}

/**
 * Ordered cut-over: a task that is to stop leaves every host's DNS and ambassadors first, and only then is its node told.
 * Hosts that are lost or silent do not count, and nobody is waited for longer than `longestHoldMs`.
 */
export class CutOver {
  readonly #deps: CutOverDeps;
  readonly #held = new Map<string, { readonly enough: AbortController; readonly acked: Promise<void> }>();

  constructor(deps: CutOverDeps) {
    this.#deps = deps;
  }

  /** Is the task's node to be told that it goes on running? */
  isHeld(taskId: string): boolean {
    return this.#held.has(taskId);
  }

  /** To be called with each batch of changes before the hosts are told of it. */
  observe(changes: readonly Change[], revision: number): void {
    const { view } = this.#deps.index;
    for (const change of changes) {
      if (change.table !== "tasks") continue;
      const { before, after, id } = change;
      if (after === undefined) {
        this.#held.get(id)?.enough.abort();
        continue;
      }
      const stops =
        before?.desired === DesiredState.DESIRED_STATE_RUNNING && after.desired === DesiredState.DESIRED_STATE_SHUTDOWN;
      if (!stops || isNodeLost(view, after.nodeId)) continue;
      const elsewhere = view.memberSessions.size > 1;
      if (elsewhere || this.#deps.network.knowsEndpoint(id)) void this.#hold(id, after.nodeId, revision, elsewhere);
    }
  }

  /**
   * Resolves once no host served here leads to the task any more, as of a revision that this member may not have seen
   * yet; for the member that has the task's node.
   */
  async released(taskId: string, revision: number): Promise<void> {
    const { index, clock } = this.#deps;
    const enough = new AbortController();
    const late = clock.sleep(longestHoldMs, enough.signal).catch(() => undefined);
    try {
      await Promise.race([untilRevision(index, revision), late]);
      await Promise.race([this.#held.get(taskId)?.acked, late]);
    } finally {
      enough.abort();
    }
  }

  async #hold(taskId: string, nodeId: string, revision: number, elsewhere: boolean): Promise<void> {
    const { clock, index, log, network, serves, releasedElsewhere, onRelease } = this.#deps;
    const enough = new AbortController();
    const acked = network.released(
      taskId,
      revision,
      (id) => isNodeLost(index.view, id) || isNodeSilent(index.view, id),
    );
    this.#held.set(taskId, { enough, acked });
    const sleep = async (ms: number) => await clock.sleep(ms, enough.signal).catch(() => undefined);
    const others = async () => {
      if (!elsewhere) return;
      // A node that comes here meanwhile from the member that asks is told to wait, too.
      if (!serves(nodeId) || !(await releasedElsewhere(taskId, revision, enough.signal))) await sleep(unknownHoldMs);
    };
    try {
      const all = Promise.all([acked, others()]);
      const outcome = await Promise.race([all.then(() => "acked"), sleep(longestHoldMs).then(() => "late")]);
      if (outcome === "late" && !enough.signal.aborted) {
        log.warn("stopping a task that some hosts may still lead to", { taskId, revision });
      }
    } finally {
      enough.abort();
      this.#held.delete(taskId);
    }
    onRelease(nodeId, taskId);
  }
}

/** Resolves once the index has reached the revision. */
export async function untilRevision(index: ClusterIndex, revision: number): Promise<void> {
  if (index.view.revision >= revision) return;
  const reached = Promise.withResolvers<void>();
  using _ = index.subscribe(() => {
    if (index.view.revision >= revision) reached.resolve();
  });
  await reached.promise;
}
