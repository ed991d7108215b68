import { expect, it } from "vitest";
import { imageFingerprint } from "../../lib/images/reference.ts";
import { toldImages } from "./told.ts";

it("tells the largest, each once, in an order that hangs on nothing else", () => {
  const images = Array.from({ length: 100 }, (_, n) => ({
    reference: `docker.io/library/i${n}:1`,
    sizeBytes: n + 1e8,
  }));
  const told = toldImages([...images, ...images]);
  expect(told).toEqual(toldImages(images.toReversed()));
  expect(told).toEqual(
    images
      .slice(36)
      .map(({ reference }) => imageFingerprint(reference))
      .sort((a, b) => a - b),
  );
  expect(toldImages([{ reference: "docker.io/library/small:1", sizeBytes: 99_999_999 }])).toEqual([]);
});
