import { lookup } from "node:dns/promises";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import type { Clock } from "../lib/clock/clock.ts";
import { ClusterError, hasCode, isErrno } from "../lib/errors/errors.ts";
import type { TlsIdentity } from "../lib/grpc/tls.ts";
import type { Log } from "../lib/log/log.ts";
import type { EtcdConfig } from "./config.ts";
import { etcdHostName } from "./etcd/arguments.ts";
import { EtcdSupervisor } from "./etcd/supervisor.ts";
import type { ClusterFileKeeper, StateFiles } from "./pki/state-dir.ts";
import { EtcdClient, hostOf, resolveEndpoints } from "./store/client.ts";
import {
  addLearner,
  type EtcdMember,
  etcdStatus,
  initialClusterOf,
  listEtcdMembers,
  movePeer,
  promote,
  readMember,
  removeEtcdMember,
} from "./store/members.ts";

export interface EmbeddedDeps {
  readonly config: Extract<EtcdConfig, { kind: "embedded" }>;
  readonly files: StateFiles;
  readonly keeper: ClusterFileKeeper;
  /** Lets its holder into etcd: the present certificate. */
  readonly identity: () => TlsIdentity;
  readonly log: Log;
  readonly clock: Clock;
}

/** How the etcd of a member answers. */
export type EtcdRole = "leader" | "voter" | "learner" | "down";

const joinPatienceMs = 60_000;
const removePatienceMs = 7_000;
const retryMs = 500;
const servingPatienceMs = 60_000;
const servingRetryMs = 100;
const lookMs = 10_000;

/**
 * This member's part of the embedded etcd: its process, and its place among the members. Joining is one step after the
 * other, each of which finds what an earlier start has done: added by the others as a learner, which costs them no
 * quorum; started; promoted once it has caught up.
 */
export class EmbeddedEtcd implements AsyncDisposable {
  readonly supervisor: EtcdSupervisor;
  readonly client: EtcdClient;
  readonly #deps: EmbeddedDeps;

  private constructor(deps: EmbeddedDeps, supervisor: EtcdSupervisor, client: EtcdClient) {
    this.#deps = deps;
    this.supervisor = supervisor;
    this.client = client;
  }

  /**
   * Starts or adopts this member's etcd, added to the others' first if it has joined and not yet been. Throws `not-found`
   * (its data is lost), `denied` (it was removed), `conflict` (an earlier member of this name is left), `unavailable`. `alone`: without
   * the others, for good.
   */
  static async start(
    deps: EmbeddedDeps,
    signal: AbortSignal,
    { alone = false }: { readonly alone?: boolean } = {},
  ): Promise<EmbeddedEtcd> {
    const { config, files, keeper, log, clock } = deps;
    const { member, clusterId, etcd } = keeper.value;
    const hasData = await hasWriteAheadLog(files.etcdData);
    if (etcd?.started === true && !hasData) throw lostData(files, member);
    if (etcd?.joined === true && etcd.others.length === 0 && !etcd.started) {
      throw new ClusterError("this cluster's etcd is not one that clusterd runs", {
        code: "invalid",
        subject: "--etcd-endpoints",
        hint: "Start every manager with the same --etcd-endpoints.",
      });
    }
    if (etcd?.joined === true && !hasData) {
      await keeper.change({ etcd: { ...etcd, initialCluster: await admit(deps, etcd.others, signal) } });
    }
    const { binary, clientListen, peerListen, quotaBytes } = config;
    const settings = {
      name: member,
      clusterId,
      dataDir: files.etcdData,
      clientListen,
      peerListen,
      clientAdvertise: advertised(deps, clientListen),
      peerAdvertise: advertised(deps, peerListen),
      joins: keeper.value.etcd?.initialCluster,
      alone,
      files: files.etcd,
      quotaBytes,
    };
    const supervisor = await EtcdSupervisor.start({ log, clock }, { settings, binary, logFile: files.etcdLog });
    const own = await ownEndpoints(deps, alone ? [] : (etcd?.others ?? []));
    return new EmbeddedEtcd(deps, supervisor, clientOf(deps, own));
  }

