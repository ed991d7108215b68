import type { Clock } from "../../lib/clock/clock.ts";
import type { Log } from "../../lib/log/log.ts";
import type { ImageStore } from "../images/types.ts";

export interface CollectDeps {
  readonly log: Log;
  readonly clock: Clock;
  readonly images: Pick<ImageStore, "list" | "collect">;
  /** References of the images that tasks of this node have or are about to have. */
  readonly used: () => Iterable<string>;
}

const intervalMs = 3_600_000;
// A service that comes back within a day finds its image.
const keepUnusedMs = 24 * 3_600_000;

/** Removes images that no task has used for a day, until the signal is aborted. */
export async function keepCollecting(deps: CollectDeps, signal: AbortSignal): Promise<void> {
  const lastUsedMs = new Map<string, number>();
  while (!signal.aborted) {
    try {
      await collectOnce(deps, lastUsedMs);
    } catch (error) {
      deps.log.warn("images not collected", { error });
    }
    await deps.clock.sleep(intervalMs, signal).catch(() => undefined);
  }
}

/** One pass. An image that is seen for the first time counts as used just now. */
export async function collectOnce(deps: CollectDeps, lastUsedMs: Map<string, number>): Promise<void> {
  const nowMs = deps.clock.nowMs();
  const used = new Set(deps.used());
  const references = [...new Set((await deps.images.list()).map((image) => image.reference))];
  for (const reference of references) {
    if (used.has(reference) || !lastUsedMs.has(reference)) lastUsedMs.set(reference, nowMs);
  }
  const keep = references.filter((reference) => nowMs - (lastUsedMs.get(reference) ?? nowMs) < keepUnusedMs);
  for (const reference of lastUsedMs.keys()) if (!keep.includes(reference)) lastUsedMs.delete(reference);
  // Asked for again: what came into use while the images were listed is kept too.
  const collected = await deps.images.collect({ references: [...new Set([...keep, ...deps.used()])] });
  if (collected.images > 0) deps.log.info("unused images removed", { ...collected });
}

/** Removes every image that no task has, however lately one did: the disk is short of room. */
export async function collectUnused({
  log,
  images,
  used,
}: Pick<CollectDeps, "log" | "images" | "used">): Promise<void> {
  const collected = await images.collect({ references: [...new Set(used())] });
  if (collected.images > 0) log.info("unused images removed to make room", { ...collected });
}
