import { isDeepStrictEqual } from "node:util";
import { shareAddress } from "../../lib/net/host-ip.ts";
import { nearest } from "../../lib/words/nearest.ts";
import { FileProblem } from "./files.ts";
import { numbered } from "./finish.ts";
import type { Variables } from "./interpolate.ts";
import { parseCidr4 } from "./keys/common.ts";
import type { LinkTarget } from "./keys/service.ts";
import type { LoadContext } from "./load.ts";
import type { Config, Port, Secret, Service, Stack } from "./model.ts";
import { UPDATE_DEFAULTS } from "./resolve.ts";
import type { Position } from "./source.ts";
import { formatPath, type Path } from "./tree.ts";

/** As Docker has it for configs; secrets there are 500 KB. */
const MAX_CONTENT_BYTES = 1_000_000;
/** Ports that one service may expose or publish. */
const MAX_PORTS = 1000;

/** What the checks work with, besides the stack. */
export interface CheckContext extends LoadContext {
  readonly variables: Variables;
  readonly positionOf: (path: Path) => Position | undefined;
  /** Services left out because no profile of theirs is chosen, and the profiles that would bring some back. */
  readonly off: readonly string[];
  readonly profiles: readonly string[];
}

/** Checks what no key can say alone. Reads the content of secrets and configs, which it returns by "secrets.<key>". */
export function checkStack(stack: Stack, context: CheckContext): Map<string, Uint8Array> {
  new Checker(stack, context).run();
  return readContents(stack, context);
}

class Checker {
  readonly #stack: Stack;
  readonly #context: CheckContext;

  constructor(stack: Stack, context: CheckContext) {
    this.#stack = stack;
    this.#context = context;
  }

