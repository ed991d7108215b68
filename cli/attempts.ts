import type { TaskView } from "../proto/gen/embassy/v1/api.ts";
import { count } from "./render/format.ts";

/** "gave up after 3 attempts": of a task that ended and whose slot gets no other; undefined: there may be another. */
export function gaveUpAfter({ task, gaveUp }: TaskView): string | undefined {
  return gaveUp === "" ? undefined : `gave up after ${count((task?.restarts ?? 0) + 1, "attempt")}`;
}

/** "next try in 5 s": of a task that ended and whose slot waits for its next attempt; undefined: it does not. */
export function nextTry({ retryAtMs }: TaskView, nowMs: number): string | undefined {
  if (retryAtMs === 0) return undefined;
  const seconds = Math.ceil((retryAtMs - nowMs) / 1_000);
  return seconds > 0 ? `next try in ${seconds} s` : "next try now";
}
