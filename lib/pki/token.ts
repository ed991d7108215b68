import { createHash, randomBytes } from "node:crypto";
import { ClusterError } from "../errors/errors.ts";

/** A join token: which CA the joiner must find, and the secret that admits it. */
export interface JoinSecret {
  /** SHA-256 of the CA certificate's DER, hex. */
  readonly caFingerprint: string;
  readonly secret: string;
}

const alphabet = "abcdefghijklmnopqrstuvwxyz234567";
const pattern = /^EMB-1-([0-9a-f]{64})-([a-z2-7]{32})$/;

/** A new secret: 160 random bits, 32 characters of a-z2-7. */
export function newSecret(): string {
  let secret = "";
  for (const byte of randomBytes(32)) secret += alphabet[byte & 31];
  return secret;
}

/** `EMB-1-<CA fingerprint>-<secret>` */
export function formatToken(token: JoinSecret): string {
  return `EMB-1-${token.caFingerprint}-${token.secret}`;
}

/** Throws `invalid`, without the token in the message. */
export function parseToken(text: string): JoinSecret {
  const [, caFingerprint, secret] = pattern.exec(text.trim()) ?? [];
  if (caFingerprint === undefined || secret === undefined) {
    throw new ClusterError("this is not a join token", {
      code: "invalid",
      subject: "token",
      hint: "A join token looks like EMB-1-<64 hex digits>-<32 characters>; `clusterd token create` prints one.",
    });
  }
  return { caFingerprint, secret };
}

/** What the cluster keeps of a token's secret. The secret has 160 random bits, so a plain hash gives nothing away. */
export function hashSecret(secret: string): Buffer {
  return createHash("sha256").update(secret).digest();
}
