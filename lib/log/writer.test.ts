import { execFileSync } from "node:child_process";
import { closeSync, ftruncateSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { LogWriter } from "./writer.ts";

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "embassy-log-"));
  execFileSync("mount", ["-t", "tmpfs", "-o", "size=64k", "tmpfs", directory]);
});
afterEach(() => {
  execFileSync("umount", [directory]);
  rmSync(directory, { recursive: true });
});

it("goes on over a full disk, writes what it kept when there is room, and says how much is lost", () => {
  const path = join(directory, "log");
  const fd = openSync(path, "a");
  const writer = new LogWriter(fd);
  const line = (n: number) => `${String(n).padStart(999, "0")}\n`;
  const count = 1_000;
  for (let n = 0; n < count; n++) writer.write(line(n));
  const first = readFileSync(path, "utf8");
  expect(first).toHaveLength(64 * 1024);
  // Room for all that is kept, in steps.
  let text = first;
  for (let step = 0; step < 10 && !text.includes("lost"); step++) {
    ftruncateSync(fd);
    writer.flush();
    text += readFileSync(path, "utf8");
  }
  const lines = text.trimEnd().split("\n");
  const lost: { lines: number } = JSON.parse(lines.at(-1) ?? "");
  expect(lines.slice(0, -1)).toEqual(lines.slice(0, -1).map((_, n) => line(n).trimEnd()));
  expect(lines.length - 1 + lost.lines).toBe(count);
  expect(lost.lines).toBeGreaterThan(0);
  closeSync(fd);
});