  run(): void {
    for (const [name, service] of Object.entries(this.#stack.services))
      this.#service(name, service, ["services", name]);
    this.#names();
    this.#cycles();
    this.#hostPorts();
    this.#networks();
    this.#externalNames();
  }

  #error(
    code: "reference" | "conflict" | "cycle" | "value" | "missing",
    path: Path,
    message: string,
    hint?: string,
    suggestion?: string,
  ): void {
    this.#context.report.error(code, path, this.#context.positionOf(path), message, {
      ...(hint !== undefined && { hint }),
      ...(suggestion !== undefined && { suggestion }),
    });
  }

  #service(name: string, service: Service, path: Path): void {
    this.#references(name, service, path);
    this.#links(name, service, path);
    this.#numbers(service, path);
    this.#mounts(service, path);
    this.#placement(service, path);
    this.#modes(service, path);
    this.#templates(service, path);
  }

  /** Swarm fills in templates here; a container that gets them as they are fails far from the cause. */
  #templates(service: Service, path: Path): void {
    for (const [key, value] of Object.entries(service.environment ?? {})) {
      if (typeof value !== "string" || !/\{\{\s*\.(Service|Node|Task)\b/.test(value)) continue;
      const where = [...path, "environment", key];
      this.#context.report.warn(where, this.#context.positionOf(where), "the template is passed on as it is written", {
        hint: "Templates are filled in only in hostname.",
      });
    }
  }

  #unknown(path: Path, what: string, name: string, known: readonly string[], hint?: string): void {
    const suggestion = nearest(name, known);
    const listed =
      known.length === 0
        ? `The stack has no ${what}s.`
        : known.length === 1
          ? suggestion === undefined && `Its only ${what} is ${known[0]}.`
          : `Its ${what}s are ${known.slice(0, 20).join(", ")}${known.length > 20 ? ", ..." : ""}.`;
    this.#error(
      "reference",
      path,
      `no ${what} of this stack is called ${JSON.stringify(name)}`,
      hint ?? (listed || undefined),
      suggestion,
    );
  }

  #placement(service: Service, path: Path): void {
    if (service.deploy.mode === "global" && service["x-disruption"]?.min_available.endsWith("%")) {
      this.#error(
        "conflict",
        [...path, "x-disruption", "min_available"],
        "is a share of the replicas, and a global service has none",
        "Give a number of tasks.",
      );
    }
    if (service.deploy.mode === "global" && service["x-disruption"]?.rebalance) {
      this.#error(
        "conflict",
        [...path, "x-disruption", "rebalance"],
        "has no meaning for a global service, which has a task on every node",
        "Leave it out.",
      );
    }
    const placement = service["x-placement"];
    const where = [...path, "x-placement"];
    if ((placement?.spread ?? []).length > 0 && (service.deploy.placement?.preferences ?? []).length > 0) {
      this.#error(
        "conflict",
        [...where, "spread"],
        "cannot go with deploy.placement.preferences",
        "Say it here: {over: node.labels.zone} is {spread: node.labels.zone} there.",
      );
    }
    for (const key of ["affinity", "anti_affinity"] as const) {
      for (const [index, { service: other }] of numbered(placement?.[key])) {
        // A wish towards what no profile brings in is no wish.
        if (other === undefined || this.#context.off.includes(other)) continue;
        if (!Object.hasOwn(this.#stack.services, other))
          this.#unknown([...where, key, index], "service", other, Object.keys(this.#stack.services));
      }
    }
  }

  #references(name: string, service: Service, path: Path): void {
    const { networks, volumes, configs, secrets } = this.#stack;
    if (service.network_mode !== undefined && Object.keys(service.networks).length > 0) {
      this.#error("conflict", [...path, "network_mode"], "cannot go with networks", "Keep one of the two.");
    }
    for (const network of Object.keys(service.networks)) {
      if (!Object.hasOwn(networks, network))
        this.#unknown(
          [...path, "networks", network],
          "network",
          network,
          Object.keys(networks),
          Object.keys(networks).length === 0 ? `Add it at the top: networks: {${network}: {}}.` : undefined,
        );
    }
    for (const [index, mount] of numbered(service.volumes)) {
      if (mount.type === "volume" && mount.source !== undefined && !Object.hasOwn(volumes, mount.source)) {
        const known = Object.keys(volumes);
        const hint =
          known.length === 0
            ? `Add it at the top: volumes: {${mount.source}: {}}. A path of the node begins with / or ./.`
            : undefined;
        this.#unknown([...path, "volumes", index], "volume", mount.source, known, hint);
      }
    }
    for (const [section, items, grants] of [
      ["configs", configs, service.configs],
      ["secrets", secrets, service.secrets],
    ] as const) {
      for (const [index, grant] of numbered(grants)) {
        if (!Object.hasOwn(items, grant.source))
          this.#unknown([...path, section, index], section.slice(0, -1), grant.source, Object.keys(items));
      }
    }
    for (const [dependency, { condition, required }] of Object.entries(service.depends_on ?? {})) {
      const where = [...path, "depends_on", dependency];
      const isThere = dependency !== name && Object.hasOwn(this.#stack.services, dependency);
      const check = isThere ? this.#stack.services[dependency]?.healthcheck : undefined;
      if (condition === "service_healthy" && (check?.disable === true || check?.test?.[0] === "NONE")) {
        this.#error(
          "conflict",
          where,
          `waits for ${dependency} to be healthy, and its health check is switched off`,
          "Give it a health check, or use service_started.",
        );
      } else if (condition === "service_healthy" && isThere && check?.test === undefined) {
        // Only nodes look into images. Compose refuses such a start; here it comes as soon as the other one runs.
        this.#context.report.warn(
          where,
          this.#context.positionOf(where),
          `waits for ${dependency} to be healthy, and this file gives it no health check`,
          {
            hint: "If its image has none either, it counts as healthy once it runs. Give it a healthcheck, or use service_started.",
          },
        );
      }
      if (dependency === name) this.#error("cycle", where, "a service cannot wait for itself");
      else if (!Object.hasOwn(this.#stack.services, dependency) && required)
        this.#unknownService(where, dependency, ", or say required: false");
    }
    for (const [dependency, { required }] of Object.entries(service.depends_on ?? {})) {
      if (!required && !Object.hasOwn(this.#stack.services, dependency)) delete service.depends_on?.[dependency];
    }
  }

  #unknownService(path: Path, name: string, otherwise = ""): void {
    if (this.#context.off.includes(name)) {
      this.#error(
        "reference",
        path,
        `the service ${name} is left out, because none of its profiles is chosen`,
        `Choose one with --profile (${this.#context.profiles.join(", ")})${otherwise}.`,
      );
    } else this.#unknown(path, "service", name, Object.keys(this.#stack.services));
  }

  #links(name: string, service: Service, path: Path): void {
    const aliases = new Map<string, string>();
    const take = (target: LinkTarget, where: Path): void => {
      const other = aliases.get(target.alias);
      if (other !== undefined)
        this.#error(
          "conflict",
          where,
          `the alias ${target.alias} is taken by the link to ${other}`,
          "Give one of them another alias.",
        );
      aliases.set(target.alias, target.service);
    };
    for (const [index, link] of numbered(service.links)) {
      const where = [...path, "links", index];
      take(link, where);
      const provider = Object.hasOwn(this.#stack.services, link.service)
        ? this.#stack.services[link.service]
        : undefined;
      if (provider === undefined) {
        this.#unknownService(where, link.service);
        continue;
      }
      if (link.service === name) {
        this.#error("cycle", where, "a service cannot link itself");
        continue;
      }
      if (service.network_mode !== undefined) {
        this.#error(
          "conflict",
          where,
          `a service with network_mode: ${service.network_mode} has no network to link over`,
          "Leave network_mode out.",
        );
      } else if (!Object.keys(service.networks).some((network) => Object.hasOwn(provider.networks, network))) {
        this.#error(
          "conflict",
          where,
          `${name} and ${link.service} share no network (${namesOf(service.networks)}; ${namesOf(provider.networks)})`,
          `Add one of ${link.service}'s networks to ${name}, or the other way round.`,
        );
      }
    }
    for (const [index, link] of numbered(service.external_links)) {
      const where = [...path, "external_links", index];
      take(link, where);
      if (!link.service.includes("/") && !Object.hasOwn(this.#stack["x-external-services"], link.service)) {
        const known = Object.keys(this.#stack["x-external-services"]);
        const hint = Object.hasOwn(this.#stack.services, link.service)
          ? `${link.service} is a service of this stack: write it under links.`
          : "Name it as stack/service, or describe it under x-external-services.";
        this.#error(
          "reference",
          where,
          `${JSON.stringify(link.service)} is neither stack/service nor one of x-external-services`,
          hint,
          nearest(link.service, known),
        );
      }
    }
  }

  #numbers(service: Service, path: Path): void {
    const { deploy } = service;
    const replicas = deploy.replicas ?? (deploy.mode.startsWith("global") ? Number.POSITIVE_INFINITY : 1);
    const most = Math.max(replicas, service["x-autoscale"]?.max ?? 0);
    const many = most === Number.POSITIVE_INFINITY ? "one task on each node" : `up to ${most} tasks`;
    for (const [network, { ipv4_address: address }] of Object.entries(service.networks)) {
      const where = [...path, "networks", network, "ipv4_address"];
      if (address === undefined) continue;
      if (most > 1)
        this.#error(
          "conflict",
          where,
          `one address cannot serve ${many}`,
          "Set deploy.replicas to 1, or leave the address out: the service's name and VIP stay the same.",
        );
      const subnet = this.#stack.networks[network]?.ipam?.config?.[0]?.subnet;
      const range = subnet === undefined ? undefined : parseCidr4(subnet);
      const own = parseCidr4(`${address}/32`);
      if (range === undefined && this.#stack.networks[network]?.external === false) {
        this.#error(
          "missing",
          where,
          `the network ${network} needs a subnet for a fixed address`,
          `Add networks.${network}.ipam.config: [{subnet: ...}].`,
        );
      } else if (range !== undefined && own !== undefined && (own.base <= range.base || own.base >= range.last)) {
        this.#error("value", where, `${address} is no address for a task in ${subnet}`);
      }
    }
    if (service.container_name !== undefined && most > 1) {
      this.#error(
        "conflict",
        [...path, "container_name"],
        `one name cannot serve ${many}`,
        "Set deploy.replicas to 1, or leave the name out: tasks are called <stack>_<service>.<slot>.",
      );
    }
    if (service["x-singleton"] && most > 1) {
      this.#error("conflict", [...path, "x-singleton"], `a singleton cannot have ${many}`, "Set deploy.replicas to 1.");
    }
    for (const key of ["update_config", "rollback_config"] as const) {
      if (!service["x-singleton"] || deploy[key].order !== "start-first") continue;
      this.#error(
        "conflict",
        [...path, "deploy", key, "order"],
        "a singleton cannot start its new task before the old one has stopped",
        "Use stop-first.",
      );
    }
    const { limits, reservations } = deploy.resources ?? {};
    for (const resource of ["cpus", "memory"] as const) {
      const limit = limits?.[resource];
      const reservation = reservations?.[resource];
      if (limit !== undefined && limit > 0 && reservation !== undefined && reservation > limit) {
        this.#error(
          "conflict",
          [...path, "deploy", "resources", "reservations", resource],
          `reserves more (${amountOf(resource, reservation)}) than the limit allows (${amountOf(resource, limit)})`,
        );
      }
    }
    const swap = service.memswap_limit;
    const memory = limits?.memory;
    if (swap !== undefined && swap !== -1 && (memory === undefined || swap < memory)) {
      this.#error(
        "conflict",
        [...path, "memswap_limit"],
        memory === undefined
          ? "needs a memory limit beside it"
          : "is memory and swap together, and cannot be below the memory limit",
      );
    }
    if (service.cpu_quota !== undefined && limits?.cpus !== undefined) {
      this.#error(
        "conflict",
        [...path, "cpu_quota"],
        "says the same as the limit of CPUs",
        "Keep deploy.resources.limits.cpus.",
      );
    }
    if (
      service["x-autoscale"] !== undefined &&
      service["x-autoscale"].signal !== "connections" &&
      reservations?.[service["x-autoscale"].signal === "cpu" ? "cpus" : "memory"] === undefined
    ) {
      const resource = service["x-autoscale"].signal === "cpu" ? "cpus" : "memory";
      this.#error(
        "missing",
        [...path, "x-autoscale"],
        `watches the use of what is reserved, and no ${resource} is`,
        `Set deploy.resources.reservations.${resource}, or use signal: connections.`,
      );
    }
  }

  #mounts(service: Service, path: Path): void {
    const targets = new Map<string, string>();
    const take = (target: string, where: Path, what: string): void => {
      const clean = target.length > 1 ? target.replace(/\/+$/, "") : target;
      const other = targets.get(clean);
      if (other !== undefined) this.#error("conflict", where, `${clean} is taken by ${other} already`);
      else targets.set(clean, `${what} (${formatPath(where.slice(2))})`);
    };
    for (const [index, mount] of numbered(service.volumes)) take(mount.target, [...path, "volumes", index], "a mount");
    for (const [index, line] of numbered(service.tmpfs))
      take(line.split(":")[0] ?? "", [...path, "tmpfs", index], "a tmpfs");
    for (const section of ["configs", "secrets"] as const) {
      for (const [index, grant] of numbered(service[section]))
        take(grant.target ?? "", [...path, section, index], `a ${section.slice(0, -1)}`);
    }
  }

  #modes(service: Service, path: Path): void {
    const { deploy } = service;
    const isJob = deploy.mode.endsWith("-job");
    if (service["x-schedule"] !== undefined && !isJob) {
      this.#error(
        "conflict",
        [...path, "x-schedule"],
        `is for jobs, and the service is in ${deploy.mode} mode`,
        "Set deploy.mode to replicated-job or global-job.",
      );
    }
    if (service["x-autoscale"] !== undefined && deploy.mode !== "replicated") {
      this.#error(
        "conflict",
        [...path, "x-autoscale"],
        `is for replicated services, and this one is in ${deploy.mode} mode`,
      );
    }
    for (const key of ["update_config", "rollback_config"] as const) {
      if (!isJob || isDeepStrictEqual(deploy[key], UPDATE_DEFAULTS)) continue;
      this.#error("conflict", [...path, "deploy", key], "is for services that keep running, and this one is a job");
    }
    for (const [index, port] of numbered(service.ports)) {
      if (service.network_mode !== undefined)
        this.#error(
          "conflict",
          [...path, "ports", index],
          `a service with network_mode: ${service.network_mode} has no ports to publish`,
        );
      if (
        port.mode === "host" &&
        port.published !== undefined &&
        port.published.from === port.published.to &&
        [deploy.update_config.order, deploy.rollback_config.order].includes("start-first")
      ) {
        this.#error(
          "conflict",
          [...path, "ports", index],
          "start-first would need this host port twice on the node",
          "Use stop-first, or mode: ingress.",
        );
      }
    }
    const exposed = [...numbered(service.expose)].reduce((sum, [, range]) => sum + range.to - range.from + 1, 0);
    if (exposed > MAX_PORTS)
      this.#error("value", [...path, "expose"], `exposes ${exposed} ports; ${MAX_PORTS} are allowed`);
    if ((service.ports ?? []).length > MAX_PORTS)
      this.#error("value", [...path, "ports"], `publishes ${service.ports?.length} ports; ${MAX_PORTS} are allowed`);
  }

  /** DNS does not tell upper from lower case. */
  #names(): void {
    const names = new Map<string, string>();
    for (const name of Object.keys(this.#stack.services)) {
      const other = names.get(name.toLowerCase());
      if (other !== undefined)
        this.#error("conflict", ["services", name], `is the same name in DNS as ${other}`, "Rename one of them.");
      names.set(name.toLowerCase(), name);
    }
  }

  #cycles(): void {
    const state = new Map<string, "open" | "done">();
    const visit = (name: string, chain: readonly string[]): void => {
      if (state.get(name) === "done") return;
      state.set(name, "open");
      for (const next of Object.keys(this.#stack.services[name]?.depends_on ?? {})) {
        if (next === name || !Object.hasOwn(this.#stack.services, next)) continue;
        if (state.get(next) === "open") {
          const circle = [...chain.slice(chain.indexOf(next)), name, next];
          this.#error(
            "cycle",
            ["services", name, "depends_on", next],
            `services wait for each other: ${(chain.includes(next) ? circle : [name, next]).join(" -> ")}`,
            "Take one of these out.",
          );
        } else if (state.get(next) === undefined) visit(next, [...chain, name]);
      }
      state.set(name, "done");
    };
    for (const name of Object.keys(this.#stack.services)) visit(name, []);
  }

  #hostPorts(): void {
    const taken: { readonly port: Port; readonly from: number; readonly to: number; readonly where: Path }[] = [];
    const byPort = new Map<number, typeof taken>();
    for (const [name, service] of Object.entries(this.#stack.services)) {
      for (const [index, port] of numbered(service.ports)) {
        if (port.published === undefined || port.published.from !== port.published.to) continue;
        const where = ["services", name, "ports", index];
        const others = byPort.get(port.published.from) ?? [];
        const clash = others.find(
          (other) => other.port.protocol === port.protocol && shareAddress(other.port.host_ip, port.host_ip),
        );
        if (clash !== undefined) {
          this.#error(
            "conflict",
            where,
            `the host port ${port.published.from}/${port.protocol} is taken by ${formatPath(clash.where)}`,
            "Publish one of them on another port.",
          );
        } else byPort.set(port.published.from, [...others, { port, from: 0, to: 0, where }]);
      }
    }
  }

  #networks(): void {
    const subnets: { readonly name: string; readonly base: number; readonly last: number }[] = [];
    for (const [name, network] of Object.entries(this.#stack.networks)) {
      const path = ["networks", name];
      if (network.external) {
        const given = (["driver_opts", "ipam", "internal", "labels", "attachable"] as const).filter(
          (key) => network[key] !== undefined && network[key] !== false,
        );
        for (const key of given)
          this.#error(
            "conflict",
            [...path, key],
            "cannot be said of a network that exists already",
            "Leave it out, or external.",
          );
      } else if (network.driver !== "overlay") {
        this.#error(
          "value",
          [...path, "driver"],
          `${network.driver} exists already on every node`,
          "Say external: true beside it.",
        );
      }
      if ((network.ipam?.config?.length ?? 0) > 1)
        this.#error("value", [...path, "ipam", "config"], "takes one pool of addresses");
      const subnet = parseCidr4(network.ipam?.config?.[0]?.subnet ?? "");
      if (subnet === undefined) continue;
      const other = subnets.find((one) => one.base <= subnet.last && subnet.base <= one.last);
      if (other !== undefined)
        this.#error(
          "conflict",
          [...path, "ipam", "config", 0, "subnet"],
          `overlaps with the subnet of the network ${other.name}`,
        );
      subnets.push({ name, base: subnet.base, last: subnet.last });
    }
    for (const [name, volume] of Object.entries(this.#stack.volumes)) {
      if (volume.external && volume.driver_opts !== undefined)
        this.#error(
          "conflict",
          ["volumes", name, "driver_opts"],
          "cannot be said of a volume that exists already",
          "Leave it out, or external.",
        );
      if (volume.external && volume["x-on-node-loss"] !== undefined)
        this.#error(
          "conflict",
          ["volumes", name, "x-on-node-loss"],
          "is for the stack to say that makes the volume",
          "Leave it out, or external.",
        );
    }
  }

  /** Names that the same section gives twice in the cluster. */
  #externalNames(): void {
    for (const section of ["networks", "volumes", "configs", "secrets"] as const) {
      const names = new Map<string, string>();
      for (const [key, item] of Object.entries(this.#stack[section])) {
        const other = names.get(item.name);
        if (other !== undefined)
          this.#error(
            "conflict",
            [section, key],
            `has the name ${item.name}, and so has ${section}.${other}`,
            "Give one of them another name.",
          );
        names.set(item.name, key);
      }
    }
    for (const name of Object.keys(this.#stack["x-external-services"])) {
      if (Object.hasOwn(this.#stack.services, name))
        this.#error(
          "conflict",
          ["x-external-services", name],
          "has the name of a service of this stack",
          "Rename one of them.",
        );
    }
  }
}

