import { ClusterError } from "../../lib/errors/errors.ts";

const blockSize = 512;
const maxExtensionBytes = 1024 * 1024;
const zeroBlock = Buffer.alloc(blockSize);

/** What the filter saw that the archive's unpacked form does not show. Names are latin1 strings of the raw bytes, "" is the root. */
export interface LayerNotes {
  /** Directories that hide everything below them in lower layers, ascending. */
  readonly opaque: readonly string[];
  /** Directories that entries lie in and that have no entry of their own, parents first: their metadata is the lower layer's. */
  readonly implicit: readonly string[];
}

interface Directory {
  readonly header: Buffer;
  readonly pax: Buffer;
}

type State =
  | { readonly at: "header" }
  | { readonly at: "sparse" }
  | { readonly at: "extension"; readonly type: string; readonly header: Buffer; readonly size: number; left: number }
  | { readonly at: "body"; readonly pass: boolean }
  | { readonly at: "end" };

/**
 * Turns a layer's tar stream into one that GNU tar unpacks into an overlayfs lower directory: "dir/.wh.name" becomes a
 * 0:0 character device "dir/name", "dir/.wh..wh..opq" becomes the xattr trusted.overlay.opaque of dir (OCI image
 * specification, layer.md, "Whiteouts"). Everything else goes through byte by byte. Throws `invalid` for what is no
 * tar archive and for names with "..".
 */
export class WhiteoutFilter {
  #state: State = { at: "header" };
  /** Bytes of the current block, or of the current extension body. */
  #block: Buffer[] = [];
  #have = 0;
  /** Bytes of the current body still to come, padding included. */
  #left = 0;
  /** Extension entries (pax, GNU long names) read before their entry. */
  #pending: Buffer[] = [];
  #pax: Buffer = Buffer.alloc(0);
  #longName: string | undefined;

  readonly #directories = new Map<string, Directory>();
  readonly #implicit = new Set<string>();
  readonly #opaque = new Set<string>();
  readonly #whiteouts = new Set<string>();

