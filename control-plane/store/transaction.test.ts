import { describe, expect, it } from "vitest";
import { KeyValue } from "../../proto/gen/etcd/kv.ts";
import { ResponseHeader, ResponseOp, TxnRequest, TxnResponse } from "../../proto/gen/etcd/rpc.ts";
import { createCodecs, keyOf } from "./schema.ts";
import { createBlobCodec } from "./seal.ts";
import { task } from "./testing.ts";
import { decodeOutcome, encodeTransaction } from "./transaction.ts";
import type { StoredBlob, Write } from "./types.ts";

const codecs = createCodecs(createBlobCodec(Buffer.alloc(32)));
const config = (id: string, content: Buffer): Write => ({
  table: "blobs",
  id: `config/${id}`,
  value: { kind: "config", sha256: id, content },
});

describe("a transaction", () => {
  it("is written as etcd's own messages say", () => {
    const key = Buffer.from("/embassy/v1/configs/a");
    const long = Buffer.from(`/embassy/v1/configs/${"x".repeat(300)}ö`);
    const leader = Buffer.from("/embassy/v1/leader");
    const value = Buffer.alloc(20_000, "v");
    const { request } = encodeTransaction(
      [
        { ...config("a", value), ifRevision: 7 },
        { ...config(`${"x".repeat(300)}ö`, Buffer.alloc(0)), lease: 2n ** 62n },
        { table: "nodes", id: "n1", value: undefined, ifRevision: 0 },
      ],
      [
        { table: "leader", id: "", field: "createRevision", revision: 2n ** 53n + 1n },
        { table: "blobs", id: `config/${"x".repeat(300)}ö`, field: "modRevision", revision: 300 },
      ],
      codecs,
    );
    const node = Buffer.from("/embassy/v1/spec/nodes/n1");
    const range = (of: Buffer) => ({ request: { $case: "requestRange", value: { key: of, keysOnly: true } } }) as const;
    expect(TxnRequest.decode(request)).toEqual(
      TxnRequest.create({
        compare: [
          { result: 0, target: 2, key, targetUnion: { $case: "modRevision", value: 7n } },
          { result: 0, target: 2, key: node, targetUnion: { $case: "modRevision", value: 0n } },
          { result: 0, target: 1, key: leader, targetUnion: { $case: "createRevision", value: 2n ** 53n + 1n } },
          { result: 0, target: 2, key: long, targetUnion: { $case: "modRevision", value: 300n } },
        ],
        success: [
          { request: { $case: "requestPut", value: { key, value } } },
          { request: { $case: "requestPut", value: { key: long, lease: 2n ** 62n } } },
          { request: { $case: "requestDeleteRange", value: { key: node } } },
        ],
        failure: [range(key), range(node), range(leader), range(long)],
      }),
    );
  });

  it("tells where keys and values lie in it, whatever their lengths and whatever was expected", () => {
    const lengths = [0, 1, 80, 127, 128, 200, 16_383, 16_384];
    const writes = lengths.map((length, i) => ({
      ...config("k".repeat(1 + (length % 300)), i === 3 ? Buffer.alloc(0) : Buffer.alloc(length, i)),
      ...(i % 2 === 0 ? {} : { lease: 5n }),
      ...(i === 3 ? { value: undefined } : {}),
    })) as Write[];
    for (const expected of [0, 100, 20_000]) {
      const blobs = { ...codecs.blobs, expectedBytes: () => expected };
      const { request, places } = encodeTransaction(writes, [], { ...codecs, blobs });
      expect(TxnRequest.decode(request).success).toHaveLength(writes.length);
      for (const [i, { id, value }] of writes.entries()) {
        const [keyFrom, keyTo, valueFrom, valueTo] = places.subarray(4 * i, 4 * i + 4);
        expect(KeyValue.decode(request.subarray(keyFrom, keyTo)).key.toString()).toBe(keyOf("blobs", id));
        const content = (value as StoredBlob | undefined)?.content ?? Buffer.alloc(0);
        expect(request.subarray(valueFrom, valueTo).equals(content)).toBe(true);
      }
    }
  });

  it("leaves nothing behind when a value cannot be written", () => {
    const good: Write = { table: "tasks", id: "t1", value: task("t1") };
    const bad: Write = { table: "tasks", id: "t2", value: task("t2", { slot: -1 }) };
    expect(() => encodeTransaction([good, bad], [], codecs)).toThrow(RangeError);
    expect(TxnRequest.decode(encodeTransaction([good], [], codecs).request).success).toHaveLength(1);
  });

  it("has an outcome, whatever else the answer holds", () => {
    const header = ResponseHeader.create({ revision: 2n ** 53n + 1n, clusterId: 2n ** 63n, raftTerm: 3n });
    const put = ResponseOp.create({ response: { $case: "responsePut", value: { header } } });
    for (const succeeded of [true, false]) {
      const responses = Array.from({ length: 300 }, () => put);
      const answer = TxnResponse.encode(TxnResponse.create({ header, succeeded, responses })).finish();
      expect(decodeOutcome(answer)).toEqual({ succeeded, revision: 2n ** 53n + 1n });
    }
    expect(() => decodeOutcome(Buffer.from("0aff", "hex"))).toThrow();
  });
});
