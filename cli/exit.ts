import { ClusterError, type ErrorCode } from "../lib/errors/errors.ts";

/** What the exit code of clusterctl says. `exec` passes on that of the command it ran. */
export const exitCodes = {
  ok: 0,
  error: 1,
  deployFailed: 2,
  rolledBack: 3,
  timeout: 4,
  conflict: 5,
  unreachable: 6,
  denied: 7,
  interrupted: 130,
} as const;

/** What each says, for the reference. */
export const exitMeanings: Readonly<Record<keyof typeof exitCodes, string>> = {
  ok: "Done. Of `config`: the files are good.",
  error:
    "The command line or a stack file is wrong, what was named does not exist, or anything that no other code says.",
  deployFailed:
    "`deploy`, `rollback`, `scale`, `restart` or `rebalance`: the cluster has taken the change, and a service will not run as written. The change stays, and what failed is tried again unless it gave up.",
  rolledBack:
    "`deploy` or `rollback`: the cluster has taken the change, the update of a service failed, and the service is again as it was before (`update_config.failure_action: rollback`).",
  timeout: "What was waited for did not happen within `--timeout`. It may still happen.",
  conflict:
    "Something is in the way: another deploy of the stack came first, it was removed meanwhile, or deployed again while it was removed, a published port is taken, a volume is in use, a node is still up.",
  unreachable: "No cluster is chosen, none answers, or it cannot do the work at present. Trying again may help.",
  denied: "The cluster does not accept this certificate, or its role may not do this.",
  interrupted:
    "Interrupted by Ctrl-C, SIGTERM or SIGHUP, which is also how `logs --follow` mostly ends. What the cluster was told, it goes on with.",
};

/** An error whose exit code its error code does not tell. */
export class CommandFailure extends ClusterError {
  readonly exitCode: number;

  constructor(message: string, exitCode: number, options: { readonly hint?: string; readonly cause?: unknown } = {}) {
    super(message, { code: "internal", ...options });
    this.exitCode = exitCode;
  }
}

/** What is under way goes on without this program: `hint` says so when the user interrupts it. */
export class Interrupted extends CommandFailure {
  constructor(hint: string, cause: unknown) {
    super("interrupted", exitCodes.interrupted, { hint, cause });
  }
}

/** Does `work`; what an interrupt makes of it becomes an Interrupted with that hint. */
export async function goingOn<T>(signal: AbortSignal, hint: () => string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (signal.aborted) throw new Interrupted(hint(), error);
    throw error;
  }
}

const byCode: Record<ErrorCode, number> = {
  invalid: exitCodes.error,
  "not-found": exitCodes.error,
  conflict: exitCodes.conflict,
  exhausted: exitCodes.error,
  unavailable: exitCodes.unreachable,
  denied: exitCodes.denied,
  internal: exitCodes.error,
};

/** The exit code for an error. */
export function exitCodeOf(error: unknown): number {
  if (error instanceof CommandFailure) return error.exitCode;
  return error instanceof ClusterError ? byCode[error.code] : exitCodes.error;
}
