import { createCipheriv, createDecipheriv, randomBytes } from "node:crypto";
import { ClusterError } from "../../lib/errors/errors.ts";
import { type Codec, keyOf, rootPrefix } from "./schema.ts";
import type { StoredBlob } from "./types.ts";

export const storeKeyBytes = 32;
const version = 1;
const nonceBytes = 12;
const tagBytes = 16;

/**
 * Configs as they are, secrets by AES-256-GCM: version, nonce, tag, ciphertext. The key's path is authenticated, so that
 * whoever can write to etcd cannot put one secret in another's place.
 */
export function createBlobCodec(storeKey: Buffer): Codec<StoredBlob> {
  return {
    write: (blob, writer, id) =>
      void writer.raw(blob.kind === "config" ? blob.content : seal(storeKey, blob.content, keyOf("blobs", id))),
    decode: (bytes, key) => {
      const [kind, sha256 = ""] = key.slice(rootPrefix.length).split("/");
      return kind === "configs"
        ? { kind: "config", sha256, content: bytes }
        : { kind: "secret", sha256, content: open(storeKey, bytes, key) };
    },
  };
}

function seal(storeKey: Buffer, content: Buffer, key: string): Buffer {
  const nonce = randomBytes(nonceBytes);
  const cipher = createCipheriv("aes-256-gcm", storeKey, nonce).setAAD(Buffer.from(key));
  const sealed = Buffer.concat([cipher.update(content), cipher.final()]);
  return Buffer.concat([Buffer.of(version), nonce, cipher.getAuthTag(), sealed]);
}

function open(storeKey: Buffer, bytes: Buffer, key: string): Buffer {
  try {
    if (bytes[0] !== version) throw new Error(`unknown version ${bytes[0]}`);
    const nonce = bytes.subarray(1, 1 + nonceBytes);
    const tag = bytes.subarray(1 + nonceBytes, 1 + nonceBytes + tagBytes);
    const cipher = createDecipheriv("aes-256-gcm", storeKey, nonce).setAAD(Buffer.from(key)).setAuthTag(tag);
    return Buffer.concat([cipher.update(bytes.subarray(1 + nonceBytes + tagBytes)), cipher.final()]);
  } catch (cause) {
    throw new ClusterError(`${key} cannot be decrypted`, {
      code: "denied",
      subject: key,
      hint: "Every member needs the same store.key in its state directory: that of the member which ran `clusterd init`.",
      cause,
    });
  }
}
