import { ClusterError } from "../../lib/errors/errors.ts";
import type { Service } from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { isGlobal } from "../domain/scheduler-facts.ts";
import { serviceFullName } from "../domain/tasks.ts";
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
