import { BinaryReader } from "@bufbuild/protobuf/wire";
import { encodeInto, type FlatWriter } from "../../lib/protobuf/flat-writer.ts";
import { PublishedPort, ServiceSpec } from "../../proto/gen/embassy/v1/stack.ts";
import { Task } from "../../proto/gen/embassy/v1/state.ts";
import type { Codec } from "./schema.ts";

/** Field number and wire type: 0 a number, 2 length-delimited. */
const tags = {
  id: (1 << 3) | 2,
  serviceId: (2 << 3) | 2,
  stack: (3 << 3) | 2,
  serviceName: (4 << 3) | 2,
  slot: 5 << 3,
  serviceVersion: 6 << 3,
  spec: (7 << 3) | 2,
  nodeId: (8 << 3) | 2,
  desired: 9 << 3,
  epoch: 10 << 3,
  createdAtMs: 11 << 3,
  unplaced: (12 << 3) | 2,
  replaces: (13 << 3) | 2,
  networkIds: (14 << 3) | 2,
  restarts: 15 << 3,
  failures: 16 << 3,
  waitsFor: (17 << 3) | 2,
  blobDigests: (18 << 3) | 2,
  hostPorts: (19 << 3) | 2,
  onlyNode: (20 << 3) | 2,
  preempts: (21 << 3) | 2,
  preemptedBy: (22 << 3) | 2,
  moved: (23 << 3) | 2,
  mapKey: (1 << 3) | 2,
  mapValue: (2 << 3) | 2,
} as const;
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
      writeWithoutSpec(task, writer);
      if (task.spec !== undefined) writer.uint32(tags.spec).bytes(bytesOf(task.spec));
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

/** As the generated code does, which would have to be given a copy, and makes lists of empty maps: it is all that a deploy of thousands writes. */
function writeWithoutSpec(task: Task, writer: FlatWriter): void {
  if (task.id !== "") writer.uint32(tags.id).string(task.id);
  if (task.serviceId !== "") writer.uint32(tags.serviceId).string(task.serviceId);
  if (task.stack !== "") writer.uint32(tags.stack).string(task.stack);
  if (task.serviceName !== "") writer.uint32(tags.serviceName).string(task.serviceName);
  if (task.slot !== 0) writer.uint32(tags.slot).uint32(task.slot);
  if (task.serviceVersion !== 0) writer.uint32(tags.serviceVersion).int64(task.serviceVersion);
  if (task.nodeId !== "") writer.uint32(tags.nodeId).string(task.nodeId);
  if (task.desired !== 0) writer.uint32(tags.desired).int32(task.desired);
  if (task.epoch !== 0) writer.uint32(tags.epoch).uint64(task.epoch);
  if (task.createdAtMs !== 0) writer.uint32(tags.createdAtMs).int64(task.createdAtMs);
  if (task.unplaced !== "") writer.uint32(tags.unplaced).string(task.unplaced);
  if (task.replaces !== "") writer.uint32(tags.replaces).string(task.replaces);
  writeMap(task.networkIds, tags.networkIds, writer);
  if (task.restarts !== 0) writer.uint32(tags.restarts).uint32(task.restarts);
  if (task.failures !== 0) writer.uint32(tags.failures).uint32(task.failures);
  if (task.waitsFor !== "") writer.uint32(tags.waitsFor).string(task.waitsFor);
  writeMap(task.blobDigests, tags.blobDigests, writer);
  for (const port of task.hostPorts) {
    writer.uint32(tags.hostPorts).fork();
    encodeInto(PublishedPort, port, writer);
    writer.join();
  }
  if (task.onlyNode !== "") writer.uint32(tags.onlyNode).string(task.onlyNode);
  for (const id of task.preempts) writer.uint32(tags.preempts).string(id);
  if (task.preemptedBy !== "") writer.uint32(tags.preemptedBy).string(task.preemptedBy);
  if (task.moved !== "") writer.uint32(tags.moved).string(task.moved);
}

function writeMap(map: { readonly [key: string]: string }, tag: number, writer: FlatWriter): void {
  for (const key in map) {
    writer.uint32(tag).fork();
    if (key !== "") writer.uint32(tags.mapKey).string(key);
    const value = map[key] as string;
    if (value !== "") writer.uint32(tags.mapValue).string(value);
    writer.join();
  }
}

/** Where the specification's tag and content begin when it is the last field and the only one of its kind. */
function lastSpec(bytes: Uint8Array): { readonly tag: number; readonly start: number } | undefined {
  const reader = new BinaryReader(bytes);
  while (reader.pos < reader.len) {
    const tag = reader.pos;
    const found = reader.uint32();
    if (found === tags.spec) {
      const length = reader.uint32();
      return reader.pos + length === reader.len ? { tag, start: reader.pos } : undefined;
    }
    reader.skip(found & 7);
  }
  return undefined;
}
