import type { ServerDuplexStream } from "@grpc/grpc-js";
import type { Clock } from "../../lib/clock/clock.ts";
import { asClusterError, ClusterError } from "../../lib/errors/errors.ts";
import { requirePeer, streaming, unary } from "../../lib/grpc/server.ts";
import type { Log } from "../../lib/log/log.ts";
import { removedNode } from "../../lib/membership/removed.ts";
import type {
  DispatcherServer,
  NetworkDown,
  NetworkUp,
  RenewRequest,
  RenewResponse,
  SessionDown,
  SessionUp,
} from "../../proto/gen/embassy/v1/dispatcher.ts";
import { BusyPort } from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../domain/index.ts";
import type { NetworkSettings } from "../domain/network-state/tracker.ts";
import type { Change, Store } from "../store/types.ts";
import { CutOver, untilRevision } from "./cutover.ts";
import { NetworkHub, type NetworkProgress } from "./network.ts";
import { Presence } from "./presence.ts";
import { Session, type SessionDeps, type SessionSettings, unknownNode } from "./session.ts";
import { StatusBatcher } from "./statuses.ts";
import { Vigils } from "./vigils.ts";

export interface DispatcherDeps {
  readonly store: Pick<Store, "view" | "commit" | "grantLease" | "keepAlive" | "revokeLease">;
  readonly index: ClusterIndex;
  readonly log: Log;
  readonly clock: Clock;
  /** This member's name. */
  readonly member: string;
  readonly settings: SessionSettings & NetworkSettings;
  /** The other members that are alive. */
  readonly peers: {
    /** See CutOverDeps.releasedElsewhere. */
    released(taskId: string, revision: number, signal: AbortSignal): Promise<boolean>;
    /** The same of all that their hosts were sent. */
    settled(revision: number, signal: AbortSignal): Promise<boolean>;
  };
  /** Signs a new certificate for a node that showed its present one. */
  readonly renew: (nodeId: string, csrDer: Buffer) => Promise<RenewResponse>;
}

export interface Dispatcher {
  readonly service: DispatcherServer;
  /** Keeps this member's registration until the signal is aborted; then ends the streams. */
  run(signal: AbortSignal): Promise<void>;
  /** How far a node's netd is; undefined when this member does not serve it. */
  networkProgress(nodeId: string): NetworkProgress | undefined;
  /** Resolves once every netd has applied what it was sent so far, or is gone, lost or silent, or its member could not be asked. */
  networkSettled(signal: AbortSignal): Promise<void>;
  /** For another member: resolves once every netd served here has applied what that revision says of it, or is gone, lost or silent. */
  settledAt(revision: number): Promise<void>;
  /** For another member: see `CutOver.released`. */
  released(taskId: string, revision: number): Promise<void>;
}

