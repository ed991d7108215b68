// tsyringe, inside @peculiar/x509, needs it before the first import.
import "reflect-metadata";
import { Pkcs10CertificateRequestGenerator } from "@peculiar/x509";
import { createKeyPair, formatKey, parseKey, signing } from "./keys.ts";

/**
 * A certificate request, and the key it is for, PEM. Pass the present key to renew: then only the certificate's file
 * changes, and no crash can leave a key beside a certificate of another one. The signer decides the subject.
 */
export async function createCsr(key?: Buffer): Promise<{ readonly csrDer: Buffer; readonly key: Buffer }> {
  const keys = key === undefined ? await createKeyPair() : await parseKey(key);
  const request = await Pkcs10CertificateRequestGenerator.create({
    name: [{ CN: ["embassy"] }],
    keys,
    signingAlgorithm: signing,
  });
  return { csrDer: Buffer.from(request.rawData), key: key ?? (await formatKey(keys)) };
}
