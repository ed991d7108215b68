import { createWriteStream } from "node:fs";
import { appendFile, mkdtemp, open, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { systemClock } from "../../lib/clock/clock.ts";
import { silentLog } from "../../lib/log/log.ts";
import { AgentLogsRequest, type LogBatch } from "../../proto/gen/embassy/v1/api.ts";
import { removeLogs, rotate } from "./files.ts";
import { LineJoiner, type LogLine, maxLineBytes, parseRecord } from "./parse.ts";
import { type LogPlace, type LogStart, readLog, tailStart } from "./read.ts";
import { rotateAll } from "./rotation.ts";
import { serveLogs } from "./serve.ts";

const startMs = Date.UTC(2030, 0, 1);
const record = (n: number, text: string, stream = "stdout", tag = "F") =>
  `${new Date(startMs + n).toISOString().replace("Z", "000000+00:00")} ${stream} ${tag} ${text}\n`;

let directory: string;
let path: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "embassy-logs-"));
  path = join(directory, "aaaaaaaaaaaa.log");
});
afterEach(async () => {
  await rm(directory, { recursive: true });
});

async function all(options: Partial<Parameters<typeof readLog>[0]> = {}): Promise<string[]> {
  const lines: string[] = [];
  const signal = new AbortController().signal;
  for await (const read of readLog({ path, tail: -1, sinceUs: 0, follow: undefined, signal, ...options })) {
    lines.push(...read.map(({ text }) => text.toString()));
  }
  return lines;
}

describe("parseRecord", () => {
  it("reads time to the microsecond, stream, tag and text", () => {
    const parsed = parseRecord(Buffer.from("2016-10-06T00:17:09.669794202+02:00 stderr P a b"));
    expect(parsed).toEqual({
      timeUs: Date.parse("2016-10-05T22:17:09Z") * 1_000 + 669_794,
      stderr: true,
      partial: true,
      text: Buffer.from("a b"),
    });
    expect(parseRecord(Buffer.from("2016-10-06T00:17:09.669794202Z stdout F "))?.text).toHaveLength(0);
  });

  it.each([
    "",
    "nonsense",
    "2016-10-06T00:17:09Z stdin F x",
    "2016-10-06T00:17:09Z stdout X x",
    "yesterday-at-some-time stdout F x",
  ])("has no record in %j", (text) => expect(parseRecord(Buffer.from(text))).toBeUndefined());
});

describe("LineJoiner", () => {
  it("gives back every stream's bytes whatever the pieces, none longer than a chunk", () => {
    const piece = fc.record({
      stderr: fc.boolean(),
      partial: fc.boolean(),
      size: fc.oneof(fc.nat(100), fc.integer({ min: 8_000, max: 3 * maxLineBytes })),
    });
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 20 }), (pieces) => {
        const joiner = new LineJoiner();
        const expected = { out: "", err: "" };
        const got = { out: "", err: "" };
        const take = (lines: readonly LogLine[]) => {
          for (const line of lines) {
            expect(line.text.length).toBeLessThanOrEqual(maxLineBytes);
            got[line.stderr ? "err" : "out"] += line.text.toString() + (line.partial ? "" : "\n");
          }
        };
        const open = { out: false, err: false };
        for (const [n, { stderr, partial, size }] of pieces.entries()) {
          const stream = stderr ? "err" : "out";
          const text = String.fromCharCode(97 + (n % 26)).repeat(size);
          expected[stream] += text + (partial ? "" : "\n");
          open[stream] = partial;
          take(joiner.push({ timeUs: n, stderr, partial, text: Buffer.from(text) }));
        }
        take(joiner.flush());
        for (const stream of ["out", "err"] as const) if (open[stream]) expected[stream] += "\n";
        expect(got).toEqual(expected);
      }),
      { seed: 22, numRuns: 100 },
    );
  });
});

