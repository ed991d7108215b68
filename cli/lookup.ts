import { ClusterError } from "../lib/errors/errors.ts";
import { call } from "../lib/grpc/client.ts";
import { nearest } from "../lib/words/nearest.ts";
import type { ClusterClient, StackView } from "../proto/gen/embassy/v1/api.ts";

/** Which of the two a name means, as a request takes it. A stack goes before a service of that name. Throws `not-found`. */
export async function stackOrService(
  client: ClusterClient,
  target: string,
  signal: AbortSignal,
): Promise<{ readonly stack: string; readonly service: string }> {
  const { services } = await call(client.listServices.bind(client), { stack: "" }, { signal });
  const { stacks } = await call(client.listStacks.bind(client), {}, { signal });
  const stackNames = new Set([
    ...stacks.map(({ name }) => name),
    ...services.flatMap(({ service }) => service?.stack ?? []),
  ]);
  if (stackNames.has(target)) return { stack: target, service: "" };
  const names = services.flatMap(({ service }) =>
    service === undefined ? [] : [`${service.stack}_${service.spec?.name}`, service.spec?.name ?? ""],
  );
  if (names.includes(target)) return { stack: "", service: target };
  const similar = nearest(target, [...stackNames, ...names]);
  throw new ClusterError(`there is no stack or service ${target}`, {
    code: "not-found",
    subject: target,
    hint: similar === undefined ? "`clusterctl services` lists what there is." : `Did you mean ${similar}?`,
  });
}

/** The stacks of the cluster, or the one of that name. Throws `not-found`. */
export async function stacksNamed(client: ClusterClient, name: string, signal: AbortSignal): Promise<StackView[]> {
  const { stacks } = await call(client.listStacks.bind(client), {}, { signal });
  const chosen = stacks.filter((stack) => name === "" || stack.name === name);
  if (name === "" || chosen.length > 0) return chosen;
  const similar = nearest(
    name,
    stacks.map((stack) => stack.name),
  );
  throw new ClusterError(`there is no stack ${name}`, {
    code: "not-found",
    subject: `stack/${name}`,
    hint: similar === undefined ? "`clusterctl stacks` lists what there is." : `Did you mean ${similar}?`,
  });
}
