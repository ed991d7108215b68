import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Event, KeyValue } from "../../proto/gen/etcd/kv.ts";
import { ResponseHeader, WatchResponse } from "../../proto/gen/etcd/rpc.ts";
import { decodeWatchResponse } from "./watch-response.ts";

const revision = fc.bigInt({ min: 0n, max: BigInt(Number.MAX_SAFE_INTEGER) });
const bytes = (maxLength: number) => fc.uint8Array({ maxLength }).map((found) => Buffer.from(found));
const event = fc.record({
  type: fc.constantFrom(0, 1),
  kv: fc.record({
    key: fc.string({ unit: "grapheme", maxLength: 200 }).map((text) => Buffer.from(text)),
    createRevision: revision,
    modRevision: revision,
    version: revision,
    value: bytes(300),
    lease: fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
  }),
  prevKv: fc.option(fc.constant(KeyValue.create({ key: Buffer.from("before") })), { nil: undefined }),
});
const response = fc.record({
  header: fc.record({
    clusterId: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
    memberId: revision,
    revision,
    raftTerm: revision,
  }),
  watchId: fc.bigInt({ min: -1n, max: 5n }),
  created: fc.boolean(),
  canceled: fc.boolean(),
  compactRevision: revision,
  cancelReason: fc.string({ unit: "grapheme" }),
  fragment: fc.boolean(),
  events: fc.array(event, { maxLength: 5 }),
});

describe("etcd's answer on a watch", () => {
  it("is read as its own messages say", () => {
    fc.assert(
      fc.property(response, (sent) => {
        const answer = decodeWatchResponse(Buffer.from(WatchResponse.encode(WatchResponse.create(sent)).finish()));
        const { created, canceled, cancelReason, fragment } = sent;
        expect(answer).toMatchObject({ created, canceled, cancelReason, fragment });
        expect(answer.revision).toBe(Number(sent.header.revision));
        expect(answer.compactRevision).toBe(Number(sent.compactRevision));
        expect(answer.events).toHaveLength(sent.events.length);
        for (const [i, found] of answer.events.entries()) {
          const { type, kv } = sent.events[i] as (typeof sent.events)[number];
          expect(found.deleted).toBe(type === 1);
          expect(found.key).toBe(kv.key.toString());
          expect(found.value).toEqual(kv.value);
          expect(found.revision).toBe(Number(kv.modRevision));
          expect(found.createRevision).toBe(Number(kv.createRevision));
        }
      }),
    );
  });

  it("knows the same key and the same value in other bytes, and no others", () => {
    const kv = KeyValue.create({ key: Buffer.from("/a/b"), value: Buffer.from("value"), modRevision: 3n });
    const header = ResponseHeader.create({ revision: 3n });
    const sent = WatchResponse.create({ header, events: [Event.create({ kv })] });
    const [found] = decodeWatchResponse(Buffer.from(WatchResponse.encode(sent).finish())).events;
    const field = Buffer.from(KeyValue.encode(KeyValue.create({ key: kv.key })).finish());
    const other = Buffer.concat([Buffer.from("??"), field, Buffer.from("value!")]);
    const keyTo = 2 + field.length;
    expect(found?.hasKeyOf(other, 2, keyTo)).toBe(true);
    expect(found?.hasKeyOf(other, 2, keyTo + 1)).toBe(false);
    expect(found?.hasKeyOf(other, 2, keyTo - 1)).toBe(false);
    expect(found?.hasValueOf(other, keyTo, keyTo + 5)).toBe(true);
    expect(found?.hasValueOf(other, keyTo, keyTo + 6)).toBe(false);
    expect(found?.hasValueOf(other, keyTo, keyTo + 4)).toBe(false);
    expect(found?.hasValueOf(other, keyTo - 1, keyTo + 4)).toBe(false);
  });

  it("is refused when it is cut off or garbage, and never read beyond its end", () => {
    fc.assert(
      fc.property(response, fc.nat(), bytes(100), (sent, at, garbage) => {
        const whole = Buffer.from(WatchResponse.encode(WatchResponse.create(sent)).finish());
        const cut = whole.subarray(0, at % (whole.length + 1));
        for (const broken of [cut, garbage, Buffer.concat([cut, garbage])]) {
          try {
            for (const { key, value } of decodeWatchResponse(broken).events) {
              expect(key.length + value.length).toBeLessThanOrEqual(broken.length);
            }
          } catch (error) {
            expect(error).toBeInstanceOf(RangeError);
          }
        }
      }),
    );
  });
});
