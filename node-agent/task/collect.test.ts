import { expect, it } from "vitest";
import { silentLog } from "../../lib/log/log.ts";
import type { Image } from "../images/types.ts";
import { collectOnce, collectUnused } from "./collect.ts";

const hourMs = 3_600_000;

it("removes an image a day after its last use, and none that is in use", async () => {
  let nowMs = 0;
  let used = ["old", "busy"];
  let stored = ["old", "busy", "found"];
  const lastUsedMs = new Map<string, number>();
  const pass = async (atHours: number) => {
    nowMs = atHours * hourMs;
    await collectOnce(
      {
        log: silentLog,
        clock: { nowMs: () => nowMs, monotonicMs: () => nowMs, sleep: async () => await Promise.resolve() },
        images: {
          list: async () => await Promise.resolve(stored.map((reference) => ({ reference }) as Image)),
          collect: async ({ references }) => {
            const before = stored.length;
            stored = stored.filter((reference) => references.includes(reference));
            return await Promise.resolve({ images: before - stored.length, layers: 0 });
          },
        },
        used: () => used,
      },
      lastUsedMs,
    );
    return stored;
  };
  expect(await pass(0)).toEqual(["old", "busy", "found"]);
  expect(await pass(20)).toEqual(["old", "busy", "found"]);
  used = ["busy"];
  // Found at the first pass and never used since.
  expect(await pass(25)).toEqual(["old", "busy"]);
  expect(await pass(43)).toEqual(["old", "busy"]);
  expect(await pass(44)).toEqual(["busy"]);
});

it("keeps only what is in use when the disk is short of room", async () => {
  const kept: (readonly string[])[] = [];
  await collectUnused({
    log: silentLog,
    images: {
      list: async () => await Promise.resolve([]),
      collect: async ({ references }) => {
        kept.push(references);
        return await Promise.resolve({ images: 1, layers: 1 });
      },
    },
    used: () => ["busy", "busy", "other"],
  });
  expect(kept).toEqual([["busy", "other"]]);
});
