import { isIPv4 } from "node:net";
import { channelOptions, clientCredentials } from "../../lib/grpc/client.ts";
import { ClusterClient } from "../../proto/gen/embassy/v1/api.ts";
import type { Context } from "./contexts.ts";

/** The gRPC target of several "host:port" endpoints. Names are left to DNS, one at a time. */
export function targetOf(endpoints: readonly string[]): string {
  const isAddress = (endpoint: string) => isIPv4(endpoint.slice(0, endpoint.lastIndexOf(":")));
  if (endpoints.every(isAddress)) return `ipv4:${endpoints.join(",")}`;
  return `dns:///${endpoints[0] ?? ""}`;
}

/** A client for the context's cluster. It connects with its first call. Close it. */
export function connect(context: Context): ClusterClient {
  const identity = {
    ca: Buffer.from(context.ca),
    certificate: Buffer.from(context.certificate),
    key: Buffer.from(context.key),
  };
  return new ClusterClient(targetOf(context.endpoints), clientCredentials(identity), channelOptions);
}
