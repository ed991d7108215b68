import { webcrypto } from "node:crypto";
import { ClusterError } from "../errors/errors.ts";
import { formatPem, parsePem } from "./pem.ts";

const ecdsa = { name: "ECDSA", namedCurve: "P-256" } as const;

/** How everything here is signed. */
export const signing = { name: "ECDSA", hash: "SHA-256" } as const;

export type KeyPair = webcrypto.CryptoKeyPair;

/** A new ECDSA P-256 key pair. */
export async function createKeyPair(): Promise<KeyPair> {
  return await webcrypto.subtle.generateKey(ecdsa, true, ["sign", "verify"]);
}

/** The private key as PKCS #8 PEM. */
export async function formatKey(pair: KeyPair): Promise<Buffer> {
  return formatPem("PRIVATE KEY", new Uint8Array(await webcrypto.subtle.exportKey("pkcs8", pair.privateKey)));
}

/** A key pair from the PKCS #8 PEM of its private key. Throws `invalid` for anything but an ECDSA P-256 key. */
export async function parseKey(pem: Buffer): Promise<KeyPair> {
  const der = parsePem("PRIVATE KEY", pem);
  try {
    if (der === undefined) throw new Error("no PEM block PRIVATE KEY");
    const privateKey = await webcrypto.subtle.importKey("pkcs8", der, ecdsa, true, ["sign"]);
    // WebCrypto has no way from a private key to its public half but through the JWK's coordinates.
    const { kty, crv, x, y } = await webcrypto.subtle.exportKey("jwk", privateKey);
    if (kty === undefined || crv === undefined || x === undefined || y === undefined) throw new Error("no public part");
    const publicKey = await webcrypto.subtle.importKey("jwk", { kty, crv, x, y }, ecdsa, true, ["verify"]);
    return { privateKey, publicKey };
  } catch (cause) {
    throw new ClusterError("this is not an ECDSA P-256 private key in PKCS #8 PEM", { code: "invalid", cause });
  }
}
