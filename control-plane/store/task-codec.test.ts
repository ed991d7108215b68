import { describe, expect, it } from "vitest";
import { ContainerSpec, ServiceSpec } from "../../proto/gen/embassy/v1/stack.ts";
import { Task } from "../../proto/gen/embassy/v1/state.ts";
import { createTaskCodec } from "./task-codec.ts";
import { encoded, task } from "./testing.ts";

const spec = (image: string) => ServiceSpec.create({ name: "web", container: ContainerSpec.create({ image }) });
const web = (id: string, over: Partial<Task> = {}) =>
  task(id, { serviceId: "web", serviceVersion: 1, spec: spec("web:1"), nodeId: "n1", networkIds: { a: "b" }, ...over });
const encode = (value: Task) => encoded(createTaskCodec(), value);

describe("a task's bytes", () => {
  it("are protobuf that anybody reads", () => {
    expect(Task.decode(encode(web("t1")))).toEqual(web("t1"));
    expect(Task.decode(encode(task("t1")))).toEqual(task("t1"));
  });

  it("lack no field that the generated code writes", () => {
    const filled: Record<string, unknown> = { ...task("t1") };
    for (const [field, value] of Object.entries(Task.create())) {
      if (typeof value === "string") filled[field] = `some ${field} ${"é".repeat(70)}`;
      else if (typeof value === "number") filled[field] = 1;
      else if (Array.isArray(value))
        filled[field] = field === "hostPorts" ? [{ target: 80, published: 8_080 }, {}] : ["one", ""];
      else if (typeof value === "object") filled[field] = { [field]: "one", [""]: "two", three: "" };
    }
    const everything = Task.fromPartial({ ...filled, spec: spec("web:1") });
    const most = {
      slot: 2 ** 32 - 1,
      serviceVersion: Number.MAX_SAFE_INTEGER,
      createdAtMs: 1.7e12,
      desired: -1 as Task["desired"],
    };
    for (const one of [everything, { ...everything, ...most }, { ...everything, spec: undefined }]) {
      const { spec: last, ...others } = one;
      const fields = Task.encode(Task.fromPartial(others)).finish();
      const tail = last === undefined ? [] : Task.encode(Task.fromPartial({ spec: last })).finish();
      expect(encode(one)).toEqual(Buffer.concat([fields, Buffer.from(tail)]));
      expect(Task.decode(encode(one))).toEqual(one);
    }
    expect(encode(Task.create())).toHaveLength(0);
  });

  it("are read wherever the specification stands in them, and twice", () => {
    const codec = createTaskCodec();
    const usual = Buffer.from(Task.encode(web("t1")).finish());
    expect(codec.decode(usual, "")).toEqual(web("t1"));
    // Protobuf merges a message that comes twice.
    const twice = Buffer.concat([usual, encode(task("", { spec: spec("web:2") }))]);
    expect(codec.decode(twice, "")).toEqual(Task.decode(twice));
  });

  it("decode into one specification for all tasks of a version, while it is the same", () => {
    const codec = createTaskCodec();
    const [one, two] = ["t1", "t2"].map((id) => codec.decode(encode(web(id)), ""));
    expect(two).toEqual(web("t2"));
    expect(two?.spec).toBe(one?.spec);
    expect(codec.decode(encode(web("t3", { spec: spec("web:2") })), "")).toEqual(web("t3", { spec: spec("web:2") }));
    expect(codec.decode(encode(web("t4", { serviceVersion: 2 })), "").spec).not.toBe(one?.spec);
    expect(codec.decode(encode(web("t5", { spec: undefined })), "").spec).toBeUndefined();
  });

  it("are refused when they are no task, and the next one is not harmed", () => {
    const codec = createTaskCodec();
    const bytes = encoded(codec, web("t1"));
    for (let length = 1; length < bytes.length; length++) {
      const cut = bytes.subarray(0, length);
      const outcome = (decode: () => Task) => {
        try {
          return decode();
        } catch {
          return "refused";
        }
      };
      expect(outcome(() => codec.decode(cut, ""))).toEqual(outcome(() => Task.decode(cut)));
    }
    expect(() => encoded(codec, web("t2", { slot: -1 }))).toThrow();
    expect(encoded(codec, web("t1"))).toEqual(bytes);
  });
});
