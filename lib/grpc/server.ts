import {
  type handleUnaryCall,
  ServerCredentials,
  type ServerDuplexStream,
  type ServerUnaryCall,
  type ServerWritableStream,
  type sendUnaryData,
} from "@grpc/grpc-js";
import { ClusterError } from "../errors/errors.ts";
import { statusOf } from "./status.ts";
import { type Role, roles, type TlsIdentity } from "./tls.ts";

/** Credentials of a server that admits only clients with a certificate of the same CA. */
export function serverCredentials(identity: TlsIdentity): ServerCredentials {
  return ServerCredentials.createSsl(
    identity.ca,
    [{ private_key: identity.key, cert_chain: identity.certificate }],
    true,
  );
}

type AnyCall =
  | ServerUnaryCall<unknown, unknown>
  | ServerWritableStream<unknown, unknown>
  | ServerDuplexStream<unknown, unknown>;

/** Who is calling: the common name and role of the client's certificate. */
export interface Peer {
  readonly name: string;
  readonly role: Role;
}

/** The caller, if it has one of these roles. Throws `denied`. */
export function requirePeer(call: AnyCall, allowed: readonly Role[]): Peer {
  const subject = call.getAuthContext().sslPeerCertificate?.subject;
  const one = (value: string | string[] | undefined) => (Array.isArray(value) ? value[0] : value);
  const role = roles.find((known) => known === one(subject?.OU));
  const name = one(subject?.CN);
  if (role === undefined || name === undefined || !allowed.includes(role)) {
    throw new ClusterError(`this call needs a certificate with role ${allowed.join(" or ")}, got ${role ?? "none"}`, {
      code: "denied",
      hint: "Use the credentials that `clusterd init` or `noded join` wrote for this cluster.",
    });
  }
  return { name, role };
}

/** A unary handler from an async function; what it throws becomes a status. */
export function unary<Request, Response>(
  handler: (request: Request, call: ServerUnaryCall<Request, Response>) => Promise<Response> | Response,
): handleUnaryCall<Request, Response> {
  return (call: ServerUnaryCall<Request, Response>, callback: sendUnaryData<Response>) => {
    void answer(async () => await handler(call.request, call), callback);
  };
}

async function answer<Response>(handler: () => Promise<Response>, callback: sendUnaryData<Response>): Promise<void> {
  let response: Response;
  try {
    response = await handler();
  } catch (error) {
    callback(statusOf(error));
    return;
  }
  callback(null, response);
}

/**
 * A streaming handler from an async function: the stream ends when it returns, and fails with what it throws. The signal
 * is aborted when the caller goes away.
 */
export function streaming<
  Call extends ServerWritableStream<Request, Response> | ServerDuplexStream<Request, Response>,
  Request,
  Response,
>(handler: (call: Call, signal: AbortSignal) => Promise<void>): (call: Call) => void {
  return (call: Call) => {
    const gone = new AbortController();
    call.on("cancelled", () => gone.abort(new ClusterError("the caller went away", { code: "unavailable" })));
    call.on("error", () => gone.abort(new ClusterError("the stream failed", { code: "unavailable" })));
    Promise.resolve()
      .then(() => handler(call, gone.signal))
      .then(
        () => call.end(),
        // grpc-js turns an emitted StatusObject into the call's status.
        (error: unknown) => {
          if (gone.signal.aborted) call.end();
          else call.emit("error", statusOf(error));
        },
      );
  };
}

/** Writes one message and waits while the other end reads more slowly than we write. Throws the signal's reason when it is gone. */
export async function send<Response>(
  call:
    | ServerWritableStream<never, Response>
    | ServerDuplexStream<never, Response>
    | { write(m: Response): boolean; once(e: "drain", f: () => void): unknown },
  message: Response,
  signal: AbortSignal,
): Promise<void> {
  signal.throwIfAborted();
  if (call.write(message)) return;
  await new Promise<void>((resolve, reject) => {
    const stop = () => reject(signal.reason);
    signal.addEventListener("abort", stop, { once: true });
    call.once("drain", () => {
      signal.removeEventListener("abort", stop);
      resolve();
    });
  });
}
