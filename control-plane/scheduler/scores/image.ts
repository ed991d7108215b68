import type { Score } from "./score.ts";

/**
 * So little that services of one image do not all go to the first node that has it: a task without reservations counts one, and this is
 * five of them.
 */
const points = -5;

/** Five points off where the image is, so that it need not be pulled first; nothing once most nodes may have it (`ImageRecord.drawing`). */
export const image: Score = {
  name: "image",
  varies: "node",
  applies: (group) => group.image !== undefined,
  points: (_state, group, node) => (group.image?.drawing.has(node.index) === true ? points : 0),
  nodes: (group) => group.image?.drawing ?? [],
};
