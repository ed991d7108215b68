import { basename, join } from "node:path";
import { ClusterError } from "../../lib/errors/errors.ts";
import type { Spawner } from "../../lib/process/spawner.ts";

/** Where a node's containers have their files. */
export interface RuntimePaths {
  /** On a tmpfs, gone with a reboot: containers/<id>, the bundles, and what the OCI runtime and conmon keep. */
  readonly runDir: string;
  readonly logDir: string;
}

/** One container's files. */
export function pathsOf(paths: RuntimePaths, id: string) {
  const persist = join(paths.runDir, "persist", id);
  return {
    bundle: join(paths.runDir, "containers", id),
    /** There once it is to be let go: it may run from then on, whatever the runtime says. */
    letGo: join(paths.runDir, "containers", id, "let-go"),
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

/** An OCI runtime, and how it is run. */
export interface RuntimeProgram {
  /** Runs it anywhere; recorded with each container. */
  readonly path: string;
  /** The runtime itself, for the spawner. */
  readonly direct: string;
  /** A mount that it must not see. */
  readonly hide: string | undefined;
}

/** By the name of the program, or of what wraps it. */
export function isCrun(runtimePath: string): boolean {
  return basename(runtimePath).startsWith("crun");
}

export interface ConmonRequest {
  readonly id: string;
  readonly program: RuntimeProgram;
  readonly tty: boolean;
  readonly stdinOpen: boolean;
}

const createTimeoutMs = 60_000;

/**
 * Starts a conmon that creates the container, and returns the pid of the container's first process, which waits for
 * `start`. Conmon and container outlive this process. Throws with the runtime's words when it cannot be created.
 */
export async function conmonCreate(
  paths: RuntimePaths,
  spawner: Spawner,
  request: ConmonRequest,
  signal?: AbortSignal,
): Promise<number> {
  const { id, program } = request;
  const own = pathsOf(paths, id);
  const args = [
    ["--api-version", "1", "-c", id, "-u", id, "-n", id, "-r", program.direct],
    runtimeRoot(paths).flatMap((word) => ["--runtime-arg", word]),
    ["-b", own.bundle, "--persist-dir", own.persist, "--exit-dir", join(paths.runDir, "exits"), "--full-attach"],
    ["-p", own.pidFile, "-P", own.conmonPidFile],
    ["-l", `k8s-file:${own.log}`, "--log-level", "warning", "--no-sync-log"],
    request.tty ? ["-t"] : [],
    request.stdinOpen ? ["-i", "--leave-stdin-open"] : [],
  ].flat();
  const env = { PATH: process.env["PATH"] ?? "", LC_ALL: "C", _OCI_SYNCPIPE: "3" };
  const answered = spawner.daemon("conmon", args, { cwd: own.bundle, env, hide: program.hide });
  const { code, stdout, stderr } = await inTime(answered, signal);
  // Its first process ends before the container is made; only its failure says something.
  if (code !== 0 || stdout === "") throw refusal(stderr.trim() || `conmon ended with ${code}`);
  const answer = parseAnswer(stdout.split("\n")[0] ?? "");
  if (answer.data > 0) return answer.data;
  throw refusal(answer.message || stderr.trim() || `conmon says ${answer.data}`);
}

async function inTime<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  const { promise: never, reject } = Promise.withResolvers<never>();
  const late = new ClusterError("the runtime did not create the container within 60 s", { code: "unavailable" });
  const timer = setTimeout(() => reject(late), createTimeoutMs);
  const stop = () => reject(signal?.reason);
  signal?.addEventListener("abort", stop, { once: true });
  try {
    return await Promise.race([work, never]);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", stop);
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
