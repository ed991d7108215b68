import { spawn } from "node:child_process";
import { join } from "node:path";

export const root = join(import.meta.dirname, "../..");

/** How many times longer than on an ordinary machine tests wait before they give up: an emulated one is slow. */
export const patience = Number(process.env["EMBASSY_TEST_PATIENCE"] ?? 1);

/** What became of a program. */
export interface Result {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  /** Beside the caller's own environment. */
  readonly environment?: Readonly<Record<string, string | undefined>>;
  readonly input?: string | Uint8Array;
  /** Default 180,000, times `patience`: a program that hangs fails its test rather than the whole run. */
  readonly timeoutMs?: number;
}

/** Runs a program to its end. Never throws for its exit code; rejects when it cannot be started or hangs. */
export async function runCommand(command: readonly string[], options: RunOptions = {}): Promise<Result> {
  const [program = "", ...args] = command;
  const timeoutMs = (options.timeoutMs ?? 180_000) * patience;
  return await new Promise<Result>((resolve, reject) => {
    const child = spawn(program, args, {
      cwd: root,
      env: { ...process.env, ...options.environment },
      stdio: ["pipe", "pipe", "pipe"],
    });
    let stdout = "";
    let stderr = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
    });
    const timer = setTimeout(() => {
      child.kill("SIGKILL");
      reject(new Error(`${command.join(" ")} did not end within ${timeoutMs} ms\n${stdout}${stderr}`));
    }, timeoutMs);
    child.on("error", (error) => {
      clearTimeout(timer);
      reject(error);
    });
    child.on("close", (code) => {
      clearTimeout(timer);
      resolve({ code: code ?? -1, stdout, stderr });
    });
    child.stdin.on("error", () => {}); // It may end before it has read its input.
    child.stdin.end(options.input ?? "");
  });
}

/** Node 24 and the CLI's bundle: what `npx clusterctl` comes to, without npx. */
export const clusterctlCommand: readonly [string, string] = [
  join(root, "node_modules/node/bin/node"),
  join(root, "dist/clusterctl.mjs"),
];
