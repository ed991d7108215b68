import { Metadata, type ServerDuplexStream, type ServerUnaryCall, type ServerWritableStream } from "@grpc/grpc-js";
import type { Clock } from "../../lib/clock/clock.ts";
import { ClusterError, hasCode } from "../../lib/errors/errors.ts";
import { requirePeer, send, streaming, unary } from "../../lib/grpc/server.ts";
import type { TlsIdentity } from "../../lib/grpc/tls.ts";
import { newId } from "../../lib/ids/ids.ts";
import type { Log } from "../../lib/log/log.ts";
import {
  type ClusterServer,
  type DeployResponse,
  type ExecInput,
  type ExecOutput,
  type LogBatch,
  type LogsRequest,
  StackProgress,
  type StackView,
  type WatchStackRequest,
} from "../../proto/gen/embassy/v1/api.ts";
import { NodeState, type Service } from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { stackProgress } from "../domain/progress.ts";
import { serviceFullName } from "../domain/tasks.ts";
import { servedAddresses } from "../pki/join.ts";
import type { Leadership, Store, Write } from "../store/types.ts";
import { Agents } from "./agents.ts";
import type { SimulatedSettings } from "./changes.ts";
import { proxyExec } from "./exec.ts";
import { streamLogs } from "./logs.ts";
import { type EtcdMembership, listManagers, removeManager } from "./managers.ts";
import { type AddressSettings, type DeployPlan, planDeploy } from "./plan-deploy.ts";
import { listNetworks, listNodes, listServices, listStacks, listTasks, type NetworkProgress } from "./reads.ts";
import { planMoves } from "./rebalance.ts";
import { planNodeRemoval } from "./remove-node.ts";
import { list } from "./resolve.ts";
import { planRestart } from "./restart.ts";
import { type KeptRevision, keptRevision, listRevisions } from "./revisions.ts";
import { planScale, scaled } from "./scale.ts";
import { simulate } from "./simulate.ts";
import { planNodeUpdate } from "./update-node.ts";
import { validateStack } from "./validate.ts";
import { listVolumes, removeVolume } from "./volumes.ts";
import { why } from "./why.ts";

export interface ApiDeps {
  readonly store: Pick<Store, "view" | "commit">;
  readonly index: ClusterIndex;
  readonly log: Log;
  readonly clock: Clock;
  readonly clusterId: string;
  readonly version: string;
  readonly settings: AddressSettings;
  /** What the controllers go by. */
  readonly control: SimulatedSettings;
  /** See DeployRequestFacts. */
  readonly secretDigest: (content: Uint8Array) => string;
  readonly leadership: Pick<Leadership, "leader">;
  /** What this member shows to the nodes' agents: the present certificate. */
  readonly identity: () => TlsIdentity;
  readonly network: NetworkProgress & {
    /** Resolves once every host has applied what it was sent so far. */
    networkSettled(signal: AbortSignal): Promise<void>;
  };
  /** Makes a join token; `ttlMs` 0: the default of the role. */
  readonly createToken: (ttlMs: number, role: string) => Promise<string>;
  /** undefined: the etcd is not clusterd's. */
  readonly etcd: EtcdMembership | undefined;
  /** Throws `unavailable`, saying why, while this member has no etcd: what it has in memory may be old. `failed`: etcd did not answer just now. */
  readonly requireQuorum: (failed: boolean) => Promise<void>;
}

export interface Api extends Disposable {
  readonly service: ClusterServer;
}

const mostAttempts = 10;

