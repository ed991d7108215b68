import { DesiredState } from "../../proto/gen/embassy/v1/state.ts";

/** How a task ended. */
export type Outcome = "complete" | "failed" | "shutdown" | "rejected";

/** What the task's container is, as last seen. */
export type ContainerFact =
  | { readonly kind: "none" }
  | { readonly kind: "created" }
  | { readonly kind: "running" }
  /** -1: nobody knows its exit code. */
  | { readonly kind: "exited"; readonly exitCode: number };

/** What is to be, as far as a step depends on it. */
export interface Wanted {
  readonly desired: DesiredState;
  readonly stopGraceMs: number;
}

/** What is, as far as a step depends on it. */
export interface Observed {
  /** Pulled, and kept from being collected. */
  readonly image: boolean;
  /** Namespace and addresses made by netd. */
  readonly network: boolean;
  /** Secrets and configs written. */
  readonly files: boolean;
  /** Root file system mounted. */
  readonly mounted: boolean;
  readonly container: ContainerFact;
  /** It is written down that it ran. A container that ran and is not there is never made again: a task is one attempt. */
  readonly started: boolean;
  /** Its health check failed as often as it may: it is stopped, and has failed however it ends. */
  readonly unhealthy: boolean;
  /** A task of the same service and slot runs here still, and is on its way out. */
  readonly predecessorStops: boolean;
  /** A task that makes room for this one has not ended yet. */
  readonly roomIsTaken: boolean;
  /** When the stop signal was sent; undefined: not yet. */
  readonly stopSentAtMs: number | undefined;
  /** When SIGKILL was last sent. */
  readonly killedAtMs: number | undefined;
  /** Set once; what remains then is to take everything away. */
  readonly outcome: Outcome | undefined;
  /** Nothing of the task is left but its record and its logs. */
  readonly released: boolean;
  readonly nowMs: number;
}

/** One thing to do for a task. Each may be done again after a crash anywhere within it. */
export type Step = { readonly why: string } & (
  | { readonly kind: "prepare"; readonly image: boolean; readonly network: boolean; readonly files: boolean }
  | { readonly kind: "mount" }
  | { readonly kind: "create" }
  | { readonly kind: "start" }
  | { readonly kind: "signal" }
  | { readonly kind: "kill" }
  /** Writes down how it ended. */
  | { readonly kind: "settle"; readonly outcome: Outcome; readonly exitCode: number }
  /** Deletes the container, detaches the network, unmounts, cleans files, in that order; each may be done already. */
  | { readonly kind: "release" }
  /** Removes record and logs. */
  | { readonly kind: "forget" }
  /** Nothing to do until something changes, or that time has passed. */
  | { readonly kind: "wait"; readonly forMs?: number }
);

/** Exit code when nobody knows it. */
export const unknownExit = -1;

/** How long after SIGKILL a container may take to be gone before SIGKILL is sent again. */
const killAgainMs = 2_000;

/** Decides what to do next for one task. Pure. `wait` without a time means that it is as it should be. */
export function nextStep(wanted: Wanted, seen: Observed): Step {
  if (seen.outcome !== undefined) return afterOutcome(wanted, seen);
  const { container } = seen;
  if (wanted.desired === DesiredState.DESIRED_STATE_SHUTDOWN || wanted.desired === DesiredState.DESIRED_STATE_REMOVED) {
    return towardsStop(wanted, seen);
  }
  switch (container.kind) {
    case "running":
      return seen.unhealthy ? stop(wanted, seen, "unhealthy") : { kind: "wait", why: "it runs" };
    case "exited":
      if (seen.unhealthy)
        return { kind: "settle", outcome: "failed", exitCode: container.exitCode, why: "stopped: it was unhealthy" };
      return container.exitCode === 0
        ? { kind: "settle", outcome: "complete", exitCode: 0, why: "it ended by itself" }
        : { kind: "settle", outcome: "failed", exitCode: container.exitCode, why: "it ended by itself" };
    case "created":
      if (seen.predecessorStops) return { kind: "wait", why: "the one before it in its slot still stops here" };
      if (seen.roomIsTaken) return { kind: "wait", why: "a task that makes room for it has not ended yet" };
      return wanted.desired === DesiredState.DESIRED_STATE_READY
        ? { kind: "wait", why: "prepared; waits for leave to start" }
        : { kind: "start", why: "prepared and wanted running" };
    case "none":
      return towardsCreated(seen);
    default:
      return container satisfies never;
  }
}

function towardsCreated(seen: Observed): Step {
  if (seen.started) {
    return { kind: "settle", outcome: "failed", exitCode: unknownExit, why: "it ran and its container is gone" };
  }
  const missing = { image: !seen.image, network: !seen.network, files: !seen.files };
  if (missing.image || missing.network || missing.files) return { kind: "prepare", ...missing, why: "not prepared" };
  if (!seen.mounted) return { kind: "mount", why: "its file system is not mounted" };
  return { kind: "create", why: "prepared and not created" };
}

function towardsStop(wanted: Wanted, seen: Observed): Step {
  const { container } = seen;
  switch (container.kind) {
    case "none":
      return seen.started
        ? { kind: "settle", outcome: "shutdown", exitCode: unknownExit, why: "stopped, and its container is gone" }
        : { kind: "settle", outcome: "shutdown", exitCode: 0, why: "stopped before it started" };
    case "created":
      return { kind: "settle", outcome: "shutdown", exitCode: 0, why: "stopped before it started" };
    case "exited":
      return { kind: "settle", outcome: "shutdown", exitCode: container.exitCode, why: "stopped as asked" };
    case "running":
      return stop(wanted, seen, "wanted stopped");
    default:
      return container satisfies never;
  }
}

/** Ends what runs: kindly, then with force. */
function stop(wanted: Wanted, seen: Observed, why: string): Step {
  if (seen.stopSentAtMs === undefined) return { kind: "signal", why };
  const leftMs =
    seen.killedAtMs === undefined
      ? left(seen.stopSentAtMs, wanted.stopGraceMs, seen.nowMs)
      : left(seen.killedAtMs, killAgainMs, seen.nowMs);
  if (leftMs > 0) return { kind: "wait", forMs: leftMs, why: "it may take its time to stop" };
  return { kind: "kill", why: "its grace is over" };
}

/** What is left of a time span; never more than the whole of it, though the clock was set back. */
function left(sinceMs: number, spanMs: number, nowMs: number): number {
  return Math.min(spanMs, spanMs - (nowMs - sinceMs));
}

function afterOutcome(wanted: Wanted, seen: Observed): Step {
  if (!seen.released) return { kind: "release", why: "it has ended" };
  if (wanted.desired === DesiredState.DESIRED_STATE_REMOVED)
    return { kind: "forget", why: "nobody asks for it any more" };
  return { kind: "wait", why: "it has ended" };
}
