import { FlatWriter } from "../../lib/protobuf/flat-writer.ts";
import { JoinToken, Member, NodeSession, NodeSpec, Task } from "../../proto/gen/embassy/v1/state.ts";
import type { Codec } from "./schema.ts";

// Builders for the tests of this folder: one default, overrides.
export const node = (id: string, over: Partial<NodeSpec> = {}) => NodeSpec.create({ id, name: `host-${id}`, ...over });
export const session = (nodeId: string, over: Partial<NodeSession> = {}) => NodeSession.create({ nodeId, ...over });
export const task = (id: string, over: Partial<Task> = {}) => Task.create({ id, ...over });
export const token = (id: string, over: Partial<JoinToken> = {}) => JoinToken.create({ id, ...over });
export const member = (name: string, over: Partial<Member> = {}) => Member.create({ name, ...over });

/** The value's bytes by the codec alone. */
export function encoded<T>(codec: Codec<T>, value: T, id = ""): Buffer {
  const writer = new FlatWriter();
  codec.write(value, writer, id);
  return writer.finish();
}
