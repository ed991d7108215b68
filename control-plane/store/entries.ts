import type { Backup_Entry } from "../../proto/gen/embassy/v1/state.ts";
import { PutRequest, TxnRequest } from "../../proto/gen/etcd/rpc.ts";
import type { EtcdClient } from "./client.ts";
import { listEverything } from "./list.ts";
import { leaderKey, membersPrefix } from "./schema.ts";

/** Of one transaction. */
const mostEntries = 1_000;
const mostBytes = 1024 * 1024;
const deadlineMs = 15_000;

/** All of ours that lasts, at one revision: not what lives under a lease, and not which managers there are. */
export async function readEntries(
  client: EtcdClient,
  signal: AbortSignal,
): Promise<{ readonly entries: Backup_Entry[]; readonly revision: number }> {
  const { kvs, revision } = await listEverything(client, signal);
  const lasting = kvs.filter(({ key, lease }) => {
    const name = key.toString();
    return lease === 0n && name !== leaderKey && !name.startsWith(membersPrefix);
  });
  return { entries: lasting.map(({ key, value }) => ({ key, value })), revision };
}

/** Puts them into etcd as they are. */
export async function writeEntries(
  client: EtcdClient,
  entries: readonly Backup_Entry[],
  signal: AbortSignal,
): Promise<void> {
  let batch: TxnRequest = TxnRequest.create();
  let bytes = 0;
  const put = async () => {
    if (batch.success.length === 0) return;
    await client.call(({ kv }) => kv.txn.bind(kv), batch, { deadlineMs, signal });
    batch = TxnRequest.create();
    bytes = 0;
  };
  for (const { key, value } of entries) {
    if (batch.success.length >= mostEntries || bytes + value.length > mostBytes) await put();
    bytes += key.length + value.length;
    const one = PutRequest.create({ key: Buffer.from(key), value: Buffer.from(value) });
    batch.success.push({ request: { $case: "requestPut", value: one } });
  }
  await put();
}
