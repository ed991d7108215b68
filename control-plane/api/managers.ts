import type { Clock } from "../../lib/clock/clock.ts";
import { ClusterError, hasCode } from "../../lib/errors/errors.ts";
import { ManagerView } from "../../proto/gen/embassy/v1/api.ts";
import { ManagerState, type Member } from "../../proto/gen/embassy/v1/state.ts";
import type { Store, View } from "../store/types.ts";

/** A member of the embedded etcd. */
export interface EtcdMemberFacts {
  readonly id: string;
  /** Empty until it has started for the first time. */
  readonly name: string;
  /** host:port each. */
  readonly peers: readonly string[];
  readonly clients: readonly string[];
  readonly learner: boolean;
}

/** The embedded etcd, as far as the API needs it. */
export interface EtcdMembership {
  list(): Promise<readonly EtcdMemberFacts[]>;
  roleOf(member: EtcdMemberFacts): Promise<"leader" | "voter" | "learner" | "down">;
  /** Throws `conflict` when etcd finds that too few of the others run. */
  remove(member: EtcdMemberFacts): Promise<void>;
}

export interface ManagersDeps {
  readonly store: Pick<Store, "view" | "commit">;
  readonly clock: Pick<Clock, "monotonicMs" | "sleep">;
  /** undefined: the etcd is not clusterd's. */
  readonly etcd: EtcdMembership | undefined;
  /** Name of the leader. */
  readonly leader: () => string;
}

const electionPatienceMs = 8_000;

interface Found {
  readonly name: string;
  readonly record: Member | undefined;
  readonly etcd: EtcdMemberFacts | undefined;
}

/** Every member of the control plane, by name: those that have a record, and those that only etcd knows. */
export async function listManagers(deps: ManagersDeps): Promise<ManagerView[]> {
  const found = await findAll(deps);
  return await Promise.all(found.map(async (one) => await viewOf(deps, one)));
}

/**
 * Takes a member out of etcd and then out of the state, after which its clusterd ends itself. Repeatable. Throws
 * `not-found`, `conflict` when those that are left would be too few or the member serves (with an etcd of others).
 */
export async function removeManager(deps: ManagersDeps, name: string): Promise<void> {
  const { store, etcd } = deps;
  const found = await findAll(deps);
  const target = found.find((one) => one.name === name);
  if (target === undefined) {
    throw new ClusterError(`there is no manager ${name}`, {
      code: "not-found",
      subject: `manager/${name}`,
      hint: `There is ${found.map((one) => one.name).join(", ")}.`,
    });
  }
  if (etcd === undefined) {
    if (store.view.memberSessions.get(name) !== undefined) {
      throw new ClusterError(`manager ${name} is up`, {
        code: "conflict",
        subject: `manager/${name}`,
        hint: "Stop clusterd there first.",
      });
    }
  } else if (target.etcd !== undefined) {
    await checkQuorumWithout(etcd, found, target.etcd);
    await etcd.remove(target.etcd);
  }
  if (target.record !== undefined) await forget(deps, name);
}

/** Deletes the record. When etcd's own leader was removed, the others first elect one. */
async function forget({ store, clock }: ManagersDeps, name: string): Promise<void> {
  const untilMs = clock.monotonicMs() + electionPatienceMs;
  for (;;) {
    try {
      await store.commit([{ table: "members", id: name, value: undefined }]);
      return;
    } catch (error) {
      if (!hasCode(error, "unavailable") || clock.monotonicMs() > untilMs) throw error;
      await clock.sleep(100);
    }
  }
}

async function findAll({ store, etcd }: ManagersDeps): Promise<Found[]> {
  const records = [...store.view.members.values()];
  const members = (await etcd?.list()) ?? [];
  const hostOf = (address: string) => address.slice(0, address.lastIndexOf(":"));
  const recordOf = (member: EtcdMemberFacts) =>
    records.find(({ name }) => name === member.name) ??
    // Before its first start etcd knows it by its address only.
    (member.name === ""
      ? records.find(({ address }) => member.peers.some((peer) => hostOf(peer) === hostOf(address)))
      : undefined);
  const inEtcd = members.map((member): Found => {
    const record = recordOf(member);
    return { name: record?.name ?? (member.name || hostOf(member.peers[0] ?? member.id)), record, etcd: member };
  });
  const only = records
    .filter((record) => !inEtcd.some((one) => one.record === record))
    .map((record): Found => ({ name: record.name, record, etcd: undefined }));
  return [...inEtcd, ...only].sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
}

async function viewOf({ store, etcd, leader }: ManagersDeps, found: Found): Promise<ManagerView> {
  const { name, record } = found;
  const role = found.etcd === undefined ? undefined : await etcd?.roleOf(found.etcd);
  const state = stateOf(store.view, found);
  return ManagerView.create({
    name,
    address: record?.address ?? "",
    state,
    leader: leader() === name,
    etcd: role ?? "",
    etcdId: found.etcd?.id ?? "",
    startedAtMs: record?.startedAtMs ?? 0,
    version: record?.version ?? "",
    message: messageOf(found, state, role, etcd !== undefined),
  });
}

function stateOf(view: Pick<View, "memberSessions">, { name, record }: Found): ManagerState {
  if (view.memberSessions.get(name) !== undefined) return ManagerState.MANAGER_STATE_READY;
  return record?.startedAtMs === 0 ? ManagerState.MANAGER_STATE_JOINING : ManagerState.MANAGER_STATE_DOWN;
}

function messageOf(
  { name, record, etcd }: Found,
  state: ManagerState,
  role: string | undefined,
  embedded: boolean,
): string {
  if (state === ManagerState.MANAGER_STATE_JOINING) return "start clusterd there, or remove it";
  if (state === ManagerState.MANAGER_STATE_DOWN) {
    return `start clusterd there; when it is lost: clusterctl manager rm ${name}`;
  }
  if (embedded && etcd === undefined) return "not a member of etcd";
  if (record === undefined) return "etcd alone knows it";
  return role === "down" ? "its etcd does not answer" : "";
}

/** etcd itself looks at who is connected; this says beforehand what would be wrong. */
async function checkQuorumWithout(
  etcd: EtcdMembership,
  found: readonly Found[],
  leaving: EtcdMemberFacts,
): Promise<void> {
  if (leaving.learner) return;
  const left = found.flatMap(({ name, etcd: member }) =>
    member === undefined || member.learner || member.id === leaving.id ? [] : [{ name, member }],
  );
  if (left.length === 0) {
    throw new ClusterError("it is the only manager", {
      code: "conflict",
      subject: "manager",
      hint: "Add others with `clusterd join` first.",
    });
  }
  const roles = await Promise.all(left.map(async ({ member }) => await etcd.roleOf(member)));
  const down = left.filter((_, n) => roles[n] === "down").map(({ name }) => name);
  const needed = Math.floor(left.length / 2) + 1;
  if (left.length - down.length >= needed) return;
  throw new ClusterError(
    `without it ${needed} of ${left.length} managers would have to run, and ${down.join(", ")} ${down.length === 1 ? "does" : "do"} not`,
    {
      code: "conflict",
      subject: "manager",
      hint: `Start clusterd there, or remove ${down.join(" and ")} instead.`,
    },
  );
}
