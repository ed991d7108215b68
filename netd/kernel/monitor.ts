import { type ChildProcessByStdio, spawn } from "node:child_process";
import type { Readable } from "node:stream";
import type { Log } from "../../lib/log/log.ts";
import { isHostDevice, isOverlayDevice, routeProtocol } from "./observe.ts";
import { gatewayAddress, tableName } from "./ruleset.ts";

export interface MonitorDeps {
  readonly log: Log;
  /** Something of ours was changed, and not by us. */
  readonly onDrift: () => void;
  /** Is the process, by its number in nftables' reports, one of ours? */
  readonly isOwnProcess: (pid: number) => boolean;
  /** Is the thing still wanted? What we delete ourselves is not. */
  readonly isWanted: (kind: "link" | "address" | "route" | "neighbour" | "fdb", key: string) => boolean;
}

const restartMs = 1_000;

/**
 * Watches what others do to the kernel's network state: `ip monitor`, `bridge monitor` and `nft monitor`. Our own changes
 * come by as well: nft names the process that made each; of ip's and bridge's events only deletions of what is still
 * wanted count. A change that these rules miss is found by the next full comparison.
 */
export class KernelMonitor implements AsyncDisposable {
  readonly #deps: MonitorDeps;
  readonly #children = new Set<ChildProcessByStdio<null, Readable, Readable>>();
  readonly #timers = new Set<NodeJS.Timeout>();
  #stopped = false;

  constructor(deps: MonitorDeps) {
    this.#deps = deps;
  }

  start(): void {
    this.#watch("ip", ["-4", "-N", "monitor", "link", "address", "route", "neigh", "rule"], (line) => this.#ip(line));
    // bridge has no -N; what it prints of an fdb entry is numbers anyway.
    this.#watch("bridge", ["monitor", "fdb"], (line) => this.#bridge(line));
    this.#watchNft();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopped = true;
    for (const timer of this.#timers) clearTimeout(timer);
    const ended = [...this.#children].map((child) => new Promise((resolve) => child.once("close", resolve)));
    for (const child of this.#children) child.kill("SIGTERM");
    await Promise.all(ended);
  }

  #watch(program: string, args: readonly string[], onLine: (line: string) => void): void {
    if (this.#stopped) return;
    const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, LC_ALL: "C" } });
    this.#children.add(child);
    let rest = "";
    let words = "";
    child.stderr.setEncoding("utf8").on("data", (chunk: string) => {
      words = (words + chunk).slice(-500);
    });
    child.stdout.setEncoding("utf8").on("data", (chunk: string) => {
      const lines = (rest + chunk).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) onLine(line);
    });
    child.on("error", () => {});
    child.once("close", (code) => {
      this.#children.delete(child);
      if (this.#stopped) return;
      // Its receive buffer overflows when much happens at once: what was missed is found by comparing.
      this.#deps.log.warn("monitor ended", { program, code, words: words.trim(), restartMs });
      const timer = setTimeout(() => {
        this.#timers.delete(timer);
        this.#watch(program, args, onLine);
        this.#deps.onDrift();
      }, restartMs);
      this.#timers.add(timer);
    });
  }

  #ip(line: string): void {
    const deleted = /^Deleted (.*)$/.exec(line)?.[1];
    if (deleted === undefined) {
      // A device of ours that was set down.
      const down = /^\d+: (\S+?)(?:@\S+)?: <([^>]*)>/.exec(line);
      const name = down?.[1] ?? "";
      if (
        down !== null &&
        (isOverlayDevice(name) || isHostDevice(name)) &&
        !(down[2] ?? "").split(",").includes("UP")
      ) {
        if (this.#deps.isWanted("link", name)) this.#deps.onDrift();
      }
      return;
    }
    const words = deleted.trim().split(/\s+/);
    const after = (word: string) => words[words.indexOf(word) + 1] ?? "";
    const device = words.includes("dev") ? after("dev") : "";
    const link = /^\d+: (\S+?)(?:@\S+)?: </.exec(deleted)?.[1];
    if (link !== undefined) {
      if (this.#deps.isWanted("link", link)) this.#deps.onDrift();
      return;
    }
    const inet = /^\d+: (\S+)\s+inet (\S+)/.exec(deleted);
    if (inet !== null) {
      const [, name = "", address = ""] = inet;
      const full = address.includes("/") ? address : `${address}/32`;
      const ours = isOverlayDevice(name) || address.startsWith(gatewayAddress);
      if (ours && this.#deps.isWanted("address", `${full} ${name}`)) this.#deps.onDrift();
      return;
    }
    if (words.includes("proto") && after("proto") === String(routeProtocol)) {
      const destination = (/^(?:\d+|blackhole) (\S+)/.exec(deleted)?.[1] ?? words[0] ?? "").trim();
      const plain = words[0] === "blackhole" || /^\d+$/.test(words[0] ?? "") ? destination : (words[0] ?? "");
      const full = plain === "default" || plain.includes("/") ? plain : `${plain}/32`;
      const table = words.includes("table") ? after("table") : "main";
      if (this.#deps.isWanted("route", `${table} ${full}`)) this.#deps.onDrift();
      return;
    }
    if (/^\d+:\s/.test(deleted) && deleted.includes("fwmark")) {
      this.#deps.onDrift();
      return;
    }
    // A neighbour, which has lost its hardware address by then: "10.96.0.2 dev emb4097 FAILED".
    if ((isOverlayDevice(device) || isHostDevice(device)) && words[1] === "dev" && !words.includes("proto")) {
      if (this.#deps.isWanted("neighbour", `${words[0] ?? ""} ${device}`)) this.#deps.onDrift();
    }
  }

  #bridge(line: string): void {
    const match = /^Deleted (\S+) dev (\S+) /.exec(line);
    if (match === null) return;
    const [, mac = "", device = ""] = match;
    if (isOverlayDevice(device) && this.#deps.isWanted("fdb", `${mac} ${device}`)) this.#deps.onDrift();
  }

  #watchNft(): void {
    let ours = false;
    // Lines of one transaction come before the line that says who made it.
    this.#watch("nft", ["monitor"], (line) => {
      const made = /^# new generation \d+ by process (\d+)/.exec(line);
      if (made === null) {
        if (line.includes(` inet ${tableName}`)) ours = true;
        return;
      }
      const touched = ours;
      ours = false;
      if (touched && !this.#deps.isOwnProcess(Number(made[1]))) this.#deps.onDrift();
    });
  }
}
