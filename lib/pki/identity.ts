import { createPrivateKey, type KeyObject, randomBytes } from "node:crypto";
import { mkdir, open, readFile, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { ClusterError, isErrno, messageOf } from "../errors/errors.ts";
import type { TlsIdentity } from "../grpc/tls.ts";
import { parseCertificate } from "./certificate.ts";

/** Where a TLS identity lies. */
export interface IdentityFiles {
  readonly ca: string;
  readonly certificate: string;
  readonly key: string;
}

/**
 * Reads a TLS identity. Throws `not-found` when a file is missing, `denied` when one may not be read, `invalid` when they
 * do not belong together. An expired certificate loads: see `readCertificate`.
 */
export async function loadIdentity(files: IdentityFiles): Promise<TlsIdentity> {
  const [ca, certificate, key] = await Promise.all([read(files.ca), read(files.certificate), read(files.key)]);
  const identity = { ca, certificate, key };
  checkIdentity(identity, files.certificate);
  return identity;
}

/** Throws `invalid` when the certificate is not of this CA or not for this key. The subject names it in the error. */
export function checkIdentity(identity: TlsIdentity, subject: string): void {
  const leaf = parseCertificate(identity.certificate);
  let key: KeyObject;
  try {
    key = createPrivateKey(identity.key);
  } catch (cause) {
    throw new ClusterError(`the key beside ${subject} is not a PEM private key`, { code: "invalid", subject, cause });
  }
  if (!leaf.verify(parseCertificate(identity.ca).publicKey)) {
    throw new ClusterError(`the certificate ${subject} is not signed by the CA beside it`, {
      code: "invalid",
      subject,
    });
  }
  if (!leaf.checkPrivateKey(key)) {
    throw new ClusterError(`the certificate ${subject} is not for the key beside it`, { code: "invalid", subject });
  }
}

/** Writes it: the key readable by the owner only, each file whole or not at all, the certificate last. */
export async function writeIdentity(files: IdentityFiles, identity: TlsIdentity): Promise<void> {
  await writeWhole(files.key, identity.key, 0o600);
  await writeWhole(files.ca, identity.ca, 0o644);
  await writeWhole(files.certificate, identity.certificate, 0o644);
}

/**
 * Writes a file so that a crash leaves the old content or the new, on disk and under its name; makes its directory
 * (0700) when it is missing.
 */
export async function writeWhole(path: string, content: Buffer | string, mode: number): Promise<void> {
  const directory = dirname(path);
  await mkdir(directory, { recursive: true, mode: 0o700 });
  const temporary = `${path}.${randomBytes(4).toString("hex")}.tmp`;
  try {
    const file = await open(temporary, "wx", mode);
    try {
      await file.writeFile(content);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
    const parent = await open(directory, "r");
    try {
      await parent.sync();
    } finally {
      await parent.close();
    }
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

async function read(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (cause) {
    if (isErrno(cause, "ENOENT"))
      throw new ClusterError(`${path} does not exist`, { code: "not-found", subject: path, cause });
    throw new ClusterError(`${path} cannot be read: ${messageOf(cause)}`, { code: "denied", subject: path, cause });
  }
}
