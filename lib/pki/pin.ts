import { createHash, X509Certificate } from "node:crypto";
import { connect, type DetailedPeerCertificate, type TLSSocket } from "node:tls";
import { type ChannelCredentials, credentials } from "@grpc/grpc-js";
import { ClusterError } from "../errors/errors.ts";
import { connectionWords, meaningOf } from "../net/tls-words.ts";
import { subjectOf } from "./certificate.ts";
import { formatPem } from "./pem.ts";

export interface PinOptions {
  readonly host: string;
  readonly port: number;
  /** From the join token. */
  readonly caFingerprint: string;
  /** Default 5,000. */
  readonly timeoutMs?: number;
}

/**
 * Asks a server for its certificate chain and resolves with the CA certificate (PEM) that has the fingerprint, once that
 * CA has signed the server's certificate. Sends nothing. Throws `denied` when the chain is another, `unavailable` when
 * there is no TLS server.
 */
export async function fetchPinnedCa(options: PinOptions): Promise<Buffer> {
  const address = `${options.host}:${options.port}`;
  const chain = await fetchChain(options, address);
  const ca = chain.find((one) => createHash("sha256").update(one.raw).digest("hex") === options.caFingerprint);
  if (ca === undefined || !isManagerOf(chain[0], ca)) {
    throw new ClusterError(`${address} does not belong to the cluster that the join token is for`, {
      code: "denied",
      subject: address,
      hint: "Check the address and take a token of that cluster: `clusterd token create` prints one.",
    });
  }
  return formatPem("CERTIFICATE", ca.raw);
}

/** Credentials of a client that has no certificate yet: accepts only the control plane of that CA (PEM). */
export function joinCredentials(ca: Buffer): ChannelCredentials {
  return credentials.createSsl(ca, null, null, {
    // Nodes have certificates of the same CA: a node must not pass for a manager.
    checkServerIdentity: (_host, certificate) =>
      isManagerOf(new X509Certificate(certificate.raw), new X509Certificate(ca))
        ? undefined
        : new Error("the server's certificate is not a manager's"),
  });
}

function isManagerOf(leaf: X509Certificate | undefined, ca: X509Certificate): boolean {
  return leaf !== undefined && ca.ca && leaf.verify(ca.publicKey) && subjectOf(leaf).role === "manager";
}

async function fetchChain(options: PinOptions, address: string): Promise<readonly X509Certificate[]> {
  const timeoutMs = options.timeoutMs ?? 5_000;
  return await new Promise((resolve, reject) => {
    const fail = (why: string, cause?: unknown, hint?: string) => {
      socket.destroy();
      const details = { code: "unavailable", subject: address, hint, cause } as const;
      reject(new ClusterError(`cannot reach ${address}: ${why}`, details));
    };
    // The chain is judged by its fingerprint, not by this machine's list of authorities.
    const socket: TLSSocket = connect({
      host: options.host,
      port: options.port,
      rejectUnauthorized: false,
      ALPNProtocols: ["h2"],
    });
    socket.setTimeout(timeoutMs, () => fail(`no answer within ${timeoutMs} ms`));
    socket.once("error", (error: NodeJS.ErrnoException) => {
      const code = error.code ?? "";
      const meaning = meaningOf(code);
      fail(meaning?.words ?? connectionWords(code), error, meaning?.hint ?? "Check that clusterd runs there.");
    });
    socket.once("secureConnect", () => {
      const chain = chainOf(socket.getPeerCertificate(true));
      socket.destroy();
      resolve(chain);
    });
  });
}

function chainOf(leaf: DetailedPeerCertificate): readonly X509Certificate[] {
  const chain: X509Certificate[] = [];
  const seen = new Set<string>();
  // The last one names itself as its issuer.
  for (let one: DetailedPeerCertificate | undefined = leaf; one?.raw !== undefined; one = one.issuerCertificate) {
    if (seen.has(one.fingerprint256)) break;
    seen.add(one.fingerprint256);
    chain.push(new X509Certificate(one.raw));
  }
  return chain;
}
