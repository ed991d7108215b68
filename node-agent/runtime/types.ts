import type { ContainerSpec, Resources } from "../../proto/gen/embassy/v1/stack.ts";
import type { ImageConfig } from "../images/types.ts";

/** A mount whose source is known on this host: volumes, binds, configs and secrets are all binds by now. */
export type ContainerMount =
  | {
      readonly type: "bind";
      /** Absolute path on the host, file or directory; must exist. */
      readonly source: string;
      /** Absolute path in the container. */
      readonly target: string;
      readonly readOnly: boolean;
    }
  | {
      readonly type: "tmpfs";
      readonly target: string;
      readonly readOnly: boolean;
      /** 0: no limit. */
      readonly sizeBytes: number;
      /** 0: 01777. */
      readonly mode: number;
    };

/** A line of the container's /etc/hosts. */
export interface HostsEntry {
  readonly address: string;
  readonly names: readonly string[];
}

/** The container's /etc/resolv.conf. */
export interface Resolver {
  readonly nameservers: readonly string[];
  readonly search: readonly string[];
  readonly options: readonly string[];
}

export interface CreateRequest {
  /** The task's id: names the container, its cgroup and its files. */
  readonly id: string;
  /** Hostname when the spec gives none; longer than 63 characters, or with characters no hostname has, it is mended. */
  readonly name: string;
  /**
   * What the service asks for. `mounts`, `configs`, `secrets`, `extra_hosts`, `dns*`, `healthcheck`, `log`, `pull_policy` and
   * `platform` are not read here: they come resolved below or are others' business.
   */
  readonly container: ContainerSpec;
  readonly resources: Resources | undefined;
  readonly image: ImageConfig;
  /** As `ImageStore.mount` returned it. */
  readonly rootfs: string;
  /** The task's network namespace; it exists already. */
  readonly netnsPath: string;
  /** Over the image's environment and below the spec's: the link variables. */
  readonly environment: Readonly<Record<string, string>>;
  readonly mounts: readonly ContainerMount[];
  /** After the lines for localhost and for the container's own name at `address`. */
  readonly hosts: readonly HostsEntry[];
  /** The task's first address, for its own name in /etc/hosts; undefined: only localhost. */
  readonly address: string | undefined;
  readonly resolver: Resolver;
}

export interface Created {
  /** Of the container's first process, in this process's pid namespace. */
  readonly pid: number;
  /** What was asked for and this machine cannot give (a rlimit above the node's own, a capability the node lacks), a sentence each. */
  readonly warnings: readonly string[];
}

export interface ContainerExit {
  readonly id: string;
  /** 0-255; 128+n for signal n; -1 when nobody can know it. */
  readonly exitCode: number;
  readonly oomKilled: boolean;
  readonly finishedAtMs: number;
  /** Empty, or why the exit code is unknown. */
  readonly message: string;
}

export type ContainerStatus =
  | { readonly id: string; readonly state: "created"; readonly pid: number }
  | { readonly id: string; readonly state: "running"; readonly pid: number; readonly startedAtMs: number }
  | { readonly id: string; readonly state: "exited"; readonly exit: ContainerExit };

export interface ExecRequest {
  /** At least one word; looked up on the container's PATH. */
  readonly command: readonly string[];
  readonly tty: boolean;
  /** Over the container's own environment. */
  readonly environment: Readonly<Record<string, string>>;
  /** Empty: the container's. */
  readonly user: string;
  /** Empty: the container's. */
  readonly workingDir: string;
  /** First size of the terminal; only with a tty. */
  readonly size?: { readonly rows: number; readonly columns: number } | undefined;
}

export interface ExecExit {
  /** 126: cannot be executed, 127: not found, 128+n: signal n. */
  readonly exitCode: number;
  /** Empty, or the runtime's words when the command did not start. */
  readonly message: string;
}

/** A command running in a container. Ending the agent ends neither it nor the container. */
export interface ExecSession {
  /** With a tty everything the command prints, else its standard output. */
  readonly stdout: NodeJS.ReadableStream;
  /** Empty with a tty. */
  readonly stderr: NodeJS.ReadableStream;
  /** End it to close the command's standard input. */
  readonly stdin: NodeJS.WritableStream;
  /**
   * Resolves after the command ended and both outputs were read to their end; without a tty the runtime waits for
   * whatever else holds them open. Never rejects.
   */
  readonly exit: Promise<ExecExit>;
  /** Sets the terminal's size; without a tty nothing happens. */
  resize(rows: number, columns: number): Promise<void>;
  /** SIGKILL to the command. */
  kill(): void;
}

export type CgroupMode = "v1" | "hybrid" | "v2";

/** What a real container on this machine showed. */
export interface RuntimeProbe {
  /** "runc 1.1.5", "crun 1.8.1". */
  readonly version: string;
  /** The program that conmon calls; kept per container for its whole life. */
  readonly path: string;
  readonly cgroups: CgroupMode;
  /** Memory limits may name swap. */
  readonly swapAccounting: boolean;
}

/** Containers of one node: conmon watches each, and both outlive this process. All methods throw ClusterError, subject `task/<id>`. */
export interface Runtime extends AsyncDisposable {
  readonly probe: RuntimeProbe;

  /**
   * Must be awaited once before anything else. Finds what an earlier process left: running and exited containers are
   * returned as they are, by id ascending; whatever was only half created or never started is deleted and not returned.
   */
  adopt(): Promise<readonly ContainerStatus[]>;

  /**
   * Makes the container up to the point where its program would run. Throws `conflict` when the id exists, `invalid` for what the
   * runtime or image cannot do (unknown user, no command, bad sysctl), `internal` with the runtime's own words; then nothing is left behind.
   */
  create(request: CreateRequest, signal?: AbortSignal): Promise<Created>;

  /** Runs the program. Throws `invalid` when it cannot be executed (the runtime's words), `not-found` for an unknown id. */
  start(id: string): Promise<{ readonly startedAtMs: number }>;

  /**
   * Sends a signal ("SIGTERM", "TERM", "15", "SIGRTMIN+3") to the container's first process; SIGKILL ends everything in it.
   * A container that has ended or is unknown: nothing happens. Throws `invalid` for an unknown signal.
   */
  kill(id: string, signal: string): Promise<void>;

  /** Kills it if it runs, and removes every trace but its log. Unknown: nothing happens. */
  delete(id: string): Promise<void>;

  /** Every container, by id ascending. */
  list(): Promise<readonly ContainerStatus[]>;

  /** One container, or undefined. */
  status(id: string): Promise<ContainerStatus | undefined>;

  /**
   * Calls the listener once for each container that ends, within milliseconds; also when its monitor was killed (the
   * container is then killed too, exit code -1). Containers that had ended before `adopt` are in its answer instead.
   */
  watchExits(listener: (exit: ContainerExit) => void): Disposable;

  exec(id: string, request: ExecRequest, signal?: AbortSignal): Promise<ExecSession>;

  /** Where the container's output goes: lines "<RFC 3339 time> stdout|stderr F|P <text>". Exists from `create` on; the caller deletes it. */
  logPath(id: string): string;

  /** After the log was renamed: asks the monitor to open a new file at `logPath`. What is said until it has done so is still in the old one. */
  reopenLog(id: string): Promise<void>;
}
