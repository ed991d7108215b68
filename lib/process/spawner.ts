import { type ChildProcessByStdio, spawn } from "node:child_process";
import type { Readable, Writable } from "node:stream";
import { ClusterError } from "../errors/errors.ts";
import { helperProgram } from "./helper.ts";
import type { RunResult } from "./run.ts";

/** What a program is started with, beside its arguments. */
export interface SpawnOptions {
  /** Default "/". */
  readonly cwd?: string;
  /** All of it. Default: PATH, and LC_ALL=C so that messages are in English. */
  readonly env?: Readonly<Record<string, string>>;
  /** Standard input, of at most 60,000 bytes. Default: none. */
  readonly input?: string;
  /** Path of a network namespace to run in. */
  readonly netns?: string;
  /** A mount point that the program is not to see: it gets a mount namespace of its own, with an empty tmpfs there. */
  readonly hide?: string | undefined;
}

/** Arguments of mount(2); a relative source or option counts from `cwd`. */
export interface MountRequest {
  readonly source: string;
  readonly target: string;
  readonly type: string;
  readonly flags?: number;
  readonly options: string;
  readonly cwd?: string;
}

const maxInputBytes = 60_000;
const detach = 2; // MNT_DETACH of umount2(2)

/** mount, umount2, unshare, setns, dup3, setsid, prctl: asm/unistd.h */
const systemCalls: Readonly<Record<string, readonly number[]>> = {
  x64: [165, 166, 272, 308, 292, 112, 157],
  arm64: [40, 39, 97, 268, 24, 157, 167],
  riscv64: [40, 39, 97, 268, 24, 157, 167],
};

type Helper = ChildProcessByStdio<Writable, Readable, Readable>;

interface Pending {
  readonly resolve: (result: RunResult) => void;
  readonly reject: (error: ClusterError) => void;
}

/**
 * Starts programs from a small process of its own. A fork copies the page tables of who forks, and makes it fault on every
 * page that it touches afterwards: for a Node of 100 MB that is milliseconds of its only thread, for the helper a tenth of
 * one. What the helper starts outlives it; it is killed with its maker, and started again when it was killed alone, in which
 * case what it was at fails with `unavailable`.
 */
export class Spawner implements AsyncDisposable {
  readonly #title: string;
  #helper: Helper | undefined;
  #serial = 0;
  readonly #pending = new Map<string, Pending>();
  #unread: Buffer = Buffer.alloc(0);
  #words = "";
  #closed = false;

  /** @param title How the helper is to be called in `ps`. */
  constructor(title: string) {
    this.#title = title;
  }

  /** The helper, while there is one. */
  get pid(): number | undefined {
    return this.#helper?.pid;
  }

  /** Runs a program to its end, whatever its exit code; a signal gives -1. Throws `internal` when it cannot be started. */
  async run(program: string, args: readonly string[], options: SpawnOptions = {}): Promise<RunResult> {
    const result = await this.#start("run", program, args, options);
    if (result.code === 127) throw cannotRun(program, result);
    return result;
  }

  /**
   * Starts a program that goes on, in a session of its own, and waits for the line that it writes to descriptor 3; its output
   * goes nowhere. When it closes the descriptor without a line, gives its exit code and what it wrote to stderr.
   */
  async daemon(program: string, args: readonly string[], options: SpawnOptions = {}): Promise<RunResult> {
    const result = await this.#start("daemon", program, args, options);
    if (result.code === 127) throw cannotRun(program, result);
    return result;
  }

  /** mount(2). Throws `internal` with the kernel's word. */
  async mount({ cwd = "/", source, target, type, flags = 0, options }: MountRequest): Promise<void> {
    const { code, stderr } = await this.#ask(["mount", cwd, source, target, type, String(flags), options]);
    if (code !== 0) throw new ClusterError(`mount ${target}: ${stderr}`, { code: "internal", subject: target });
  }

  /** Takes a mount away, at the latest when nobody uses it any more. Throws `internal`, also when nothing is mounted there. */
  async unmount(target: string): Promise<void> {
    for (const flags of [0, detach]) {
      const { code, stderr } = await this.#ask(["umount", target, String(flags)]);
      if (code === 0) return;
      if (flags === detach)
        throw new ClusterError(`umount ${target}: ${stderr}`, { code: "internal", subject: target });
    }
  }

  /**
   * Makes a network namespace with `lo` up and pins it by a bind mount at the path, a file that is there.
   * @param settings Below /proc/sys, by path from there; those that the kernel does not have are left out.
   */
  async network(path: string, settings: Readonly<Record<string, string>>): Promise<void> {
    const files = Object.entries(settings).flatMap(([name, value]) => [`/proc/sys/${name}`, value]);
    const { code, stderr } = await this.#ask(["network", path, ...files]);
    if (code !== 0) throw new ClusterError(`network namespace ${path}: ${stderr}`, { code: "internal", subject: path });
  }

