import { constants } from "node:os";
import { ClusterError } from "../../lib/errors/errors.ts";

// signal(7), "Real-time signals": glibc keeps the first two, so SIGRTMIN is 34 for programs.
const realTimeMin = 34;
const realTimeMax = 64;

/** A signal's number: "SIGTERM", "term", "15", "SIGRTMIN+3", "RTMAX-1". Throws `invalid`. */
export function parseSignal(text: string): number {
  const name = text.trim().toUpperCase();
  const fail = (): never => {
    throw new ClusterError(`there is no signal "${text}"`, {
      code: "invalid",
      hint: "See signal(7), for example SIGTERM.",
    });
  };
  if (/^[0-9]+$/.test(name)) {
    const number = Number(name);
    return number >= 1 && number <= realTimeMax ? number : fail();
  }
  const bare = name.startsWith("SIG") ? name.slice(3) : name;
  const realTime = /^RT(MIN|MAX)(?:([+-])([0-9]{1,2}))?$/.exec(bare);
  if (realTime !== null) {
    const offset = Number(realTime[3] ?? 0) * (realTime[2] === "-" ? -1 : 1);
    const number = (realTime[1] === "MIN" ? realTimeMin : realTimeMax) + offset;
    return number >= realTimeMin && number <= realTimeMax ? number : fail();
  }
  const known: Readonly<Record<string, number>> = constants.signals;
  return known[`SIG${bare}`] ?? fail();
}