/** What clusterctl calls. Every call needs a certificate with role admin; every change is one transaction and one line in the log. */
export function createApi(deps: ApiDeps): Api {
  const { index, store, log } = deps;
  const agents = new Agents(index, deps.identity);

  /** A unary handler for administrators. */
  const admin = <Request, Response>(handler: (request: Request, user: string) => Promise<Response> | Response) =>
    unary<Request, Response>(async (request: Request, call: ServerUnaryCall<Request, Response>) => {
      const user = requirePeer(call, ["admin"]).name;
      await deps.requireQuorum(false);
      try {
        return await handler(request, user);
      } catch (error) {
        // Lost meanwhile: the same words as for the next call.
        if (hasCode(error, "unavailable") && error.subject === "etcd") await deps.requireQuorum(true);
        throw error;
      }
    });
  const inTurn = oneAtATime();
  const managers = { store, clock: deps.clock, etcd: deps.etcd, leader: () => deps.leadership.leader() };

  const service: ClusterServer = {
    deploy: admin(async ({ spec }, user) => {
      if (spec === undefined) throw new ClusterError("no stack to deploy", { code: "invalid" });
      validateStack(spec);
      const plan = await deploy(deps, spec.name, user, () => ({ spec, revision: 0 }));
      const { revision, created, updated, removed } = plan;
      log.info("stack deployed", { stack: spec.name, revision, user, created, updated, removed });
      return responseOf(plan);
    }),
    rollbackStack: admin(async ({ stack, revision: wanted }, user) => {
      let restored = 0;
      const plan = await deploy(deps, stack, user, () => {
        const kept = keptRevision(index, stack, wanted);
        restored = kept.revision;
        return kept;
      });
      log.info("stack rolled back", { stack, revision: plan.revision, restored, user });
      return { restored, deployed: responseOf(plan) };
    }),
    listRevisions: admin(({ stack }) => ({ revisions: listRevisions(index, stack) })),
    removeStack: admin(async ({ stack }, user) => {
      await again(() => store.commit(removal(index, stack)));
      log.info("stack removed", { stack, user });
      return {};
    }),
    scaleService: admin(async ({ service: word, replicas, dryRun }, user) => {
      if (dryRun) {
        const { stack, spec } = scaled(index, word, replicas);
        return { stack, service: spec?.name ?? "" };
      }
      const { stack, spec } = await again(async () => await scale(deps, word, replicas));
      log.info("service scaled", { service: word, replicas, user });
      return { stack, service: spec?.name ?? "" };
    }),
    restartServices: admin(async ({ services: words }, user) => {
      const services = await again(async () => {
        const plan = planRestart(index, words);
        await store.commit(plan.writes);
        return [...plan.services];
      });
      log.info("services restarted", { services: services.map(({ stack, service }) => `${stack}_${service}`), user });
      return { services };
    }),
    rebalance: admin(async (request, user) => {
      const moves = await again(async () => {
        const plan = planMoves(index, request);
        if (!request.dryRun && plan.writes.length > 0) await store.commit(plan.writes);
        return [...plan.moves];
      });
      if (!request.dryRun) log.info("tasks to be moved", { tasks: moves.map(({ taskName }) => taskName), user });
      return { moves };
    }),
    why: admin(async (request) => await inTurn(async () => await why(index, request, deps.clock.nowMs()))),
    simulate: admin(async (request) => {
      return await inTurn(async () => await simulate(index, request, deps.control, deps.clock.nowMs()));
    }),
    watchStack: streaming<ServerWritableStream<WatchStackRequest, StackProgress>, WatchStackRequest, StackProgress>(
      async (call, signal) => {
        requirePeer(call, ["admin"]);
        await deps.requireQuorum(false);
        await watchStack(deps, call, signal);
      },
    ),
    listStacks: admin(() => ({ stacks: listStacks(index).stacks as StackView[] })),
    listServices: admin(({ stack }) => listServices(index, stack)),
    listTasks: admin((request) => listTasks(index, request, deps.clock.nowMs())),
    listNodes: admin(() => listNodes(index, deps.network)),
    listNetworks: admin(() => listNetworks(index)),
    updateNode: admin(async (request, user) => {
      const specs = await again(async () => {
        const plan = planNodeUpdate(index, request);
        await store.commit(plan.writes);
        return plan.specs;
      });
      for (const { id, name, availability } of specs) {
        log.info("node updated", { nodeId: id, node: name, availability, user });
      }
      return { spec: specs[0] };
    }),
    removeNode: admin(async (request, user) => {
      const { node, volumes, writes } = planNodeRemoval(index, request);
      await store.commit(writes);
      log.info("node removed", { nodeId: node.id, node: node.name, volumes, user });
      return { volumes: [...volumes] };
    }),
    listManagers: admin(async () => ({ managers: await listManagers(managers) })),
    removeManager: admin(async ({ manager }, user) => {
      await removeManager(managers, manager);
      log.info("manager removed", { manager, user });
      return {};
    }),
    createJoinToken: admin(async ({ ttlMs, role }, user) => {
      const token = await deps.createToken(ttlMs, role || "node");
      log.info("join token made", { role: role || "node", user });
      return { token };
    }),
    listVolumes: admin(async (request) => await listVolumes({ index, agents }, request)),
    removeVolume: admin(async (request, user) => {
      const response = await removeVolume({ index, agents, store }, request);
      if (!request.dryRun) log.info("volume removed", { volume: request.name, nodes: response.nodes, user });
      return response;
    }),
    logs: streaming<ServerWritableStream<LogsRequest, LogBatch>, LogsRequest, LogBatch>(async (call, signal) => {
      requirePeer(call, ["admin"]);
      // The caller sees that it is served, also when nothing is written for long.
      call.sendMetadata(new Metadata());
      await streamLogs({ index, agents }, call, signal);
    }),
    exec: streaming<ServerDuplexStream<ExecInput, ExecOutput>, ExecInput, ExecOutput>(async (call, signal) => {
      const user = requirePeer(call, ["admin"]).name;
      log.info("exec", { user });
      await proxyExec({ index, agents, clock: deps.clock }, call, signal);
    }),
    info: admin(() => {
      const nodes = [...index.view.nodes.values()].map(({ id }) => index.nodeStatus(id));
      const ready = nodes.filter((status) => status?.state === NodeState.NODE_STATE_READY);
      return {
        clusterId: deps.clusterId,
        version: deps.version,
        leader: deps.leadership.leader(),
        members: [...index.view.members.values()].map(({ name }) => name).sort(),
        nodesReady: ready.length,
        nodesTotal: nodes.length,
        nodesSilent: nodes.filter((status) => status?.state === NodeState.NODE_STATE_SILENT).length,
        nodesLowOnDisk: ready.filter((status) => (status?.diskProblem ?? "") !== "").length,
        nodesWithoutNetwork: ready.filter((status) => (status?.networkProblem ?? "") !== "").length,
        revision: index.view.revision,
        addresses: servedAddresses(index.view),
      };
    }),
  };
  return { service, [Symbol.dispose]: () => agents[Symbol.dispose]() };
}

