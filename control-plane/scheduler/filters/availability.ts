import type { Filter } from "./filter.ts";

/** The node's session is alive. */
export const readiness: Filter = {
  kind: "not-ready",
  looksAt: "facts",
  passes: (_state, _group, node) => node.spec.ready,
  reason: (_state, _group, node) => ({
    kind: "not-ready",
    text: "node is down",
    fix: `Bring node ${node.spec.hostname} back.`,
  }),
};

/** Neither paused nor drained. */
export const availability: Filter = {
  kind: "availability",
  looksAt: "facts",
  passes: (_state, _group, node) => node.spec.availability === "active",
  reason: (_state, _group, node) => ({
    kind: "availability",
    text: node.spec.availability === "drain" ? "node is drained" : "node is paused",
    fix: `Activate node ${node.spec.hostname}.`,
  }),
};

/** Its disk has room for an image. What can run nowhere else has its data there, or comes with the node: a refusal would be an outage. */
export const diskPressure: Filter = {
  kind: "disk-pressure",
  looksAt: "facts",
  sparesBound: true,
  passes: (_state, _group, node) => node.spec.diskPressure !== true,
  reason: (_state, _group, node) => ({
    kind: "disk-pressure",
    text: "disk is nearly full",
    fix: `Free disk space on node ${node.spec.hostname}.`,
  }),
};
