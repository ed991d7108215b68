import { BinaryReader } from "@bufbuild/protobuf/wire";
import { FlatWriter } from "../../lib/protobuf/flat-writer.ts";
import { ResponseHeader } from "../../proto/gen/etcd/rpc.ts";
import type { EtcdClient } from "./client.ts";
import type { Codec } from "./schema.ts";

/** The key was created or last changed at that revision; 0: it does not exist. */
export interface Comparison {
  readonly key: string;
  readonly field: "modRevision" | "createRevision";
  readonly revision: number | bigint;
}

export interface Operation {
  readonly key: string;
  /** undefined: delete */
  readonly value: unknown;
  readonly codec: Pick<Codec<unknown>, "write">;
  /** About how many bytes the value has. */
  readonly expectedBytes?: number;
  /** 0: none */
  readonly lease: bigint;
}

/** A TxnRequest, encoded, and where in it each operation's key and value lie. */
export interface EncodedTransaction {
  readonly request: Buffer;
  readonly places: OperationPlaces;
}

/** By operation four positions: key (with its tag and length) from and to, value from and to; 0 of a deletion. */
export type OperationPlaces = Uint32Array;

/** One for all: its buffer has grown to what a commit takes. */
const writer = new FlatWriter();

/**
 * A TxnRequest: the operations when all comparisons hold, and otherwise the compared keys' revisions. Written straight, since
 * one message object a field costs as much as all the rest of a commit. Throws what writing a value throws.
 */
export function encodeTransaction(
  comparisons: readonly Comparison[],
  operations: readonly Operation[],
): EncodedTransaction {
  writer.reset();
  for (const { key, field, revision } of comparisons) {
    const modified = field === "modRevision";
    writer.uint32(tags.compare).fork();
    writer.uint32(tags.compareTarget).uint32(modified ? 2 : 1);
    writer.uint32(tags.compareKey).string(key);
    writer.uint32(modified ? tags.compareModRevision : tags.compareCreateRevision).int64(revision);
    writer.join();
  }
  const places = new Uint32Array(operations.length * 4);
  for (const [i, operation] of operations.entries()) writeOperation(operation, places, i * 4);
  for (const { key } of comparisons) {
    writer.uint32(tags.failure).fork().uint32(tags.requestRange).fork();
    writer.uint32(tags.key).string(key).uint32(tags.rangeKeysOnly).bool(true);
    writer.join().join();
  }
  return { request: writer.finish(), places };
}

/** The value comes last, so that its place is known by the end of the whole, however its beginning has moved. */
function writeOperation(operation: Operation, places: OperationPlaces, at: number): void {
  const { key, value, lease, expectedBytes = 0 } = operation;
  const put = value !== undefined;
  writer.uint32(tags.success).fork(expectedBytes);
  writer.uint32(put ? tags.requestPut : tags.requestDeleteRange).fork(expectedBytes);
  const keyFrom = writer.length;
  writer.uint32(tags.key).string(key);
  const keyTo = writer.length;
  let valueBytes = 0;
  if (put) {
    if (lease !== 0n) writer.uint32(tags.putLease).int64(lease);
    writer.uint32(tags.putValue).fork(expectedBytes);
    const valueFrom = writer.length;
    operation.codec.write(value, writer, key);
    valueBytes = writer.length - valueFrom;
    writer.join();
  }
  const unmoved = writer.length;
  writer.join().join();
  const end = writer.length;
  places[at] = keyFrom + end - unmoved;
  places[at + 1] = keyTo + end - unmoved;
  places[at + 2] = put ? end - valueBytes : 0;
  places[at + 3] = put ? end : 0;
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
