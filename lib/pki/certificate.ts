import { createHash, X509Certificate } from "node:crypto";
import { ClusterError } from "../errors/errors.ts";
import { type Role, roles } from "../grpc/tls.ts";

/** What a certificate says. */
export interface CertificateInfo {
  readonly commonName: string;
  /** undefined: none of ours */
  readonly role: Role | undefined;
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
  /** At two thirds of its life. */
  readonly renewAtMs: number;
}

/** Reads a PEM certificate (the first, of several). Throws `invalid`. */
export function parseCertificate(pem: Buffer): X509Certificate {
  try {
    return new X509Certificate(pem);
  } catch (cause) {
    throw new ClusterError("this is not a PEM certificate", { code: "invalid", cause });
  }
}

/** What a PEM certificate says. Throws `invalid`. */
export function readCertificate(pem: Buffer): CertificateInfo {
  const certificate = parseCertificate(pem);
  const { commonName, role } = subjectOf(certificate);
  const notBeforeMs = Date.parse(certificate.validFrom);
  const notAfterMs = Date.parse(certificate.validTo);
  return { commonName, role, notBeforeMs, notAfterMs, renewAtMs: notBeforeMs + ((notAfterMs - notBeforeMs) * 2) / 3 };
}

/** The subject's CN and role. */
export function subjectOf(certificate: X509Certificate): {
  readonly commonName: string;
  readonly role: Role | undefined;
} {
  const { subject } = certificate.toLegacyObject();
  const one = (value: string | string[] | undefined) => (Array.isArray(value) ? value[0] : value);
  return { commonName: one(subject.CN) ?? "", role: roles.find((known) => known === one(subject.OU)) };
}

/** SHA-256 of a PEM certificate's DER, 64 hex digits: how a join token pins the CA. Throws `invalid`. */
export function fingerprintOf(pem: Buffer): string {
  return createHash("sha256").update(parseCertificate(pem).raw).digest("hex");
}
