import type { BinaryWriter } from "@bufbuild/protobuf/wire";

/** All that a generated `encode` function can ask of a writer. */
type Writer = { readonly [M in keyof BinaryWriter]: (...args: Parameters<BinaryWriter[M]>) => unknown };

const initialBytes = 64 * 1024;
/** A buffer that grew beyond it is not kept. */
const mostKeptBytes = 1024 * 1024;
/** Strings up to here are written by hand when they are ASCII: their length takes one byte. */
const shortString = 0x7f;

/** Appends a message's bytes to what the writer has. Throws for values that do not fit their fields. */
export function encodeInto<T>(
  message: { encode(value: T, writer: BinaryWriter): unknown },
  value: T,
  writer: FlatWriter,
): void {
  // The library's class has private fields, so that nothing else can be one in the compiler's eyes.
  message.encode(value, writer as unknown as BinaryWriter);
}

/**
 * Writes protobuf into one buffer that is kept from message to message, with positions that can be told: the library's own writer
 * makes a new buffer of each message, which costs more than to write a small one.
 */
export class FlatWriter implements Writer {
  #buffer = Buffer.allocUnsafeSlow(initialBytes);
  #pos = 0;
  /** Of each open fork the bytes kept for its length, and where its content begins. */
  readonly #forks: number[] = [];

  /** How many bytes are written. Those of an open fork may move, by what its length takes beyond the bytes kept for it. */
  get length(): number {
    return this.#pos;
  }

