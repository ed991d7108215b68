import { describe, expect, it } from "vitest";
import type { FlatWriter } from "../../lib/protobuf/flat-writer.ts";
import { KeyValue } from "../../proto/gen/etcd/kv.ts";
import { ResponseHeader, ResponseOp, TxnRequest, TxnResponse } from "../../proto/gen/etcd/rpc.ts";
import { decodeOutcome, encodeTransaction } from "./transaction.ts";

const codec = { write: (value: unknown, writer: FlatWriter) => void writer.raw(value as Buffer) };

describe("a transaction", () => {
  it("is written as etcd's own messages say", () => {
    const key = "/embassy/v1/spec/tasks/a";
    const long = `/embassy/v1/${"x".repeat(300)}ö`;
    const value = Buffer.alloc(20_000, "v");
    const request = TxnRequest.decode(
      encodeTransaction(
        [
          { key, field: "modRevision", revision: 7 },
          { key: long, field: "createRevision", revision: 2n ** 53n + 1n },
        ],
        [
          { key, value, codec, lease: 0n },
          { key: long, value: Buffer.alloc(0), codec, lease: 2n ** 62n },
          { key, value: undefined, codec, lease: 0n },
        ],
      ).request,
    );
    const [keyBytes, longBytes] = [Buffer.from(key), Buffer.from(long)];
    expect(request).toEqual(
      TxnRequest.create({
        compare: [
          { result: 0, target: 2, key: keyBytes, targetUnion: { $case: "modRevision", value: 7n } },
          { result: 0, target: 1, key: longBytes, targetUnion: { $case: "createRevision", value: 2n ** 53n + 1n } },
        ],
        success: [
          { request: { $case: "requestPut", value: { key: keyBytes, value } } },
          { request: { $case: "requestPut", value: { key: longBytes, lease: 2n ** 62n } } },
          { request: { $case: "requestDeleteRange", value: { key: keyBytes } } },
        ],
        failure: [
          { request: { $case: "requestRange", value: { key: keyBytes, keysOnly: true } } },
          { request: { $case: "requestRange", value: { key: longBytes, keysOnly: true } } },
        ],
      }),
    );
  });

  it("tells where keys and values lie in it, whatever their lengths and whatever was expected", () => {
    const lengths = [0, 1, 80, 127, 128, 200, 16_383, 16_384];
    const operations = lengths.flatMap((length, i) =>
      [0, 100, 20_000].map((expectedBytes) => ({
        key: `/embassy/v1/${"k".repeat(length % 300)}`,
        value: i === 3 ? undefined : Buffer.alloc(length, i),
        codec,
        expectedBytes,
        lease: i % 2 === 0 ? 0n : 5n,
      })),
    );
    const { request, places } = encodeTransaction([], operations);
    expect(TxnRequest.decode(request).success).toHaveLength(operations.length);
    for (const [i, { key, value }] of operations.entries()) {
      const [keyFrom, keyTo, valueFrom, valueTo] = places.subarray(4 * i, 4 * i + 4);
      expect(KeyValue.decode(request.subarray(keyFrom, keyTo)).key.toString()).toBe(key);
      expect(request.subarray(valueFrom, valueTo)).toEqual(value ?? Buffer.alloc(0));
    }
  });

  it("leaves nothing behind when a value cannot be written", () => {
    const failing = {
      write: () => {
        throw new Error("no such value");
      },
    };
    const operation = (of: typeof codec) => ({ key: "/embassy/v1/a", value: Buffer.from("v"), codec: of, lease: 0n });
    expect(() => encodeTransaction([], [operation(codec), operation(failing)])).toThrow("no such value");
    const { request } = encodeTransaction([], [operation(codec)]);
    expect(TxnRequest.decode(request).success).toHaveLength(1);
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
