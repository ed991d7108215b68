import { expect, it } from "vitest";
import { systemClock } from "../../lib/clock/clock.ts";
import { ClusterError } from "../../lib/errors/errors.ts";
import { silentLog } from "../../lib/log/log.ts";
import { NetdStatus } from "../../proto/gen/embassy/v1/local.ts";
import { NetworkWatch } from "./watch.ts";

const away = () => {
  throw new ClusterError("waits for the network: netd is not there", { code: "unavailable" });
};
const good = () => NetdStatus.create({ connected: true });

/** What the watch says after each of these answers of netd. */
async function saidAfter(answers: readonly (() => NetdStatus)[]): Promise<string[]> {
  const left = [...answers];
  const status = async () => await Promise.resolve((left.shift() ?? good)());
  const watch = new NetworkWatch({ log: silentLog, clock: systemClock, network: { status } });
  const said: string[] = [];
  for (const _ of answers) {
    await watch.ask();
    said.push(watch.problem);
  }
  return said;
}

it("tells that netd is away once it has been for a while, and at once that it is back", async () => {
  const gone = "netd is not there";
  expect(await saidAfter([good, away, away, away, away, good, away])).toEqual(["", "", "", gone, gone, "", ""]);
});

it("tells that netd has no control plane, or cannot do its work, in netd's words", async () => {
  const alone = () => NetdStatus.create({ connected: false });
  const failing = () => NetdStatus.create({ connected: false, lastError: "nft: no such table" });
  expect((await saidAfter([alone, alone, alone])).at(-1)).toBe("netd has no connection to the control plane");
  expect((await saidAfter([away, failing, failing])).at(-1)).toBe("netd cannot apply the network: nft: no such table");
});