describe("readLog", () => {
  it("reads rotated files oldest first, joins lines across them, and leaves out what is none", async () => {
    await writeFile(`${path}.2`, record(1, "one"));
    await writeFile(`${path}.1`, record(2, "tw", "stdout", "P") + record(3, "err", "stderr"));
    await writeFile(path, `garbage\n${record(4, "o")}${record(5, "three")}`);
    await writeFile(join(directory, "bbbbbbbbbbbb.log"), record(1, "another task's"));
    expect(await all()).toEqual(["one", "err", "two", "three"]);
  });

  it("ends the last lines anywhere, and leaves out what is older than asked for", async () => {
    await writeFile(`${path}.1`, record(1, "one") + record(2, "two"));
    await writeFile(path, record(3, "th", "stdout", "P") + record(4, "ree") + record(5, "four"));
    expect(await all({ tail: 0 })).toEqual([]);
    expect(await all({ tail: 1 })).toEqual(["four"]);
    expect(await all({ tail: 2 })).toEqual(["three", "four"]);
    expect(await all({ tail: 3 })).toEqual(["two", "three", "four"]);
    expect(await all({ tail: 99 })).toEqual(["one", "two", "three", "four"]);
    expect(await all({ sinceUs: (startMs + 5) * 1_000 })).toEqual(["four"]);
  });

  it("has nothing of a task that never wrote", async () => {
    expect(await all()).toEqual([]);
  });

  it("finds the tail of any file", async () => {
    const line = fc.record({
      size: fc.oneof(fc.nat(50), fc.integer({ min: 60_000, max: 140_000 })),
      full: fc.boolean(),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(line, { maxLength: 12 }), fc.nat(14), async (lines, wanted) => {
        const records = lines.map(({ size, full }, n) => record(n, "x".repeat(size), "stdout", full ? "F" : "P"));
        await writeFile(path, records.join(""));
        const file = await open(path, "r");
        try {
          const { offset, lines: found } = await tailStart(file, records.join("").length, wanted);
          const full = lines.flatMap(({ full }, n) => (full ? [n] : []));
          expect(found).toBe(Math.min(wanted, full.length));
          const before = full.length > wanted ? records.slice(0, (full.at(-1 - wanted) ?? 0) + 1).join("").length : 0;
          expect(offset).toBe(before);
        } finally {
          await file.close();
        }
      }),
      { seed: 23, numRuns: 150 },
    );
  });

  it("follows through writes and rotations, loses nothing, and ends with the task", async () => {
    await writeFile(path, record(0, "0"));
    const ended = new AbortController();
    const lines: string[] = [];
    const seen = new Map<number, PromiseWithResolvers<void>>();
    const until = (n: number) => {
      const waiter = seen.get(n) ?? Promise.withResolvers<void>();
      seen.set(n, waiter);
      if (lines.length >= n) waiter.resolve();
      return waiter.promise;
    };
    const reading = (async () => {
      const signal = new AbortController().signal;
      for await (const read of readLog({ path, tail: -1, sinceUs: 0, follow: ended.signal, signal })) {
        for (const { text } of read) {
          lines.push(text.toString());
          seen.get(lines.length)?.resolve();
        }
      }
    })();
    await until(1);
    await appendFile(path, record(1, "1"));
    await until(2);
    for (let n = 2; n < 8; n++) {
      // As conmon does it: it writes to the renamed file until it has put a new one in its place.
      await rotate(path, 3);
      await appendFile(`${path}.1`, record(n, `${n} late`));
      await writeFile(`${path}.tmp`, "");
      await rename(`${path}.tmp`, path);
      await appendFile(path, record(n, `${n}`));
      await until(n * 3 - 2);
      await appendFile(path, record(n, `${n} more`));
      await until(n * 3 - 1);
    }
    await appendFile(path, record(9, "last"));
    ended.abort();
    await reading;
    const expected = ["0", "1", ...[2, 3, 4, 5, 6, 7].flatMap((n) => [`${n} late`, `${n}`, `${n} more`]), "last"];
    expect(lines).toEqual(expected);
  });

  it("goes on behind any line, without one lost or twice, whatever lines lie half written and after rotations", async () => {
    const written = fc.record({
      size: fc.oneof(fc.nat(20), fc.integer({ min: 60_000, max: 140_000 })),
      full: fc.boolean(),
      stderr: fc.boolean(),
      rotated: fc.boolean(),
    });
    await fc.assert(
      fc.asyncProperty(
        fc.array(written, { maxLength: 12 }),
        fc.nat(3),
        fc.integer({ min: -1, max: 4 }),
        async (records, more, tail) => {
          for (const name of await readdir(directory)) await rm(join(directory, name));
          const write = async (n: number, { size, full, stderr, rotated }: (typeof records)[number]) => {
            if (rotated) await rotate(path, 99);
            const text = `${n}`.padEnd(size, "x");
            await appendFile(path, record(n, text, stderr ? "stderr" : "stdout", full ? "F" : "P"));
          };
          const half = Math.floor(records.length / 2);
          for (const [n, one] of records.slice(0, half).entries()) await write(n, one);
          const read = async (from?: LogPlace) => {
            const got: { text: string; next: LogPlace }[] = [];
            const starts: LogStart[] = [];
            const onStart = async (start: LogStart) => void (await Promise.resolve(starts.push(start)));
            const signal = new AbortController().signal;
            // What ends a log would give out lines that are not whole: it is followed, to the present end.
            const ended = new AbortController();
            const options = { path, tail, sinceUs: 0, from, follow: ended.signal, signal, onStart };
            ended.abort();
            for await (const lines of readLog(options)) {
              for (const { text, stderr, partial, next } of lines)
                got.push({ text: `${stderr} ${partial} ${text.toString()}`, next });
            }
            return { got, start: starts[0] };
          };
          const { start } = await read();
          for (const [n, one] of records.slice(half).entries()) await write(half + n, one);
          for (let n = 0; n < more; n++) await rotate(path, 99);
          const whole = await read(start);
          const texts = whole.got.map(({ text }) => text);
          for (const [n, { next }] of whole.got.entries()) {
            const rest = await read(next);
            expect(rest.start?.lost).toBe(false);
            expect(rest.got.map(({ text }) => text)).toEqual(texts.slice(n + 1));
          }
          expect(whole.start).toMatchObject({ lost: false, lines: 0 });
        },
      ),
      { seed: 24, numRuns: 100 },
    );
  });

  it("says that lines may be missing when the file that it is to go on in was rotated away", async () => {
    await writeFile(path, record(1, "one"));
    let next: LogPlace | undefined;
    const signal = new AbortController().signal;
    for await (const lines of readLog({ path, tail: -1, sinceUs: 0, follow: undefined, signal }))
      next = lines.at(-1)?.next;
    for (const n of [2, 3]) {
      await rotate(path, 2);
      await writeFile(path, record(n, `${n}`));
    }
    const starts: LogStart[] = [];
    const onStart = async (start: LogStart) => void (await Promise.resolve(starts.push(start)));
    expect(await all({ from: next, onStart })).toEqual(["2", "3"]);
    expect(starts.map(({ lost }) => lost)).toEqual([true]);
  });

  it("says how many lines of a tail there are, over rotated files", async () => {
    await writeFile(`${path}.1`, record(1, "one") + record(2, "two"));
    await writeFile(path, record(3, "three"));
    const counted: number[] = [];
    const onStart = async ({ lines }: LogStart) => void (await Promise.resolve(counted.push(lines)));
    for (const tail of [0, 1, 3, 9, -1]) await all({ tail, onStart });
    expect(counted).toEqual([0, 1, 3, 3, 0]);
  });

  it("goes on with what is new behind a rotation when nothing was asked for but that", async () => {
    await writeFile(`${path}.1`, record(1, "old"));
    await writeFile(path, "");
    const starts: LogStart[] = [];
    const onStart = async (start: LogStart) => void (await Promise.resolve(starts.push(start)));
    expect(await all({ tail: 0, onStart })).toEqual([]);
    await appendFile(path, record(2, "new"));
    expect(await all({ from: starts[0] })).toEqual(["new"]);
  });

  it("follows a log that does not exist yet, and stops when the reader goes", async () => {
    const reader = new AbortController();
    const lines = readLog({ path, tail: 0, sinceUs: 0, follow: new AbortController().signal, signal: reader.signal });
    const first = lines.next();
    const stream = createWriteStream(path);
    stream.write(record(1, "hello"));
    const { done, value } = await first;
    expect(done === true ? [] : value.map(({ text }) => text.toString())).toEqual(["hello"]);
    const second = lines.next();
    reader.abort();
    expect((await second).done).toBe(true);
    await new Promise((resolve) => stream.end(resolve));
  });
});