/** Does one work after the other: each holds a copy of the state, and none is done sooner when several share the thread. */
function oneAtATime(): <T>(work: () => Promise<T>) => Promise<T> {
  let last: Promise<unknown> = Promise.resolve();
  return async <T>(work: () => Promise<T>) => {
    const mine = last.then(work);
    last = mine.catch(() => undefined);
    return await mine;
  };
}

/** Tries again on a newer view when the store has changed under a small change of one thing; deploys are not among these. */
async function again<T>(attempt: () => Promise<T>): Promise<T> {
  for (let n = 1; ; n++) {
    try {
      return await attempt();
    } catch (error) {
      if (!hasCode(error, "conflict") || !error.subject?.includes("/") || n === mostAttempts) throw error;
    }
  }
}

function responseOf({ revision, created, updated, removed, unchanged, triedAgain }: DeployPlan): DeployResponse {
  return {
    revision,
    created: [...created],
    updated: [...updated],
    removed: [...removed],
    unchanged: [...unchanged],
    triedAgain: [...triedAgain],
  };
}

/** Makes a stack what `wanted` says, which is asked for each plan: its specification, and the revision that it was, or 0. */
async function deploy(deps: ApiDeps, stack: string, by: string, wanted: () => KeptRevision): Promise<DeployPlan> {
  const { index, store, clock, settings, secretDigest } = deps;
  const revisionAtStart = index.stack(stack)?.revision ?? 0;
  for (let attempt = 1; ; attempt++) {
    const { spec, revision: restores } = wanted();
    const facts = { by, nowMs: clock.nowMs(), mintId: newId, settings, secretDigest, restores };
    const plan = planDeploy(index, spec, facts);
    if (plan.writes.length === 0) return plan;
    try {
      await store.commit(plan.writes, { expect: plan.expect });
      return plan;
    } catch (error) {
      // A controller's write, or another stack's deploy, is a reason to plan anew; another deploy of this stack is not.
      const overtaken = (index.stack(stack)?.revision ?? 0) !== revisionAtStart;
      if (!hasCode(error, "conflict") || attempt === mostAttempts) throw error;
      if (overtaken) {
        throw new ClusterError(`stack ${stack} was deployed by someone else at the same time`, {
          code: "conflict",
          subject: `stack/${stack}`,
          hint: "See what they deployed (`clusterctl inspect stack/…`), then deploy again.",
          cause: error,
        });
      }
    }
  }
}

