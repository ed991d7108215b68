import type { BinaryWriter } from "@bufbuild/protobuf/wire";
import { encodeInto, type FlatWriter } from "../../lib/protobuf/flat-writer.ts";
import {
  Allocation,
  Block,
  JoinToken,
  Member,
  MemberSession,
  Network,
  NodeSession,
  NodeSpec,
  NodeStatus,
  Service,
  ServiceStatus,
  StackRecord,
  TaskStatus,
  VolumeHome,
} from "../../proto/gen/embassy/v1/state.ts";
import { createTaskCodec } from "./task-codec.ts";
import type { StoredBlob, TableName, Tables } from "./types.ts";

/** Everything of ours in etcd lies below it. */
export const rootPrefix = "/embassy/v1/";
/** Held by the leader, under its lease; the value is its member name. */
export const leaderKey = `${rootPrefix}leader`;
/** The cluster's id, so that no member ever writes into another cluster's etcd. */
export const clusterKey = `${rootPrefix}cluster`;

/** How a table's values are kept in etcd. */
export interface Codec<T> {
  /** Appends the bytes of the table's value of this id. */
  write(value: T, writer: FlatWriter, id: string): void;
  /** About how many bytes that will be. */
  expectedBytes?(value: T): number;
  /** Throws when the bytes, which lie at `key`, are not such a value. */
  decode(bytes: Buffer, key: string): T;
}

export type Codecs = { readonly [N in TableName]: Codec<Tables[N]> };

/** The key of every task is from here on, and every other one of ours before: one range leaves them out. */
export const tasksPrefix = `${rootPrefix}work/tasks/`;

/** The key of every manager's record. */
export const membersPrefix = `${rootPrefix}members/`;

interface Place {
  readonly table: TableName;
  readonly keyPrefix: string;
  /** What an id of this table that lies here begins with. */
  readonly idPrefix: string;
}

// The key is keyPrefix + the id without its idPrefix.
const places: readonly Place[] = [
  { table: "stacks", keyPrefix: `${rootPrefix}stacks/`, idPrefix: "" },
  { table: "services", keyPrefix: `${rootPrefix}spec/services/`, idPrefix: "" },
  { table: "networks", keyPrefix: `${rootPrefix}spec/networks/`, idPrefix: "" },
  { table: "nodes", keyPrefix: `${rootPrefix}spec/nodes/`, idPrefix: "" },
  { table: "serviceStatuses", keyPrefix: `${rootPrefix}status/services/`, idPrefix: "" },
  { table: "nodeStatuses", keyPrefix: `${rootPrefix}status/nodes/`, idPrefix: "" },
  { table: "taskStatuses", keyPrefix: `${rootPrefix}status/tasks/`, idPrefix: "" },
  { table: "sessions", keyPrefix: `${rootPrefix}sessions/`, idPrefix: "" },
  { table: "blocks", keyPrefix: `${rootPrefix}ipam/`, idPrefix: "" },
  { table: "blobs", keyPrefix: `${rootPrefix}configs/`, idPrefix: "config/" },
  { table: "blobs", keyPrefix: `${rootPrefix}secrets/`, idPrefix: "secret/" },
  { table: "tokens", keyPrefix: `${rootPrefix}tokens/`, idPrefix: "" },
  { table: "members", keyPrefix: membersPrefix, idPrefix: "" },
  { table: "memberSessions", keyPrefix: `${rootPrefix}alive/`, idPrefix: "" },
  { table: "allocations", keyPrefix: `${rootPrefix}allocations/`, idPrefix: "" },
  { table: "volumeHomes", keyPrefix: `${rootPrefix}volumes/`, idPrefix: "" },
  { table: "tasks", keyPrefix: tasksPrefix, idPrefix: "" },
];

const placesByTable = Map.groupBy(places, ({ table }) => table);

/** Where a value lies in etcd. Throws when the id cannot be one of that table. */
export function keyOf(table: TableName, id: string): string {
  const { keyPrefix, idPrefix } = placeFor(table, id);
  return keyPrefix + id.slice(idPrefix.length);
}

/** Writes `keyOf`, without making it: a commit has thousands. */
export function writeKey(table: TableName, id: string, writer: FlatWriter): void {
  const { keyPrefix, idPrefix } = placeFor(table, id);
  writer.joined(keyPrefix, idPrefix === "" ? id : id.slice(idPrefix.length));
}

function placeFor(table: TableName, id: string): Place {
  const among = placesByTable.get(table) ?? [];
  for (let i = 0; i < among.length; i++) {
    const place = among[i] as Place;
    if (id.length > place.idPrefix.length && id.startsWith(place.idPrefix)) return place;
  }
  throw new Error(`${JSON.stringify(id)} is not an id of table ${table}`);
}

/** Which value lies at a key; undefined for keys of no table. */
export function placeOf(key: string): { readonly table: TableName; readonly id: string } | undefined {
  const place = places.find((one) => key.startsWith(one.keyPrefix));
  if (place === undefined || key.length === place.keyPrefix.length) return undefined;
  return { table: place.table, id: place.idPrefix + key.slice(place.keyPrefix.length) };
}

interface Message<T> {
  encode(value: T, writer: BinaryWriter): unknown;
  decode(bytes: Uint8Array): T;
}

function protobuf<T>(message: Message<T>): Codec<T> {
  return {
    write: (value, writer) => encodeInto(message, value, writer),
    decode: (bytes) => message.decode(bytes),
  };
}

/** Protobuf for all tables (tasks share what is the same in them), and the given codec for blobs (secrets are encrypted). */
export function createCodecs(blobs: Codec<StoredBlob>): Codecs {
  return {
    stacks: protobuf(StackRecord),
    services: protobuf(Service),
    serviceStatuses: protobuf(ServiceStatus),
    networks: protobuf(Network),
    blocks: protobuf(Block),
    nodes: protobuf(NodeSpec),
    nodeStatuses: protobuf(NodeStatus),
    sessions: protobuf(NodeSession),
    tasks: createTaskCodec(),
    taskStatuses: protobuf(TaskStatus),
    volumeHomes: protobuf(VolumeHome),
    blobs,
    tokens: protobuf(JoinToken),
    members: protobuf(Member),
    memberSessions: protobuf(MemberSession),
    allocations: protobuf(Allocation),
  };
}
