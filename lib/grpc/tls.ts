/** What one end of a mutual TLS connection shows and trusts. All PEM. */
export interface TlsIdentity {
  readonly ca: Buffer;
  readonly certificate: Buffer;
  readonly key: Buffer;
}

/** The part of a certificate that says who it speaks for. OU of the subject: what it may do. */
export const roles = ["manager", "node", "admin"] as const;
export type Role = (typeof roles)[number];
