import { contains, parseAddress, parseCidr } from "../../lib/cidr/cidr.ts";
import { ClusterError, messageOf } from "../../lib/errors/errors.ts";
import { shareAddress } from "../../lib/net/host-ip.ts";
import { plainName, plainNameWords } from "../../lib/words/plain-name.ts";
import {
  type PublishedPort,
  PublishMode,
  type ServiceSpec,
  type StackSpec,
  TaintEffect,
} from "../../proto/gen/embassy/v1/stack.ts";
import type { Taint } from "../../proto/gen/embassy/v1/state.ts";
import { mayOverlap } from "../domain/disruption.ts";
import { importanceOf } from "../domain/scheduler-facts.ts";
import { parseConstraint } from "../scheduler/index.ts";

const stackName = /^[a-z0-9][a-z0-9_-]{0,62}$/;
const dnsLabel = /^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$/i;
const mostReplicas = 100_000;
const blobBytes = 1_000_000;
const mostPriority = 1_000;
const mostShare = 1_000_000;

/**
 * Checks a stack as it arrived. clusterctl has said all of this with file and line; this is for whoever else calls, and for
 * an older clusterctl. Throws `invalid` with the first thing that is wrong.
 */
export function validateStack(spec: StackSpec): void {
  require(stackName.test(
    spec.name,
  ), "name", `${JSON.stringify(spec.name)} cannot be a stack's name`, "Use 1 to 63 of a-z, 0-9, _ and -, beginning with a letter or digit.");
  require(spec.services.length > 0, "services", "the stack has no service");
  unique(spec.services, "services");
  unique(spec.networks, "networks");
  unique(spec.configs, "configs");
  unique(spec.secrets, "secrets");
  for (const network of spec.networks) {
    const subject = `networks.${network.name}`;
    if (network.subnet !== "") checkSubnet(network.subnet, `${subject}.ipam.config[0].subnet`);
    require(network.mtu === 0 ||
      (network.mtu >= 576 && network.mtu <= 65_535), subject, `mtu ${network.mtu} is not 576-65535`);
  }
  for (const [kind, blobs] of [
    ["configs", spec.configs],
    ["secrets", spec.secrets],
  ] as const) {
    for (const { name, content } of blobs) {
      require(content.length <=
        blobBytes, `${kind}.${name}`, `it has ${content.length} bytes; at most ${blobBytes} fit`, "Put it into the image or a volume.");
    }
  }
  for (const service of spec.services) checkService(spec, service);
  checkPorts(spec);
  checkCircles(spec);
}

/** Checks how tasks are spread, and what they are drawn to. */
function checkWishes(spec: StackSpec, { placement }: ServiceSpec, subject: string): void {
  const attribute = (over: string, where: string) => {
    const parsed = parseConstraint(`${over} exists`);
    if (!parsed.ok) require(false, where, parsed.error.message);
  };
  for (const [index, { over, shares, otherShare }] of (placement?.spreadRules ?? []).entries()) {
    const where = `${subject}.x-placement.spread[${index}]`;
    attribute(over, where);
    const bad = [...Object.values(shares), otherShare].find((share) => !(share >= 0 && share <= mostShare));
    require(bad === undefined, where, `the share ${bad} is not from 0 to ${mostShare}`);
  }
  for (const [index, { to, weight }] of (placement?.affinities ?? []).entries()) {
    const where = `${subject}.x-placement.affinity[${index}]`;
    require(weight >= -100 && weight <= 100, where, `the weight ${weight} is not from -100 to 100`);
    if (to?.$case === "node") {
      const parsed = parseConstraint(to.value);
      if (!parsed.ok) require(false, where, parsed.error.message);
    } else {
      const name = to?.value.service;
      require(spec.services.some((one) => one.name === name), where, `service ${name} is not declared`);
      attribute(to?.value.over ?? "", where);
    }
  }
}

/** Checks taints that a node is to have. Throws `invalid`. */
export function checkTaints(taints: readonly Taint[], subject: string): void {
  for (const { key, value, effect } of taints) {
    require(plainName.test(key), subject, `${JSON.stringify(key)} cannot be a taint's key`, `Use ${plainNameWords}.`);
    require(value === "" ||
      plainName.test(
        value,
      ), subject, `${JSON.stringify(value)} cannot be a taint's value`, `Use ${plainNameWords}, or nothing.`);
    require(Object.values<number>(TaintEffect).includes(effect), subject, `a taint has no effect ${effect}`);
  }
}

// What a constraint can name: node.labels.KEY ends at a space or an operator.
const labelKey = /^[^\s=!<>~\p{C}]{1,128}$/u;
const labelValue = /^[^\p{Cc}]{0,256}$/u;

