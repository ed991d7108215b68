import type { LogBatch, LogChunk } from "../../proto/gen/embassy/v1/api.ts";

/** Each chunk of a batch with the names that it has left out. Changes the batch's own chunks. */
export function chunksOf({ chunks }: LogBatch): LogChunk[] {
  let last: LogChunk | undefined;
  for (const chunk of chunks) {
    if (chunk.taskId === "" && last !== undefined) {
      chunk.taskId = last.taskId;
      chunk.taskName = last.taskName;
      chunk.nodeName = last.nodeName;
    }
    last = chunk;
  }
  return chunks;
}

/** Items of one stream that follow one another. */
export interface Run<T> {
  readonly items: readonly T[];
  /** Number of the stream. */
  readonly stream: number;
}

/**
 * Merges streams, each of arrays in order of time, into one order; of equal times the earlier stream's comes first. Gives the runs
 * that are known without waiting, at most about `mostAtOnce` items together.
 */
export async function* mergedByTime<T>(
  streams: readonly AsyncGenerator<readonly T[]>[],
  timeOf: (item: T) => number,
  mostAtOnce: number,
): AsyncGenerator<Run<T>[]> {
  const heads = streams.map((source, stream) => ({ source, stream, items: [] as readonly T[], at: 0, done: false }));
  const refill = async (head: (typeof heads)[number]) => {
    while (!head.done && head.at >= head.items.length) {
      const next = await head.source.next();
      head.done = next.done === true;
      head.items = next.done === true ? [] : next.value;
      head.at = 0;
    }
  };
  await Promise.all(heads.map(refill));
  for (let open = heads.filter(({ done }) => !done); open.length > 0; ) {
    const runs: Run<T>[] = [];
    let count = 0;
    let empty: (typeof heads)[number] | undefined;
    while (empty === undefined && count < mostAtOnce) {
      let first: (typeof heads)[number] | undefined;
      let firstTime = Number.POSITIVE_INFINITY;
      let until = Number.POSITIVE_INFINITY;
      let untilStream = Number.POSITIVE_INFINITY;
      for (const head of open) {
        const time = timeOf(head.items[head.at] as T);
        if (first === undefined || time < firstTime) {
          if (first !== undefined) [until, untilStream] = [firstTime, first.stream];
          [first, firstTime] = [head, time];
        } else if (time < until) [until, untilStream] = [time, head.stream];
      }
      if (first === undefined) break;
      const { items, at, stream } = first;
      let end = at + 1;
      for (; end < items.length; end++) {
        const time = timeOf(items[end] as T);
        if (time > until || (time === until && untilStream < stream)) break;
      }
      runs.push({ items: at === 0 && end === items.length ? items : items.slice(at, end), stream });
      count += end - at;
      first.at = end;
      if (end === items.length) empty = first;
    }
    yield runs;
    if (empty !== undefined) {
      await refill(empty);
      if (empty.done) open = open.filter((head) => head !== empty);
    }
  }
}
