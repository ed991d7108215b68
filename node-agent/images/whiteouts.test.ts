import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Entry, tarOf } from "../../test/images/tar.ts";
import { type LayerNotes, WhiteoutFilter } from "./whiteouts.ts";

/** The filter's output for a stream cut at these sizes, again and again. */
function filter(tar: Buffer, cuts: readonly number[] = [1 << 20]): { tar: Buffer; notes: LayerNotes } {
  const whiteouts = new WhiteoutFilter();
  const parts: Buffer[] = [];
  for (let offset = 0, turn = 0; offset < tar.length; turn += 1) {
    const size = cuts[turn % cuts.length] ?? 1;
    for (const part of whiteouts.push(tar.subarray(offset, offset + size))) parts.push(Buffer.from(part));
    offset += size;
  }
  const end = whiteouts.end();
  for (;;) {
    const next = end.next();
    if (next.done === true) return { tar: Buffer.concat(parts), notes: next.value };
    parts.push(next.value);
  }
}

/** What GNU tar reads in an archive: type and permissions, size or device, name. */
function listing(tar: Buffer): string[] {
  const text = execFileSync("tar", ["--numeric-owner", "--full-time", "-tvf", "-"], { input: tar, encoding: "utf8" });
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => line.replace(/^(\S+)\s+\S+\s+(\S+)\s+\S+ \S+\s+/, "$1 $2 "));
}

const some: readonly Entry[] = [
  { name: "a/", type: "directory", mode: 0o750 },
  { name: "a/file", content: "hello" },
  { name: `a/${"long".repeat(40)}`, content: "x".repeat(1000) },
];

describe("WhiteoutFilter", () => {
  it("hands on everything that is no whiteout byte by byte, however the stream is cut", () => {
    const tar = tarOf(some);
    const body = tar.subarray(0, tar.lastIndexOf("x") + 1);
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 2000 }), { minLength: 1, maxLength: 5 }), (cuts) => {
        const out = filter(tar, cuts).tar;
        return out.subarray(0, body.length).equals(body) && listing(out).join() === listing(tar).join();
      }),
      { seed: 1, numRuns: 50 },
    );
  });

  it("turns .wh.name into a 0:0 character device", () => {
    const { tar } = filter(tarOf([...some, { name: "a/.wh.gone" }, { name: ".wh.top" }]));
    expect(listing(tar).slice(3)).toEqual(["c--------- 0,0 a/gone", "c--------- 0,0 top"]);
  });

  it("hides names longer than a header holds", () => {
    const long = "n".repeat(180);
    expect(listing(filter(tarOf([{ name: `a/.wh.${long}` }])).tar)).toEqual([`c--------- 0,0 a/${long}`]);
  });

  it("marks an opaque directory by an entry of its own at the end, with the directory's mode", () => {
    const { tar, notes } = filter(tarOf([...some, { name: "a/.wh..wh..opq" }, { name: "b/x", content: "1" }]));
    expect(notes.opaque).toEqual(["a"]);
    expect(tar.includes("SCHILY.xattr.trusted.overlay.opaque=y\n")).toBe(true);
    expect(listing(tar).at(-1)).toBe("drwxr-x--- 0 a/");
  });

  it("notes directories that only their content names, parents first", () => {
    const { notes } = filter(
      tarOf([
        { name: "x/y/z/file", content: "1" },
        { name: "./x/y/", type: "directory" },
      ]),
    );
    expect(notes.implicit).toEqual(["x", "x/y/z"]);
  });

  it("keeps a directory hidden that is hidden and made again", () => {
    const again = filter(tarOf([{ name: ".wh.d" }, { name: "d/", type: "directory" }]));
    const before = filter(tarOf([{ name: "d/", type: "directory" }, { name: ".wh.d" }]));
    expect(again.notes.opaque).toEqual(["d"]);
    expect(before.notes.opaque).toEqual(["d"]);
    expect(listing(before.tar)).toEqual(["drwxr-xr-x 0 d/", "drwxr-xr-x 0 d/"]);
  });

  it("drops the bookkeeping of aufs", () => {
    expect(listing(filter(tarOf([{ name: ".wh..wh.plnk/1", content: "1" }, { name: ".wh..wh.aufs" }])).tar)).toEqual(
      [],
    );
  });

  it("refuses names that lead out of the image", () => {
    expect(() => filter(tarOf([{ name: "a/../../etc/passwd", content: "1" }]))).toThrow(/leads out of the image/);
    expect(() => filter(tarOf([{ name: "a/.wh..." }]))).toThrow(/hides nothing/);
  });

  it("refuses what is no tar archive, and one that is cut", () => {
    expect(() => filter(Buffer.from("no archive at all".repeat(100)))).toThrow(/no tar archive/);
    const damaged = tarOf(some);
    damaged.write("b", 0);
    expect(() => filter(damaged)).toThrow(/checksum is wrong/);
    const tar = tarOf(some);
    expect(() => filter(tar.subarray(0, 512 * 3 + 100))).toThrow(/ends within an entry/);
  });

  it("takes GNU tar's own archives, in each of its formats", () => {
    const directory = mkdtempSync(join(tmpdir(), "embassy-whiteouts-"));
    try {
      execFileSync("sh", [
        "-c",
        `cd ${directory}; mkdir -p a/b; echo 1 > a/b/.wh.x; truncate -s 1M a/hole; echo 2 >> a/hole; echo 3 > a/${"n".repeat(150)}`,
      ]);
      for (const format of ["gnu", "posix", "ustar"]) {
        const names = format === "ustar" ? ["a/b"] : ["a"];
        const sparse = format === "ustar" ? [] : ["--sparse"];
        const input = execFileSync("tar", [`--format=${format}`, ...sparse, "-C", directory, "-cf", "-", ...names]);
        const list = listing(filter(input, [700]).tar);
        expect(list, format).toContain("c--------- 0,0 a/b/x");
        if (format !== "ustar") expect(list).toHaveLength(5);
      }
    } finally {
      rmSync(directory, { recursive: true });
    }
  });
});
