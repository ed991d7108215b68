/** The bytes as PEM of that label ("CERTIFICATE", "PRIVATE KEY"). */
export function formatPem(label: string, der: Uint8Array): Buffer {
  const lines = Buffer.from(der)
    .toString("base64")
    .match(/.{1,64}/g);
  return Buffer.from(`-----BEGIN ${label}-----\n${(lines ?? []).join("\n")}\n-----END ${label}-----\n`);
}

/** The bytes of the first PEM block with that label; undefined when there is none. */
export function parsePem(label: string, pem: Buffer): Buffer | undefined {
  const block = new RegExp(`-----BEGIN ${label}-----([A-Za-z0-9+/=\\s]*)-----END ${label}-----`).exec(pem.toString());
  return block?.[1] === undefined ? undefined : Buffer.from(block[1], "base64");
}