/** The nodes' side of a control-plane member: their sessions and network streams. */
export function createDispatcher(deps: DispatcherDeps): Dispatcher {
  const { store, index, log, clock, member, settings, peers } = deps;
  const sessions = new Map<string, Session>();
  const presence = new Presence({ store, clock, log, member, nodeLeaseTtlMs: settings.leaseTtlMs });
  const statuses = new StatusBatcher({ store, clock, log });
  const vigils = new Vigils({ store, clock, log, leaseTtlMs: settings.leaseTtlMs });
  const network = new NetworkHub({
    index,
    log,
    settings,
    noteBusyPorts: async (nodeId, busyPorts) => {
      const { nodeStatuses } = index.view;
      const status = nodeStatuses.get(nodeId);
      if (status === undefined) {
        if (busyPorts.length === 0) return;
        throw new ClusterError(`node ${nodeId} has had no session yet`, { code: "unavailable" });
      }
      const encoded = (ports: readonly BusyPort[]) =>
        ports.map((port) => BusyPort.encode(port).finish().join()).join(";");
      if (encoded(busyPorts) === encoded(status.busyPorts)) return;
      const value = { ...status, busyPorts: [...busyPorts] };
      await store.commit([{ table: "nodeStatuses", id: nodeId, value, ifRevision: nodeStatuses.revisionOf(nodeId) }]);
      log.info("node's busy ports", { nodeId, ports: busyPorts.map(({ port, by }) => `${port}: ${by}`) });
    },
  });
  const cutOver = new CutOver({
    index,
    network,
    clock,
    log,
    releasedElsewhere: async (...args) => await peers.released(...args),
    serves: (nodeId) => sessions.has(nodeId),
    onRelease: (nodeId, taskId) => sessions.get(nodeId)?.touch(taskId),
  });
  const sessionDeps: SessionDeps = {
    store,
    index,
    clock,
    log,
    member,
    clusterId: settings.clusterId,
    settings,
    presence,
    statuses,
    cutOver,
    vigils,
  };

  presence.onChange(() => {
    for (const session of sessions.values()) session.holderChanged();
  });
  // In this order: a task that is to stop is held back before its node would be told, and hosts are told first.
  index.subscribe((changes, revision) => {
    cutOver.observe(changes, revision);
    network.apply(changes);
    for (const change of changes) {
      tellSessions(sessions, change);
      if (change.table === "sessions") vigils.recordChanged(change.id, change.after?.sessionId);
    }
  });

  const service = {
    session: streaming<ServerDuplexStream<SessionUp, SessionDown>, SessionUp, SessionDown>(async (call, signal) => {
      const nodeId = requirePeer(call, ["node"]).name;
      if (index.view.nodes.get(nodeId) === undefined) throw await unknownNode(store, nodeId);
      await serveSession(sessionDeps, sessions, call, nodeId, signal);
    }),
    network: streaming<ServerDuplexStream<NetworkUp, NetworkDown>, NetworkUp, NetworkDown>(async (call, signal) => {
      const nodeId = requirePeer(call, ["node"]).name;
      if (index.view.nodes.get(nodeId) === undefined) throw await unknownNode(store, nodeId);
      await network.serve(call, nodeId, signal);
    }),
    renew: unary<RenewRequest, RenewResponse>(
      async ({ csrDer }, call) => await deps.renew(requirePeer(call, ["node"]).name, csrDer),
    ),
  };

  return {
    service,
    networkProgress: (nodeId) => network.progress(nodeId),
    networkSettled: async (signal) => {
      await Promise.all([network.settled(), peers.settled(index.view.revision, signal)]);
    },
    settledAt: async (revision) => {
      await untilRevision(index, revision);
      await network.settled();
    },
    released: async (taskId, revision) => await cutOver.released(taskId, revision),
    async run(signal) {
      await presence.run(signal);
      vigils[Symbol.dispose]();
      const stopping = new ClusterError("this control-plane member is stopping", { code: "unavailable" });
      for (const session of sessions.values()) session.close(stopping);
      await statuses.stop();
    },
  };
}

async function serveSession(
  deps: SessionDeps,
  sessions: Map<string, Session>,
  call: ServerDuplexStream<SessionUp, SessionDown>,
  nodeId: string,
  signal: AbortSignal,
): Promise<void> {
  const session = new Session(deps, nodeId, call, signal);
  call.on("data", ({ message }: SessionUp) => {
    switch (message?.$case) {
      case "hello":
        sessions.get(nodeId)?.close(new ClusterError("the node opened another session", { code: "unavailable" }));
        sessions.set(nodeId, session);
        session.open(message.value).catch((error: unknown) => session.close(asClusterError(error)));
        return;
      case "heartbeat":
        session.heartbeat(message.value);
        return;
      case "images":
        session.holds(message.value.images);
        return;
      case "statuses":
        session.report(message.value.statuses);
        return;
      case undefined:
        return;
      default:
        message satisfies never;
    }
  });
  call.on("end", () => session.close());
  try {
    await session.ended();
  } finally {
    if (sessions.get(nodeId) === session) sessions.delete(nodeId);
    deps.log.info("session closed", { nodeId, sessionId: session.id });
  }
}

function tellSessions(sessions: ReadonlyMap<string, Session>, change: Change): void {
  switch (change.table) {
    case "tasks":
      for (const nodeId of new Set([change.before?.nodeId ?? "", change.after?.nodeId ?? ""])) {
        sessions.get(nodeId)?.touch(change.id);
      }
      return;
    case "sessions":
      sessions.get(change.id)?.recordChanged(change.after?.sessionId);
      return;
    case "members":
      for (const session of sessions.values()) session.managersChanged();
      return;
    case "nodes":
      if (change.after === undefined) sessions.get(change.id)?.close(removedNode(change.id));
      return;
    default:
      return;
  }
}
