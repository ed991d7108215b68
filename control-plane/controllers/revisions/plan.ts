import type { ClusterIndex } from "../../domain/index.ts";
import { stackProgress } from "../../domain/progress.ts";
import type { Write } from "../../store/types.ts";

/**
 * Notes in a stack's newest revision that it has converged, the first time that all of it has: each service at the version it is
 * declared at, and nothing left of what was before. Empty when it has not, or that is noted. Pure.
 */
export function planRevision(index: ClusterIndex, stack: string, nowMs: number): Write[] {
  const newest = index.stack(stack);
  if (newest === undefined || newest.convergedAtMs > 0) return [];
  // Cheaper than to look at every task, and true only at the end.
  const services = index.servicesOfStack(stack);
  const isAtVersion = services.every(({ id, version, spec, removed }) => {
    const isEmpty = spec?.mode?.$case === "replicated" && spec.mode.value.replicas === 0;
    return !removed && (isEmpty || index.view.serviceStatuses.get(id)?.convergedVersion === version);
  });
  if (!isAtVersion || !stackProgress(index, stack).converged) return [];
  const id = `${stack}/${newest.revision}`;
  return [
    { table: "stacks", id, value: { ...newest, convergedAtMs: nowMs }, ifRevision: index.view.stacks.revisionOf(id) },
  ];
}
