import type { Clock } from "../../lib/clock/clock.ts";
import { type ClusterError, hasCode } from "../../lib/errors/errors.ts";
import type { Log } from "../../lib/log/log.ts";
import type { ClusterIndex } from "../domain/index.ts";
import type { CommitOptions, Store, Write } from "../store/types.ts";

/** What every controller stands on. */
export interface ControllerDeps {
  readonly store: Pick<Store, "view" | "commit">;
  readonly index: ClusterIndex;
  readonly log: Log;
  readonly clock: Clock;
  readonly settings: ControllerSettings;
}

export interface ControllerSettings {
  /** Prefix length of the block of a network that a node gets, as 27. */
  readonly blockPrefix: number;
  /** How long a node may take to reconnect when the member that held its session is lost. */
  readonly reconnectGraceMs: number;
  /** How long nodes keep their tasks when most went silent together; 0: no longer than others. */
  readonly silentHoldMs: number;
  /** How long a block rests when its node no longer takes part in the network. */
  readonly blockRestMs: number;
  /** How long nodes have to stay as they are, and a task up, before services are spread again. */
  readonly rebalanceSettleMs: number;
  /** How long a service is left alone after it was spread again; doubled by each move that failed. */
  readonly rebalanceCooldownMs: number;
  /** Longest time between two looks at how services are spread. */
  readonly rebalanceIntervalMs: number;
  /** How long a moved task's successor may take to be up. */
  readonly rebalancePatienceMs: number;
  /** Tasks of the cluster that move at once, each of another service. */
  readonly rebalanceAtOnce: number;
  /** Most tasks of a service that a node may have more than another without being moved, from 1. */
  readonly rebalanceSkew: number;
}

export const defaultControllerSettings: ControllerSettings = {
  blockPrefix: 27,
  reconnectGraceMs: 10_000,
  silentHoldMs: 300_000,
  blockRestMs: 60_000,
  rebalanceSettleMs: 30_000,
  rebalanceCooldownMs: 600_000,
  rebalanceIntervalMs: 300_000,
  rebalancePatienceMs: 300_000,
  rebalanceAtOnce: 2,
  rebalanceSkew: 1,
};

/** Most writes of one transaction: below etcd's request size with whole service specifications in each task. */
const mostWrites = 256;

/**
 * Commits as the leader, in as few transactions as the store takes; the first that fails throws. Each transaction is
 * complete in itself, so that a pass cut short is made good by the next one.
 */
export async function commitFenced(
  deps: Pick<ControllerDeps, "store">,
  writes: readonly Write[],
  expect: CommitOptions["expect"],
  signal: AbortSignal,
): Promise<void> {
  for (let start = 0; start < writes.length; start += mostWrites) {
    await deps.store.commit(writes.slice(start, start + mostWrites), {
      fenced: true,
      signal,
      ...(expect === undefined ? {} : { expect }),
    });
  }
}

/** A plan that met a newer state: not worth a line in the log, since the next pass reads again. Not so when deposed. */
export function isStaleView(error: unknown): boolean {
  return hasCode(error, "conflict") && (error as ClusterError).subject !== "leader";
}

/** How long to wait for the view to catch up after a conflict. */
export const staleViewDelayMs = 10;

/** Resolves when the signal is aborted. */
export async function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
}
