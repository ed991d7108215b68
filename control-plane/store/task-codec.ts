import { BinaryReader } from "@bufbuild/protobuf/wire";
import { encodeInto } from "../../lib/protobuf/flat-writer.ts";
import { ServiceSpec } from "../../proto/gen/embassy/v1/stack.ts";
import { Task } from "../../proto/gen/embassy/v1/state.ts";
import type { Codec } from "./schema.ts";

/** Tag of field 7, `spec`, length-delimited. */
const specTag = (7 << 3) | 2;
/** Services of which the specification is kept: more than a cluster has, so that what is gone does not stay for ever. */
const mostKept = 10_000;
/** Of a task beside its specification. */
const usualBytes = 120;

/**
 * Tasks as protobuf, with the specification last. It is most of a task's bytes, and the same for all tasks of a version of
 * a service: it is encoded once, and decoded once into one value that they share.
 */
export function createTaskCodec(): Codec<Task> {
  const encoded = new WeakMap<ServiceSpec, Uint8Array>();
  /** By service version: what was decoded last. */
  const decoded = new Map<string, { readonly bytes: Uint8Array; readonly spec: ServiceSpec }>();

  /** Of the last one that was asked for: asked twice a task, and for many tasks in a row. */
  let last: { readonly spec: ServiceSpec; readonly bytes: Uint8Array } | undefined;

  const bytesOf = (spec: ServiceSpec): Uint8Array => {
    if (last?.spec === spec) return last.bytes;
    let bytes = encoded.get(spec);
    if (bytes === undefined) {
      bytes = ServiceSpec.encode(spec).finish();
      encoded.set(spec, bytes);
    }
    last = { spec, bytes };
    return bytes;
  };

  const specOf = ({ serviceId, serviceVersion }: Task, bytes: Uint8Array): ServiceSpec => {
    const key = `${serviceId}@${serviceVersion}`;
    const known = decoded.get(key);
    if (known !== undefined && Buffer.compare(known.bytes, bytes) === 0) return known.spec;
    // A copy: the bytes lie within a larger message.
    const kept = Uint8Array.from(bytes);
    const spec = ServiceSpec.decode(kept);
    if (decoded.size >= mostKept) decoded.clear();
    decoded.set(key, { bytes: kept, spec });
    encoded.set(spec, kept);
    return spec;
  };

  return {
    write: (task, writer) => {
      const { spec } = task;
      if (spec === undefined) return encodeInto(Task, task, writer);
      encodeInto(Task, { ...task, spec: undefined }, writer);
      writer.uint32(specTag).bytes(bytesOf(spec));
    },
    // What is not the specification is short.
    expectedBytes: ({ spec }) => (spec === undefined ? 0 : bytesOf(spec).length + usualBytes),
    decode: (bytes) => {
      const from = lastSpec(bytes);
      if (from === undefined) return Task.decode(bytes);
      const task = Task.decode(bytes.subarray(0, from.tag));
      task.spec = specOf(task, bytes.subarray(from.start));
      return task;
    },
  };
}

/** Where the specification's tag and content begin when it is the last field and the only one of its kind. */
function lastSpec(bytes: Uint8Array): { readonly tag: number; readonly start: number } | undefined {
  const reader = new BinaryReader(bytes);
  while (reader.pos < reader.len) {
    const tag = reader.pos;
    const found = reader.uint32();
    if (found === specTag) {
      const length = reader.uint32();
      return reader.pos + length === reader.len ? { tag, start: reader.pos } : undefined;
    }
    reader.skip(found & 7);
  }
  return undefined;
}
