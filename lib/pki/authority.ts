// tsyringe, inside @peculiar/x509, needs it before the first import.
import "reflect-metadata";
import { X509Certificate as NodeCertificate, randomBytes } from "node:crypto";
import { isIP } from "node:net";
import {
  AuthorityKeyIdentifierExtension,
  BasicConstraintsExtension,
  ExtendedKeyUsage,
  ExtendedKeyUsageExtension,
  type Extension,
  type JsonGeneralNames,
  KeyUsageFlags,
  KeyUsagesExtension,
  Pkcs10CertificateRequest,
  SubjectAlternativeNameExtension,
  SubjectKeyIdentifierExtension,
  X509Certificate,
  X509CertificateGenerator,
} from "@peculiar/x509";
import { ClusterError } from "../errors/errors.ts";
import type { Role, TlsIdentity } from "../grpc/tls.ts";
import { fingerprintOf } from "./certificate.ts";
import { createCsr } from "./csr.ts";
import { createKeyPair, formatKey, type KeyPair, parseKey, signing } from "./keys.ts";
import { formatPem, parsePem } from "./pem.ts";

const dayMs = 24 * 60 * 60 * 1000;
const caValidityMs = 10 * 365 * dayMs;
const leafValidityMs = 90 * dayMs;
// Hosts whose clock is behind accept a new certificate all the same.
const backdateMs = 60 * 60 * 1000;

/** What a certificate says. The request's own subject and extensions count for nothing. */
export interface Grant {
  /** Subject CN: member name, node id or user. */
  readonly commonName: string;
  /** Subject OU. */
  readonly role: Role;
  /** Host names and addresses, for servers that are reached by clients which check them (etcd). */
  readonly hosts?: readonly string[];
  readonly nowMs: number;
  /** Default 90 days. */
  readonly validityMs?: number;
}

/** A new cluster CA: ECDSA P-256, self-signed, 10 years, may sign leaf certificates only. Both PEM. */
export async function createAuthority(
  name: string,
  nowMs: number,
): Promise<{ readonly certificate: Buffer; readonly key: Buffer }> {
  const keys = await createKeyPair();
  const certificate = await X509CertificateGenerator.createSelfSigned({
    serialNumber: newSerial(),
    name: [{ CN: [name] }],
    notBefore: new Date(nowMs - backdateMs),
    notAfter: new Date(nowMs + caValidityMs),
    signingAlgorithm: signing,
    keys,
    extensions: [
      new BasicConstraintsExtension(true, 0, true),
      new KeyUsagesExtension(KeyUsageFlags.keyCertSign | KeyUsageFlags.cRLSign, true),
      await SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  return { certificate: formatPem("CERTIFICATE", new Uint8Array(certificate.rawData)), key: await formatKey(keys) };
}

/** The cluster's CA with its key: signs certificates. */
export class Authority {
  /** PEM. */
  readonly certificate: Buffer;
  /** SHA-256 of the certificate's DER, hex: what a join token pins. */
  readonly fingerprint: string;
  readonly #issuer: X509Certificate;
  readonly #keys: KeyPair;

  private constructor(certificate: Buffer, fingerprint: string, issuer: X509Certificate, keys: KeyPair) {
    this.certificate = certificate;
    this.fingerprint = fingerprint;
    this.#issuer = issuer;
    this.#keys = keys;
  }

  /** From PEM. Throws `invalid` when one cannot be read, is no CA, or they do not belong together. */
  static async load(certificate: Buffer, key: Buffer): Promise<Authority> {
    const keys = await parseKey(key);
    const der = parsePem("CERTIFICATE", certificate);
    if (der === undefined) throw new ClusterError("the CA certificate is not PEM", { code: "invalid" });
    let node: NodeCertificate;
    try {
      node = new NodeCertificate(der);
    } catch (cause) {
      throw new ClusterError("the CA certificate cannot be read", { code: "invalid", cause });
    }
    const issuer = new X509Certificate(der);
    if (!node.ca) throw new ClusterError("the CA certificate is not one of a CA", { code: "invalid" });
    if (!(await issuer.verify({ publicKey: keys.publicKey, signatureOnly: true }))) {
      throw new ClusterError("the CA certificate and the CA key do not belong together", { code: "invalid" });
    }
    return new Authority(certificate, fingerprintOf(certificate), issuer, keys);
  }

  /**
   * Signs a certificate request: PEM of a certificate for the request's key and the grant's subject. Throws `invalid` when
   * the request cannot be read, its signature is wrong or its key is not ECDSA P-256.
   */
  async sign(csrDer: Uint8Array, grant: Grant): Promise<Buffer> {
    let request: Pkcs10CertificateRequest;
    try {
      request = new Pkcs10CertificateRequest(new Uint8Array(csrDer));
      if (!(await request.verify())) throw new Error("wrong signature");
    } catch (cause) {
      throw new ClusterError("the certificate request cannot be read or is not signed by its own key", {
        code: "invalid",
        subject: "csr",
        cause,
      });
    }
    const algorithm: { name: string; namedCurve?: string } = request.publicKey.algorithm;
    if (algorithm.name !== "ECDSA" || algorithm.namedCurve !== "P-256") {
      throw new ClusterError("the certificate request's key is not ECDSA P-256", { code: "invalid", subject: "csr" });
    }
    const extensions: Extension[] = [
      new BasicConstraintsExtension(false, undefined, true),
      new KeyUsagesExtension(KeyUsageFlags.digitalSignature, true),
      // Every program is a server to some and a client to others.
      new ExtendedKeyUsageExtension([ExtendedKeyUsage.serverAuth, ExtendedKeyUsage.clientAuth]),
      await AuthorityKeyIdentifierExtension.create(this.#issuer.publicKey),
      await SubjectKeyIdentifierExtension.create(request.publicKey),
    ];
    const names: JsonGeneralNames = (grant.hosts ?? []).map((host) => ({
      type: isIP(host) === 0 ? "dns" : "ip",
      value: host,
    }));
    if (names.length > 0) extensions.push(new SubjectAlternativeNameExtension(names));
    const certificate = await X509CertificateGenerator.create({
      serialNumber: newSerial(),
      subject: [{ CN: [grant.commonName] }, { OU: [grant.role] }],
      issuer: this.#issuer.subjectName,
      notBefore: new Date(grant.nowMs - backdateMs),
      notAfter: new Date(grant.nowMs + (grant.validityMs ?? leafValidityMs)),
      signingAlgorithm: signing,
      publicKey: request.publicKey,
      signingKey: this.#keys.privateKey,
      extensions,
    });
    return formatPem("CERTIFICATE", new Uint8Array(certificate.rawData));
  }

  /** A certificate with a new key, for this machine's own use. */
  async issue(grant: Grant): Promise<TlsIdentity> {
    const { csrDer, key } = await createCsr();
    return { ca: this.certificate, certificate: await this.sign(csrDer, grant), key };
  }
}

/** Positive, and at most 20 octets (RFC 5280, 4.1.2.2): first bit 0, second 1. */
function newSerial(): string {
  const bytes = randomBytes(16);
  bytes.writeUInt8((bytes.readUInt8(0) & 0x7f) | 0x40, 0);
  return bytes.toString("hex");
}
