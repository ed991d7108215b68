import { imageFingerprint } from "../../lib/images/reference.ts";
import type { Image } from "./types.ts";

// What is worth to be near takes seconds to pull. The rest would only make the node's status longer, and tasks crowd for nothing.
const largeBytes = 100_000_000;
const most = 64;

/** What the control plane is told of the images in the store: the largest of the large ones, ascending. See `NodeStatus.images`. */
export function toldImages(images: readonly Pick<Image, "reference" | "sizeBytes">[]): number[] {
  const large = images
    .filter(({ sizeBytes }) => sizeBytes >= largeBytes)
    .sort((a, b) => b.sizeBytes - a.sizeBytes || (a.reference < b.reference ? -1 : 1));
  const told = new Set<number>();
  for (const { reference } of large) if (told.size < most) told.add(imageFingerprint(reference));
  return [...told].sort((a, b) => a - b);
}
