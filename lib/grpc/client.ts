import {
  type CallOptions,
  type ChannelCredentials,
  type ClientOptions,
  type ClientUnaryCall,
  credentials,
  Metadata,
  type ServiceError,
} from "@grpc/grpc-js";
import { errorOf } from "./status.ts";
import type { Role, TlsIdentity } from "./tls.ts";

/** Options for every channel between our programs: messages of any size, dead peers found within 20 s. */
export const channelOptions: ClientOptions = {
  "grpc.max_receive_message_length": -1,
  "grpc.max_send_message_length": -1,
  "grpc.keepalive_time_ms": 10_000,
  "grpc.keepalive_timeout_ms": 5_000,
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.min_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 2_000,
  // Servers are told by role and not by host name; an address as the TLS server name is not allowed (RFC 6066, section 3).
  "grpc.ssl_target_name_override": "embassy.internal",
};

/** Whose certificate the server must show. */
export interface ExpectedServer {
  /** Default manager; an Agent is a node. */
  readonly role?: Role;
  /** Common name; default any. */
  readonly name?: string;
}

/**
 * Credentials of a client that shows its certificate and accepts only a server of the same CA with that role. Every node
 * has a certificate of that CA, so without the role any node could pass for the control plane.
 */
export function clientCredentials(identity: TlsIdentity, server: ExpectedServer = {}): ChannelCredentials {
  const role = server.role ?? "manager";
  return credentials.createSsl(identity.ca, identity.key, identity.certificate, {
    // Addresses change and are many; who the server is stands in its subject and not in its host name.
    checkServerIdentity: (_host, { subject }) => {
      if (subject.OU !== role) return new Error(`the server's certificate has role ${subject.OU}, not ${role}`);
      if (server.name !== undefined && subject.CN !== server.name) {
        return new Error(`the server's certificate is that of ${subject.CN}, not of ${server.name}`);
      }
      return undefined;
    },
  });
}

type UnaryMethod<Request, Response> = (
  request: Request,
  metadata: Metadata,
  options: Partial<CallOptions>,
  callback: (error: ServiceError | null, response: Response) => void,
) => ClientUnaryCall;

export interface CallLimits {
  /** Default 10,000. */
  readonly deadlineMs?: number;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Makes one unary call: `await call(client.deploy.bind(client), request)`.
 * Rejects with a ClusterError; `unavailable` on a passed deadline or an aborted signal.
 */
export async function call<Request, Response>(
  method: UnaryMethod<Request, Response>,
  request: Request,
  limits: CallLimits = {},
): Promise<Response> {
  limits.signal?.throwIfAborted();
  return await new Promise<Response>((resolve, reject) => {
    const deadline = Date.now() + (limits.deadlineMs ?? 10_000);
    const cancel = () => pending.cancel();
    const pending = method(request, new Metadata(), { deadline }, (error, response) => {
      limits.signal?.removeEventListener("abort", cancel);
      if (error === null) resolve(response);
      else reject(errorOf(error));
    });
    limits.signal?.addEventListener("abort", cancel, { once: true });
  });
}
