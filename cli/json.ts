import * as apiTypes from "../proto/gen/embassy/v1/api.ts";
import * as stackTypes from "../proto/gen/embassy/v1/stack.ts";
import * as stateTypes from "../proto/gen/embassy/v1/state.ts";

/** How a message becomes JSON: what ts-proto generates. */
interface JsonCodec<T> {
  toJSON(message: T): unknown;
}

/**
 * The proto3 JSON of a message with every list, map and scalar present, so that a program need not know defaults: enums
 * as plain words ("running", "stop-first"), int64 as numbers, bytes as base64, a `oneof` as the field that is set. A message
 * that is not set is absent.
 */
export function jsonOf<T extends object>(codec: JsonCodec<T>, message: T): unknown {
  return complete(message, codec.toJSON(message));
}

/** Word by name of every value of the API's enums: TASK_STATE_RUNNING -> running, UPDATE_ORDER_STOP_FIRST -> stop-first. */
export const enumWords: ReadonlyMap<string, string> = new Map(
  [apiTypes, stackTypes, stateTypes].flatMap(Object.entries<unknown>).flatMap(([type, values]) => {
    // The generator writes an enum's values in capitals, each beginning with the type's name; everything else it writes is not so.
    const prefix = `${type.replace(/(?!^)[A-Z]/g, "_$&").toUpperCase()}_`;
    return Object.keys(values ?? {})
      .filter((name) => name.startsWith(prefix))
      .map((name): [string, string] => [name, name.slice(prefix.length).toLowerCase().replaceAll("_", "-")]);
  }),
);

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Uint8Array);
}

/** Adds the empty lists and maps that the generated code leaves out, and makes words of enums. */
function complete(message: unknown, json: unknown): unknown {
  if (typeof message === "number" && typeof json === "string") return enumWords.get(json) ?? json;
  if (Array.isArray(message) && Array.isArray(json)) return json.map((item, index) => complete(message[index], item));
  if (!isRecord(message) || !isRecord(json)) return json;
  const result: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(message)) {
    if (Array.isArray(value)) result[key] = complete(value, json[key] ?? []);
    else if (isRecord(value) && "$case" in value) {
      const name = String(value["$case"]);
      result[name] = complete(value["value"], json[name]);
    } else if (isRecord(value)) result[key] = complete(value, json[key] ?? {});
    else if (json[key] !== undefined) result[key] = complete(value, json[key]);
  }
  return result;
}
