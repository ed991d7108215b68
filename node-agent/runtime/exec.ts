import { type ChildProcess, spawn } from "node:child_process";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { ClusterError } from "../../lib/errors/errors.ts";
import { run } from "../../lib/process/run.ts";
import { temporaryName } from "../images/files.ts";
import { formatOci, type OciConfig, type OciProcess } from "./bundle.ts";
import { isCrun, type RuntimePaths, runtimeRoot, runtimeWords } from "./conmon.ts";
import type { ExecExit, ExecRequest, ExecSession } from "./types.ts";
import type { ContainerUser } from "./users.ts";

export interface ExecContext {
  readonly paths: RuntimePaths;
  readonly id: string;
  readonly runtimePath: string;
  /** The container's own configuration. */
  readonly config: OciConfig;
  /** Undefined: the container's. */
  readonly user: ContainerUser | undefined;
  readonly request: ExecRequest;
}

/** The process of an exec: the container's own with what the request changes. Pure. */
export function planExec(config: OciConfig, request: ExecRequest, user: ContainerUser | undefined): OciProcess {
  if (request.command.length === 0 || request.command[0] === "") {
    throw new ClusterError("there is no command to run", { code: "invalid" });
  }
  const environment = new Map(
    config.process.env.map((line) => {
      const equals = line.indexOf("=");
      return [line.slice(0, equals), line.slice(equals + 1)] as const;
    }),
  );
  if (request.tty) environment.set("TERM", "xterm");
  if (user !== undefined) environment.set("HOME", user.home);
  for (const [name, value] of Object.entries(request.environment)) environment.set(name, value);
  const { size } = request;
  return {
    ...config.process,
    terminal: request.tty,
    ...(size === undefined ? {} : { consoleSize: { height: size.rows, width: size.columns } }),
    ...(user === undefined ? {} : { user: { uid: user.uid, gid: user.gid, additionalGids: user.groups } }),
    args: request.command,
    env: [...environment].map(([name, value]) => `${name}=${value}`),
    cwd: request.workingDir || config.process.cwd,
  };
}

/** Runs a command in a running container. */
export async function startExec(context: ExecContext, signal?: AbortSignal): Promise<ExecSession> {
  signal?.throwIfAborted();
  const { paths, id, runtimePath, request } = context;
  const folder = join(paths.runDir, "exec", temporaryName());
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const file = (name: string) => join(folder, name);
  await writeFile(file("process.json"), formatOci(planExec(context.config, request, context.user)));
  const args = [
    runtimeRoot(paths),
    ["--log", file("log"), "--log-format", "json"],
    ["exec", "--process", file("process.json"), "--pid-file", file("pid"), id],
  ].flat();
  const child = request.tty
    ? inTerminal(runtimePath, args, file("tty"), request)
    : spawn(runtimePath, args, { stdio: "pipe" });
  const { stdin, stdout, stderr } = child;
  if (stdin === null || stdout === null || stderr === null)
    throw new ClusterError("exec has no pipes", { code: "internal" });
  // The command may end without reading its input.
  stdin.on("error", () => undefined);
  const errors = new PassThrough();
  // With a terminal, only script's own complaints come there.
  if (request.tty) {
    stderr.resume();
    errors.end();
  } else stderr.pipe(errors);
  let ended = false;
  const killNow = async () => {
    // The command may be seen running before the runtime has written its pid; killing the runtime instead would leave it behind.
    while (!ended) {
      const pid = Number(await readFile(file("pid"), "utf8").catch(() => ""));
      if (pid > 0) {
        process.kill(pid, "SIGKILL");
        return;
      }
      await delay(5);
    }
  };
  // Gone in between: all the better.
  const kill = () => void killNow().catch(() => undefined);
  signal?.addEventListener("abort", kill, { once: true });
  const exit = finished(child).then(async (code): Promise<ExecExit> => {
    ended = true;
    signal?.removeEventListener("abort", kill);
    const started = await readFile(file("pid"), "utf8").then(
      () => true,
      () => false,
    );
    const words = started ? "" : runtimeWords(await readFile(file("log"), "utf8").catch(() => ""));
    await rm(folder, { recursive: true, force: true });
    if (started) return { exitCode: code < 0 ? 137 : code, message: "" };
    const notFound = /not found|no such file/i.test(words);
    return { exitCode: notFound ? 127 : 126, message: words || `the runtime ended with ${code}` };
  });
  return {
    stdin,
    stdout,
    stderr: errors,
    exit,
    kill,
    resize: async (rows, columns) => {
      if (!request.tty) return;
      const terminal = isCrun(runtimePath)
        ? `/proc/${(await readFile(file("pid"), "utf8").catch(() => "self")).trim()}/fd/0`
        : (await readFile(file("tty"), "utf8").catch(() => "")).trim();
      // runc takes the new size over when its own terminal tells it by SIGWINCH; crun only passes the signal on.
      if (terminal !== "") await run("stty", ["-F", terminal, "rows", String(rows), "cols", String(columns)]);
    },
  };
}

/**
 * The runtime gives a command a terminal only if it has one itself, and Node has no pseudo-terminals: script(1) makes one. Its
 * name goes to a file, for the size to be set.
 */
function inTerminal(runtimePath: string, args: readonly string[], ttyFile: string, request: ExecRequest): ChildProcess {
  const quote = (word: string) => `'${word.replaceAll("'", "'\\''")}'`;
  const { rows, columns } = request.size ?? { rows: 24, columns: 80 };
  const command = [
    // Raw at once: until the runtime made it so itself, line ends would be doubled and keys taken for the script.
    `stty raw -echo rows ${Math.trunc(rows)} cols ${Math.trunc(columns)}`,
    `tty > ${quote(ttyFile)}`,
    `exec ${[runtimePath, ...args].map(quote).join(" ")}`,
  ].join("; ");
  return spawn("script", ["--quiet", "--return", "--flush", "--command", command, "/dev/null"], {
    stdio: "pipe",
    env: { PATH: process.env["PATH"], LC_ALL: "C", SHELL: "/bin/sh", TERM: "xterm" },
  });
}

/** The exit code, after the outputs are through. */
async function finished(child: ChildProcess): Promise<number> {
  return await new Promise((resolve) => {
    child.on("error", () => resolve(-1));
    child.on("close", (code) => resolve(code ?? -1));
  });
}
