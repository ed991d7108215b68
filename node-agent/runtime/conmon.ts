import { spawn } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Duplex } from "node:stream";
import { ClusterError } from "../../lib/errors/errors.ts";

/** Where a node's containers have their files. */
export interface RuntimePaths {
  /** containers/<id>: bundles; kept over a reboot. */
  readonly stateDir: string;
  /** On a tmpfs, gone with a reboot: what the OCI runtime and conmon keep. */
  readonly runDir: string;
  readonly logDir: string;
}

/** One container's files. */
export function pathsOf(paths: RuntimePaths, id: string) {
  const persist = join(paths.runDir, "persist", id);
  return {
    bundle: join(paths.stateDir, "containers", id),
    persist,
    pidFile: join(persist, "pidfile"),
    conmonPidFile: join(persist, "conmon.pid"),
    oomFile: join(persist, "oom"),
    exitFile: join(paths.runDir, "exits", id),
    log: join(paths.logDir, `${id}.log`),
  } as const;
}

/** Arguments that make every call of the OCI runtime use this node's own state. */
export function runtimeRoot(paths: RuntimePaths): readonly string[] {
  return ["--root", join(paths.runDir, "oci")];
}

export interface ConmonRequest {
  readonly id: string;
  readonly runtimePath: string;
  readonly tty: boolean;
  readonly stdinOpen: boolean;
}

const createTimeoutMs = 60_000;

/**
 * Starts a conmon that creates the container, and returns the pid of the container's first process, which waits for
 * `start`. Conmon and container outlive this process. Throws with the runtime's words when it cannot be created.
 */
export async function conmonCreate(paths: RuntimePaths, request: ConmonRequest, signal?: AbortSignal): Promise<number> {
  const { id } = request;
  const own = pathsOf(paths, id);
  const args = [
    ["--api-version", "1", "-c", id, "-u", id, "-n", id, "-r", request.runtimePath],
    runtimeRoot(paths).flatMap((word) => ["--runtime-arg", word]),
    ["-b", own.bundle, "--persist-dir", own.persist, "--exit-dir", join(paths.runDir, "exits"), "--full-attach"],
    ["-p", own.pidFile, "-P", own.conmonPidFile],
    ["-l", `k8s-file:${own.log}`, "--log-level", "warning", "--no-sync-log"],
    request.tty ? ["-t"] : [],
    request.stdinOpen ? ["-i", "--leave-stdin-open"] : [],
  ].flat();
  const child = spawn("conmon", args, {
    cwd: own.bundle,
    detached: true,
    stdio: ["ignore", "ignore", "pipe", "pipe", "pipe"],
    env: { PATH: process.env["PATH"], LC_ALL: "C", _OCI_SYNCPIPE: "3", _OCI_STARTPIPE: "4" },
  });
  let words = "";
  child.stderr?.on("data", (chunk: Buffer) => {
    words = (words + chunk.toString()).slice(-4000);
  });
  const sync = child.stdio[3] as Duplex;
  const start = child.stdio[4] as Duplex;
  // Conmon may be gone before it reads the byte; the sync pipe tells.
  start.on("error", () => undefined);
  sync.on("error", () => undefined);
  start.end("\0");
  const ended = new Promise<number>((resolve, reject) => {
    child.on("error", (cause) => {
      reject(
        new ClusterError(`cannot run conmon: ${cause.message}`, { code: "internal", hint: "Install conmon.", cause }),
      );
    });
    // The first conmon process ends before the container is made; only its failure says something.
    child.on("exit", (code) => resolve(code ?? -1));
  });
  try {
    return await new Promise<number>((resolve, reject) => {
      const lines = createInterface({ input: sync });
      const timer = setTimeout(
        () => reject(new ClusterError("the runtime did not create the container within 60 s", { code: "unavailable" })),
        createTimeoutMs,
      );
      const stop = () => reject(signal?.reason);
      signal?.addEventListener("abort", stop, { once: true });
      const finish = () => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", stop);
      };
      lines.on("line", (line) => {
        finish();
        const answer = parseAnswer(line);
        if (answer.data > 0) resolve(answer.data);
        else reject(refusal(answer.message || words.trim() || `conmon says ${answer.data}`));
      });
      lines.on("close", () => {
        finish();
        ended.then((code) => reject(refusal(words.trim() || `conmon ended with ${code}`)), reject);
      });
      ended.catch((error: unknown) => {
        finish();
        reject(error);
      });
    });
  } finally {
    sync.destroy();
    start.destroy();
    child.stderr?.destroy();
    child.unref();
  }
}

function parseAnswer(line: string): { readonly data: number; readonly message: string } {
  try {
    const { data, message } = JSON.parse(line) as { data?: number; message?: string };
    return { data: data ?? -1, message: message ?? "" };
  } catch {
    return { data: -1, message: line };
  }
}

/** The runtime's refusal. What fails within the container is the image's or the service's doing, the rest is ours. */
export function refusal(words: string): ClusterError {
  const text = runtimeWords(words);
  const theirs =
    /exec: |executable file|chdir to cwd|container process: |cwd|error mounting|sysctl|rlimit|unable to apply caps|invalid argument/.test(
      text,
    );
  return new ClusterError(`the runtime refuses the container: ${text}`, { code: theirs ? "invalid" : "internal" });
}

/** The last error out of what an OCI runtime printed: logfmt, JSON or plain text. */
export function runtimeWords(text: string): string {
  const last = text.trim().split("\n").at(-1) ?? "";
  const logfmt = /msg="((?:[^"\\]|\\.)*)"/.exec(last)?.[1]?.replaceAll(/\\(.)/g, "$1");
  const json = /^\{.*"msg":\s*("(?:[^"\\]|\\.)*")/.exec(last)?.[1];
  return logfmt ?? (json === undefined ? last : String(JSON.parse(json)));
}
