import { ClusterError } from "../lib/errors/errors.ts";
import { Contexts } from "./contexts/contexts.ts";
import { exitCodes } from "./exit.ts";
import { runCli } from "./program.ts";
import { screenOf } from "./render/style.ts";

const interrupted = new AbortController();
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  process.on(signal, () => {
    if (interrupted.signal.aborted) process.exit(exitCodes.interrupted);
    interrupted.abort(new ClusterError("interrupted", { code: "unavailable" }));
  });
}
// A reader such as `head` that has seen enough is no error.
process.stdout.on("error", (error: NodeJS.ErrnoException) => process.exit(error.code === "EPIPE" ? 0 : 1));

const exitCode = await runCli(process.argv.slice(2), {
  out: screenOf(process.stdout, process.env),
  err: screenOf(process.stderr, process.env),
  environment: process.env,
  contexts: new Contexts(process.env),
  signal: interrupted.signal,
  get stdin() {
    return process.stdin;
  },
  stdout: process.stdout,
  stderr: process.stderr,
  exitCode: exitCodes.ok,
});
// Not left to the event loop: an attempt to connect to a host that is gone keeps it busy for two minutes. Nothing is lost, as
// writing to files, pipes and terminals is synchronous on Linux.
process.exit(exitCode);
