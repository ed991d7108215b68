import type { ClusterIndex } from "../../domain/index.ts";
import { hasConverged } from "../../domain/updates.ts";
import type { Write } from "../../store/types.ts";

/**
 * Notes in a stack's newest revision that it has converged, the first time that each of its services has at the version that it
 * is declared at, and none has gone back or is being removed. Empty when that is not so, or noted. Pure.
 */
export function planRevision(index: ClusterIndex, stack: string, nowMs: number): Write[] {
  const newest = index.stack(stack);
  if (newest === undefined || newest.convergedAtMs > 0) return [];
  const isThere = index.servicesOfStack(stack).every((service) => {
    const { spec, removed, rollback } = service;
    const isEmpty = spec?.mode?.$case === "replicated" && spec.mode.value.replicas === 0;
    return !removed && rollback === undefined && (isEmpty || hasConverged(index, service));
  });
  if (!isThere) return [];
  const id = `${stack}/${newest.revision}`;
  return [
    { table: "stacks", id, value: { ...newest, convergedAtMs: nowMs }, ifRevision: index.view.stacks.revisionOf(id) },
  ];
}
