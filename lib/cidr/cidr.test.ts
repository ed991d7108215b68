import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  blocksOf,
  type Cidr,
  contains,
  formatAddress,
  formatCidr,
  isAddress,
  lastOf,
  nthAddress,
  nthBlock,
  overlaps,
  parseAddress,
  parseCidr,
  sizeOf,
} from "./cidr.ts";

const cidrs = fc
  .tuple(fc.integer({ min: 0, max: 0xffff_ffff }), fc.integer({ min: 0, max: 32 }))
  .map(([address, prefix]): Cidr => ({ base: address - (address % 2 ** (32 - prefix)), prefix }));

describe("addresses", () => {
  it("parse and format are inverse", () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 0xffff_ffff }), (n) => {
        expect(parseAddress(formatAddress(n))).toBe(n);
      }),
      { seed: 1 },
    );
    expect(formatAddress(0xff00_0001)).toBe("255.0.0.1");
  });

  it.each(["", "10.0.0", "10.0.0.256", "10.0.0.01", "10.0.0.1 ", "a.b.c.d", "::1", "10.0.0.-1"])(
    "refuses %j",
    (text) => {
      expect(() => parseAddress(text)).toThrow(/not an IPv4 address/);
      expect(isAddress(text)).toBe(false);
    },
  );
});

describe("blocks", () => {
  it("parse and format are inverse", () => {
    fc.assert(
      fc.property(cidrs, (cidr) => {
        expect(parseCidr(formatCidr(cidr))).toEqual(cidr);
      }),
      { seed: 1 },
    );
  });

  it.each(["10.0.0.0", "10.0.0.0/33", "10.0.0.0/", "x/8"])("refuses %j", (text) => {
    expect(() => parseCidr(text)).toThrow(/not an IPv4 block/);
  });

  it("refuses an address within a block and names the block", () => {
    expect(() => parseCidr("10.0.0.1/24")).toThrow(
      expect.objectContaining({ code: "invalid", hint: expect.stringContaining("10.0.0.0/24") }),
    );
  });

  it("overlap exactly when one holds an end of the other", () => {
    fc.assert(
      fc.property(cidrs, cidrs, (a, b) => {
        expect(overlaps(a, b)).toBe(overlaps(b, a));
        expect(overlaps(a, b)).toBe(contains(a, b) || contains(b, a));
      }),
      { seed: 1 },
    );
    expect(overlaps(parseCidr("10.0.0.0/24"), parseCidr("10.0.1.0/24"))).toBe(false);
    expect(overlaps(parseCidr("10.0.0.0/8"), parseCidr("10.255.255.255/32"))).toBe(true);
    expect(contains(parseCidr("0.0.0.0/0"), parseAddress("255.255.255.255"))).toBe(true);
    expect(contains(parseCidr("10.0.0.0/24"), parseAddress("10.0.1.0"))).toBe(false);
  });

  it("divide without gap or overlap", () => {
    const pool = parseCidr("10.96.0.0/20");
    const blocks = [...blocksOf(pool, 27)];
    expect(blocks).toHaveLength(128);
    expect(blocks.map((block, n) => block.base - (pool.base + n * 32))).toEqual(blocks.map(() => 0));
    expect(blocks.at(-1)).toEqual(nthBlock(pool, 27, 127));
    expect(lastOf(nthBlock(pool, 27, 127))).toBe(lastOf(pool));
    expect([...blocksOf(pool, 20)]).toEqual([pool]);
  });

  it("end where they end", () => {
    const block = parseCidr("10.0.0.224/27");
    expect(sizeOf(block)).toBe(32);
    expect(formatAddress(nthAddress(block, 31))).toBe("10.0.0.255");
    expect(() => nthAddress(block, 32)).toThrow(/no address number 32/);
    expect(() => nthBlock(block, 26, 0)).toThrow(/no blocks of \/26/);
    expect(() => nthBlock(block, 28, 2)).toThrow(/no \/28 number 2/);
    expect(() => [...blocksOf(block, 33)]).toThrow(/no blocks/);
  });
});
