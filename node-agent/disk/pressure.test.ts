import { describe, expect, it } from "vitest";
import { type FileSystem, planShortages } from "./pressure.ts";

const gib = 2 ** 30;
const limits = { lowPercent: 10, lowBytes: 5 * gib };
const disk = (over: Partial<FileSystem> = {}): FileSystem => ({
  directory: "/d",
  bytes: 100 * gib,
  freeBytes: 50 * gib,
  inodes: 1_000_000,
  freeInodes: 900_000,
  ...over,
});

describe("a disk is nearly full", () => {
  const large = "the disk of /d is nearly full: no new tasks until 7.5 GiB of 100.0 GiB are free";
  const small = "the disk of /d is nearly full: no new tasks until 1.5 GiB of 10.0 GiB are free";
  const inodes = "the disk of /d is nearly out of inodes: no new tasks until 150000 of 1000000 are free";

  it.each<readonly [string, Partial<FileSystem>, string[]]>([
    ["not with half of it free", {}, []],
    ["not at the limit", { freeBytes: 5 * gib }, []],
    ["below the bytes, when it is large", { freeBytes: 5 * gib - 1 }, [large]],
    ["below the share, when it is small", { bytes: 10 * gib, freeBytes: gib - 1 }, [small]],
    ["not above the share, when it is small", { bytes: 10 * gib, freeBytes: gib }, []],
    ["with nothing free", { freeBytes: 0, freeInodes: 0 }, [large, inodes]],
    ["below the share of inodes", { freeInodes: 99_999 }, [inodes]],
    ["not for its inodes when it does not count them", { inodes: 0, freeInodes: 0 }, []],
    ["not for its inodes when there are half a million", { inodes: 10_000_000, freeInodes: 500_000 }, []],
  ])("%s", (_, over, expected) => {
    expect(planShortages([disk(over)], limits, [])).toEqual(expected);
  });

  it("until half as much again is free, in the same words, each disk for itself", () => {
    const other = disk({ directory: "/e", freeBytes: 6 * gib });
    const now = (freeGib: number, before: readonly string[]) =>
      planShortages([disk({ freeBytes: freeGib * gib }), other], limits, before);
    let before: readonly string[] = [];
    const said = [6, 4.9, 0, 6, 7.4, 7.5, 6].map((free) => {
      before = now(free, before);
      return before;
    });
    expect(said).toEqual([[], [large], [large], [large], [large], [], []]);
  });

  it.each([[{ lowPercent: 0, lowBytes: 5 * gib }], [{ lowPercent: 10, lowBytes: 0 }]])("never with %j", (off) => {
    expect(planShortages([disk({ freeBytes: 0, freeInodes: 0 })], off, [])).toEqual([]);
  });
});
