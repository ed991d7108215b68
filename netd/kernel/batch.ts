import { type ChildProcessByStdio, spawn } from "node:child_process";
import type { Readable, Writable } from "node:stream";
import { ClusterError } from "../../lib/errors/errors.ts";

/** A command that the kernel, or the tool, refused. */
export interface CommandFailure {
  readonly command: string;
  readonly message: string;
}

/** Which tool, and how its errors are told apart. */
export interface BatchTool {
  readonly program: string;
  readonly args: readonly string[];
  /** A command that changes nothing and fails with a text that holds the tag. */
  readonly marker: (tag: string) => string;
  /** The 1-based number of the input line that this line of stderr closes the account of, if it does. */
  readonly closes?: (stderrLine: string) => number | undefined;
}

/*
 * These tools say nothing on success. After each batch goes a command that must fail: its error, on the same stream as
 * those of the batch and after them, says that the batch is done. It also flushes: stdout of a pipe would be buffered.
 */
export const ipTool: BatchTool = {
  program: "ip",
  args: ["-force", "-batch", "-"],
  marker: (tag) => `link show dev ${tag}`,
  closes: (line) => numberAfter("Command failed -:", line),
};
export const bridgeTool: BatchTool = {
  program: "bridge",
  args: ["-force", "-batch", "-"],
  marker: (tag) => `fdb show dev ${tag}`,
  closes: (line) => numberAfter("Command failed -:", line),
};
/** One line is one atomic transaction. */
export const nftTool: BatchTool = { program: "nft", args: ["-i"], marker: (tag) => `list table inet ${tag}` };

function numberAfter(prefix: string, line: string): number | undefined {
  return line.startsWith(prefix) ? Number(line.slice(prefix.length)) : undefined;
}

type Child = ChildProcessByStdio<Writable, Readable, Readable>;

interface Pending {
  readonly commands: readonly string[];
  /** Input line of the first command. */
  readonly firstLine: number;
  readonly tag: string;
  readonly failures: CommandFailure[];
  readonly done: PromiseWithResolvers<readonly CommandFailure[]>;
}

/**
 * A long-lived `ip -batch`, `bridge -batch` or `nft -i`: a change costs well under a millisecond instead of a process.
 * A child that dies fails what it was doing with `unavailable` (how much of it was done is not known) and is started
 * again for the next batch.
 */
export class BatchChild implements AsyncDisposable {
  readonly #tool: BatchTool;
  #child: Child | undefined;
  #line = 0;
  #serial = 0;
  #pending: Pending[] = [];
  #text: string[] = [];
  #rest = "";
  #closed = false;
  #ending: Promise<void> | undefined;

  constructor(tool: BatchTool) {
    this.#tool = tool;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /**
   * Runs the commands in order, each on one line, and goes on past failures. Resolves, when all have been run, to those
   * that failed, in order.
   */
  async run(commands: readonly string[]): Promise<readonly CommandFailure[]> {
    if (commands.length === 0) return [];
    while (this.#ending !== undefined) await this.#ending;
    if (this.#closed) throw this.#died("is stopped");
    const child = this.#child ?? this.#start();
    const tag = `nomark${this.#serial++}`;
    const pending: Pending = {
      commands,
      firstLine: this.#line + 1,
      tag,
      failures: [],
      done: Promise.withResolvers(),
    };
    this.#line += commands.length + 1;
    this.#pending.push(pending);
    child.stdin.write(`${commands.join("\n")}\n${this.#tool.marker(tag)}\n`);
    return await pending.done.promise;
  }

  /** Ends the child; the next batch has a new one, which remembers nothing of the devices that there were. */
  async restart(): Promise<void> {
    this.#ending ??= this.#end().finally(() => {
      this.#ending = undefined;
    });
    await this.#ending;
  }

  async #end(): Promise<void> {
    await Promise.allSettled(this.#pending.map(({ done }) => done.promise));
    const child = this.#child;
    if (child === undefined) return;
    const exited = new Promise((resolve) => child.once("close", resolve));
    child.stdin.end();
    await exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    await this.restart();
  }

  #start(): Child {
    const child = spawn(this.#tool.program, this.#tool.args, { stdio: ["pipe", "pipe", "pipe"] });
    this.#child = child;
    this.#line = 0;
    this.#text = [];
    this.#rest = "";
    child.stdout.resume();
    child.stderr.setEncoding("utf8").on("data", (chunk: string) => this.#read(chunk));
    // The pipe breaks when the child dies; "close" tells the story.
    child.stdin.on("error", () => {});
    child.once("error", (error) => this.#lose(child, error.message));
    child.once("close", (code, signal) => this.#lose(child, `ended with ${signal ?? code}`));
    return child;
  }

  #died(why: string): ClusterError {
    return new ClusterError(`${this.#tool.program} ${this.#tool.args.join(" ")}: ${why}`, { code: "unavailable" });
  }

  #lose(child: Child, why: string): void {
    if (this.#child !== child) return;
    this.#child = undefined;
    const pending = this.#pending;
    this.#pending = [];
    const said = [...this.#text, this.#rest].join(" ").trim();
    for (const { done } of pending) done.reject(this.#died(said === "" ? why : `${why}: ${said}`));
  }

  #read(chunk: string): void {
    const lines = (this.#rest + chunk).split("\n");
    this.#rest = lines.pop() ?? "";
    for (const line of lines) this.#readLine(line);
  }

  #readLine(line: string): void {
    const pending = this.#pending[0];
    if (pending === undefined) return;
    const closed = this.#tool.closes?.(line);
    if (closed !== undefined) {
      const message = this.#text.splice(0).join(" ").trim();
      const command = pending.commands[closed - pending.firstLine];
      if (command !== undefined) pending.failures.push({ command, message });
      else this.#finish(pending);
      return;
    }
    if (this.#tool.closes === undefined && line.includes(this.#tool.marker(pending.tag))) {
      // nft repeats the line that it complains about; whatever came before the marker's complaint is about the batch.
      const text = this.#text.splice(0);
      text.pop();
      if (text.length > 0) pending.failures.push(...nftFailures(text, pending.commands));
      this.#finish(pending);
      return;
    }
    // The carets under the marker come after it, when the batch may have been closed.
    if (this.#text.length === 0 && /^[ ^]*$/.test(line)) return;
    this.#text.push(line);
  }

  #finish(pending: Pending): void {
    this.#pending.shift();
    pending.done.resolve(pending.failures);
  }
}

/** Pairs each complaint with the command that it repeats on the line after; the line of carets is left out. */
function nftFailures(text: readonly string[], commands: readonly string[]): CommandFailure[] {
  const failures: CommandFailure[] = [];
  for (const [n, line] of text.entries()) {
    if (!line.startsWith("Error:")) continue;
    const repeated = text[n + 1] ?? "";
    const command =
      commands.find((one) => one === repeated || one.startsWith(repeated.slice(0, 200))) ?? commands[0] ?? "";
    const marks = text[n + 2];
    const at = marks === undefined ? -1 : marks.indexOf("^");
    const word = at >= 0 && marks !== undefined ? repeated.slice(at, marks.lastIndexOf("^") + 1) : "";
    failures.push({
      command,
      message: `${line.slice("Error:".length).trim()}${word === "" ? "" : ` (${word.slice(0, 120)})`}`,
    });
  }
  return failures.length > 0 ? failures : [{ command: commands[0] ?? "", message: text.join(" ") }];
}
