import {
  type Answer,
  AUTHORITATIVE_ANSWER,
  decode,
  encode,
  type Packet,
  RECURSION_AVAILABLE,
  RECURSION_DESIRED,
  TRUNCATED_RESPONSE,
} from "dns-packet";
import type { Asker, Names, Resolution } from "./names.ts";

/** How long an answer of ours may be kept, in seconds: a VIP never changes, what a name comes to may. */
const ttlSeconds = 5;
const responseCodes = { ok: 0, formatError: 1, serverFailure: 2, nameError: 3, notImplemented: 4, refused: 5 } as const;

/** A query that is none of ours. */
export interface Forward {
  readonly forward: true;
}

export interface Reply {
  readonly forward: false;
  readonly bytes: Buffer;
  /** The same question of the same asker has the same answer until the state changes. */
  readonly keep: boolean;
}

/** The id of a message, or undefined when it is too short to have a header. */
export function idOf(message: Buffer): number | undefined {
  return message.length < 12 ? undefined : message.readUInt16BE(0);
}

/** Is it a query with one question, as far as its header tells? */
function isQuery(message: Buffer): boolean {
  return (message.readUInt8(2) & 0x80) === 0;
}

/**
 * Answers a DNS message. Pure but for `turn`, a number that differs from call to call and rotates lists. undefined: not a
 * query at all, and not to be answered (an answer to an answer could go on for ever).
 * `limit`: bytes that fit the transport; a longer answer is cut, with the flag that asks for TCP.
 */
export function answer(
  message: Buffer,
  asker: Asker | undefined,
  names: Names,
  turn: number,
  limit: number,
): Reply | Forward | undefined {
  const id = idOf(message);
  if (id === undefined || !isQuery(message)) return undefined;
  let query: Packet;
  try {
    query = decode(message);
  } catch {
    return reply({ id, flags: responseCodes.formatError, questions: [] }, limit, false);
  }
  const opcode = (message.readUInt8(2) >> 3) & 0xf;
  const [question, ...more] = query.questions ?? [];
  const desired = (query.flags ?? 0) & RECURSION_DESIRED;
  const flags = RECURSION_AVAILABLE | desired;
  if (opcode !== 0) return reply({ id, flags: flags | responseCodes.notImplemented }, limit, false);
  if (question === undefined || more.length > 0)
    return reply({ id, flags: flags | responseCodes.formatError }, limit, false);
  if (asker === undefined) return { forward: true };

  const room = Math.min(limit, payloadOf(query));
  const header = { id, questions: [question] };
  const name = question.name.toLowerCase();
  const resolution = resolve(name, question.type, asker, names);
  switch (resolution.kind) {
    case "elsewhere":
      return { forward: true };
    case "missing":
      return reply({ ...header, flags: flags | AUTHORITATIVE_ANSWER | responseCodes.nameError }, room, true);
    case "addresses": {
      // Of an existing name only A records are there; to any other question the answer is that there are none.
      const list = question.type === "A" ? resolution.addresses : [];
      const from = resolution.rotate && list.length > 0 ? turn % list.length : 0;
      const ordered = [...list.slice(from), ...list.slice(0, from)];
      const answers = ordered.map((data): Answer => ({ type: "A", name: question.name, ttl: ttlSeconds, data }));
      return reply(
        { ...header, flags: flags | AUTHORITATIVE_ANSWER, answers },
        room,
        !resolution.rotate || list.length < 2,
      );
    }
    case "pointer": {
      const answers: Answer[] = [{ type: "PTR", name: question.name, ttl: ttlSeconds, data: resolution.name }];
      return reply({ ...header, flags: flags | AUTHORITATIVE_ANSWER, answers }, room, true);
    }
    case "services": {
      const answers = resolution.records.map(
        (data): Answer => ({
          type: "SRV",
          name: question.name,
          ttl: ttlSeconds,
          data: { ...data, priority: 0, weight: 1 },
        }),
      );
      return reply({ ...header, flags: flags | AUTHORITATIVE_ANSWER, answers }, room, true);
    }
    default:
      return resolution satisfies never;
  }
}

/** The answer that says that nobody could be asked. */
export function serverFailure(message: Buffer): Buffer | undefined {
  const id = idOf(message);
  if (id === undefined) return undefined;
  const questions = questionsOf(message);
  return encode({
    type: "response",
    id,
    flags: RECURSION_AVAILABLE | RECURSION_DESIRED | responseCodes.serverFailure,
    questions,
  });
}

function questionsOf(message: Buffer): NonNullable<Packet["questions"]> {
  try {
    return decode(message).questions ?? [];
  } catch {
    return [];
  }
}

function resolve(name: string, type: string, asker: Asker, names: Names): Resolution {
  if (type === "PTR") {
    const match = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.in-addr\.arpa$/.exec(name);
    return match === null ? { kind: "elsewhere" } : names.pointer(match.slice(1).reverse().join("."), asker);
  }
  if (type === "SRV") return names.services(name, asker);
  return names.addresses(name, asker);
}

/** Bytes of UDP payload that the asker takes (RFC 6891), at least 512. */
export function payloadOf(query: Packet): number {
  const opt = query.additionals?.find((record) => record.type === "OPT");
  const size = opt !== undefined && "udpPayloadSize" in opt ? opt.udpPayloadSize : 512;
  return Math.max(512, size);
}

function reply(packet: Omit<Packet, "type">, limit: number, keep: boolean): Reply {
  const bytes = encode({ ...packet, type: "response" });
  if (bytes.length <= limit) return { forward: false, bytes, keep };
  const flags = (packet.flags ?? 0) | TRUNCATED_RESPONSE;
  return { forward: false, bytes: encode({ ...packet, type: "response", flags, answers: [] }), keep };
}
