import { stat } from "node:fs/promises";
import { createServer } from "node:net";
import { ClusterError, isErrno } from "../errors/errors.ts";

/**
 * Lets one process of a program only use a directory, which must exist. An abstract socket is gone with its process,
 * however that ends, and is named after the directory itself and not its path. Throws `conflict`.
 */
export async function lockDirectory(directory: string, program: string): Promise<AsyncDisposable> {
  const { dev, ino } = await stat(directory);
  const server = createServer((socket) => socket.destroy());
  await new Promise<void>((resolve, reject) => {
    server.once("error", (cause) => {
      if (!isErrno(cause, "EADDRINUSE")) return reject(cause);
      reject(
        new ClusterError(`another ${program} uses the state directory ${directory}`, {
          code: "conflict",
          subject: directory,
          hint: "Stop it first, or give this one another --state-dir.",
          cause,
        }),
      );
    });
    server.listen({ path: `\0embassy-${program}-${dev}-${ino}` }, resolve);
  });
  server.unref();
  return { [Symbol.asyncDispose]: async () => await new Promise<void>((resolve) => server.close(() => resolve())) };
}
