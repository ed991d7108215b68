import { Metadata, status } from "@grpc/grpc-js";
import { ErrorDetail } from "../../proto/gen/embassy/v1/api.ts";
import { asClusterError, ClusterError, type ErrorCode, errorCodes } from "../errors/errors.ts";

// The one place where error codes and gRPC statuses meet, in both directions.
const toStatus: Record<ErrorCode, status> = {
  invalid: status.INVALID_ARGUMENT,
  "not-found": status.NOT_FOUND,
  conflict: status.ABORTED,
  exhausted: status.RESOURCE_EXHAUSTED,
  unavailable: status.UNAVAILABLE,
  denied: status.PERMISSION_DENIED,
  internal: status.INTERNAL,
};

const fromStatus: Partial<Record<status, ErrorCode>> = {
  [status.INVALID_ARGUMENT]: "invalid",
  [status.NOT_FOUND]: "not-found",
  [status.ABORTED]: "conflict",
  [status.ALREADY_EXISTS]: "conflict",
  [status.FAILED_PRECONDITION]: "conflict",
  [status.RESOURCE_EXHAUSTED]: "exhausted",
  [status.UNAVAILABLE]: "unavailable",
  [status.DEADLINE_EXCEEDED]: "unavailable",
  [status.CANCELLED]: "unavailable",
  [status.PERMISSION_DENIED]: "denied",
  [status.UNAUTHENTICATED]: "denied",
};

const detailKey = "embassy-error-bin";

export interface StatusObject {
  readonly code: status;
  readonly details: string;
  readonly metadata: Metadata;
}

/** What a server sends for an error: status, message, and the whole ClusterError in a trailer. */
export function statusOf(error: unknown): StatusObject {
  const { code, message, subject, hint } = asClusterError(error);
  const metadata = new Metadata();
  const detail = ErrorDetail.encode({ code, message, subject: subject ?? "", hint: hint ?? "" }).finish();
  metadata.set(detailKey, Buffer.from(detail));
  return { code: toStatus[code], details: message, metadata };
}

/** What a client makes of a failed call: the server's ClusterError where it sent one, else one made from the status. */
export function errorOf(error: unknown): ClusterError {
  if (error instanceof ClusterError) return error;
  if (!(error instanceof Error) || !("code" in error) || typeof error.code !== "number") return asClusterError(error);
  const metadata = "metadata" in error && error.metadata instanceof Metadata ? error.metadata : undefined;
  const raw = metadata?.get(detailKey)[0];
  if (raw instanceof Buffer) {
    const detail = ErrorDetail.decode(raw);
    const code = errorCodes.find((known) => known === detail.code) ?? "internal";
    return new ClusterError(detail.message, {
      code,
      subject: detail.subject || undefined,
      hint: detail.hint || undefined,
      cause: error,
    });
  }
  const details = "details" in error && typeof error.details === "string" ? error.details : error.message;
  return new ClusterError(details, { code: fromStatus[error.code as status] ?? "internal", cause: error });
}

/** The status of a call that failed before the other end answered it (no connection, deadline); undefined when it was answered. */
export function unansweredStatus(error: unknown): status | undefined {
  const cause = error instanceof ClusterError ? error.cause : undefined;
  if (!(cause instanceof Error) || !("code" in cause) || typeof cause.code !== "number") return undefined;
  const answered =
    "metadata" in cause && cause.metadata instanceof Metadata && cause.metadata.get(detailKey).length > 0;
  return answered ? undefined : cause.code;
}