/** Checks labels that a node is to have. Throws `invalid`. */
export function checkLabels(labels: Readonly<Record<string, string>>, subject: string): void {
  for (const [key, value] of Object.entries(labels)) {
    require(labelKey.test(
      key,
    ), subject, `${shown(key)} cannot be a label's key`, "Use 1-128 characters without spaces, control characters and = ! < > ~, so that a constraint can name it.");
    require(labelValue.test(
      value,
    ), subject, `${shown(value)} cannot be the value of label ${key}`, "Use up to 256 characters, none of them a control character.");
  }
}

/** As JSON, which has no control characters, and not all of what is very long. */
function shown(text: string): string {
  return text.length > 64
    ? `${JSON.stringify(text.slice(0, 60))}... (${text.length} characters)`
    : JSON.stringify(text);
}

/** An update of it could never begin: it may stop no task, and may not start a second one beside what the first writes to. */
function checkBudget(service: ServiceSpec, subject: string): void {
  const { minAvailable = 0 } = importanceOf(service);
  const replicas = service.mode?.$case === "replicated" ? service.mode.value.replicas : 0;
  require(replicas === 0 ||
    minAvailable < replicas ||
    mayOverlap({
      spec: service,
    }), `${subject}.x-disruption.min_available`, `with all ${replicas} tasks kept up no update could stop one, and two of a slot would write to the same volume or directory`, "Lower it, have more replicas, or say `deploy.update_config.order: start-first` if two tasks may use what it mounts at once.");
}

function require(holds: boolean, subject: string, message: string, hint?: string): void {
  if (!holds) throw new ClusterError(message, { code: "invalid", subject, hint });
}

function unique(entries: readonly { readonly name: string }[], subject: string): void {
  const seen = new Set<string>();
  for (const { name } of entries) {
    require(name !== "" && !seen.has(name), subject, name === "" ? "an entry has no name" : `${name} is there twice`);
    seen.add(name);
  }
}

function checkSubnet(subnet: string, subject: string): void {
  let prefix: number;
  try {
    ({ prefix } = parseCidr(subnet));
  } catch (cause) {
    throw new ClusterError(messageOf(cause), { code: "invalid", subject, cause });
  }
  require(prefix >= 8 &&
    prefix <= 27, subject, `${subnet} is not between /8 and /27`, "A node gets a block of 32 addresses at a time.");
  const loopback = contains(parseCidr("127.0.0.0/8"), parseAddress(subnet.split("/")[0] ?? ""));
  require(!loopback, subject, `${subnet} is of the loopback range`);
}

function checkService(spec: StackSpec, service: ServiceSpec): void {
  const subject = `services.${service.name}`;
  require(dnsLabel.test(
    service.name,
  ), subject, `${JSON.stringify(service.name)} cannot be a service's name`, "It becomes a name in DNS: letters, digits, - and _.");
  require((service.container?.image ?? "") !== "", `${subject}.image`, "the service has no image");
  require(service.networks.length > 0, `${subject}.networks`, "the service is on no network");
  const networks = new Set(spec.networks.map(({ name }) => name));
  for (const { network } of service.networks) {
    require(networks.has(
      network,
    ), `${subject}.networks`, `network ${network} is not declared`, `Declare it under the file's networks.`);
  }
  checkReplicas(service, service.name, subject);
  for (const [index, constraint] of (service.placement?.constraints ?? []).entries()) {
    const parsed = parseConstraint(constraint);
    if (!parsed.ok) require(false, `${subject}.deploy.placement.constraints[${index}]`, parsed.error.message);
  }
  for (const [index, over] of (service.placement?.spread ?? []).entries()) {
    const parsed = parseConstraint(`${over} exists`);
    if (!parsed.ok) require(false, `${subject}.deploy.placement.preferences[${index}]`, parsed.error.message);
  }
  for (const kind of Object.keys(service.resources?.reservations?.generic ?? {})) {
    const where = `${subject}.deploy.resources.reservations.generic_resources`;
    require(plainName.test(kind), where, `${JSON.stringify(kind)} cannot be a resource`, `Use ${plainNameWords}.`);
  }
  checkWishes(spec, service, subject);
  const { priority, disruption } = service;
  require(priority >= -mostPriority &&
    priority <= mostPriority, `${subject}.x-priority`, `${priority} is not from -${mostPriority} to ${mostPriority}`);
  const percent = disruption?.minAvailablePercent ?? 0;
  require(percent <= 100 &&
    (percent === 0 ||
      service.mode?.$case !==
        "global"), `${subject}.x-disruption.min_available`, `${percent}% is no share of the replicas`);
  checkBudget(service, subject);
  const global = service.mode?.$case === "global";
  const spreads = disruption?.rebalance === true;
  require(!(
    global && spreads
  ), `${subject}.x-disruption.rebalance`, "a global service's tasks cannot move", "Leave it out.");
  for (const [index, { key, value }] of (service.placement?.tolerations ?? []).entries()) {
    const where = `${subject}.x-placement.tolerations[${index}]`;
    require(key === "" ||
      plainName.test(key), where, `${JSON.stringify(key)} is no taint's key`, `Use ${plainNameWords}.`);
    require(key !== "" || value === undefined, where, "a value has no meaning without a key");
  }
  const aliases = service.links.map((link) => (link.alias === "" ? link.service : link.alias));
  for (const [index, alias] of aliases.entries()) {
    const where = `${subject}.links[${index}]`;
    require(dnsLabel.test(alias), where, `${JSON.stringify(alias)} cannot be an alias`, "It becomes a name in DNS.");
    require(aliases.indexOf(alias) === index, where, `alias ${alias} is used twice`);
  }
  for (const [index, link] of service.links.entries())
    checkLink(spec, service, link.service, `${subject}.links[${index}]`);
  for (const { service: name } of service.dependsOn) {
    require(spec.services.some((one) => one.name === name), `${subject}.depends_on`, `service ${name} is not declared`);
  }
  for (const { port } of service.exposed) require(isPort(port), `${subject}.expose`, `port ${port} is not 1-65535`);
  for (const kind of ["configs", "secrets"] as const) {
    for (const { source, target } of service.container?.[kind] ?? []) {
      require(spec[kind].some(
        ({ name }) => name === source,
      ), `${subject}.${kind}`, `${source} is not declared under ${kind}`);
      require(target.startsWith("/"), `${subject}.${kind}`, `target ${target} is not an absolute path`);
    }
  }
}

