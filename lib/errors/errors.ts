/** What went wrong, for programs: exit codes, gRPC statuses and retries go by it, never by the message. */
export const errorCodes = [
  "invalid",
  "not-found",
  "conflict",
  "exhausted",
  "unavailable",
  "denied",
  "internal",
] as const;
export type ErrorCode = (typeof errorCodes)[number];

export interface ErrorOptions {
  readonly code: ErrorCode;
  /** What it concerns: "task/web.3", "services.web.links[0]", a path. */
  readonly subject?: string | undefined;
  /** What the reader can do about it: one sentence. */
  readonly hint?: string | undefined;
  readonly cause?: unknown;
}

/** The one error class that crosses module boundaries. The message says what and where, the hint what to do. */
export class ClusterError extends Error {
  readonly code: ErrorCode;
  readonly subject: string | undefined;
  readonly hint: string | undefined;

  constructor(message: string, options: ErrorOptions) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "ClusterError";
    this.code = options.code;
    this.subject = options.subject;
    this.hint = options.hint;
  }
}

/** The error's message, whatever was thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Is it a ClusterError with this code? */
export function hasCode(error: unknown, code: ErrorCode): error is ClusterError {
  return error instanceof ClusterError && error.code === code;
}

/** The error as a ClusterError: itself, or wrapped once as `internal`. */
export function asClusterError(error: unknown): ClusterError {
  return error instanceof ClusterError ? error : new ClusterError(messageOf(error), { code: "internal", cause: error });
}

/** Is it Node's own error with this `code` ("ENOENT", "ESRCH")? */
export function isErrno(error: unknown, code: string): boolean {
  return error instanceof Error && "code" in error && error.code === code;
}
