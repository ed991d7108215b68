import { spawn } from "node:child_process";
import { constants } from "node:os";
import { ClusterError } from "../../lib/errors/errors.ts";

export interface RunOptions {
  readonly input?: string;
  readonly environment?: NodeJS.ProcessEnv;
  readonly signal?: AbortSignal | undefined;
}

/** Runs a program to its end and returns its stdout. Throws `internal` with its own words when it fails. */
export async function run(command: readonly string[], options: RunOptions = {}): Promise<string> {
  const [program = "", ...args] = command;
  return await new Promise<string>((resolve, reject) => {
    const child = spawn(program, args, {
      cwd: "/",
      stdio: ["pipe", "pipe", "pipe"],
      ...(options.environment === undefined ? {} : { env: options.environment }),
      ...(options.signal === undefined ? {} : { signal: options.signal }),
    });
    let stdout = "";
    let stderr = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
    });
    // A program that ends before it has read its input is judged by its exit code.
    child.stdin.on("error", () => {});
    child.stdin.end(options.input ?? "");
    const failed = (words: string, cause?: unknown) =>
      reject(new ClusterError(`${command.slice(0, 8).join(" ")}: ${words}`, { code: "internal", cause }));
    child.on("error", (error) => failed(error.message, error));
    child.on("close", (code, signal) => {
      if (code === 0) resolve(stdout);
      else failed(stderr.trim() || stdout.trim() || `ended with ${signal ?? `exit code ${code}`}`);
    });
  });
}

/** Runs a program on this process's own stdin, stdout and stderr. Returns its exit code; 128 + n after signal n. */
export async function passThrough(command: readonly string[], environment: NodeJS.ProcessEnv): Promise<number> {
  const [program = "", ...args] = command;
  return await new Promise<number>((resolve, reject) => {
    const child = spawn(program, args, { stdio: "inherit", env: environment });
    child.on("error", reject);
    child.on("close", (code, signal) => resolve(code ?? 128 + (signal === null ? 0 : constants.signals[signal])));
  });
}
