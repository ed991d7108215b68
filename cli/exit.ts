import { ClusterError, type ErrorCode } from "../lib/errors/errors.ts";

/** What the exit code of clusterctl says. `exec` passes on that of the command it ran. */
export const exitCodes = {
  ok: 0,
  error: 1,
  deployFailed: 2,
  timeout: 4,
  conflict: 5,
  unreachable: 6,
  denied: 7,
  interrupted: 130,
} as const;

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
