import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { contains, parseAddress, parseCidr } from "../../lib/cidr/cidr.ts";
import { chooseAddress, fullRestMs, minRestMs } from "./addresses.ts";

const block = parseCidr("10.96.0.0/29");
const none = new Map<string, number>();

describe("chooseAddress", () => {
  it("takes the lowest, after the two that are nobody's", () => {
    expect(chooseAddress([block], new Set(), none, 0)).toEqual({ kind: "address", address: "10.96.0.2" });
    expect(chooseAddress([block], new Set(["10.96.0.2"]), none, 0)).toEqual({ kind: "address", address: "10.96.0.3" });
  });

  it("prefers an address that was never in use to one that rests", () => {
    const resting = new Map([["10.96.0.2", 0]]);
    expect(chooseAddress([block], new Set(), resting, 1_000)).toEqual({ kind: "address", address: "10.96.0.3" });
    expect(chooseAddress([block], new Set(), resting, fullRestMs)).toEqual({ kind: "address", address: "10.96.0.2" });
  });

  it("takes the one that has rested longest when no other is left, and waits for it", () => {
    const inUse = new Set(["10.96.0.2", "10.96.0.3", "10.96.0.4", "10.96.0.5"]);
    const resting = new Map([
      ["10.96.0.6", 500],
      ["10.96.0.7", 100],
    ]);
    expect(chooseAddress([block], inUse, resting, 600)).toEqual({ kind: "wait", waitMs: minRestMs - 500 });
    expect(chooseAddress([block], inUse, resting, 100 + minRestMs)).toEqual({ kind: "address", address: "10.96.0.7" });
  });

  it("says when all are in use, and goes on in a further block", () => {
    const inUse = new Set(["10.96.0.2", "10.96.0.3", "10.96.0.4", "10.96.0.5", "10.96.0.6", "10.96.0.7", "10.1.1.1"]);
    expect(chooseAddress([block], inUse, none, 0)).toEqual({ kind: "full", inUse: 6 });
    expect(chooseAddress([block, parseCidr("10.96.0.8/29")], inUse, none, 0)).toEqual({
      kind: "address",
      address: "10.96.0.10",
    });
  });

  it("never gives one twice, whatever is attached and detached", () => {
    fc.assert(
      fc.property(fc.array(fc.record({ attach: fc.boolean(), which: fc.nat(10), afterMs: fc.nat(700) })), (steps) => {
        const inUse = new Set<string>();
        const resting = new Map<string, number>();
        let nowMs = 0;
        for (const { attach, which, afterMs } of steps) {
          nowMs += afterMs;
          if (attach) {
            const choice = chooseAddress([block], inUse, resting, nowMs);
            if (choice.kind !== "address") continue;
            expect(inUse.has(choice.address)).toBe(false);
            expect(contains(block, parseAddress(choice.address))).toBe(true);
            expect(nowMs - (resting.get(choice.address) ?? Number.NEGATIVE_INFINITY)).toBeGreaterThanOrEqual(minRestMs);
            inUse.add(choice.address);
          } else {
            const address = [...inUse][which];
            if (address === undefined) continue;
            inUse.delete(address);
            resting.set(address, nowMs);
          }
        }
      }),
      { seed: 3 },
    );
  });
});
