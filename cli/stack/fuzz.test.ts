import { expect, it } from "vitest";
import { fuzzStackFiles } from "../../test/conformance/fuzz.ts";

it("mutated stack files load and print to themselves, or give errors with places; nothing throws", () => {
  const { loaded, refused } = fuzzStackFiles(300, 42);
  // Both kinds must come up, or the mutations test nothing.
  expect(loaded).toBeGreaterThan(10);
  expect(refused).toBeGreaterThan(50);
});