/** Whether a service may have as many tasks as its specification says. Throws `invalid`, in the words of `clusterctl config`. */
export function checkReplicas({ containerName, mode }: ServiceSpec, name: string, subject: string): void {
  const isGlobal = mode?.$case === "global";
  const replicas = mode?.$case === "replicated" ? mode.value.replicas : 0;
  const many = isGlobal ? "one task on each node" : `up to ${replicas} tasks`;
  const limit = `deploy.replicas takes a whole number from 0 to ${mostReplicas}, and found the number ${replicas}`;
  require(replicas <= mostReplicas, subject, `service ${name}: ${limit}`);
  const single = `service ${name} has container_name ${containerName}: one name cannot serve ${many}`;
  const hint = "Set deploy.replicas to 1, or leave the name out: tasks are called <stack>_<service>.<slot>.";
  require(containerName === "" || (!isGlobal && replicas <= 1), subject, single, hint);
}

function checkLink(spec: StackSpec, consumer: ServiceSpec, name: string, subject: string): void {
  const provider = spec.services.find((one) => one.name === name);
  require(provider !== undefined, subject, `linked service ${name} is not declared`);
  const shared =
    provider?.networks.some(({ network }) => consumer.networks.some((own) => own.network === network)) ?? false;
  require(shared, subject, `${consumer.name} and ${name} share no network`, `Put both on one network: a link leads over it.`);
}

function checkPorts(spec: StackSpec): void {
  const taken = new Map<string, { readonly hostIp: string; readonly by: string }[]>();
  for (const service of spec.services) {
    for (const port of service.ports) {
      const subject = `services.${service.name}.ports`;
      require(isPort(port.target), subject, `target port ${port.target} is not 1-65535`);
      require(port.published === 0 ||
        isPort(port.published), subject, `published port ${port.published} is not 1-65535`);
      if (port.hostIp !== "") checkAddress(port, subject);
      if (port.published === 0 || port.mode === PublishMode.PUBLISH_MODE_HOST) continue;
      const key = `${port.published} ${port.protocol}`;
      const others = taken.get(key) ?? [];
      const other = others.find(({ hostIp }) => shareAddress(hostIp, port.hostIp))?.by;
      require(other ===
        undefined, subject, `port ${port.published} is published twice, by ${other} and ${service.name}`);
      taken.set(key, [...others, { hostIp: port.hostIp, by: service.name }]);
    }
  }
}

function checkAddress(port: PublishedPort, subject: string): void {
  try {
    parseAddress(port.hostIp);
  } catch (cause) {
    throw new ClusterError(`host_ip ${port.hostIp} is not an IPv4 address`, { code: "invalid", subject, cause });
  }
}

function isPort(port: number): boolean {
  return Number.isInteger(port) && port >= 1 && port <= 65_535;
}

/** Services that wait for each other would never start; links do not wait for ever. */
function checkCircles(spec: StackSpec): void {
  const needs = new Map(
    spec.services.map(({ name, dependsOn }) => [
      name,
      dependsOn.filter(({ required }) => required).map(({ service }) => service),
    ]),
  );
  const cleared = new Set<string>();
  const visit = (name: string, path: readonly string[]): void => {
    const circle = [...path.slice(path.indexOf(name)), name].join(" -> ");
    require(!path.includes(
      name,
    ), `services.${name}.depends_on`, `services wait for each other: ${circle}`, "Drop one of these dependencies; a link does not need one.");
    if (cleared.has(name)) return;
    for (const next of needs.get(name) ?? []) visit(next, [...path, name]);
    cleared.add(name);
  };
  for (const name of needs.keys()) visit(name, []);
}
