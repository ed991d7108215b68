import * as fc from "fast-check";
import { expect, it } from "vitest";
import { effort } from "../arbitraries.ts";
import { Tree } from "./tree.ts";

/** Few keys, so that many are equal. */
const change = fc.record({
  node: fc.nat(90),
  key: fc.constantFrom(1, 1, 2, 3, 4, Number.POSITIVE_INFINITY),
  bits: fc.nat(7),
});

it.each([false, true])("finds the least key of a node that is accepted, after any changes (bits: %s)", (withBits) => {
  fc.assert(
    fc.property(fc.array(change, { minLength: 1, maxLength: 300 }), fc.nat(7), fc.nat(4), (changes, bit, refused) => {
      const tree = new Tree();
      if (withBits) tree.useBits();
      const required = withBits ? bit : 0;
      const known = new Map<number, { leaf: number; key: number; bits: number }>();
      const accepts = (node: number): boolean =>
        node % 4 !== refused && ((known.get(node)?.bits ?? 0) & required) === required;
      for (const { node, key, bits } of changes) {
        const leaf = known.get(node)?.leaf;
        if (leaf !== undefined && bits === 0) {
          tree.remove(leaf);
          known.delete(node);
        } else {
          const place = leaf ?? tree.add(node);
          tree.set(place, key, bits);
          known.set(node, { leaf: place, key, bits });
        }
        const keys = [...known].map(([one, of]) => (accepts(one) ? of.key : Number.POSITIVE_INFINITY));
        const least = Math.min(...keys);
        const found = tree.search({ accepts }, required, Number.POSITIVE_INFINITY, 1_000);
        if (least === Number.POSITIVE_INFINITY) expect(found).toBe(-1);
        else expect([known.get(found)?.key, tree.foundKey, accepts(found)]).toEqual([least, least, true]);
      }
    }),
    effort(200),
  );
});
