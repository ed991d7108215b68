import { Availability, NodeState, type NodeStatus } from "../../../proto/gen/embassy/v1/state.ts";
import type { View } from "../../store/types.ts";

export interface NodeAction {
  /** What becomes of the node's status. */
  readonly kind: "silent" | "down";
  readonly nodeId: string;
  readonly why: string;
}

export interface NodesPlan {
  /** By node id. Empty: nothing is lost, or what is has its time. */
  readonly actions: readonly NodeAction[];
  /** When to plan again although nothing has changed; undefined: no need. */
  readonly wakeAtMs: number | undefined;
  /** Are most nodes missing, so that none that holds tasks is given up? */
  readonly together: boolean;
}

/** What the view does not tell: since when, by a clock that never jumps. Nodes that are not named here: since now. */
export interface NodeTimes {
  /** Nodes without a session. */
  readonly missing: ReadonlyMap<string, number>;
  /** Nodes that are silent or down. */
  readonly lost: ReadonlyMap<string, number>;
  /** Since most nodes are heard; undefined: since now. */
  readonly heardMs: number | undefined;
}

export interface NodeSettings {
  /** See ControllerSettings. */
  readonly reconnectGraceMs: number;
  /** See ControllerSettings. */
  readonly silentHoldMs: number;
}

/** Losses this far apart are one event: sessions that one cause ends do so within a heartbeat, and a busy member adds to it. */
const togetherMs = 5_000;
/** Fewer are no crowd: of two hosts, one that is silent is as likely lost as cut off, and waiting would help neither. */
const leastTogether = 2;

/** Are so many nodes missing at once that it is likelier this side's network than theirs? */
export function areMost(missing: number, counted: number): boolean {
  return missing >= leastTogether && missing * 2 > counted;
}

interface Standing {
  readonly nodeId: string;
  /** Its session has ended and it has had what time it gets: something follows now. */
  readonly due: boolean;
  readonly missing: boolean;
  /** Does it tell whose fault it is? A node that may be on its way to another member does not. */
  readonly counts: boolean;
  readonly drained: boolean;
  readonly status: NodeStatus;
  readonly why: string;
}

/**
 * What becomes of nodes whose session is gone. While the member that held the session lives, a session that went means
 * that the node stopped renewing it. When that member is lost, or was away from the store, or is in another life than when
 * it opened the session, the node had nobody to renew with: it gets a grace since it is missing.
 *
 * Such a node is down, unless more than half of the nodes, and at least two, went missing at about the same time: then
 * it is silent for `silentHoldMs`, since the network on this side is the likelier cause. Once most are heard again, those
 * that are still silent get the grace, and are down after it. A drained node has nothing to lose: it counts for nothing
 * and is never silent. Pure.
 */
export function planNodes(view: View, times: NodeTimes, nowMs: number, settings: NodeSettings): NodesPlan {
  let wakeAtMs: number | undefined;
  const wakeAt = (atMs: number) => {
    wakeAtMs = Math.min(atMs, wakeAtMs ?? atMs);
  };
  const standings: Standing[] = [];
  for (const [nodeId, status] of view.nodeStatuses.entries()) {
    const standing = standingOf(view, times, nowMs, settings, nodeId, status, wakeAt);
    if (standing !== undefined) standings.push(standing);
  }
  const counted = standings.filter(({ counts }) => counts).length;
  const missing = standings.filter(({ counts, missing: gone }) => counts && gone).length;
  const together = settings.silentHoldMs > 0 && areMost(missing, counted);
  const actions: NodeAction[] = [];
  for (const { nodeId, due, drained, status, why } of standings) {
    if (!due) continue;
    if (status.state !== NodeState.NODE_STATE_SILENT) {
      if (!together || drained) actions.push({ kind: "down", nodeId, why });
      else {
        const held = `${missing} of ${counted} nodes went silent together, which may be this side's network`;
        actions.push({ kind: "silent", nodeId, why: `${held}: keeps its tasks for ${words(settings.silentHoldMs)}` });
      }
      continue;
    }
    const heldUntilMs = (times.lost.get(nodeId) ?? nowMs) + settings.silentHoldMs;
    const untilMs = together
      ? heldUntilMs
      : Math.min(heldUntilMs, (times.heardMs ?? nowMs) + settings.reconnectGraceMs);
    if (drained) actions.push({ kind: "down", nodeId, why: "silent, and drained" });
    else if (nowMs < untilMs) wakeAt(untilMs);
    else if (nowMs >= heldUntilMs) {
      actions.push({ kind: "down", nodeId, why: `no sign of life for ${words(settings.silentHoldMs)}` });
    } else actions.push({ kind: "down", nodeId, why: "no sign of life, though most other nodes are heard again" });
  }
  actions.sort((a, b) => (a.nodeId < b.nodeId ? -1 : 1));
  return { actions, wakeAtMs, together };
}

/** undefined: the node is of no interest here. */
function standingOf(
  view: View,
  times: NodeTimes,
  nowMs: number,
  settings: NodeSettings,
  nodeId: string,
  status: NodeStatus,
  wakeAt: (atMs: number) => void,
): Standing | undefined {
  const spec = view.nodes.get(nodeId);
  if (spec === undefined) return undefined;
  const drained = spec.availability === Availability.AVAILABILITY_DRAIN;
  const session = view.sessions.get(nodeId);
  const base = { nodeId, drained, counts: !drained, status, why: "no sign of life for the time of its lease" };
  switch (status.state) {
    case NodeState.NODE_STATE_READY: {
      if (session !== undefined) return { ...base, due: false, missing: session.quiet };
      const holder = view.memberSessions.get(status.clusterd);
      if (holder !== undefined && holder.incarnation === status.incarnation) {
        return { ...base, due: true, missing: true };
      }
      const untilMs = (times.missing.get(nodeId) ?? nowMs) + settings.reconnectGraceMs;
      if (nowMs < untilMs) {
        wakeAt(untilMs);
        return { ...base, due: false, missing: false, counts: false };
      }
      const grace = words(settings.reconnectGraceMs);
      const why = `did not come back within ${grace} after its control-plane member was lost`;
      return { ...base, due: true, missing: true, why };
    }
    case NodeState.NODE_STATE_SILENT:
      return { ...base, due: session === undefined, missing: session === undefined };
    case NodeState.NODE_STATE_DOWN: {
      const lately = nowMs < (times.lost.get(nodeId) ?? nowMs) + togetherMs;
      return lately ? { ...base, due: false, missing: true } : undefined;
    }
    default:
      return undefined;
  }
}

function words(ms: number): string {
  return ms >= 60_000 && ms % 60_000 === 0 ? `${ms / 60_000} min` : `${Math.round(ms / 1_000)} s`;
}
