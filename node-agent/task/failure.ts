import type { ClusterError, ErrorCode } from "../../lib/errors/errors.ts";

/** What a step was doing when it failed. */
export type Stage = "image" | "network" | "files" | "mount" | "create" | "start";

export type Verdict = "retry" | "reject";

// Trying again changes nothing about these.
const permanent: readonly ErrorCode[] = ["invalid", "not-found", "denied", "exhausted"];
// With the loop's growing delay about ten seconds of a disk or a runtime that fails.
const attemptsBeforeReject = 7;
// The image store has tried several times by itself before it says that a registry is away.
const pullsBeforeReject = 3;

/**
 * May it be tried again after it failed for the nth time in a row? The network is waited for as long as it takes: netd
 * comes back, and elsewhere the task would be no better off.
 */
export function judge(stage: Stage, { code }: ClusterError, attempt: number): Verdict {
  // The layers were collected between pull and mount: the next pass pulls them again.
  if (stage === "mount" && code === "not-found" && attempt < attemptsBeforeReject) return "retry";
  if (permanent.includes(code)) return "reject";
  // A program of this host has a port that the task publishes; another host may do.
  if (stage === "network" && code === "conflict") return "reject";
  if (code === "unavailable" && (stage === "network" || stage === "files")) return "retry";
  if (stage === "image") return attempt < pullsBeforeReject ? "retry" : "reject";
  return attempt < attemptsBeforeReject ? "retry" : "reject";
}
