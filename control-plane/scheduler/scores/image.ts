import type { Score } from "./score.ts";

/** 100 points off where the image is, so that it need not be pulled first; nothing once most nodes may have it (`ImageRecord.drawing`). */
export const image: Score = {
  name: "image",
  varies: "node",
  applies: (group) => group.image !== undefined,
  points: (_state, group, node) => (group.image?.drawing.has(node.index) === true ? -100 : 0),
  nodes: (group) => group.image?.drawing ?? [],
};
