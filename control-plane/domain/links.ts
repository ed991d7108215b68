import { EndpointMode, type ExposedPort, type HostEntry, Protocol } from "../../proto/gen/embassy/v1/stack.ts";
import type { Service, Task } from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "./index.ts";
import { taskName } from "./tasks.ts";

/** Ports that a link to the service opens: exposed, and targets of published ones. By number, tcp before udp, each once. */
export function openedPorts(service: Service): ExposedPort[] {
  const ports = new Map<number, ExposedPort>();
  const add = (port: number, protocol: Protocol) => ports.set(port * 2 + protocol, { port, protocol });
  for (const { port, protocol } of service.spec?.exposed ?? []) add(port, protocol);
  for (const { target, protocol } of service.spec?.ports ?? []) add(target, protocol);
  return [...ports.entries()].sort(([a], [b]) => a - b).map(([, port]) => port);
}

/** The stack's service of that name that is not being removed. */
export function serviceNamed(index: ClusterIndex, stack: string, name: string): Service | undefined {
  return index.servicesOfStack(stack).find((service) => !service.removed && service.spec?.name === name);
}

export interface ResolvedLink {
  readonly alias: string;
  readonly provider: Service;
  /** The provider's address on the first of the consumer's networks that both are on. */
  readonly vip: string;
}

/** The links of a consumer whose provider exists and has an address; in the order of the specification. */
export function resolvedLinks(
  index: ClusterIndex,
  stack: string,
  consumer: { readonly spec: Service["spec"]; readonly networkIds: Service["networkIds"] },
): ResolvedLink[] {
  const found: ResolvedLink[] = [];
  for (const link of consumer.spec?.links ?? []) {
    const provider = serviceNamed(index, stack, link.service);
    if (provider === undefined) continue;
    const vips = index.view.serviceStatuses.get(provider.id)?.vips ?? {};
    for (const { network } of consumer.spec?.networks ?? []) {
      const vip = vips[consumer.networkIds[network] ?? ""];
      if (vip === undefined) continue;
      found.push({ alias: link.alias === "" ? link.service : link.alias, provider, vip });
      break;
    }
  }
  return found;
}

/**
 * The aliases of a task's links at their VIPs, for its /etc/hosts, as Docker wrote them. Not those of a provider that has
 * asked to be found by its tasks' addresses (endpoint_mode: dnsrr): only DNS knows which these are.
 */
export function linkHosts(index: ClusterIndex, task: Task): HostEntry[] {
  return resolvedLinks(index, task.stack, task)
    .filter(({ provider }) => provider.spec?.endpointMode !== EndpointMode.ENDPOINT_MODE_DNSRR)
    .map(({ alias, vip }) => ({ name: alias, address: vip }));
}

/**
 * The variables that Docker sets for `--link`, with the provider's VIP where Docker put a container's address: NAME, PORT
 * (lowest port), and for each port PORT_n_TCP with its _ADDR, _PORT and _PROTO. Not among them is ENV_*: it would hand the
 * provider's passwords to every consumer.
 */
export function linkEnvironment(index: ClusterIndex, task: Task): Record<string, string> {
  const environment: Record<string, string> = {};
  const consumer = { spec: task.spec, networkIds: task.networkIds };
  for (const { alias, provider, vip } of resolvedLinks(index, task.stack, consumer)) {
    const prefix = alias.toUpperCase().replace(/[^A-Z0-9]/g, "_");
    environment[`${prefix}_NAME`] = `/${taskName(index.view, task)}/${alias}`;
    for (const [position, { port, protocol }] of openedPorts(provider).entries()) {
      const name = protocol === Protocol.PROTOCOL_UDP ? "udp" : "tcp";
      const url = `${name}://${vip}:${port}`;
      if (position === 0) environment[`${prefix}_PORT`] = url;
      const one = `${prefix}_PORT_${port}_${name.toUpperCase()}`;
      environment[one] = url;
      environment[`${one}_ADDR`] = vip;
      environment[`${one}_PORT`] = String(port);
      environment[`${one}_PROTO`] = name;
    }
  }
  return environment;
}
