import { describe, expect, it } from "vitest";
import { RequestBuffers } from "./request-buffers.ts";

const large = 100_000;

describe("RequestBuffers", () => {
  it("gives memory again once it was given back, and not before", () => {
    const buffers = new RequestBuffers();
    const [first, second] = [buffers.take(large), buffers.take(large)];
    expect(first.buffer).not.toBe(second.buffer);
    buffers.giveBack(first);
    const third = buffers.take(large + 1);
    expect(third.buffer).toBe(first.buffer);
    expect(third.length).toBe(large + 1);
    expect(buffers.take(large).buffer).not.toBe(first.buffer);
  });

  it("makes new memory for what is larger than all it has", () => {
    const buffers = new RequestBuffers();
    const first = buffers.take(large);
    buffers.giveBack(first);
    const larger = buffers.take(2 * large);
    expect(larger.buffer).not.toBe(first.buffer);
    expect(larger.length).toBe(2 * large);
  });

  it("keeps no more than a few, and nothing small", () => {
    const buffers = new RequestBuffers();
    const taken = Array.from({ length: 10 }, () => buffers.take(large));
    for (const one of taken) buffers.giveBack(one);
    const again = new Set(Array.from({ length: 10 }, () => buffers.take(large).buffer));
    expect(taken.filter(({ buffer }) => again.has(buffer))).toHaveLength(4);
    const small = buffers.take(100);
    buffers.giveBack(small);
    expect(buffers.take(large).buffer).not.toBe(small.buffer);
  });
});