  /** Has it others beside it, as far as is known? */
  get hasOthers(): boolean {
    return (this.#deps.keeper.value.etcd?.others.length ?? 0) > 0;
  }

  /**
   * Makes sure that this member votes and that the others have its address. Throws `unavailable` until it has caught up,
   * `denied` when the cluster has removed it.
   */
  async settle(signal: AbortSignal): Promise<void> {
    const { config, keeper, log } = this.#deps;
    const { member, instance, registered } = keeper.value;
    const peer = advertised(this.#deps, config.peerListen);
    const members = await listEtcdMembers(this.client, signal);
    const mine = members.find(({ name, peers }) => name === member || peers.includes(peer));
    if (registered === true) {
      const record = await readMember(this.client, member, signal);
      if (record?.instance !== instance) throw removedMember(member);
    }
    // Unknown to a member that has not heard of it yet.
    if (mine === undefined) throw new ClusterError("etcd does not know this member yet", { code: "unavailable" });
    if (mine.learner) {
      await promote(this.client, mine, signal);
      log.info("this member's etcd has caught up and votes from now on", { etcdId: mine.id });
    }
    if (!mine.peers.includes(peer)) {
      await movePeer(this.client, mine, peer, signal);
      log.info("etcd's members know this one's new address", { from: mine.peers, to: peer });
    }
  }

  /** Keeps in mind which other members there are, and goes back to this one's own etcd after a failure, until the signal is aborted. */
  async follow(signal: AbortSignal): Promise<void> {
    const { clock, log } = this.#deps;
    while (!signal.aborted) {
      try {
        await this.look(signal);
        await this.client.preferFirst(signal);
      } catch (error) {
        if (signal.aborted) return;
        log.debug("etcd's members could not be listed", { error });
      }
      await clock.sleep(lookMs, signal).catch(() => undefined);
    }
  }

  /** Reads the members and notes them down, for the next start too. */
  async look(signal?: AbortSignal): Promise<void> {
    const { keeper, config } = this.#deps;
    const peer = advertised(this.#deps, config.peerListen);
    const members = await listEtcdMembers(this.client, signal);
    const others = members
      .filter(({ name, peers, learner }) => name !== keeper.value.member && !peers.includes(peer) && !learner)
      .flatMap(({ clients }) => clients)
      .sort();
    const etcd = keeper.value.etcd ?? { joined: false, started: false, others: [] };
    if (!etcd.started || others.join() !== etcd.others.join()) {
      await keeper.change({ etcd: { ...etcd, started: true, others } });
      this.client.setEndpoints(await ownEndpoints(this.#deps, others));
    }
  }

  /** Resolves once this member's etcd answers. Throws `unavailable` when it does not, with why. */
  async serving(signal: AbortSignal): Promise<void> {
    const { clock } = this.#deps;
    const untilMs = clock.monotonicMs() + servingPatienceMs;
    let failed: string | undefined;
    void this.supervisor.failing().then((why) => {
      failed = why;
    });
    for (;;) {
      try {
        await listEtcdMembers(this.client, signal);
        return;
      } catch (error) {
        signal.throwIfAborted();
        if (failed === undefined && hasCode(error, "unavailable") && clock.monotonicMs() < untilMs) {
          await clock.sleep(servingRetryMs, signal);
          continue;
        }
        throw new ClusterError(`etcd does not serve: ${failed ?? "it does not answer"}`, {
          code: "unavailable",
          subject: "etcd",
          hint: "Its own log is etcd/etcd.log in the state directory.",
          cause: error,
        });
      }
    }
  }

  async list(): Promise<readonly EtcdMember[]> {
    return await listEtcdMembers(this.client);
  }

  /** How a member's etcd answers when it is asked itself. */
  async roleOf({ name, clients }: EtcdMember): Promise<EtcdRole> {
    const { config, keeper } = this.#deps;
    const endpoint = name === keeper.value.member ? dialled(config.clientListen) : clients[0];
    if (endpoint === undefined) return "down";
    using client = clientOf(this.#deps, [endpoint]);
    return await etcdStatus(client).catch(() => "down" as const);
  }

  /** Removes a member. Waits a while for etcd, which wants the others to have been connected for five seconds. */
  async remove(member: EtcdMember): Promise<void> {
    const { clock } = this.#deps;
    const untilMs = clock.monotonicMs() + removePatienceMs;
    for (;;) {
      try {
        await removeEtcdMember(this.client, member);
        return;
      } catch (error) {
        if (!hasCode(error, "conflict") || clock.monotonicMs() > untilMs) throw error;
        await clock.sleep(retryMs);
      }
    }
  }

  /**
   * Why there is no quorum: how many of the members' etcds answer, and which do not. Takes a second at most. undefined:
   * enough of them answer.
   */
  async lacksQuorum(): Promise<string | undefined> {
    const { keeper } = this.#deps;
    const { member, etcd } = keeper.value;
    const own = dialled(this.#deps.config.clientListen);
    const all = [own, ...(etcd?.others ?? [])];
    const answering = await answeringOf(this.#deps, all);
    const silent = all.filter((endpoint) => !answering.includes(endpoint));
    const away = silent.map((endpoint) => (endpoint === own ? member : hostOf(endpoint)));
    const needed = Math.floor(all.length / 2) + 1;
    if (all.length - away.length >= needed) return undefined;
    return `etcd answers on ${all.length - away.length} of ${all.length} managers (not on ${away.join(", ")}), and ${needed} are needed`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.client[Symbol.dispose]();
    await this.supervisor[Symbol.asyncDispose]();
  }
}

/** At which of the endpoints an etcd of this cluster answers, whether it has a quorum or not. Takes a second at most. */
export async function answeringOf(deps: EmbeddedDeps, endpoints: readonly string[]): Promise<readonly string[]> {
  const answers = await Promise.all(
    endpoints.map(async (endpoint) => {
      using client = clientOf(deps, await resolved([endpoint]));
      return await etcdStatus(client).then(
        () => [endpoint],
        () => [],
      );
    }),
  );
  return answers.flat();
}

/** Has the others add this member, unless they have. Resolves with what etcd's --initial-cluster is to be. */
async function admit(deps: EmbeddedDeps, others: readonly string[], signal: AbortSignal): Promise<string> {
  const { config, keeper, log, clock } = deps;
  const { member, instance } = keeper.value;
  const peer = advertised(deps, config.peerListen);
  using client = clientOf(deps, await resolved(others));
  const untilMs = clock.monotonicMs() + joinPatienceMs;
  let told = "";
  for (;;) {
    try {
      const record = await readMember(client, member, signal);
      if (record?.instance !== instance) throw removedMember(member);
      const members = await listEtcdMembers(client, signal);
      const earlier = members.find(({ name }) => name === member);
      if (earlier !== undefined) {
        throw new ClusterError(`the cluster's etcd has a member ${member} already, whose data is not here`, {
          code: "conflict",
          subject: `manager/${member}`,
          hint: rejoinHint(member),
        });
      }
      if (members.some(({ peers }) => peers.includes(peer))) return initialClusterOf(members, member, peer);
      // Before anything is changed: the others must be within reach.
      initialClusterOf(members, member, peer);
      await addLearner(client, peer, signal);
    } catch (error) {
      signal.throwIfAborted();
      const another = hasCode(error, "conflict") && error.subject === "etcd";
      if (!another && !hasCode(error, "unavailable")) throw error;
      if (clock.monotonicMs() > untilMs) {
        throw new ClusterError(`this manager is not let into etcd: ${error.message}`, {
          code: error.code,
          subject: "etcd",
          hint: another
            ? "`clusterctl managers` shows which one is joining: start clusterd there, or remove it with `clusterctl manager rm`; then start this one again."
            : `More than half of the managers must run, and be reached from here at ${others.join(", ")}. Then start this one again.`,
          cause: error,
        });
      }
      if (told !== error.message) log.info("waiting to be let into etcd", { why: error.message });
      told = error.message;
      await clock.sleep(retryMs, signal);
    }
  }
}

/** For a member whose record is gone from the state, or another's. */
export function removedMember(member: string): ClusterError {
  return new ClusterError(`manager ${member} was removed from the cluster`, {
    code: "denied",
    subject: `manager/${member}`,
    hint: "To have this host as a manager again, remove its state directory (/var/lib/embassy/clusterd) and run `clusterd join`.",
  });
}

function lostData(files: StateFiles, member: string): ClusterError {
  return new ClusterError(`the data of this member's etcd is gone: ${files.etcdData} is empty`, {
    code: "not-found",
    subject: files.etcdData,
    hint: `Restore it from a backup; or, when other managers run: ${rejoinHint(member)}`,
  });
}

function rejoinHint(member: string): string {
  return `Remove it (\`clusterctl manager rm ${member}\`), then remove the state directory here, and run \`clusterd join\` again.`;
}

function clientOf(deps: EmbeddedDeps, endpoints: readonly string[]): EtcdClient {
  // That name stands in the certificates of managers alone, for whatever address they listen on.
  return new EtcdClient({ endpoints, hosts: [etcdHostName], identity: deps.identity(), log: deps.log });
}

/** How other members reach a listener: at the address that it has, or at this member's own. */
function advertised({ keeper }: EmbeddedDeps, listen: string): string {
  const { advertise } = keeper.value;
  return hostOf(listen) === "0.0.0.0" ? `${hostOf(advertise)}:${listen.split(":")[1]}` : listen;
}

/** How this host itself reaches a listener. */
export function dialled(listen: string): string {
  return listen.replace(/^0\.0\.0\.0:/, "127.0.0.1:");
}

async function ownEndpoints({ config }: EmbeddedDeps, others: readonly string[]): Promise<readonly string[]> {
  return [dialled(config.clientListen), ...(await resolved(others))];
}

/** Those whose names cannot be looked up now are left out. */
async function resolved(endpoints: readonly string[]): Promise<readonly string[]> {
  const all = await Promise.all(
    endpoints.map(async (endpoint) => {
      // Two, as one alone is left to the channel.
      const addresses = await resolveEndpoints(
        [endpoint, endpoint],
        async (host) => (await lookup(host, 4)).address,
      ).catch(() => []);
      return addresses.slice(0, 1);
    }),
  );
  return all.flat();
}

async function hasWriteAheadLog(dataDir: string): Promise<boolean> {
  try {
    return (await readdir(join(dataDir, "member/wal"))).some((name) => name.endsWith(".wal"));
  } catch (error) {
    if (isErrno(error, "ENOENT")) return false;
    throw error;
  }
}
