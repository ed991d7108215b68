import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { silentLog } from "../../lib/log/log.ts";
import { type DiskDeps, DiskWatch } from "./watch.ts";

const root = process.getuid?.() === 0;
const mebibyte = 2 ** 20;

/** A tmpfs that only a process of its own sees, and this one below that process's root. Gone when it is disposed. */
async function aDisk(options: string) {
  const script = `mount -t tmpfs -o ${options} tmpfs /mnt && echo mounted && exec cat`;
  const holder = spawn("unshare", ["--mount", "sh", "-c", script], { stdio: ["pipe", "pipe", "inherit"] });
  const closed = once(holder, "close");
  const [line] = (await Promise.race([once(holder.stdout, "data"), closed])) as unknown[];
  expect(String(line)).toBe("mounted\n");
  const directory = `/proc/${holder.pid}/root/mnt`;
  return {
    directory,
    fill: async (mebibytes: number) => await writeFile(join(directory, "fill"), Buffer.alloc(mebibytes * mebibyte)),
    async [Symbol.asyncDispose]() {
      holder.stdin.end();
      await closed;
    },
  };
}

function aWatch(directories: readonly string[], over: Partial<DiskDeps> = {}) {
  const time = { nowMs: 0 };
  const clock = {
    nowMs: () => time.nowMs,
    monotonicMs: () => time.nowMs,
    sleep: async () => await Promise.resolve(),
  };
  const watch = new DiskWatch({
    log: silentLog,
    clock,
    directories,
    limits: { lowPercent: 25, lowBytes: 2 ** 40 },
    makeRoom: async () => await Promise.resolve(),
    ...over,
  });
  return { time, watch };
}

describe.runIf(root)("on a real file system", () => {
  it("tells that it is nearly full, in words that stay, until there is room again", async () => {
    await using disk = await aDisk("size=16m");
    const { watch } = aWatch([disk.directory]);
    const said: string[] = [];
    for (const mebibytes of [0, 11, 13, 16, 11, 9]) {
      await disk.fill(mebibytes);
      await watch.look();
      said.push(watch.problem);
    }
    const full = `the disk of ${disk.directory} is nearly full: no new tasks until 6.0 MiB of 16.0 MiB are free`;
    expect(said).toEqual(["", "", full, full, full, ""]);
    expect(watch.measured).toMatchObject([{ bytes: 16 * mebibyte, freeBytes: 7 * mebibyte }]);
  });

  it("tells that inodes are short", async () => {
    await using disk = await aDisk("size=16m,nr_inodes=100");
    const { watch } = aWatch([disk.directory]);
    for (let n = 0; n < 80; n++) await writeFile(join(disk.directory, String(n)), "");
    await watch.look();
    expect(watch.problem).toMatch(/is nearly out of inodes: no new tasks until 38 of 100 are free$/);
  });

  it("measures a file system once, and each of several", async () => {
    await using one = await aDisk("size=16m");
    await using other = await aDisk("size=8m");
    const below = join(one.directory, "images");
    await mkdir(below);
    const { watch } = aWatch([one.directory, below, other.directory]);
    await watch.look();
    expect(watch.measured.map(({ directory }) => directory)).toEqual([one.directory, other.directory]);
  });

  it("makes room before it says anything, and again each minute while it is short", async () => {
    await using disk = await aDisk("size=16m");
    let asked = 0;
    let helps = true;
    const makeRoom = async () => {
      asked++;
      if (helps) await rm(join(disk.directory, "fill"));
      else throw new Error("an image cannot be removed");
    };
    const { watch, time } = aWatch([disk.directory], { makeRoom });
    await disk.fill(14);
    await watch.look();
    expect([asked, watch.problem]).toEqual([1, ""]);
    helps = false;
    await disk.fill(14);
    time.nowMs = 59_999;
    await watch.look();
    expect(asked).toBe(1);
    expect(watch.problem).not.toBe("");
    time.nowMs = 60_000;
    await watch.look();
    expect(asked).toBe(2);
    expect(watch.problem).not.toBe("");
    helps = true;
    time.nowMs = 120_000;
    await watch.look();
    expect([asked, watch.problem]).toEqual([3, ""]);
  });

  it("keeps to what it found last when it cannot look", async () => {
    await using disk = await aDisk("size=16m");
    const directory = join(disk.directory, "there");
    await mkdir(directory);
    const { watch } = aWatch([directory]);
    await disk.fill(14);
    await watch.look();
    await rm(directory, { recursive: true });
    await watch.look();
    expect(watch.problem).not.toBe("");
  });
});
