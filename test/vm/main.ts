/**
 * `npm run test:vm -- [v1|hybrid|v2 ...] [FILTER ...]`: boots a Debian machine in an emulator, once for each version of cgroups (v2 when
 * none is named), and runs tests in it: those whose files match a filter, or else those that README.md lists. Exits with 0 when
 * some ran and all of them passed.
 */
import { spawn } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fetchExample } from "../../examples/images.ts";
import { root } from "../cluster/command.ts";
import type { Order, Summary } from "./guest.ts";
import { ensureEmulator, ensureImage, type Image, makeDisk, type Tool } from "./image.ts";

// What systemd of Debian 12 makes of /sys/fs/cgroup by these words on the kernel's command line.
const modes: Readonly<Record<string, string>> = {
  v2: "systemd.unified_cgroup_hierarchy=1",
  hybrid: "systemd.unified_cgroup_hierarchy=0",
  v1: "systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1",
};
// test/system/limits takes 7 minutes of one core, and as much longer as others have that core.
const mostMinutes = 90;
const cache = join(root, "dist/vm");

// What checks code is not needed to run it, and is a third of what npm installs.
const unneeded: ReadonlySet<string> = new Set(
  "@biomejs @oxlint @oxlint-tsgolint @typescript dprint-node oxlint-tsgolint typescript".split(" "),
);

/** Removes what runs that were killed have left. */
function sweep(): void {
  for (const name of readdirSync(cache)) {
    const pid = /^run-(\d+)-/.exec(name)?.[1];
    if (pid !== undefined && !existsSync(`/proc/${pid}`)) rmSync(join(cache, name), { recursive: true, force: true });
  }
}

/** A disk with the checkout as it is now, what was built of it, and what to run. */
function makeCheckoutDisk(folder: string, order: Order): string {
  const copy = join(folder, "checkout");
  const copyEach = (from: string, except: ReadonlySet<string>) => {
    mkdirSync(join(copy, from), { recursive: true });
    for (const name of readdirSync(join(root, from))) {
      if (except.has(name)) continue;
      cpSync(join(root, from, name), join(copy, from, name), { recursive: true, verbatimSymlinks: true });
    }
  };
  copyEach("", new Set([".git", "dist", "node_modules"]));
  copyEach("dist", new Set(["vm"]));
  copyEach("node_modules", unneeded);
  writeFileSync(join(copy, "order.json"), JSON.stringify(order));
  const disk = join(folder, "checkout.ext4");
  makeDisk(disk, "embassy", copy, "4G");
  rmSync(copy, { recursive: true });
  return disk;
}

/** Boots, passes on what the machine says, and returns its summary when it has turned itself off. */
async function boot(
  emulator: Tool,
  image: Image,
  folder: string,
  order: Order,
  signal: AbortSignal,
): Promise<Summary | undefined> {
  const checkout = makeCheckoutDisk(folder, order);
  const consoleLog = join(folder, "console.log");
  // The disks stay as they are: what is written goes to files that are gone when the emulator is.
  const disk = (file: string) => `file=${file},format=raw,if=virtio,cache=unsafe,snapshot=on`;
  const command = `root=/dev/vda rw console=ttyS0 quiet systemd.show_status=0 net.ifnames=0 ${modes[order.mode]}`;
  const words = [
    "--pdeathsig KILL --",
    [emulator.command, ...emulator.args],
    // The machine's clock goes by its instructions, one a nanosecond, while it computes: to itself it is as fast as a real one of
    // some years ago, however slow the emulator is and whatever else runs here, and no deadline passes before its time.
    "-accel tcg,thread=single -icount shift=0 -cpu max -smp 1 -m 4096",
    "-machine q35 -nodefaults -display none -nic none -no-reboot",
    ["-kernel", image.kernel, "-initrd", image.initrd, "-append", command],
    ["-drive", disk(image.disk), "-drive", disk(checkout)],
    ["-serial", `file:${consoleLog}`],
    "-device virtio-rng-pci -device virtio-serial-pci",
    "-chardev stdio,id=embassy,signal=off -device virtserialport,chardev=embassy,name=embassy",
  ];
  const args = words.flatMap((part) => (typeof part === "string" ? part.split(" ") : part));
  // It ends with this process, however that ends. Its port is closed when its input is, so that stays open.
  const machine = spawn("setpriv", args, {
    stdio: ["pipe", "pipe", "inherit"],
    env: { ...emulator.environment, TMPDIR: folder },
  });
  const stop = () => machine.kill("SIGKILL");
  signal.addEventListener("abort", stop, { once: true });
  const overdue = setTimeout(() => {
    console.error(`the machine is not done after ${mostMinutes} minutes`);
    stop();
  }, mostMinutes * 60_000);
  const ended = new Promise<void>((resolve, reject) => {
    machine.on("error", reject);
    machine.on("close", () => resolve());
  });
  ended.catch(() => undefined);
  let summary: Summary | undefined;
  try {
    for await (const line of createInterface({ input: machine.stdout })) {
      if (line.startsWith("summary: ")) summary = JSON.parse(line.slice(9)) as Summary;
      else console.log(`    ${line}`);
    }
    await ended;
  } finally {
    clearTimeout(overdue);
    stop();
  }
  if (summary === undefined && !signal.aborted) {
    const lines = existsSync(consoleLog) ? readFileSync(consoleLog, "utf8").trimEnd().split("\n").slice(-30) : [];
    console.error(`the machine ended without a summary; the end of its console:\n${lines.join("\n")}`);
  }
  return summary;
}

async function main(words: readonly string[], signal: AbortSignal): Promise<boolean> {
  if (process.arch !== "x64") {
    console.error("The machine is an amd64 one with this machine's Node: run this on amd64.");
    return false;
  }
  const wanted = words.filter((word) => modes[word] !== undefined);
  const tests = words.filter((word) => modes[word] === undefined);
  mkdirSync(cache, { recursive: true });
  sweep();
  const emulator = ensureEmulator(cache);
  const image = ensureImage((process.env["EMBASSY_VM_PACKAGES"] ?? "").split(" ").filter(Boolean), cache);
  fetchExample("counter", (text) => console.log(`==> ${text}`));
  const lines: string[] = [];
  let good = true;
  for (const mode of wanted.length === 0 ? ["v2"] : wanted) {
    if (signal.aborted) return false;
    const folder = mkdtempSync(join(cache, `run-${process.pid}-`));
    const started = Date.now();
    try {
      console.log(`==> booting with cgroup ${mode}`);
      const summary = await boot(emulator, image, folder, { mode, tests }, signal);
      const seconds = Math.round((Date.now() - started) / 1000);
      const { passed = 0, failed = 0, skipped = 0 } = summary ?? {};
      if (summary === undefined || failed > 0 || passed === 0) good = false;
      lines.push(`cgroup ${mode}: ${passed} passed, ${failed} failed, ${skipped} skipped, after ${seconds} s`);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }
  console.log(`\n${lines.join("\n")}`);
  return good;
}

const stopped = new AbortController();
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.once(signal, () => stopped.abort());
process.exitCode = (await main(process.argv.slice(2), stopped.signal)) ? 0 : 1;
