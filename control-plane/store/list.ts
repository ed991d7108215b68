import { ClusterError, hasCode } from "../../lib/errors/errors.ts";
import type { Log } from "../../lib/log/log.ts";
import type { KeyValue } from "../../proto/gen/etcd/kv.ts";
import { RangeRequest } from "../../proto/gen/etcd/rpc.ts";
import type { EtcdClient } from "./client.ts";
import { type Codecs, leaderKey, placeOf, rootPrefix } from "./schema.ts";
import type { TableName } from "./types.ts";
import type { Entry } from "./view.ts";

const pageSize = 5_000n;
const pageDeadlineMs = 15_000;

/** The first key after all those with the prefix. */
export function prefixEnd(prefix: string): Buffer {
  const end = Buffer.from(prefix);
  end.writeUInt8(end.readUInt8(end.length - 1) + 1, end.length - 1);
  return end;
}

export interface Leader {
  /** `<member>/<instance>` */
  readonly holder: string;
  readonly createRevision: bigint;
}

export interface Listing {
  readonly entries: readonly Entry[];
  readonly leader: Leader | undefined;
  readonly revision: number;
}

/**
 * Everything of ours in etcd at one revision. Read in pages of that revision, so that no answer is large; begins again when
 * it is compacted away meanwhile. Throws `denied` for a secret that the store's key does not open.
 */
export async function listAll(client: EtcdClient, codecs: Codecs, log: Log, signal: AbortSignal): Promise<Listing> {
  const { kvs, revision } = await listRaw(client, false, signal);
  const entries: Entry[] = [];
  let leader: Leader | undefined;
  for (const kv of kvs) {
    const key = kv.key.toString();
    if (key === leaderKey) leader = leaderOf(kv);
    const entry = decodeEntry(key, kv.value, Number(kv.modRevision), codecs, log);
    if (entry !== undefined) entries.push(entry);
  }
  return { entries, leader, revision };
}

/** Keys and values as they lie in etcd, at one revision. */
export async function listEverything(client: EtcdClient, signal: AbortSignal) {
  return await listRaw(client, false, signal);
}

/** The keys and revisions only, of which the whole is a fraction. */
export async function listKeys(client: EtcdClient, signal: AbortSignal) {
  return await listRaw(client, true, signal);
}

async function listRaw(client: EtcdClient, keysOnly: boolean, signal: AbortSignal) {
  const end = prefixEnd(rootPrefix);
  for (;;) {
    const kvs: KeyValue[] = [];
    let key = Buffer.from(rootPrefix);
    let revision = 0n;
    try {
      for (;;) {
        const request = RangeRequest.create({ key, rangeEnd: end, limit: pageSize, revision, keysOnly });
        const page = await client.call(({ kv }) => kv.range.bind(kv), request, { deadlineMs: pageDeadlineMs, signal });
        if (revision === 0n) revision = page.header?.revision ?? 0n;
        for (const kv of page.kvs) kvs.push(kv);
        const last = page.kvs.at(-1);
        if (!page.more || last === undefined) return { kvs, revision: Number(revision) };
        key = Buffer.concat([last.key, Buffer.of(0)]);
      }
    } catch (error) {
      if (!isCompacted(error)) throw error;
    }
  }
}

function isCompacted(error: unknown): boolean {
  return error instanceof ClusterError && error.message.includes("required revision has been compacted");
}

/** Who holds the election key. */
export function leaderOf({ value, createRevision }: Pick<KeyValue, "value" | "createRevision">): Leader {
  return { holder: value.toString(), createRevision };
}

/** The value at a key; undefined for keys of no table and for bytes that are no such value, which are logged. Throws `denied` for a sealed value. */
export function decodeEntry(key: string, bytes: Buffer, revision: number, codecs: Codecs, log: Log): Entry | undefined {
  const place = placeOf(key);
  if (place === undefined) return undefined;
  try {
    return entry(place.table, place.id, codecs[place.table].decode(bytes, key), revision);
  } catch (error) {
    if (hasCode(error, "denied")) throw error;
    log.error("a value in etcd cannot be read and is left out", { key, error });
    return undefined;
  }
}

/** One table at a time: the compiler cannot follow that table and value agree. */
export function entry(table: TableName, id: string, value: unknown, revision: number): Entry {
  return { table, id, value, revision } as Entry;
}