function amountOf(resource: "cpus" | "memory", amount: number): string {
  return resource === "cpus" ? String(amount / 1000) : `${Math.round((amount / 2 ** 20) * 100) / 100} MiB`;
}

function namesOf(networks: Service["networks"]): string {
  return Object.keys(networks).join(", ") || "none";
}

function readContents(stack: Stack, context: CheckContext): Map<string, Uint8Array> {
  const contents = new Map<string, Uint8Array>();
  for (const section of ["configs", "secrets"] as const) {
    for (const [name, item] of Object.entries(stack[section])) {
      const content = readContent(item, [section, name], context);
      if (content !== undefined) contents.set(`${section}.${name}`, content);
    }
  }
  return contents;
}

function readContent(item: Config | Secret, path: Path, context: CheckContext): Uint8Array | undefined {
  const inline = "content" in item ? item.content : undefined;
  const sources = [
    item.file !== undefined && "file",
    item.environment !== undefined && "environment",
    inline !== undefined && "content",
    item.external && "external",
  ].filter((one) => one !== false);
  const error = (
    code: "missing" | "conflict" | "file" | "limit",
    below: Path,
    message: string,
    hint?: string,
  ): undefined => {
    const full = [...path, ...below];
    context.report.error(code, full, context.positionOf(full), message, hint === undefined ? {} : { hint });
    return undefined;
  };
  const all = path[0] === "configs" ? "file, content, environment or external" : "file, environment or external";
  // A driver that was refused is where the value would come from.
  const isRefused = context.report.errors.some(
    ({ path: where, code }) => code.startsWith("unsupported") && where[0] === path[0] && where[1] === path[1],
  );
  if (sources.length === 0 && isRefused) return undefined;
  if (sources.length === 0) return error("missing", [], `needs a value: one of ${all}`);
  if (sources.length > 1)
    return error("conflict", [], `has more than one value: ${sources.join(" and ")}`, `Keep one of ${all}.`);
  if (item.external) return undefined;
  if (inline !== undefined) return sized(new TextEncoder().encode(inline));
  if (item.environment !== undefined) {
    const value = context.variables(item.environment);
    if (value === undefined)
      return error(
        "missing",
        ["environment"],
        `the variable ${item.environment} is not set`,
        `Set ${item.environment} where the stack is deployed.`,
      );
    return sized(new TextEncoder().encode(value));
  }
  try {
    return context.files.read(item.file ?? "", MAX_CONTENT_BYTES);
  } catch (failure) {
    if (!(failure instanceof FileProblem)) throw failure;
    return error("file", ["file"], `the file ${item.file} ${failure.message}`);
  }

  function sized(bytes: Uint8Array): Uint8Array | undefined {
    return bytes.length > MAX_CONTENT_BYTES ? error("limit", [], `is larger than ${MAX_CONTENT_BYTES} bytes`) : bytes;
  }
}
