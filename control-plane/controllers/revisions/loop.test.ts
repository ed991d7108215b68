import { expect, it } from "vitest";
import { systemClock } from "../../../lib/clock/clock.ts";
import { silentLog } from "../../../lib/log/log.ts";
import { aService, aStack, replicas } from "../../domain/testing.ts";
import { defaultControllerSettings } from "../deps.ts";
import { SteppedCluster } from "../testing.ts";
import { runRevisions } from "./loop.ts";

// Below the interval at which the loop looks at everything anyway.
it("a revision that has only other numbers is noted when its last task has gone", { timeout: 8_000 }, async () => {
  using cluster = new SteppedCluster();
  const stop = new AbortController();
  const { index, store } = cluster;
  const clock = { ...systemClock, nowMs: () => cluster.nowMs };
  await cluster.addNodes("a", "b");
  const loop = runRevisions({ index, store, clock, log: silentLog, settings: defaultControllerSettings }, stop.signal);
  const noted = async (revision: number) => {
    const isNoted = () => index.stackRevisions("s").some((one) => one.revision === revision && one.convergedAtMs > 0);
    const { promise, resolve } = Promise.withResolvers<void>();
    using _ = index.subscribe(() => isNoted() && resolve());
    if (!isNoted()) await promise;
  };
  for (const [at, count] of [3, 2, 4].entries()) {
    await cluster.deploy(aStack("s", [aService("web", { mode: replicas(count) })]));
    await cluster.settleFor(2);
    await noted(at + 1);
  }
  expect(index.stack("s")?.revision).toBe(3);
  stop.abort();
  await loop;
});
