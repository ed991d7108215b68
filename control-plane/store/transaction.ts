import { BinaryReader } from "@bufbuild/protobuf/wire";
import { FlatWriter } from "../../lib/protobuf/flat-writer.ts";
import { ResponseHeader } from "../../proto/gen/etcd/rpc.ts";
import type { EtcdClient } from "./client.ts";
import { type Codec, type Codecs, leaderKey, writeKey } from "./schema.ts";
import type { TableName, Write } from "./types.ts";

/** The place was created or last changed at that revision; 0: nothing lies there. */
export interface Comparison {
  /** The leader's key has no id. */
  readonly table: TableName | "leader";
  readonly id: string;
  readonly field: "modRevision" | "createRevision";
  readonly revision: number | bigint;
}

/** A TxnRequest, encoded, and where in it each write's key and value lie. */
export interface EncodedTransaction {
  readonly request: Buffer<ArrayBuffer>;
  /** By write four positions: key (with its tag and length) from and to, value from and to; the last two are 0 of a deletion. */
  readonly places: Uint32Array;
}

/** For all transactions, one for each part of them: their buffers have grown to what a commit takes. */
const compare = new FlatWriter();
const success = new FlatWriter();
const failure = new FlatWriter();
const otherKey = new FlatWriter();

/**
 * A TxnRequest: the writes when all comparisons hold, those of the writes themselves first, and otherwise the compared keys'
 * revisions in the same order. Written straight and in one pass, since one message object a field costs as much as all the rest of a
 * commit, and so do passes over what has left the processor's caches. `take` gives the memory. Throws what writing a value throws.
 */
export function encodeTransaction(
  writes: readonly Write[],
  comparisons: readonly Comparison[],
  codecs: Codecs,
  take?: (bytes: number) => Buffer<ArrayBuffer>,
): EncodedTransaction {
  for (const writer of [compare, success, failure]) writer.reset();
  const places = new Uint32Array(writes.length * 4);
  for (let i = 0; i < writes.length; i++) {
    const write = writes[i] as Write;
    writeOperation(write, codecs, places, i * 4);
    if (write.ifRevision === undefined) continue;
    // The tag takes one byte.
    const from = (places[i * 4] as number) + 1;
    writeComparison(success, from, (places[i * 4 + 1] as number) - from, "modRevision", write.ifRevision);
  }
  for (const one of comparisons) {
    otherKey.reset();
    if (one.table === "leader") otherKey.string(leaderKey);
    else writeKey(one.table, one.id, otherKey);
    writeComparison(otherKey, 0, otherKey.length, one.field, one.revision);
  }
  const start = compare.length;
  for (let i = 0; i < places.length; i++) if (places[i] !== 0) places[i] = (places[i] as number) + start;
  return { request: FlatWriter.finish([compare, success, failure], take), places };
}

/** The key, with its length, is what `keyed` has there: to write it by letters three times would take longest of all. */
function writeComparison(
  keyed: FlatWriter,
  from: number,
  length: number,
  field: Comparison["field"],
  revision: number | bigint,
): void {
  const modified = field === "modRevision";
  compare.uint32(tags.compare).fork();
  compare.uint32(tags.compareTarget).uint32(modified ? 2 : 1);
  compare.uint32(tags.compareKey).repeat(keyed, from, length);
  compare.uint32(modified ? tags.compareModRevision : tags.compareCreateRevision).int64(revision);
  compare.join();
  failure.uint32(tags.failure).fork().uint32(tags.requestRange).fork();
  failure.uint32(tags.key).repeat(keyed, from, length).uint32(tags.rangeKeysOnly).bool(true);
  failure.join().join();
}

/** The value comes last, so that its place is known by the end of the whole, however its beginning has moved. */
function writeOperation(write: Write, codecs: Codecs, places: Uint32Array, at: number): void {
  const { value, lease = 0n } = write;
  // One table at a time: the compiler cannot follow that table and value agree.
  const codec: Codec<unknown> = codecs[write.table] as never;
  const expectedBytes = value === undefined ? 0 : (codec.expectedBytes?.(value) ?? 0);
  success.uint32(tags.success).fork(expectedBytes);
  success.uint32(value === undefined ? tags.requestDeleteRange : tags.requestPut).fork(expectedBytes);
  const keyFrom = success.length;
  success.uint32(tags.key);
  writeKey(write.table, write.id, success);
  const keyTo = success.length;
  let valueBytes = 0;
  if (value !== undefined) {
    if (lease !== 0n) success.uint32(tags.putLease).int64(lease);
    success.uint32(tags.putValue).fork(expectedBytes);
    const valueFrom = success.length;
    codec.write(value, success, write.id);
    valueBytes = success.length - valueFrom;
    success.join();
  }
  const unmoved = success.length;
  success.join().join();
  const end = success.length;
  places[at] = keyFrom + end - unmoved;
  places[at + 1] = keyTo + end - unmoved;
  if (value === undefined) return;
  places[at + 2] = end - valueBytes;
  places[at + 3] = end;
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
  let frame: Uint8Array<ArrayBuffer> | undefined;
  const answer = await client.call<Buffer, Buffer>(
    ({ kv }) =>
      (bytes, metadata, options, done) =>
        kv.makeUnaryRequest(
          "/etcdserverpb.KV/Txn",
          (message: Buffer) =>
            seeCopy(message, (target) => {
              frame = target;
            }),
          asItIs,
          bytes,
          metadata,
          options,
          (error, answer) => done(error, answer as Buffer),
        ),
    request,
    { signal },
  );
  // It has been sent. A small one lies in memory that others use too. See `RequestBuffers`.
  if (frame !== undefined && frame.length === frame.buffer.byteLength) frame.buffer.transfer(0);
  return answer;
}

/** The same bytes. Of a message the library makes a copy, in its frame: `see` is told where. */
function seeCopy(bytes: Buffer, see: (target: Uint8Array<ArrayBuffer>) => void): Buffer {
  return Object.assign(bytes.subarray(), {
    copy(target: Uint8Array<ArrayBuffer>, start?: number) {
      see(target);
      return bytes.copy(target, start);
    },
  });
}

function asItIs(bytes: Buffer): Buffer {
  return bytes;
}
