import type { Clock } from "../../lib/clock/clock.ts";
import type { Log } from "../../lib/log/log.ts";
import { logSize, rotate } from "./files.ts";

export interface RotatedLog {
  readonly taskId: string;
  readonly path: string;
  /** 0: 10 MiB. */
  readonly maxBytes: number;
  /** 0: 3. */
  readonly maxFiles: number;
}

export interface RotationDeps {
  readonly log: Log;
  readonly clock: Clock;
  /** Of the containers that run now. */
  readonly logs: () => readonly RotatedLog[];
  /** Makes the container's monitor open a new file. */
  readonly reopen: (taskId: string) => Promise<void>;
}

const intervalMs = 5_000;

/** Keeps the logs of running containers within their size, until the signal is aborted. */
export async function keepRotating(deps: RotationDeps, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    await deps.clock.sleep(intervalMs, signal).catch(() => undefined);
    if (!signal.aborted) await rotateAll(deps);
  }
}

/** One pass over every log. A failure concerns one log. */
export async function rotateAll(deps: RotationDeps): Promise<void> {
  for (const { taskId, path, maxBytes, maxFiles } of deps.logs()) {
    try {
      const size = await logSize(path);
      if (size !== undefined && size < (maxBytes || 10 * 1024 * 1024)) continue;
      // Missing while its container runs: the process before this one ended between renaming and telling.
      if (size !== undefined) await rotate(path, maxFiles || 3);
      await deps.reopen(taskId);
    } catch (error) {
      deps.log.warn("log not rotated", { taskId, error });
    }
  }
}
