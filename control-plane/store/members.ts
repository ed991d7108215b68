import { ClusterError } from "../../lib/errors/errors.ts";
import { Member } from "../../proto/gen/embassy/v1/state.ts";
import { DeleteRangeRequest, type Member as EtcdProtoMember, RangeRequest } from "../../proto/gen/etcd/rpc.ts";
import { type EtcdClient, hostOf } from "./client.ts";
import { prefixEnd } from "./list.ts";
import { keyOf, membersPrefix } from "./schema.ts";

/** A member of etcd. */
export interface EtcdMember {
  /** Hex, as etcdctl shows it. */
  readonly id: string;
  /** Empty until it has started for the first time. */
  readonly name: string;
  /** `host:port` each. */
  readonly peers: readonly string[];
  readonly clients: readonly string[];
  /** Takes part in no vote yet. */
  readonly learner: boolean;
}

/** The members of etcd, by id. */
export async function listEtcdMembers(client: EtcdClient, signal?: AbortSignal): Promise<readonly EtcdMember[]> {
  const request = { linearizable: true };
  const { members } = await client.call(({ cluster }) => cluster.memberList.bind(cluster), request, { signal });
  return members.map(memberOf).sort((a, b) => (a.id < b.id ? -1 : 1));
}

/**
 * Adds a member that does not vote, so that the others need no more of them than before. Throws `conflict` while another
 * one is being added (etcd takes one at a time).
 */
export async function addLearner(client: EtcdClient, peer: string, signal?: AbortSignal): Promise<void> {
  const request = { peerURLs: [`https://${peer}`], isLearner: true };
  await client.call(({ cluster }) => cluster.memberAdd.bind(cluster), request, { signal });
}

/** Lets a learner vote. Throws `unavailable` until it has caught up. */
export async function promote(client: EtcdClient, { id }: EtcdMember, signal?: AbortSignal): Promise<void> {
  await client.call(({ cluster }) => cluster.memberPromote.bind(cluster), { ID: idOf(id) }, { signal });
}

/** Tells the others a member's new peer address. */
export async function movePeer(client: EtcdClient, { id }: EtcdMember, peer: string, signal?: AbortSignal) {
  const request = { ID: idOf(id), peerURLs: [`https://${peer}`] };
  await client.call(({ cluster }) => cluster.memberUpdate.bind(cluster), request, { signal });
}

/** Removes a member for good. Throws `conflict` when too few of the others run. */
export async function removeEtcdMember(client: EtcdClient, { id }: EtcdMember): Promise<void> {
  await client.call(({ cluster }) => cluster.memberRemove.bind(cluster), { ID: idOf(id) }, { deadlineMs: 5_000 });
}

/** What one member says of itself; `client` is one for that member alone. Throws `unavailable`. */
export async function etcdStatus(client: EtcdClient, signal?: AbortSignal): Promise<"leader" | "voter" | "learner"> {
  const limits = { deadlineMs: 1_000, signal, needsLeader: false };
  const { header, leader, isLearner } = await client.call(
    ({ maintenance }) => maintenance.status.bind(maintenance),
    {},
    limits,
  );
  if (isLearner) return "learner";
  return header?.memberId === leader ? "leader" : "voter";
}

/** The record of a manager, from etcd itself. */
export async function readMember(client: EtcdClient, name: string, signal?: AbortSignal): Promise<Member | undefined> {
  const request = RangeRequest.create({ key: Buffer.from(keyOf("members", name)) });
  const { kvs } = await client.call(({ kv }) => kv.range.bind(kv), request, { signal });
  return kvs[0] === undefined ? undefined : Member.decode(kvs[0].value);
}

/** Deletes the records of all managers but this one. Resolves with their names. */
export async function forgetOthers(client: EtcdClient, own: string, signal?: AbortSignal): Promise<readonly string[]> {
  const all = { key: Buffer.from(membersPrefix), rangeEnd: prefixEnd(membersPrefix) };
  const request = RangeRequest.create({ ...all, keysOnly: true });
  const { kvs } = await client.call(({ kv }) => kv.range.bind(kv), request, { signal });
  const others = kvs.map(({ key }) => key).filter((key) => !key.equals(Buffer.from(keyOf("members", own))));
  for (const key of others) {
    const one = DeleteRangeRequest.create({ key });
    await client.call(({ kv }) => kv.deleteRange.bind(kv), one, { signal });
  }
  return others.map((key) => key.toString().slice(membersPrefix.length)).sort();
}

function memberOf({ ID, name, peerURLs, clientURLs, isLearner }: EtcdProtoMember): EtcdMember {
  const address = (url: string) => url.replace(/^https?:\/\//, "");
  const id = BigInt.asUintN(64, ID).toString(16);
  return { id, name, peers: peerURLs.map(address), clients: clientURLs.map(address), learner: isLearner };
}

function idOf(id: string): bigint {
  return BigInt(`0x${id}`);
}

/**
 * The value of etcd's --initial-cluster for a member that has been added: every member with its peer addresses. Throws
 * `unavailable` when one of them cannot be reached from another host.
 */
export function initialClusterOf(members: readonly EtcdMember[], name: string, peer: string): string {
  const local = (address: string) => hostOf(address).startsWith("127.");
  const unreachable = members.find(({ peers }) => peers.some(local));
  if (unreachable !== undefined && !local(peer)) {
    throw new ClusterError(
      `the etcd of ${unreachable.name || unreachable.id} listens on ${unreachable.peers.join()} only`,
      {
        code: "unavailable",
        subject: "--etcd-peer-listen",
        hint: "Start clusterd there with `--etcd-peer-listen 0.0.0.0:7405` (the default) first.",
      },
    );
  }
  return members
    .flatMap((member) => {
      // One that has not started has no name yet; etcd compares the addresses only.
      const as = member.peers.includes(peer) ? name : member.name || `unstarted-${member.id}`;
      return member.peers.map((address) => `${as}=https://${address}`);
    })
    .sort()
    .join(",");
}