describe("rotation", () => {
  it("keeps as many files as allowed", async () => {
    for (let n = 1; n <= 5; n++) {
      await writeFile(path, `${n}`);
      await rotate(path, 3);
    }
    expect((await readdir(directory)).sort()).toEqual(["aaaaaaaaaaaa.log.1", "aaaaaaaaaaaa.log.2"]);
    expect(await readFile(`${path}.1`, "utf8")).toBe("5");
    expect(await readFile(`${path}.2`, "utf8")).toBe("4");
  });

  it("with one file keeps nothing old", async () => {
    await writeFile(path, "1");
    await rotate(path, 1);
    await writeFile(path, "2");
    await rotate(path, 1);
    expect((await readdir(directory)).length).toBeLessThanOrEqual(1);
  });

  it("tells the writer after a rotation, and also when one was cut short, and leaves small logs alone", async () => {
    const small = join(directory, "bbbbbbbbbbbb.log");
    await writeFile(path, "0123456789");
    await writeFile(small, "012345678");
    const reopened: string[] = [];
    const log = (taskId: string) => ({ taskId, path: join(directory, `${taskId}.log`), maxBytes: 10, maxFiles: 2 });
    await rotateAll({
      log: silentLog,
      clock: systemClock,
      logs: () => ["aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc"].map(log),
      reopen: async (taskId) => {
        reopened.push(taskId);
        await Promise.resolve();
      },
    });
    expect(reopened).toEqual(["aaaaaaaaaaaa", "cccccccccccc"]);
    expect((await readdir(directory)).sort()).toEqual(["aaaaaaaaaaaa.log.1", "bbbbbbbbbbbb.log"]);
  });

  it("removes the files of the tasks chosen, and nothing else", async () => {
    for (const name of ["aaaaaaaaaaaa.log", "aaaaaaaaaaaa.log.1", "bbbbbbbbbbbb.log", "readme"]) {
      await writeFile(join(directory, name), "");
    }
    await removeLogs(directory, (taskId) => taskId === "aaaaaaaaaaaa");
    expect((await readdir(directory)).sort()).toEqual(["bbbbbbbbbbbb.log", "readme"]);
  });
});

