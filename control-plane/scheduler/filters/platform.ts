import type { Filter } from "./filter.ts";

/** The image runs on the node's platform. */
export const platform: Filter = {
  kind: "platform",
  looksAt: "facts",
  key: (group) => group.spec.platforms,
  passes(_state, group, node) {
    const { platforms } = group.spec;
    if (platforms === undefined || platforms.length === 0) return true;
    return platforms.some(
      ({ os, arch }) => (os === "" || os === node.spec.os) && (arch === "" || arch === node.spec.arch),
    );
  },
  reason: (_state, group, node) => {
    const wanted = (group.spec.platforms ?? []).map(({ os, arch }) => `${os || "any"}/${arch || "any"}`).join(" or ");
    return {
      kind: "platform",
      text: `platform ${wanted} needed, node is ${node.spec.os}/${node.spec.arch}`,
      fix: `Use an image for ${node.spec.os}/${node.spec.arch}, or add a node of ${wanted}.`,
    };
  },
};