  /** The bytes to hand on for these bytes. */
  *push(chunk: Buffer): Generator<Buffer> {
    let rest = chunk;
    while (rest.length > 0 && this.#state.at !== "end") {
      if (this.#state.at === "body") {
        const part = rest.subarray(0, this.#left);
        this.#left -= part.length;
        rest = rest.subarray(part.length);
        if (this.#state.pass) yield part;
        if (this.#left === 0) this.#state = { at: "header" };
        continue;
      }
      const need = this.#state.at === "extension" ? this.#state.left : blockSize;
      const part = rest.subarray(0, need - this.#have);
      rest = rest.subarray(part.length);
      this.#block.push(part);
      this.#have += part.length;
      if (this.#have < need) continue;
      const block = this.#block.length === 1 && part.length === need ? part : Buffer.concat(this.#block);
      this.#block = [];
      this.#have = 0;
      yield* this.#take(block);
    }
  }

  /** What is left to hand on after the last byte, and what was noted. Throws `invalid` when the archive ends within an entry. */
  *end(): Generator<Buffer, LayerNotes> {
    const whole =
      this.#state.at === "end" || (this.#state.at === "header" && this.#have === 0 && this.#pending.length === 0);
    if (!whole) throw notTar("it ends within an entry");
    // Last, so that they win over a directory's own entry wherever that stood.
    const opaque = [...this.#opaque].sort();
    for (const name of opaque) if (name !== "") yield* this.#opaqueEntry(name);
    yield zeroBlock;
    yield zeroBlock;
    return { opaque, implicit: [...this.#implicit].filter((name) => !this.#directories.has(name)).sort() };
  }

  *#take(block: Buffer): Generator<Buffer> {
    switch (this.#state.at) {
      case "header":
        yield* this.#takeHeader(block);
        return;
      case "sparse":
        // Old GNU sparse maps go on while this byte is set; the data follows.
        yield block;
        if (block[504] !== 1) this.#enterBody(true);
        return;
      case "extension":
        this.#takeExtension(this.#state, block);
        return;
      case "body":
      case "end":
        return;
      default:
        this.#state satisfies never;
    }
  }

  #takeExtension(state: Extract<State, { at: "extension" }>, body: Buffer): void {
    const content = body.subarray(0, state.size);
    this.#pending.push(Buffer.from(state.header), Buffer.from(body));
    if (state.type === "x" || state.type === "X") this.#pax = Buffer.concat([this.#pax, content]);
    if (state.type === "L") this.#longName = cString(content);
    this.#state = { at: "header" };
  }

  *#takeHeader(header: Buffer): Generator<Buffer> {
    if (header.equals(zeroBlock)) {
      this.#state = { at: "end" };
      return;
    }
    checkSum(header);
    const size = readNumber(header, 124, 12);
    const padded = Math.ceil(size / blockSize) * blockSize;
    const type = header[156] === 0 ? "0" : String.fromCharCode(header[156] ?? 0);

    if (type === "x" || type === "X" || type === "L" || type === "K") {
      if (size > maxExtensionBytes) throw notTar("an extended header is longer than 1 MiB");
      if (padded === 0) return;
      this.#state = { at: "extension", type, header: Buffer.from(header), size, left: padded };
      return;
    }
    const pax = paxRecords(this.#pax);
    const name = cleanName(pax.get("path") ?? this.#longName ?? headerName(header));
    const paxSize = pax.get("size");
    const realSize = paxSize === undefined ? size : Number(paxSize);
    if (!Number.isSafeInteger(realSize) || realSize < 0) throw notTar(`${name} has no valid size`);
    const hasBody = type === "0" || type === "7" || type === "S" || type === "g" || !/^[1-6]$/.test(type);
    this.#left = hasBody ? Math.ceil(realSize / blockSize) * blockSize : 0;

    const base = name.slice(name.lastIndexOf("/") + 1);
    const parent = name.slice(0, Math.max(0, name.lastIndexOf("/")));
    let pass = true;
    if (type === "g") {
      // A global header names no file.
    } else if (base === ".wh..wh..opq") {
      this.#opaque.add(parent);
      this.#noteParents(name);
      pass = false;
    } else if (name.startsWith(".wh..wh.") || name.includes("/.wh..wh.")) {
      // Bookkeeping of aufs.
      pass = false;
    } else if (base.startsWith(".wh.")) {
      const hidden = parent === "" ? base.slice(4) : `${parent}/${base.slice(4)}`;
      if (base.length === 4 || base === ".wh.." || base === ".wh...") throw notTar(`"${name}" hides nothing`);
      this.#noteParents(name);
      pass = false;
      if (this.#directories.has(hidden)) this.#opaque.add(hidden);
      else {
        this.#whiteouts.add(hidden);
        yield* entry(hidden, { type: "3", mode: 0, pax: Buffer.alloc(0) });
      }
    } else {
      this.#noteParents(name);
      if (type === "5") {
        this.#directories.set(name, { header: Buffer.from(header), pax: this.#pax });
        // Hidden and made again in one layer: what lies below stays hidden.
        if (this.#whiteouts.has(name)) this.#opaque.add(name);
      }
    }
    if (pass) {
      yield* this.#pending;
      yield header;
    }
    this.#pending = [];
    this.#pax = Buffer.alloc(0);
    this.#longName = undefined;
    if (type === "S" && header[482] === 1) this.#state = { at: "sparse" };
    else this.#enterBody(pass);
  }

  #enterBody(pass: boolean): void {
    this.#state = this.#left === 0 ? { at: "header" } : { at: "body", pass };
  }

  #noteParents(name: string): void {
    for (let end = name.lastIndexOf("/"); end > 0; end = name.lastIndexOf("/", end - 1)) {
      const parent = name.slice(0, end);
      if (this.#directories.has(parent) || this.#implicit.has(parent)) return;
      this.#implicit.add(parent);
    }
  }

  *#opaqueEntry(name: string): Generator<Buffer> {
    const known = this.#directories.get(name);
    const mark = paxRecord("SCHILY.xattr.trusted.overlay.opaque", "y");
    if (known === undefined) {
      yield* entry(name, { type: "5", mode: 0o755, pax: mark });
      return;
    }
    const body = Buffer.concat([known.pax, paxRecord("path", `${name}/`), mark]);
    yield makeHeader("pax", "x", 0o644, body.length);
    yield padded(body);
    yield known.header;
  }
}

function* entry(name: string, options: { type: string; mode: number; pax: Buffer }): Generator<Buffer> {
  const body = Buffer.concat([paxRecord("path", name), options.pax]);
  yield makeHeader("pax", "x", 0o644, body.length);
  yield padded(body);
  yield makeHeader("entry", options.type, options.mode, 0);
}

function padded(body: Buffer): Buffer {
  return Buffer.concat([body, Buffer.alloc((blockSize - (body.length % blockSize)) % blockSize)]);
}

function makeHeader(name: string, type: string, mode: number, size: number): Buffer {
  const header = Buffer.alloc(blockSize);
  const octal = (value: number, offset: number, length: number) => {
    header.write(`${value.toString(8).padStart(length - 1, "0")}\0`, offset, "latin1");
  };
  header.write(name, 0, "latin1");
  octal(mode, 100, 8);
  octal(0, 108, 8);
  octal(0, 116, 8);
  octal(size, 124, 12);
  octal(0, 136, 12);
  header.write("        ", 148, "latin1");
  header.write(type, 156, "latin1");
  header.write("ustar\x0000", 257, "latin1");
  octal(0, 329, 8);
  octal(0, 337, 8);
  let sum = 0;
  for (const byte of header) sum += byte;
  header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  return header;
}

/** "<length> <key>=<value>\n", the length counting itself (POSIX pax). */
function paxRecord(key: string, value: string): Buffer {
  const rest = ` ${key}=${value}\n`;
  let length = rest.length + 1;
  while (String(length).length + rest.length !== length) length = String(length).length + rest.length;
  return Buffer.from(`${length}${rest}`, "latin1");
}

function paxRecords(body: Buffer): Map<string, string> {
  const records = new Map<string, string>();
  let offset = 0;
  while (offset < body.length) {
    const space = body.indexOf(0x20, offset);
    const length = space < 0 ? Number.NaN : Number(body.toString("latin1", offset, space));
    if (!Number.isSafeInteger(length) || length < space - offset + 4 || offset + length > body.length) {
      throw notTar("an extended header is malformed");
    }
    const text = body.toString("latin1", space + 1, offset + length - 1);
    const equals = text.indexOf("=");
    records.set(text.slice(0, equals), text.slice(equals + 1));
    offset += length;
  }
  return records;
}

function checkSum(header: Buffer): void {
  let sum = 0;
  for (let index = 0; index < blockSize; index += 1) sum += index >= 148 && index < 156 ? 0x20 : (header[index] ?? 0);
  if (sum !== readNumber(header, 148, 8)) throw notTar("an entry's checksum is wrong");
}

/** Octal text, or GNU's base-256 for what does not fit. */
function readNumber(header: Buffer, offset: number, length: number): number {
  const first = header[offset] ?? 0;
  if ((first & 0x80) !== 0) {
    let value = first & 0x7f;
    for (let index = 1; index < length; index += 1) value = value * 256 + (header[offset + index] ?? 0);
    if (!Number.isSafeInteger(value)) throw notTar("an entry's size is out of range");
    return value;
  }
  const text = cString(header.subarray(offset, offset + length)).trim();
  const value = text === "" ? 0 : Number.parseInt(text, 8);
  if (!Number.isSafeInteger(value) || value < 0) throw notTar("an entry's size is malformed");
  return value;
}

function cString(bytes: Buffer): string {
  const end = bytes.indexOf(0);
  return bytes.toString("latin1", 0, end < 0 ? bytes.length : end);
}

function headerName(header: Buffer): string {
  const name = cString(header.subarray(0, 100));
  const posix = header.toString("latin1", 257, 263) === "ustar\0";
  const prefix = posix ? cString(header.subarray(345, 500)) : "";
  return prefix === "" ? name : `${prefix}/${name}`;
}

function cleanName(name: string): string {
  const parts = name.split("/").filter((part) => part !== "" && part !== ".");
  if (parts.includes("..")) throw notTar(`"${name}" leads out of the image`);
  return parts.join("/");
}

function notTar(why: string): ClusterError {
  return new ClusterError(`the layer is no tar archive that can be unpacked: ${why}`, { code: "invalid" });
}
