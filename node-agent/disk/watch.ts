import { stat, statfs } from "node:fs/promises";
import type { Clock } from "../../lib/clock/clock.ts";
import type { Log } from "../../lib/log/log.ts";
import { type DiskLimits, type FileSystem, planShortages } from "./pressure.ts";

export interface DiskDeps {
  readonly log: Log;
  readonly clock: Clock;
  /** What is to be on disks with room; those on one file system count once. */
  readonly directories: readonly string[];
  readonly limits: DiskLimits;
  /** Removes what nobody needs. Asked before a disk counts as nearly full, and every minute while it does. */
  readonly makeRoom: () => Promise<void>;
}

// Two calls into the kernel for each directory; a fast pull writes some 100 MB a second.
const intervalMs = 5_000;
const roomIntervalMs = 60_000;

/** Looks again and again at how much is free on the node's disks, so that the cluster gives a node without room no new tasks. */
export class DiskWatch {
  readonly #deps: DiskDeps;
  #measured: readonly FileSystem[] = [];
  #shortages: readonly string[] = [];
  #roomMadeMs = Number.NEGATIVE_INFINITY;
  #failing = false;

  constructor(deps: DiskDeps) {
    this.#deps = deps;
  }

  /** What was found last, one figure for each file system. */
  get measured(): readonly FileSystem[] {
    return this.#measured;
  }

  /** Why the node counts as low on disk; empty: it does not. */
  get problem(): string {
    return this.#shortages.join("; ");
  }

  /** Looks until the signal is aborted. */
  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      await this.look();
      await this.#deps.clock.sleep(intervalMs, signal).catch(() => undefined);
    }
  }

  /** Looks once. What cannot be looked at stays as it was. */
  async look(): Promise<void> {
    const { log, clock, makeRoom } = this.#deps;
    try {
      let found = await this.#shortagesNow();
      if (found.length > 0 && clock.monotonicMs() - this.#roomMadeMs >= roomIntervalMs) {
        this.#roomMadeMs = clock.monotonicMs();
        await makeRoom().catch((error: unknown) => log.warn("no room can be made on the disk", { error }));
        found = await this.#shortagesNow();
      }
      if (found.join() !== this.#shortages.join()) log.warn("disk", { problem: found.join("; ") || "none any more" });
      this.#shortages = found;
      this.#failing = false;
    } catch (error) {
      if (!this.#failing) log.warn("cannot look at how much of the disk is free", { error });
      this.#failing = true;
    }
  }

  async #shortagesNow(): Promise<string[]> {
    this.#measured = await measure(this.#deps.directories);
    return planShortages(this.#measured, this.#deps.limits, this.#shortages);
  }
}

async function measure(directories: readonly string[]): Promise<FileSystem[]> {
  const byDevice = new Map<number, FileSystem>();
  for (const directory of directories) {
    const [{ dev }, { bsize, blocks, bavail, files, ffree }] = await Promise.all([stat(directory), statfs(directory)]);
    if (byDevice.has(dev)) continue;
    const bytes = { bytes: blocks * bsize, freeBytes: bavail * bsize };
    byDevice.set(dev, { directory, ...bytes, inodes: files, freeInodes: ffree });
  }
  return [...byDevice.values()];
}