/** Everything of the stack is marked as removed; records go when the last task has ended. */
function removal(index: ClusterIndex, stack: string): Write[] {
  const { view } = index;
  const revisions = index.stackRevisions(stack);
  const services = index.servicesOfStack(stack).filter(({ removed }) => !removed);
  const networks = index.networksOfStack(stack).filter(({ removed }) => !removed);
  if (revisions.length === 0 && services.length === 0 && networks.length === 0) {
    const names = index.stackNames();
    throw new ClusterError(`there is no stack ${stack}`, {
      code: "not-found",
      subject: `stack/${stack}`,
      hint: list(names, "Nothing is deployed."),
    });
  }
  for (const network of networks) {
    const users = index.servicesOfNetwork(network.id).filter((one) => one.stack !== stack && !one.removed);
    if (users.length === 0) continue;
    throw new ClusterError(
      `network ${stack}_${network.spec?.name} is used by ${users.map(serviceFullName).sort().join(", ")}`,
      {
        code: "conflict",
        subject: stack,
        hint: "Remove those first.",
      },
    );
  }
  return [
    ...services.map((service): Write => {
      const ifRevision = view.services.revisionOf(service.id);
      return { table: "services", id: service.id, value: { ...service, removed: true }, ifRevision };
    }),
    ...networks.map((network): Write => {
      const ifRevision = view.networks.revisionOf(network.id);
      return { table: "networks", id: network.id, value: { ...network, removed: true }, ifRevision };
    }),
    ...revisions.map((record): Write => ({ table: "stacks", id: `${stack}/${record.revision}`, value: undefined })),
  ];
}

async function scale({ index, store, clock }: ApiDeps, word: string, replicas: number): Promise<Service> {
  const { service, writes } = planScale(index, word, replicas, clock.nowMs());
  await store.commit(writes);
  return service;
}

/** A stack has not converged before its hosts lead to it; a host that does not answer is not waited for longer. */
const longestSettleMs = 2_000;

/** Sends the stack's progress at once and whenever it differs, as fast as the caller reads; the newest when it is slow. */
async function watchStack(
  { index, network, clock }: Pick<ApiDeps, "index" | "network" | "clock">,
  call: ServerWritableStream<WatchStackRequest, StackProgress>,
  signal: AbortSignal,
): Promise<void> {
  const { stack } = call.request;
  const encode = (progress: StackProgress) => Buffer.from(StackProgress.encode(progress).finish()).toString("latin1");
  let last = "";
  let wake = Promise.withResolvers<void>();
  using _ = index.subscribe(() => wake.resolve());
  signal.addEventListener("abort", () => wake.resolve(), { once: true });
  while (!signal.aborted) {
    wake = Promise.withResolvers<void>();
    let progress = stackProgress(index, stack);
    if (progress.converged && encode(progress) !== last) {
      const enough = new AbortController();
      const over = AbortSignal.any([enough.signal, signal]);
      const late = clock.sleep(longestSettleMs, over).catch(() => undefined);
      await Promise.race([network.networkSettled(over), late]);
      enough.abort();
      progress = stackProgress(index, stack);
    }
    const encoded = encode(progress);
    if (encoded !== last) {
      last = encoded;
      await send(call, progress, signal);
    }
    if (progress.removed) return;
    if (!signal.aborted) await wake.promise;
  }
}
