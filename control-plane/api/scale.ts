import { ClusterError } from "../../lib/errors/errors.ts";
import type { Service } from "../../proto/gen/embassy/v1/state.ts";
import { planRevision } from "../controllers/revisions/plan.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { isGlobal } from "../domain/scheduler-facts.ts";
import { serviceFullName } from "../domain/tasks.ts";
import type { Write } from "../store/types.ts";
import { resolveService } from "./resolve.ts";
import { checkReplicas } from "./validate.ts";

/** The service with another number of tasks. Throws `invalid` when it cannot have that many. */
export function scaled(index: ClusterIndex, word: string, replicas: number): Service {
  const found = resolveService(index, word);
  if (isGlobal(found)) {
    throw new ClusterError(`service ${serviceFullName(found)} is global: it has one task a node`, {
      code: "invalid",
      subject: `service/${serviceFullName(found)}`,
    });
  }
  const mode = { $case: "replicated" as const, value: { replicas } };
  const spec = found.spec === undefined ? undefined : { ...found.spec, mode };
  if (spec !== undefined) checkReplicas(spec, serviceFullName(found), `service/${serviceFullName(found)}`);
  const { stable } = found;
  // It keeps that number when it goes back.
  if (stable?.spec === undefined || stable.spec.mode?.$case === "global") return { ...found, spec };
  return { ...found, spec, stable: { ...stable, spec: { ...stable.spec, mode } } };
}

/**
 * Gives a service another number of tasks. What ran as a whole until now counts as that, though the leader may not have noted it yet. Throws as
 * `scaled` does. Pure.
 */
export function planScale(
  index: ClusterIndex,
  word: string,
  replicas: number,
  nowMs: number,
): { readonly service: Service; readonly writes: readonly Write[] } {
  const service = scaled(index, word, replicas);
  const ifRevision = index.view.services.revisionOf(service.id);
  const noted = planRevision(index, service.stack, nowMs).writes;
  return { service, writes: [...noted, { table: "services", id: service.id, value: service, ifRevision }] };
}
