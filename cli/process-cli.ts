import type { Cli } from "./cli.ts";
import { Contexts } from "./contexts/contexts.ts";
import { exitCodes } from "./exit.ts";
import { screenOf } from "./render/style.ts";

/** What a command works with in this process: its streams and its environment. */
export function processCli(signal: AbortSignal): Cli {
  return {
    out: screenOf(process.stdout, process.env),
    err: screenOf(process.stderr, process.env),
    environment: process.env,
    contexts: new Contexts(process.env),
    signal,
    // Opened by those only that read it.
    get stdin() {
      return process.stdin;
    },
    stdout: process.stdout,
    stderr: process.stderr,
    exitCode: exitCodes.ok,
  };
}
