import { BinaryWriter } from "@bufbuild/protobuf/wire";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Task } from "../../proto/gen/embassy/v1/state.ts";
import { encodeInto, FlatWriter } from "./flat-writer.ts";

type Step = readonly [method: Exclude<keyof BinaryWriter, "finish" | "fork" | "join" | "tag">, value: unknown];
type Node = Step | readonly ["message", readonly Node[], expectedBytes: number];

const step = <T>(method: Step[0], value: fc.Arbitrary<T>) => value.map((one): Step => [method, one]);
const int64 = fc.oneof(fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }), fc.maxSafeInteger());
const uint64 = fc.oneof(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), fc.maxSafeNat());
const text = fc.oneof(
  fc.string({ unit: "grapheme" }),
  fc.string({ unit: "grapheme-ascii", minLength: 30, maxLength: 300 }),
  fc.string({ unit: "binary", minLength: 100, maxLength: 200 }),
);
const steps = fc.oneof(
  step("uint32", fc.nat(0xffff_ffff)),
  step("int32", fc.integer()),
  step("sint32", fc.integer()),
  step("int64", int64),
  step("sint64", int64),
  step("uint64", uint64),
  step("fixed64", uint64),
  step("sfixed64", int64),
  step("fixed32", fc.nat(0xffff_ffff)),
  step("sfixed32", fc.integer()),
  step("float", fc.float()),
  step("double", fc.double()),
  step("bool", fc.boolean()),
  step("string", text),
  step("bytes", fc.uint8Array({ maxLength: 300 })),
  step("raw", fc.uint8Array({ maxLength: 20_000 })),
);
const nodes = fc.letrec<{ node: Node }>((tie) => ({
  node: fc.oneof(
    { maxDepth: 4 },
    steps,
    fc.tuple(fc.constant("message" as const), fc.array(tie("node")), fc.nat(40_000)),
  ),
})).node;

function write(writer: FlatWriter | BinaryWriter, [method, value, expectedBytes]: Node): void {
  if (method === "message") {
    if (writer instanceof FlatWriter) writer.fork(expectedBytes);
    else writer.fork();
    for (const node of value) write(writer, node);
    writer.join();
    return;
  }
  (writer[method] as (one: unknown) => unknown).call(writer, value);
}

describe("a FlatWriter", () => {
  it("writes what the library's writer writes, one message after the other", () => {
    const writer = new FlatWriter();
    fc.assert(
      fc.property(fc.array(nodes), (all) => {
        const library = new BinaryWriter();
        for (const node of all) write(library, node);
        for (const node of all) write(writer, node);
        expect(writer.finish().equals(library.finish())).toBe(true);
      }),
      { numRuns: 300 },
    );
  });

  it("writes two strings as one", () => {
    fc.assert(
      fc.property(text, text, (first, second) => {
        const [joined, whole] = [new FlatWriter().joined(first, second), new FlatWriter().string(first + second)];
        expect(joined.finish()).toEqual(whole.finish());
      }),
    );
  });

  it("gives copies, also of more than it keeps", () => {
    const writer = new FlatWriter();
    const first = writer.raw(Buffer.alloc(3_000_000, 1)).finish();
    const second = writer.raw(Buffer.alloc(3_000_000, 2)).finish();
    expect([first.length, first[0], first.at(-1)]).toEqual([3_000_000, 1, 1]);
    expect([second.length, second[0], second.at(-1)]).toEqual([3_000_000, 2, 2]);
  });

  it("repeats what another has written, and gives several as one", () => {
    const [one, two] = [new FlatWriter().string("a key"), new FlatWriter()];
    for (let i = 0; i < 30_000; i++) two.repeat(one, 0, 6);
    const [repeated, both] = [two.length, FlatWriter.finish([one, two]).toString()];
    expect(repeated).toBe(180_000);
    expect(both).toBe("\u0005a key".repeat(30_001));
    expect([one.length, two.length]).toEqual([0, 0]);
    one.fork();
    expect(() => FlatWriter.finish([two, one])).toThrow("not joined");
  });

  it("refuses what does not fit, and begins anew", () => {
    const writer = new FlatWriter();
    for (const value of [-1, 0.5, 2 ** 32, Number.NaN]) expect(() => writer.uint32(value)).toThrow(RangeError);
    for (const value of [2 ** 31, 0.5]) expect(() => writer.int32(value)).toThrow(RangeError);
    for (const value of [0.5, 2n ** 63n, Number.NaN]) expect(() => writer.int64(value)).toThrow(RangeError);
    for (const value of [-1, -1n, 2n ** 64n]) expect(() => writer.uint64(value)).toThrow(RangeError);
    expect(() => encodeInto(Task, Task.create({ id: "half", slot: -1 }), writer)).toThrow(RangeError);
    writer.fork();
    expect(() => writer.finish()).toThrow("not joined");
    writer.reset();
    expect(() => writer.join()).toThrow("no fork");
    encodeInto(Task, Task.create({ id: "whole" }), writer);
    expect(Task.decode(writer.finish())).toEqual(Task.create({ id: "whole" }));
  });
});
