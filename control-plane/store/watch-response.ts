/** A key that was written or deleted. Its bytes lie within the response: `key` and `value` are read when they are asked for. */
export class WatchedEvent {
  readonly deleted: boolean;
  /** The store revision that made it. */
  readonly revision: number;
  /** The revision that created the key; 0 of a deletion. */
  readonly createRevision: number;
  readonly #bytes: Buffer;
  /** With its tag and length. */
  readonly #keyFrom: number;
  readonly #textFrom: number;
  readonly #keyTo: number;
  readonly #valueFrom: number;
  readonly #valueTo: number;

  constructor(bytes: Buffer, from: number, to: number) {
    const reader = new Reader(bytes, from, to);
    let deleted = false;
    let kvFrom = 0;
    let kvTo = 0;
    while (reader.pos < to) {
      const tag = reader.varint();
      if (tag === tags.type) deleted = reader.varint() === 1;
      else if (tag === tags.kv) {
        const length = reader.varint();
        kvFrom = reader.pos;
        kvTo = kvFrom + length;
        reader.moveTo(kvTo);
      } else reader.skip(tag);
    }
    this.#bytes = bytes;
    this.deleted = deleted;
    const kv = new Reader(bytes, kvFrom, kvTo);
    let createRevision = 0;
    let revision = 0;
    let keyFrom = 0;
    let textFrom = 0;
    let keyTo = 0;
    let valueFrom = 0;
    let valueTo = 0;
    while (kv.pos < kvTo) {
      const tagAt = kv.pos;
      const tag = kv.varint();
      if (tag === tags.key) {
        keyFrom = tagAt;
        const length = kv.varint();
        textFrom = kv.pos;
        keyTo = textFrom + length;
        kv.moveTo(keyTo);
      } else if (tag === tags.value) {
        const length = kv.varint();
        valueFrom = kv.pos;
        valueTo = valueFrom + length;
        kv.moveTo(valueTo);
      } else if (tag === tags.createRevision) createRevision = kv.varint();
      else if (tag === tags.modRevision) revision = kv.varint();
      else kv.skip(tag);
    }
    this.revision = revision;
    this.createRevision = createRevision;
    this.#keyFrom = keyFrom;
    this.#textFrom = textFrom;
    this.#keyTo = keyTo;
    this.#valueFrom = valueFrom;
    this.#valueTo = valueTo;
  }

  get key(): string {
    return this.#bytes.toString("utf8", this.#textFrom, this.#keyTo);
  }

  /** A copy, which does not hold the response. */
  get value(): Buffer {
    return Buffer.from(this.#bytes.subarray(this.#valueFrom, this.#valueTo));
  }

  /** Is its key, as a field 1 with tag and length, the same as those bytes of `other`? */
  hasKeyOf(other: Buffer, from: number, to: number): boolean {
    return this.#bytes.compare(other, from, to, this.#keyFrom, this.#keyTo) === 0;
  }

  /** Is its value the same as those bytes of `other`? */
  hasValueOf(other: Buffer, from: number, to: number): boolean {
    return this.#bytes.compare(other, from, to, this.#valueFrom, this.#valueTo) === 0;
  }
}

export interface WatchAnswer {
  readonly created: boolean;
  readonly canceled: boolean;
  readonly cancelReason: string;
  /** 0: none */
  readonly compactRevision: number;
  /** The response goes on in the next one. */
  readonly fragment: boolean;
  /** etcd's revision when it said so. */
  readonly revision: number;
  readonly events: readonly WatchedEvent[];
}

/**
 * An etcd WatchResponse. By hand, since nearly all events of a busy cluster are the leader's own writes, of which only has to be seen
 * that they are: a message object each, with copies of key and value, took more time than all that follows from them.
 * Throws RangeError for bytes that are none.
 */
export function decodeWatchResponse(bytes: Buffer): WatchAnswer {
  const reader = new Reader(bytes, 0, bytes.length);
  const events: WatchedEvent[] = [];
  let [created, canceled, fragment] = [false, false, false];
  let [compactRevision, revision] = [0, 0];
  let cancelReason = "";
  while (reader.pos < bytes.length) {
    const tag = reader.varint();
    if (tag === tags.event) {
      const length = reader.varint();
      const from = reader.pos;
      reader.moveTo(from + length);
      events.push(new WatchedEvent(bytes, from, from + length));
    } else if (tag === tags.header) {
      const length = reader.varint();
      const from = reader.pos;
      reader.moveTo(from + length);
      revision = headerRevision(bytes, from, from + length);
    } else if (tag === tags.created) created = reader.varint() !== 0;
    else if (tag === tags.canceled) canceled = reader.varint() !== 0;
    else if (tag === tags.compactRevision) compactRevision = reader.varint();
    else if (tag === tags.fragment) fragment = reader.varint() !== 0;
    else if (tag === tags.cancelReason) {
      const length = reader.varint();
      const from = reader.pos;
      reader.moveTo(from + length);
      cancelReason = bytes.toString("utf8", from, from + length);
    } else reader.skip(tag);
  }
  return { created, canceled, cancelReason, compactRevision, fragment, revision, events };
}

function headerRevision(bytes: Buffer, from: number, to: number): number {
  const reader = new Reader(bytes, from, to);
  let revision = 0;
  while (reader.pos < to) {
    const tag = reader.varint();
    if (tag === tags.headerRevision) revision = reader.varint();
    else reader.skip(tag);
  }
  return revision;
}

/** Field number and wire type, of etcd's rpc.proto and kv.proto. */
const tags = {
  header: (1 << 3) | 2,
  created: 3 << 3,
  canceled: 4 << 3,
  compactRevision: 5 << 3,
  cancelReason: (6 << 3) | 2,
  fragment: 7 << 3,
  event: (11 << 3) | 2,
  headerRevision: 3 << 3,
  type: 1 << 3,
  kv: (2 << 3) | 2,
  key: (1 << 3) | 2,
  createRevision: 2 << 3,
  modRevision: 3 << 3,
  value: (5 << 3) | 2,
} as const;

class Reader {
  pos: number;
  readonly #bytes: Buffer;
  readonly #end: number;

  constructor(bytes: Buffer, from: number, to: number) {
    this.#bytes = bytes;
    this.pos = from;
    this.#end = to;
  }

  /** Exact up to 2^53, as revisions and lengths are. */
  varint(): number {
    let value = 0;
    let scale = 1;
    for (let i = 0; i < 10; i++) {
      if (this.pos >= this.#end) break;
      const byte = this.#bytes[this.pos++] as number;
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
      scale *= 0x80;
    }
    throw new RangeError("a number is cut off or too long");
  }

  moveTo(pos: number): void {
    if (pos > this.#end) throw new RangeError("a field goes beyond the end");
    this.pos = pos;
  }

  skip(tag: number): void {
    const wireType = tag % 8;
    if (wireType === 0) this.varint();
    else if (wireType === 2) {
      const length = this.varint();
      this.moveTo(this.pos + length);
    } else if (wireType === 1) this.moveTo(this.pos + 8);
    else if (wireType === 5) this.moveTo(this.pos + 4);
    else throw new RangeError(`there is no wire type ${wireType}`);
  }
}