describe("serveLogs", () => {
  const serve = (follow: AbortSignal, signal: AbortSignal) => {
    const batches: LogBatch[] = [];
    const waiting = new Set<() => void>();
    const call = {
      request: AgentLogsRequest.create({ taskId: "t", follow: true, tail: -1 }),
      write: (batch: LogBatch) => {
        batches.push(batch);
        for (const wake of waiting) wake();
        return true;
      },
    };
    const until = async (count: number) => {
      const lines = () => batches.flatMap(({ chunks }) => chunks).filter(({ mark }) => !mark).length;
      while (lines() < count) await new Promise<void>((resolve) => waiting.add(resolve));
    };
    const stream = call as unknown as Parameters<typeof serveLogs>[2];
    const ended = serveLogs({ path, taskName: "s_web.1", ended: follow }, "n", stream, signal);
    return { batches, until, ended };
  };

  it("sends what one read of the file gives at once, with one name and one position, and a single line at once", async () => {
    const text = "x".repeat(100);
    await writeFile(path, Array.from({ length: 10_000 }, (_, n) => record(n, text)).join(""));
    const over = new AbortController();
    const { batches, until, ended } = serve(over.signal, new AbortController().signal);
    await until(10_000);
    expect(batches.length).toBeLessThan(40);
    for (const { chunks } of batches) {
      expect(chunks.map(({ taskName }) => taskName)).toEqual(["s_web.1", ...chunks.slice(1).map(() => "")]);
      expect(chunks.slice(0, -1).every(({ position }) => position === undefined)).toBe(true);
      expect(chunks.at(-1)?.position).toBeDefined();
      expect(chunks.reduce((sum, { line }) => sum + line.length, 0)).toBeLessThanOrEqual(64 * 1024);
    }
    // Nothing waits for more to come.
    await appendFile(path, record(10_001, "alone"));
    await until(10_001);
    expect(batches.at(-1)?.chunks.map(({ line }) => line.toString())).toEqual(["alone"]);
    const { offset } = batches.at(-1)?.chunks[0]?.position ?? {};
    expect(offset).toBe((await readFile(path)).length);
    over.abort();
    await ended;
  });
});
