import { spawn } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterAll, afterEach, describe, expect, it, vi } from "vitest";
import { Spawner } from "./spawner.ts";

const root = process.getuid?.() === 0;
if (!root) console.warn("process/spawner.test.ts skips mounts: they need root");

let spawner = new Spawner("test: spawner");
const folder = mkdtempSync(join(tmpdir(), "embassy-spawner-"));

afterEach(async () => {
  await spawner[Symbol.asyncDispose]();
  spawner = new Spawner("test: spawner");
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function isAlive(pid: number): boolean {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}

describe("a spawner", () => {
  it("hands over arguments as they are, whatever is in them", async () => {
    const args = ["a b", "", "'\"$(exit 3)`x`\\", "line\nline", "ä€", "7\n"];
    const { stdout } = await spawner.run("printf", ["%s|", ...args]);
    expect(stdout).toBe(`${args.join("|")}|`);
    await expect(spawner.run("echo", ["a\0b"])).rejects.toMatchObject({ code: "invalid" });
  });

  it("gives exit code, both outputs, input, directory and environment", async () => {
    const script = "cat; pwd; echo $A $HOME; echo err >&2; exit 7";
    const result = await spawner.run("sh", ["-c", script], {
      cwd: folder,
      input: "in\n",
      env: { PATH: process.env["PATH"] ?? "", A: "1 2" },
    });
    expect(result).toEqual({ code: 7, stdout: `in\n${folder}\n1 2\n`, stderr: "err\n" });
    expect(await spawner.run("sh", ["-c", "kill -9 $$"])).toMatchObject({ code: -1 });
    // The next has none, whatever the one before was given.
    expect(await spawner.run("readlink", ["/proc/self/fd/0"])).toMatchObject({ stdout: "/dev/null\n" });
    const { stdout } = await spawner.run("sh", ["-c", "head -c 300000 /dev/zero | tr '\\0' x"]);
    expect(stdout).toBe("x".repeat(300_000));
  });

  it("runs programs side by side and tells which answer is whose", async () => {
    const fifo = join(folder, "turn");
    await spawner.run("mkfifo", [fifo]);
    const answers = await Promise.all([
      spawner.run("sh", ["-c", 'read line < "$0"; echo "$line"', fifo]),
      spawner.run("sh", ["-c", 'echo told > "$0"; echo second', fifo]),
    ]);
    expect(answers.map(({ stdout }) => stdout)).toEqual(["told\n", "second\n"]);
  });

  it("says which program or directory is not there, and goes on", async () => {
    await expect(spawner.run("/no/such", [])).rejects.toThrow("cannot run /no/such: /no/such: No such file");
    await expect(spawner.run("true", [], { cwd: "/no/such" })).rejects.toThrow("/no/such: No such file");
    await expect(spawner.daemon("/no/such", [])).rejects.toThrow("cannot run /no/such");
    expect(await spawner.run("true", [])).toMatchObject({ code: 0 });
  });

  it("leaves a program without descriptors that are not its own", async () => {
    const { stdout } = await spawner.run("sh", ["-c", "ls /proc/$$/fd"]);
    expect(stdout.split("\n").filter((name) => ["3", "4", "5", "6", "7", "8"].includes(name))).toEqual([]);
  });

  it("waits for a daemon's line and leaves it running, longer than itself", async () => {
    const { code, stdout } = await spawner.daemon("sh", ["-c", "echo $$ >&3; exec sleep 1000"]);
    expect(code).toBe(0);
    const pid = Number(stdout);
    await spawner[Symbol.asyncDispose]();
    expect(isAlive(pid)).toBe(true);
    process.kill(pid, "SIGKILL");
    await expect(spawner.run("true", [])).rejects.toMatchObject({ code: "unavailable" });
  });

  it("gives a daemon's exit code and words when it ends without a line", async () => {
    expect(await spawner.daemon("sh", ["-c", "echo no >&2; exit 5"])).toMatchObject({ code: 5, stderr: "no\n" });
  });

  it("killed, fails what it was at with unavailable, leaves it running, and starts again", async () => {
    const slept = spawner.run("sleep", ["1000.125"]);
    await spawner.run("true", []);
    process.kill(spawner.pid ?? 0, "SIGKILL");
    await expect(slept).rejects.toMatchObject({ code: "unavailable", message: expect.stringContaining("SIGKILL") });
    const left = readdirSync("/proc").find((name) => {
      if (!/^\d+$/.test(name)) return false;
      try {
        return readFileSync(`/proc/${name}/cmdline`, "utf8") === "sleep\x001000.125\0";
      } catch {
        return false;
      }
    });
    process.kill(Number(left), "SIGKILL");
    expect(await spawner.run("echo", ["again"])).toMatchObject({ stdout: "again\n" });
  });

  it("ends with its maker, however that ends", async () => {
    const module = join(import.meta.dirname, "spawner.ts");
    const script = `import { Spawner } from ${JSON.stringify(module)};
      const spawner = new Spawner("test: of the killed");
      const { stdout } = await spawner.daemon("sh", ["-c", "echo $$ >&3; exec sleep 1000"]);
      console.log(spawner.pid, stdout);`;
    const maker = spawn(process.execPath, ["--input-type=module-typescript", "-e", script], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const gone = new Promise((resolve) => maker.once("exit", resolve));
    let line = "";
    for await (line of createInterface({ input: maker.stdout })) break;
    const [helper = 0, daemon = 0] = line.split(" ").map(Number);
    expect([isAlive(helper), isAlive(daemon)]).toEqual([true, true]);
    maker.kill("SIGKILL");
    await gone;
    await vi.waitFor(() => expect(isAlive(helper)).toBe(false), 10_000);
    expect(isAlive(daemon)).toBe(true);
    process.kill(daemon, "SIGKILL");
  });

  it.runIf(root)("mounts, unmounts, and says what the kernel says", async () => {
    const target = join(folder, "mnt");
    await spawner.run("mkdir", [target]);
    const before = statSync(target).dev;
    await spawner.mount({ cwd: folder, source: "test", target: "mnt", type: "tmpfs", options: "mode=700" });
    expect(statSync(target).dev).not.toBe(before);
    const hidden = await spawner.run("sh", ["-c", 'stat -c %a "$0"', target], { hide: target });
    expect([hidden.stdout, statSync(target).mode & 0o777]).toEqual(["1777\n", 0o700]);
    await spawner.unmount(target);
    expect(statSync(target).dev).toBe(before);
    await expect(spawner.unmount(target)).rejects.toThrow(`umount ${target}: Invalid argument`);
    const nowhere = { source: "test", target: join(folder, "nowhere"), type: "tmpfs", options: "" };
    await expect(spawner.mount(nowhere)).rejects.toThrow("nowhere: No such file or directory");
  });

  it.runIf(root)("makes a network namespace with its settings, that a program can be run in", async () => {
    const pin = join(folder, "net");
    await spawner.run("touch", [pin]);
    await spawner.network(pin, { "net/ipv4/ip_unprivileged_port_start": "81", "net/no/such": "1" });
    const script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ip -o link";
    const { stdout } = await spawner.run("sh", ["-c", script], { netns: pin });
    expect(stdout).toMatch(/^81\n1: lo: <LOOPBACK,UP[^\n]*\n$/);
    await spawner.unmount(pin);
    await expect(spawner.network(join(folder, "nowhere"), {})).rejects.toThrow("nowhere: No such file or directory");
    await expect(spawner.run("true", [], { netns: pin })).rejects.toThrow("Invalid argument");
  });
});
