import { describe, expect, it } from "vitest";
import { ResponseHeader, ResponseOp, TxnRequest, TxnResponse } from "../../proto/gen/etcd/rpc.ts";
import { decodeOutcome, encodeTransaction } from "./transaction.ts";

describe("a transaction", () => {
  it("is written as etcd's own messages say", () => {
    const key = Buffer.from("/embassy/v1/spec/tasks/a");
    const long = Buffer.from(`/embassy/v1/${"x".repeat(300)}`);
    const value = Buffer.alloc(20_000, "v");
    const request = TxnRequest.decode(
      encodeTransaction(
        [
          { key, field: "modRevision", revision: 7n },
          { key: long, field: "createRevision", revision: 2n ** 53n + 1n },
        ],
        [
          { key, value, lease: 0n },
          { key: long, value: Buffer.alloc(0), lease: 2n ** 62n },
          { key, value: undefined, lease: 0n },
        ],
      ),
    );
    expect(request).toEqual(
      TxnRequest.create({
        compare: [
          { result: 0, target: 2, key, targetUnion: { $case: "modRevision", value: 7n } },
          { result: 0, target: 1, key: long, targetUnion: { $case: "createRevision", value: 2n ** 53n + 1n } },
        ],
        success: [
          { request: { $case: "requestPut", value: { key, value } } },
          { request: { $case: "requestPut", value: { key: long, lease: 2n ** 62n } } },
          { request: { $case: "requestDeleteRange", value: { key } } },
        ],
        failure: [
          { request: { $case: "requestRange", value: { key, keysOnly: true } } },
          { request: { $case: "requestRange", value: { key: long, keysOnly: true } } },
        ],
      }),
    );
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
