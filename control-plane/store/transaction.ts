import { BinaryReader, BinaryWriter } from "@bufbuild/protobuf/wire";
import { ResponseHeader } from "../../proto/gen/etcd/rpc.ts";
import type { EtcdClient } from "./client.ts";

/** The key was created or last changed at that revision; 0: it does not exist. */
export interface Comparison {
  readonly key: Uint8Array;
  readonly field: "modRevision" | "createRevision";
  readonly revision: bigint;
}

export interface Operation {
  readonly key: Uint8Array;
  /** undefined: delete */
  readonly value: Uint8Array | undefined;
  /** 0: none */
  readonly lease: bigint;
}

/**
 * A TxnRequest: the operations when all comparisons hold, and otherwise the compared keys' revisions. Written straight, since
 * one message object a field costs as much as all the rest of a commit.
 */
export function encodeTransaction(comparisons: readonly Comparison[], operations: readonly Operation[]): Buffer {
  const writer = new BinaryWriter();
  for (const { key, field, revision } of comparisons) {
    const modified = field === "modRevision";
    writer.uint32(tags.compare).fork();
    writer.uint32(tags.compareTarget).int32(modified ? 2 : 1);
    writer.uint32(tags.compareKey).bytes(key);
    writer.uint32(modified ? tags.compareModRevision : tags.compareCreateRevision).int64(revision);
    writer.join();
  }
  for (const { key, value, lease } of operations) {
    writer.uint32(tags.success).fork();
    writer.uint32(value === undefined ? tags.requestDeleteRange : tags.requestPut).fork();
    writer.uint32(tags.key).bytes(key);
    if (value !== undefined) writer.uint32(tags.putValue).bytes(value);
    if (value !== undefined && lease !== 0n) writer.uint32(tags.putLease).int64(lease);
    writer.join().join();
  }
  for (const { key } of comparisons) {
    writer.uint32(tags.failure).fork().uint32(tags.requestRange).fork();
    writer.uint32(tags.key).bytes(key).uint32(tags.rangeKeysOnly).bool(true);
    writer.join().join();
  }
  const { buffer, byteOffset, byteLength } = writer.finish();
  return Buffer.from(buffer, byteOffset, byteLength);
}

/** Field number and wire type, of etcd's rpc.proto. */
const tags = {
  compare: tag(1),
  success: tag(2),
  failure: tag(3),
  compareTarget: tag(2, 0),
  compareKey: tag(3),
  compareCreateRevision: tag(5, 0),
  compareModRevision: tag(6, 0),
  requestRange: tag(1),
  requestPut: tag(2),
  requestDeleteRange: tag(3),
  key: tag(1),
  putValue: tag(2),
  putLease: tag(3, 0),
  rangeKeysOnly: tag(8, 0),
  answerHeader: tag(1),
  answerSucceeded: tag(2, 0),
} as const;

function tag(field: number, wireType = 2): number {
  return (field << 3) | wireType;
}

/** Of a TxnResponse what every commit needs. The answers to the single operations are skipped. */
export function decodeOutcome(answer: Uint8Array): { readonly succeeded: boolean; readonly revision: bigint } {
  const reader = new BinaryReader(answer);
  let succeeded = false;
  let revision = 0n;
  while (reader.pos < reader.len) {
    const found = reader.uint32();
    if (found === tags.answerHeader) ({ revision } = ResponseHeader.decode(reader, reader.uint32()));
    else if (found === tags.answerSucceeded) succeeded = reader.bool();
    else if ((found & 7) === 2) {
      // `skip` would make a view of it.
      const length = reader.uint32();
      reader.pos += length;
    } else reader.skip(found & 7);
  }
  return { succeeded, revision };
}

/** Makes a transaction that is encoded, and resolves with its answer, encoded. Throws what `EtcdClient.call` throws. */
export async function transact(client: EtcdClient, request: Buffer, signal?: AbortSignal): Promise<Buffer> {
  return await client.call<Buffer, Buffer>(
    ({ kv }) =>
      (bytes, metadata, options, done) =>
        kv.makeUnaryRequest("/etcdserverpb.KV/Txn", asItIs, asItIs, bytes, metadata, options, (error, answer) =>
          done(error, answer as Buffer),
        ),
    request,
    { signal },
  );
}

function asItIs(bytes: Buffer): Buffer {
  return bytes;
}
