/** One member of an archive. */
export interface Entry {
  /** Any bytes of at most 255 characters; longer names get a pax header. */
  readonly name: string;
  /** Default "file". */
  readonly type?: "file" | "directory" | "symlink" | "hardlink" | "character" | "block" | "fifo";
  /** Default 0644, directories 0755. */
  readonly mode?: number;
  readonly uid?: number;
  readonly gid?: number;
  readonly content?: string | Buffer;
  /** Of a link. */
  readonly target?: string;
  /** Of a device. */
  readonly device?: readonly [major: number, minor: number];
  readonly xattrs?: Readonly<Record<string, string | Buffer>>;
}

const types = {
  file: "0",
  hardlink: "1",
  symlink: "2",
  character: "3",
  block: "4",
  directory: "5",
  fifo: "6",
} as const;

/** A tar archive of exactly these members in this order, good or bad: what no honest archiver would write too. */
export function tarOf(entries: readonly Entry[]): Buffer {
  const parts: Buffer[] = [];
  for (const entry of entries) {
    const records: Buffer[] = [];
    if (entry.name.length > 100) records.push(paxRecord("path", Buffer.from(entry.name)));
    for (const [name, value] of Object.entries(entry.xattrs ?? {})) {
      records.push(paxRecord(`SCHILY.xattr.${name}`, Buffer.from(value)));
    }
    if (records.length > 0) {
      const body = Buffer.concat(records);
      parts.push(header({ name: "pax", mode: 0o644 }, "x", body.length), padded(body));
    }
    const content = Buffer.from(entry.content ?? "");
    parts.push(header(entry, types[entry.type ?? "file"], content.length), padded(content));
  }
  return Buffer.concat([...parts, Buffer.alloc(1024)]);
}

function padded(body: Buffer): Buffer {
  return Buffer.concat([body, Buffer.alloc((512 - (body.length % 512)) % 512)]);
}

function paxRecord(key: string, value: Buffer): Buffer {
  const rest = Buffer.concat([Buffer.from(` ${key}=`), value, Buffer.from("\n")]);
  let length = rest.length + 1;
  while (String(length).length + rest.length !== length) length = String(length).length + rest.length;
  return Buffer.concat([Buffer.from(String(length)), rest]);
}

function header(entry: Entry, type: string, size: number): Buffer {
  const block = Buffer.alloc(512);
  const octal = (value: number, offset: number, length: number) => {
    block.write(`${value.toString(8).padStart(length - 1, "0")}\0`, offset);
  };
  block.write(entry.name.slice(0, 100), 0);
  octal(entry.mode ?? (entry.type === "directory" ? 0o755 : 0o644), 100, 8);
  octal(entry.uid ?? 0, 108, 8);
  octal(entry.gid ?? 0, 116, 8);
  octal(size, 124, 12);
  octal(1_000_000_000, 136, 12);
  block.write("        ", 148);
  block.write(type, 156);
  block.write(entry.target ?? "", 157);
  block.write("ustar\x0000", 257);
  octal(entry.device?.[0] ?? 0, 329, 8);
  octal(entry.device?.[1] ?? 0, 337, 8);
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148);
  return block;
}
