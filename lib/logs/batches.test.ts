import fc from "fast-check";
import { expect, it } from "vitest";
import { LogBatch } from "../../proto/gen/embassy/v1/api.ts";
import { chunksOf, mergedByTime } from "./batches.ts";

interface Item {
  readonly time: number;
  readonly stream: number;
  readonly n: number;
}

it("merges streams of any batches by time, each stream in its own order, of equal times the earlier stream first", async () => {
  const streams = fc.array(fc.array(fc.array(fc.nat(20), { maxLength: 6 }), { maxLength: 5 }), { maxLength: 4 });
  await fc.assert(
    fc.asyncProperty(streams, fc.integer({ min: 1, max: 9 }), async (given, most) => {
      let n = 0;
      const batches = given.map((batches, stream) => {
        let time = 0;
        const item = (step: number): Item => {
          time += step;
          return { time, stream, n: n++ };
        };
        return batches.map((steps) => steps.map(item));
      });
      // oxlint-disable-next-line require-await -- A stream that has all of it already.
      const sources = batches.map(async function* (own): AsyncGenerator<readonly Item[]> {
        yield* own;
      });
      const got: Item[] = [];
      for await (const runs of mergedByTime(sources, ({ time }) => time, most)) {
        for (const { items, stream } of runs) {
          expect(items.length).toBeGreaterThan(0);
          expect(items.every((item) => item.stream === stream)).toBe(true);
          got.push(...items);
        }
      }
      const expected = batches.flat(2).toSorted((a, b) => a.time - b.time || a.stream - b.stream || a.n - b.n);
      expect(got).toEqual(expected);
    }),
  );
});

it("waits for a stream that has nothing yet only once all that is known has been given", async () => {
  const late = Promise.withResolvers<void>();
  const fast = (async function* () {
    yield [1, 5];
    await late.promise;
    yield [9];
  })();
  const slow = (async function* () {
    yield await Promise.resolve([2, 3, 7]);
  })();
  const merged = mergedByTime([fast, slow], (time) => time, 100);
  const next = async (): Promise<number[] | undefined> => {
    const { done, value } = await merged.next();
    return done === true ? undefined : value.flatMap(({ items }) => [...items]);
  };
  expect(await next()).toEqual([1, 2, 3, 5]);
  late.resolve();
  expect([await next(), await next(), await next()]).toEqual([[7], [9], undefined]);
});

it("what names no task is of the one before it", () => {
  const name = (taskId: string) => ({ taskId, taskName: `${taskId}.1`, nodeName: "n" });
  const batch = LogBatch.fromPartial({ chunks: [name("a"), {}, name("b"), {}] });
  expect(chunksOf(batch).map(({ taskId, taskName }) => `${taskId} ${taskName}`)).toEqual([
    "a a.1",
    "a a.1",
    "b b.1",
    "b b.1",
  ]);
});
