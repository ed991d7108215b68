/** How a message becomes JSON: what ts-proto generates. */
interface JsonCodec<T> {
  toJSON(message: T): unknown;
}

/**
 * The proto3 JSON of a message with every list, map and scalar present, so that a program need not know defaults: enums
 * by name, int64 as numbers, bytes as base64, a `oneof` as the field that is set. A message that is not set is absent.
 */
export function jsonOf<T extends object>(codec: JsonCodec<T>, message: T): unknown {
  return complete(message, codec.toJSON(message));
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Uint8Array);
}

/** Adds the empty lists and maps that the generated code leaves out. */
function complete(message: unknown, json: unknown): unknown {
  if (Array.isArray(message) && Array.isArray(json)) return json.map((item, index) => complete(message[index], item));
  if (!isRecord(message) || !isRecord(json)) return json;
  const result: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(message)) {
    if (Array.isArray(value)) result[key] = complete(value, json[key] ?? []);
    else if (isRecord(value) && "$case" in value) {
      const name = String(value["$case"]);
      result[name] = complete(value["value"], json[name]);
    } else if (isRecord(value)) result[key] = complete(value, json[key] ?? {});
    else if (json[key] !== undefined) result[key] = json[key];
  }
  return result;
}
