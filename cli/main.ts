import { ClusterError } from "../lib/errors/errors.ts";
import { exitCodes } from "./exit.ts";
import { processCli } from "./process-cli.ts";
import { runCli } from "./program.ts";

const interrupted = new AbortController();
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  process.on(signal, () => {
    if (interrupted.signal.aborted) process.exit(exitCodes.interrupted);
    interrupted.abort(new ClusterError("interrupted", { code: "unavailable" }));
  });
}
// A reader such as `head` that has seen enough is no error.
for (const stream of [process.stdout, process.stderr]) {
  stream.on("error", (error: NodeJS.ErrnoException) => process.exit(error.code === "EPIPE" ? 0 : 1));
}

const exitCode = await runCli(process.argv.slice(2), processCli(interrupted.signal));
// A pipe takes 64 KB at once; what is more waits in this process until the reader has read.
for (const stream of [process.stdout, process.stderr]) await new Promise((resolve) => stream.write("", resolve));
// Not left to the event loop: an attempt to connect to a host that is gone keeps it busy for two minutes.
process.exit(exitCode);
