/**
 * Where the node's session with the control plane stands. `turn` says which of the managers is tried, `failures` counts
 * attempts since the last welcome.
 */
export type SessionState =
  | { readonly kind: "waiting"; readonly turn: number; readonly failures: number; readonly forMs: number }
  | { readonly kind: "connecting"; readonly turn: number; readonly failures: number }
  | {
      readonly kind: "established";
      readonly turn: number;
      readonly sessionId: string;
      readonly heartbeatIntervalMs: number;
    }
  | { readonly kind: "stopped" }
  | { readonly kind: "removed" };

export type SessionEvent =
  | { readonly kind: "waited" }
  | { readonly kind: "welcomed"; readonly sessionId: string; readonly heartbeatIntervalMs: number }
  | { readonly kind: "lost"; readonly why: string }
  /** The control plane has said that the node is not part of its cluster any more. */
  | { readonly kind: "removed" }
  | { readonly kind: "stop" };

/** What varies between nodes, so that they do not all come at once. */
export interface Chance {
  /** 0 <= x < 1 */
  random(): number;
}

const firstRetryMs = 100;
// A control plane that is restarted is back within seconds, and then every node is wanted back before its lease has gone.
const quickRetries = 8;
const maxQuickRetryMs = 1_000;
// One that is away for longer is spared: a thousand nodes that ask each second keep it from coming back.
const maxRetryMs = 5_000;
export const defaultHeartbeatMs = 1_500;
const minHeartbeatMs = 50;

/** The wait before attempt `failures + 1`: half to all of a delay that doubles, up to 1 s at first and 5 s later. */
export function retryDelayMs(failures: number, chance: Chance): number {
  const ceiling = failures > quickRetries ? maxRetryMs : Math.min(maxQuickRetryMs, firstRetryMs * 2 ** failures);
  return Math.round(ceiling * (0.5 + chance.random() / 2));
}

/** The time until the next heartbeat: 80-100 % of the interval, so that no heartbeat is ever late by design. */
export function heartbeatDelayMs(intervalMs: number, chance: Chance): number {
  return Math.round(intervalMs * (0.8 + chance.random() / 5));
}

/**
 * The session's transitions. Managers are tried in turn; an event that means nothing in a state changes nothing. Pure, but
 * for the chance that it is given.
 */
export function nextState(state: SessionState, event: SessionEvent, chance: Chance): SessionState {
  if (state.kind === "stopped" || state.kind === "removed") return state;
  if (event.kind === "stop") return { kind: "stopped" };
  if (event.kind === "removed") return { kind: "removed" };
  const { turn } = state;
  switch (state.kind) {
    case "waiting":
      return event.kind === "waited" ? { kind: "connecting", turn, failures: state.failures } : state;
    case "connecting": {
      if (event.kind === "welcomed") {
        const { sessionId } = event;
        const heartbeatIntervalMs = Math.max(minHeartbeatMs, event.heartbeatIntervalMs || defaultHeartbeatMs);
        return { kind: "established", turn, sessionId, heartbeatIntervalMs };
      }
      if (event.kind !== "lost") return state;
      const failures = state.failures + 1;
      return { kind: "waiting", turn: turn + 1, failures, forMs: retryDelayMs(failures, chance) };
    }
    case "established":
      // The same member first: it may have been restarted, and the others are spared a crowd.
      return event.kind === "lost" ? { kind: "waiting", turn, failures: 0, forMs: retryDelayMs(0, chance) } : state;
    default:
      return state satisfies never;
  }
}

/** The manager whose turn it is. `managers` is never empty. */
export function managerOf(turn: number, managers: readonly string[]): string {
  return managers[turn % managers.length] ?? "";
}
