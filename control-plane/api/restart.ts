import type { RestartedService } from "../../proto/gen/embassy/v1/api.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { nextVersion, unplacedNow } from "../domain/updates.ts";
import type { Write } from "../store/types.ts";
import { resolveService } from "./resolve.ts";

export interface RestartPlan {
  readonly services: readonly RestartedService[];
  readonly writes: readonly Write[];
}

/**
 * Gives each service that the words name another version and leaves its spec: replacing tasks is what an update does, and what
 * was tried of another version does not count. Pure. Throws `not-found` and `invalid` as resolveService does.
 */
export function planRestart(index: ClusterIndex, words: readonly string[]): RestartPlan {
  const services = [...new Set(words.map((word) => resolveService(index, word)))];
  const renewed = services.map((service) => ({
    ...service,
    version: nextVersion(index, service),
    unplacedBefore: unplacedNow(index, service, service),
  }));
  return {
    services: renewed.map(({ stack, spec, version }) => ({ stack, service: spec?.name ?? "", version })),
    writes: renewed.map((value): Write => {
      return { table: "services", id: value.id, value, ifRevision: index.view.services.revisionOf(value.id) };
    }),
  };
}
