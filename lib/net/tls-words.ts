import { X509Certificate } from "node:crypto";

/** What a failed connection means. */
export interface Meaning {
  readonly words: string;
  /** What to do about it. */
  readonly hint: string;
  /** denied: it may be the cluster, and cannot be trusted to be. */
  readonly code: "denied" | "unavailable";
}

const anotherProgram: Pick<Meaning, "hint" | "code"> = {
  hint: "Another program listens there. Check the address and the port: clusterd listens on 7400, and on 7401 for hosts that join, unless its flags say otherwise.",
  code: "unavailable",
};

/** Why a TLS handshake failed on this side, from OpenSSL's code; undefined for codes that say nothing to a user. */
export function meaningOf(code: string): Meaning | undefined {
  switch (code) {
    case "SELF_SIGNED_CERT_IN_CHAIN":
    case "DEPTH_ZERO_SELF_SIGNED_CERT":
    case "UNABLE_TO_VERIFY_LEAF_SIGNATURE":
    case "UNABLE_TO_GET_ISSUER_CERT":
    case "UNABLE_TO_GET_ISSUER_CERT_LOCALLY":
    case "CERT_SIGNATURE_FAILURE":
      return {
        words: "its certificate is of another CA",
        hint: "Another cluster, or another program, answers there. Check the context's endpoints, or import the context of that cluster.",
        code: "denied",
      };
    case "CERT_HAS_EXPIRED":
      return {
        words: "its certificate has expired",
        hint: "Compare the clocks of the two machines. If they are right, start clusterd there again: it renews its certificate.",
        code: "denied",
      };
    case "CERT_NOT_YET_VALID":
      return {
        words: "its certificate is not valid yet",
        hint: "Compare the clocks of the two machines.",
        code: "denied",
      };
    case "ERR_SSL_WRONG_VERSION_NUMBER":
    case "ERR_SSL_PACKET_LENGTH_TOO_LONG":
    case "ERR_SSL_HTTP_REQUEST":
    case "EPROTO":
      return { words: "it does not speak TLS", ...anotherProgram };
    case "ERR_SSL_UNSUPPORTED_PROTOCOL":
    case "ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION":
    case "ERR_SSL_NO_PROTOCOLS_AVAILABLE":
    case "ERR_SSL_TLSV1_ALERT_NO_APPLICATION_PROTOCOL":
      return { words: "it speaks TLS, and not as clusterd does", ...anotherProgram };
    default:
      return undefined;
  }
}

/** Why there is no connection at all, in words. */
export function connectionWords(code: string): string {
  const known: Readonly<Record<string, string>> = {
    ECONNREFUSED: "connection refused",
    ENOTFOUND: "there is no host of that name",
    EAI_AGAIN: "the name cannot be looked up at present",
    EHOSTUNREACH: "no way to that host",
    ENETUNREACH: "no way to that network",
    ETIMEDOUT: "no answer",
    ECONNRESET: "it breaks the connection off",
  };
  return known[code] ?? `no connection (${code})`;
}

/** What is wrong with a certificate by itself at that time; undefined: nothing. */
export function certificateProblem(pem: string, nowMs: number): string | undefined {
  const { validFromDate, validToDate } = new X509Certificate(pem);
  if (validToDate.getTime() < nowMs) return `has expired on ${validToDate.toISOString().slice(0, 10)}`;
  if (validFromDate.getTime() > nowMs) return `is not valid before ${validFromDate.toISOString()}`;
  return undefined;
}
