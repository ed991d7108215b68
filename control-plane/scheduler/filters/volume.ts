import type { Filter } from "./filter.ts";

/** Data that lies on one node is used there. */
export const volumeHome: Filter = {
  kind: "volume",
  looksAt: "facts",
  key: (group) => group.spec.volumes?.map(({ volume }) => volume),
  passes(state, group, node) {
    const { volumes } = group.spec;
    if (volumes === undefined) return true;
    return volumes.every(({ volume }) => {
      const home = state.volumes.get(volume)?.spec?.homeNode;
      return home === undefined || home === node.spec.id;
    });
  },
  reason(state, group, node) {
    const used = (group.spec.volumes ?? []).map(({ volume }) => state.volumes.get(volume)?.spec);
    const away = used.find((spec) => spec?.homeNode !== undefined && spec.homeNode !== node.spec.id);
    const home = state.nodes.get(away?.homeNode ?? "")?.spec.hostname ?? away?.homeNode;
    return {
      kind: "volume",
      text: `volume ${away?.name} lives on node ${home}`,
      fix: `Make room on node ${home}, or move the volume.`,
    };
  },
};

/** A single-writer volume has no other writer. */
export const volumeWriter: Filter = {
  kind: "volume",
  looksAt: "domain",
  hangsOn: ["volumes"],
  applies: (group) => group.spec.volumes !== undefined,
  passes(state, group) {
    const { volumes } = group.spec;
    if (volumes === undefined) return true;
    return volumes.every(({ volume, readOnly }) => {
      const record = state.volumes.get(volume);
      return readOnly === true || record?.spec?.access !== "single-writer" || record.writers.size === 0;
    });
  },
  reason(state, group) {
    for (const { volume, readOnly } of group.spec.volumes ?? []) {
      const record = state.volumes.get(volume);
      if (readOnly === true || record?.spec?.access !== "single-writer") continue;
      for (const writer of record.writers) {
        return {
          kind: "volume",
          text: `volume ${record.spec.name} is written by ${writer.name}`,
          fix: `Stop ${writer.name}, or mount the volume read-only.`,
        };
      }
    }
    return { kind: "volume", text: "volume has another writer", fix: "Stop its writer." };
  },
};
