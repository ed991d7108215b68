import type { Clock } from "../../lib/clock/clock.ts";
import type { Log } from "../../lib/log/log.ts";
import type { ClusterIndex } from "../domain/index.ts";
import type { Store } from "../store/types.ts";
import { type ControllerSettings, defaultControllerSettings } from "./deps.ts";
import { runIpam } from "./ipam/loop.ts";
import { runNodes } from "./nodes/loop.ts";
import { runRebalance } from "./rebalance/loop.ts";
import { runRevisions } from "./revisions/loop.ts";
import { runScheduling } from "./scheduling/loop.ts";
import { runServices } from "./services/loop.ts";
import { runSweep } from "./sweep/loop.ts";

export interface ControllersDeps {
  readonly store: Pick<Store, "view" | "commit">;
  readonly index: ClusterIndex;
  readonly log: Log;
  readonly clock: Clock;
  /** What differs from `defaultControllerSettings`. */
  readonly settings?: Partial<ControllerSettings>;
}

export interface Controllers {
  /** Runs every controller as the leader, until the signal is aborted; resolves when all passes have ended. */
  run(signal: AbortSignal): Promise<void>;
}

/** The leader's controllers. Their writes are fenced, so that running them while deposed does no harm. */
export function createControllers({ settings, ...rest }: ControllersDeps): Controllers {
  const deps = { ...rest, settings: { ...defaultControllerSettings, ...settings } };
  const loops = [runNodes, runServices, runScheduling, runIpam, runRebalance, runRevisions, runSweep];
  return {
    async run(signal) {
      await Promise.all(loops.map(async (run) => await run(deps, signal)));
    },
  };
}
