import { spawn } from "node:child_process";
import { ClusterError, isErrno } from "../errors/errors.ts";

export interface RunOptions {
  readonly cwd?: string | undefined;
  /** Default: this process's, with LC_ALL=C so that messages are in English. */
  readonly env?: NodeJS.ProcessEnv | undefined;
  readonly input?: string | Buffer | undefined;
  /** Aborted: SIGKILL. */
  readonly signal?: AbortSignal | undefined;
}

export interface RunResult {
  /** Exit code; 128 + n for signal n is never made up: a signal gives -1. */
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a program to its end, whatever its exit code. Throws `not-found` when there is no such program, and the signal's reason. */
export async function run(program: string, args: readonly string[], options: RunOptions = {}): Promise<RunResult> {
  options.signal?.throwIfAborted();
  return await new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      cwd: options.cwd,
      env: options.env ?? { ...process.env, LC_ALL: "C" },
      stdio: [options.input === undefined ? "ignore" : "pipe", "pipe", "pipe"],
    });
    const stdout: Buffer[] = [];
    const stderr: Buffer[] = [];
    const kill = () => child.kill("SIGKILL");
    options.signal?.addEventListener("abort", kill, { once: true });
    child.stdout?.on("data", (chunk: Buffer) => stdout.push(chunk));
    child.stderr?.on("data", (chunk: Buffer) => stderr.push(chunk));
    // A program that ends before it has read everything breaks the pipe; its exit code tells.
    child.stdin?.on("error", () => undefined);
    child.stdin?.end(options.input);
    child.on("error", (cause) => {
      options.signal?.removeEventListener("abort", kill);
      reject(missing(program, cause));
    });
    child.on("close", (code) => {
      options.signal?.removeEventListener("abort", kill);
      if (options.signal?.aborted === true) reject(options.signal.reason);
      else
        resolve({
          code: code ?? -1,
          stdout: Buffer.concat(stdout).toString(),
          stderr: Buffer.concat(stderr).toString(),
        });
    });
  });
}

/** Runs a program and returns its output. Throws `internal` with its words when it fails. */
export async function runOk(program: string, args: readonly string[], options: RunOptions = {}): Promise<string> {
  const { code, stdout, stderr } = await run(program, args, options);
  if (code === 0) return stdout;
  const words = stderr.trim() || stdout.trim() || "it said nothing";
  throw new ClusterError(`${program} ${args[0] ?? ""} ended with ${code}: ${words.slice(-2000)}`, { code: "internal" });
}

function missing(program: string, cause: Error): ClusterError {
  return isErrno(cause, "ENOENT")
    ? new ClusterError(`the program ${program} is not on this host`, {
        code: "not-found",
        hint: `Install ${program}.`,
        cause,
      })
    : new ClusterError(`cannot run ${program}: ${cause.message}`, { code: "internal", cause });
}
