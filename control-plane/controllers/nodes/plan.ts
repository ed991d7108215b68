import { NodeState } from "../../../proto/gen/embassy/v1/state.ts";
import type { View } from "../../store/types.ts";

export type NodeDecision =
  | { readonly kind: "keep" }
  /** Its session is gone, but so is the member that held it: it may be about to reconnect. */
  | { readonly kind: "wait"; readonly untilMs: number }
  | { readonly kind: "down"; readonly why: string };

/**
 * What becomes of a node whose session may be gone. While the member that held the session lives, a session that went
 * means that the node stopped renewing it: down at once. When that member is lost, or was away from the store, or is in
 * another life than when it opened the session, the node had nobody to renew with: it gets a grace from `missingSinceMs`,
 * when the leader first saw it without a session.
 */
export function planNode(
  view: View,
  nodeId: string,
  missingSinceMs: number | undefined,
  nowMs: number,
  graceMs: number,
): NodeDecision {
  const status = view.nodeStatuses.get(nodeId);
  if (status?.state !== NodeState.NODE_STATE_READY || view.sessions.get(nodeId) !== undefined) return { kind: "keep" };
  const holder = view.memberSessions.get(status.clusterd);
  if (holder !== undefined && holder.incarnation === status.incarnation) {
    return { kind: "down", why: "no sign of life for the time of its lease" };
  }
  const untilMs = (missingSinceMs ?? nowMs) + graceMs;
  if (nowMs < untilMs) return { kind: "wait", untilMs };
  return {
    kind: "down",
    why: `did not come back within ${Math.round(graceMs / 1000)} s after its control-plane member was lost`,
  };
}