  async #start(verb: string, program: string, args: readonly string[], options: SpawnOptions): Promise<RunResult> {
    const { cwd = "/", netns = "", hide = "", input = "" } = options;
    const env = options.env ?? { PATH: process.env["PATH"] ?? "", LC_ALL: "C" };
    if (Buffer.byteLength(input) > maxInputBytes) throw new ClusterError("the input is too long", { code: "internal" });
    const variables = Object.entries(env);
    return await this.#ask([
      verb,
      cwd,
      netns,
      hide,
      input,
      String(variables.length),
      ...variables.flat(),
      program,
      ...args,
    ]);
  }

  async #ask(fields: readonly string[]): Promise<RunResult> {
    if (this.#closed) throw this.#lost("is stopped");
    if (fields.some((field) => field.includes("\0"))) {
      throw new ClusterError("an argument holds a NUL", { code: "invalid" });
    }
    const helper = this.#helper ?? this.#startHelper();
    const id = String(this.#serial++);
    const body = Buffer.from([id, ...fields].join("\0"));
    const { promise, resolve, reject } = Promise.withResolvers<RunResult>();
    this.#pending.set(id, { resolve, reject });
    helper.stdin.write(Buffer.concat([Buffer.from(`${body.length}\n`), body]));
    return await promise;
  }

  #startHelper(): Helper {
    const numbers = systemCalls[process.arch];
    if (numbers === undefined) {
      throw new ClusterError(`the numbers of the kernel's calls are not known for ${process.arch}`, {
        code: "internal",
      });
    }
    const args = ["-e", helperProgram, ...[...numbers, process.pid].map(String), this.#title];
    const helper = spawn("perl", args, {
      stdio: ["pipe", "pipe", "pipe"],
      env: { PATH: process.env["PATH"], LC_ALL: "C" },
    });
    this.#helper = helper;
    this.#unread = Buffer.alloc(0);
    this.#words = "";
    helper.stdout.on("data", (chunk: Buffer) => this.#read(chunk));
    helper.stderr.on("data", (chunk: Buffer) => {
      this.#words = (this.#words + chunk.toString()).slice(-2_000);
    });
    // The pipe breaks when it dies; "close" tells the story.
    helper.stdin.on("error", () => undefined);
    helper.once("error", (error) => this.#lose(helper, error.message));
    helper.once("close", (code, signal) => this.#lose(helper, `ended with ${signal ?? code}`));
    return helper;
  }

  #lose(helper: Helper, why: string): void {
    if (this.#helper !== helper) return;
    this.#helper = undefined;
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    for (const { reject } of pending) reject(this.#lost(`${why} ${this.#words}`.trim()));
  }

  #lost(why: string): ClusterError {
    return new ClusterError(`the helper that starts programs ${why}`, { code: "unavailable", hint: "It needs perl." });
  }

  #read(chunk: Buffer): void {
    this.#unread = this.#unread.length === 0 ? chunk : Buffer.concat([this.#unread, chunk]);
    for (;;) {
      const end = this.#unread.indexOf(10);
      if (end < 0) return;
      const length = Number(this.#unread.toString("latin1", 0, end));
      if (this.#unread.length < end + 1 + length) return;
      this.#answer(this.#unread.subarray(end + 1, end + 1 + length));
      this.#unread = this.#unread.subarray(end + 1 + length);
    }
  }

  /** id, exit code, length of stdout, stdout and stderr. */
  #answer(body: Buffer): void {
    const first = body.indexOf(0);
    const second = body.indexOf(0, first + 1);
    const third = body.indexOf(0, second + 1);
    const id = body.toString("latin1", 0, first);
    const code = Number(body.toString("latin1", first + 1, second));
    const stdoutEnd = third + 1 + Number(body.toString("latin1", second + 1, third));
    const pending = this.#pending.get(id);
    this.#pending.delete(id);
    pending?.resolve({
      code,
      stdout: body.toString("utf8", third + 1, stdoutEnd),
      stderr: body.toString("utf8", stdoutEnd),
    });
  }

  /** Ends the helper; what it was at is not waited for. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    const helper = this.#helper;
    if (helper === undefined) return;
    const gone = new Promise((resolve) => helper.once("close", resolve));
    helper.stdin.end();
    await gone;
  }
}

function cannotRun(program: string, { stderr }: RunResult): ClusterError {
  return new ClusterError(`cannot run ${program}: ${stderr}`, { code: "internal", hint: `Install ${program}.` });
}