  /** Begins anew. */
  reset(): void {
    this.#pos = 0;
    this.#forks.length = 0;
    if (this.#buffer.length > mostKeptBytes) this.#buffer = Buffer.allocUnsafeSlow(initialBytes);
  }

  /** A copy of what is written; the writer goes on with nothing. */
  finish(): Buffer<ArrayBuffer> {
    return FlatWriter.finish([this]);
  }

  /** A copy of what each has written, one after the other, in memory that `take` gives; they go on with nothing. */
  static finish(
    writers: readonly FlatWriter[],
    take = (bytes: number): Buffer<ArrayBuffer> => Buffer.allocUnsafe(bytes),
  ): Buffer<ArrayBuffer> {
    if (writers.some((one) => one.#forks.length > 0)) throw new Error("a fork was not joined");
    const bytes = take(writers.reduce((sum, { length }) => sum + length, 0));
    let at = 0;
    for (const writer of writers) {
      at += writer.#buffer.copy(bytes, at, 0, writer.#pos);
      writer.reset();
    }
    return bytes;
  }

  /** Begins a length-delimited field's content. A good guess of its length saves moving it when it is joined. */
  fork(expectedBytes = 0): this {
    const kept = sizeOfLength(expectedBytes);
    this.#reserve(kept);
    this.#pos += kept;
    this.#forks.push(kept, this.#pos);
    return this;
  }

  /** Ends what the last `fork` began. */
  join(): this {
    const start = this.#forks.pop();
    const kept = this.#forks.pop();
    if (start === undefined || kept === undefined) throw new Error("there is no fork to join");
    const length = this.#pos - start;
    const needed = sizeOfLength(length);
    if (needed !== kept) {
      this.#reserve(needed - kept);
      this.#buffer.copyWithin(start - kept + needed, start, this.#pos);
    }
    this.#pos = start - kept;
    this.uint32(length);
    this.#pos += length;
    return this;
  }

  tag(fieldNumber: number, wireType: number): this {
    return this.uint32(((fieldNumber << 3) | wireType) >>> 0);
  }

  raw(chunk: Uint8Array): this {
    this.#reserve(chunk.length);
    this.#buffer.set(chunk, this.#pos);
    this.#pos += chunk.length;
    return this;
  }

  /** Repeats what was written from a position on, `length` bytes of a few dozen. */
  repeat(from: FlatWriter, start: number, length: number): this {
    this.#reserve(length);
    const source = from.#buffer;
    const target = this.#buffer;
    const to = this.#pos;
    for (let i = 0; i < length; i++) target[to + i] = source[start + i] as number;
    this.#pos = to + length;
    return this;
  }

  uint32(value: number): this {
    if (value >>> 0 !== value) throw new RangeError(`${value} is no uint32`);
    this.#reserve(5);
    const buffer = this.#buffer;
    let pos = this.#pos;
    let left = value;
    while (left > 0x7f) {
      buffer[pos++] = (left & 0x7f) | 0x80;
      left >>>= 7;
    }
    buffer[pos++] = left;
    this.#pos = pos;
    return this;
  }

  int32(value: number): this {
    if ((value | 0) !== value) throw new RangeError(`${value} is no int32`);
    return value < 0 ? this.#varint(BigInt.asUintN(64, BigInt(value))) : this.uint32(value);
  }

  sint32(value: number): this {
    if ((value | 0) !== value) throw new RangeError(`${value} is no sint32`);
    return this.uint32(((value << 1) ^ (value >> 31)) >>> 0);
  }

  bool(value: boolean): this {
    return this.uint32(value ? 1 : 0);
  }

  bytes(value: Uint8Array): this {
    return this.uint32(value.length).raw(value);
  }

  string(value: string): this {
    const { length } = value;
    if (length > shortString) return this.#longString(value);
    this.#reserve(1 + length);
    const buffer = this.#buffer;
    let pos = this.#pos;
    buffer[pos++] = length;
    for (let i = 0; i < length; i++) {
      const code = value.charCodeAt(i);
      if (code > 0x7f) return this.#longString(value);
      buffer[pos++] = code;
    }
    this.#pos = pos;
    return this;
  }

  /** The two as one string. */
  joined(first: string, second: string): this {
    const length = first.length + second.length;
    if (length > shortString) return this.#longString(first + second);
    this.#reserve(1 + length);
    const buffer = this.#buffer;
    let pos = this.#pos;
    let seen = 0;
    buffer[pos++] = length;
    for (let i = 0; i < first.length; i++) {
      const code = first.charCodeAt(i);
      seen |= code;
      buffer[pos++] = code;
    }
    for (let i = 0; i < second.length; i++) {
      const code = second.charCodeAt(i);
      seen |= code;
      buffer[pos++] = code;
    }
    if (seen > 0x7f) return this.#longString(first + second);
    this.#pos = pos;
    return this;
  }

  float(value: number): this {
    this.#reserve(4);
    this.#pos = this.#buffer.writeFloatLE(value, this.#pos);
    return this;
  }

  double(value: number): this {
    this.#reserve(8);
    this.#pos = this.#buffer.writeDoubleLE(value, this.#pos);
    return this;
  }

  fixed32(value: number): this {
    this.#reserve(4);
    this.#pos = this.#buffer.writeUInt32LE(value, this.#pos);
    return this;
  }

  sfixed32(value: number): this {
    this.#reserve(4);
    this.#pos = this.#buffer.writeInt32LE(value, this.#pos);
    return this;
  }

  fixed64(value: string | number | bigint): this {
    this.#reserve(8);
    this.#pos = this.#buffer.writeBigUInt64LE(BigInt(value), this.#pos);
    return this;
  }

  sfixed64(value: string | number | bigint): this {
    this.#reserve(8);
    this.#pos = this.#buffer.writeBigInt64LE(BigInt(value), this.#pos);
    return this;
  }

  int64(value: string | number | bigint): this {
    if (typeof value === "number" && value >= 0 && value <= Number.MAX_SAFE_INTEGER) return this.#safeInteger(value);
    const whole = BigInt(value);
    if (BigInt.asIntN(64, whole) !== whole) throw new RangeError(`${value} is no int64`);
    return this.#varint(BigInt.asUintN(64, whole));
  }

  uint64(value: string | number | bigint): this {
    if (typeof value === "number" && value >= 0 && value <= Number.MAX_SAFE_INTEGER) return this.#safeInteger(value);
    const whole = BigInt(value);
    if (BigInt.asUintN(64, whole) !== whole) throw new RangeError(`${value} is no uint64`);
    return this.#varint(whole);
  }

  sint64(value: string | number | bigint): this {
    const whole = BigInt(value);
    if (BigInt.asIntN(64, whole) !== whole) throw new RangeError(`${value} is no sint64`);
    return this.#varint(BigInt.asUintN(64, (whole << 1n) ^ (whole >> 63n)));
  }

  #safeInteger(value: number): this {
    if (!Number.isInteger(value)) throw new RangeError(`${value} is no integer`);
    this.#reserve(10);
    const buffer = this.#buffer;
    let pos = this.#pos;
    let left = value;
    while (left > 0x7f) {
      buffer[pos++] = (left % 0x80) | 0x80;
      left = Math.floor(left / 0x80);
    }
    buffer[pos++] = left;
    this.#pos = pos;
    return this;
  }

  #varint(value: bigint): this {
    this.#reserve(10);
    let left = value;
    while (left > 0x7fn) {
      this.#buffer[this.#pos++] = Number(left & 0x7fn) | 0x80;
      left >>= 7n;
    }
    this.#buffer[this.#pos++] = Number(left);
    return this;
  }

  #longString(value: string): this {
    const length = Buffer.byteLength(value);
    this.uint32(length).#reserve(length);
    this.#pos += this.#buffer.write(value, this.#pos, length, "utf8");
    return this;
  }

  #reserve(bytes: number): void {
    const needed = this.#pos + bytes;
    if (needed <= this.#buffer.length) return;
    let length = this.#buffer.length * 2;
    while (length < needed) length *= 2;
    const larger = Buffer.allocUnsafeSlow(length);
    this.#buffer.copy(larger, 0, 0, this.#pos);
    this.#buffer = larger;
  }
}

/** Bytes that a length takes as a varint. */
function sizeOfLength(length: number): number {
  if (length < 0x80) return 1;
  if (length < 0x4000) return 2;
  if (length < 0x20_0000) return 3;
  return length < 0x1000_0000 ? 4 : 5;
}
