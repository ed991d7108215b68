import { isAbsolute } from "node:path";
import { parseEnvFile, parseRawEnvFile } from "./dotenv.ts";
import { FileProblem } from "./files.ts";
import { numbered } from "./finish.ts";
import type { Variables } from "./interpolate.ts";
import { type LoadContext, MAX_ENV_FILE_BYTES, readSource } from "./load.ts";
import type { Deploy, Network, RawService, RawStack, RestartPolicy, Service, Stack, UpdateConfig } from "./model.ts";
import type { Position } from "./source.ts";
import { formatPath, type Path } from "./tree.ts";

export interface ResolveContext extends LoadContext {
  readonly name: string;
  readonly variables: Variables;
  /** Where a path stands, or the nearest thing above it that stands somewhere. */
  readonly positionOf: (path: Path) => Position | undefined;
}

/**
 * Makes everything explicit that a file leaves to defaults, to other files or to the machine: variables of env files,
 * labels of label files, the default network, names in the cluster, the policies under `deploy`.
 */
export function resolveStack(raw: RawStack, context: ResolveContext): Stack {
  const services: Record<string, Service> = {};
  let usesDefault = false;
  const awaited = completed(raw);
  for (const [name, service] of Object.entries(raw.services ?? {})) {
    const resolved = resolveService(service, ["services", name], awaited.has(name), context);
    if (Object.hasOwn(resolved.networks, "default")) usesDefault = true;
    services[name] = resolved;
  }
  const networks = named(raw.networks ?? {}, context.name) as Record<string, Network>;
  if (usesDefault && !Object.hasOwn(networks, "default")) {
    networks["default"] = { ...DEFAULT_NETWORK, name: `${context.name}_default` };
  }
  return {
    ...without(raw, ["include", "version", "services"]),
    name: context.name,
    services,
    networks: sorted(networks),
    volumes: named(raw.volumes ?? {}, context.name),
    configs: named(raw.configs ?? {}, context.name),
    secrets: named(raw.secrets ?? {}, context.name),
    "x-external-services": raw["x-external-services"] ?? {},
  };
}

/** Services whose completion another waits for. In Compose's own default, nothing is restarted, so they need no policy there. */
function completed(raw: RawStack): Set<string> {
  const waits = Object.values(raw.services ?? {}).flatMap((service) => Object.entries(service.depends_on ?? {}));
  return new Set(
    waits.flatMap(([name, { condition }]) => (condition === "service_completed_successfully" ? [name] : [])),
  );
}

const DEFAULT_NETWORK: Omit<Network, "name"> = {
  driver: "overlay",
  attachable: false,
  internal: false,
  external: false,
  enable_ipv4: true,
  enable_ipv6: false,
};

function named<T extends { name?: string; external: boolean }>(
  items: Record<string, T>,
  stack: string,
): Record<string, T & { name: string }> {
  // What exists already is known in the cluster by its own name; what is made here is scoped to the stack.
  return Object.fromEntries(
    Object.entries(items).map(([key, item]) => [
      key,
      { ...item, name: item.name ?? (item.external ? key : `${stack}_${key}`) },
    ]),
  );
}

function sorted<T>(items: Record<string, T>): Record<string, T> {
  return Object.fromEntries(Object.entries(items).toSorted(([a], [b]) => (a < b ? -1 : 1)));
}

function resolveService(raw: RawService, path: Path, isAwaited: boolean, context: ResolveContext): Service {
  const restartPolicy = restartOf(raw, path, isAwaited, context);
  const deploy = resolveDeploy(raw, restartPolicy, path, context);
  const service: Service = {
    ...without(raw, RESOLVED_AWAY),
    image: raw.image ?? "",
    environment: environmentOf(raw, path, context),
    labels: sorted({ ...labelFiles(raw.label_file ?? [], path, context), ...raw.labels }),
    networks: networksOf(raw),
    deploy,
  };
  // One error is enough for a service that is to be built, whose image is wrong, or that does not get it from where it should.
  const isKnown = () =>
    ["build", "image"].some((key) => hasError([...path, key], context)) ||
    context.report.errors.some((error) => error.path[2] === "extends");
  if (raw.image === undefined && !isKnown()) {
    const at = context.positionOf(path);
    context.report.error("missing", path, at, "needs image, which is not given");
  }
  for (const [, grant] of numbered(service.configs)) {
    grant.target ??= `/${grant.source}`;
    if (!isAbsolute(grant.target)) grant.target = `/${grant.target}`;
  }
  for (const [, grant] of numbered(service.secrets)) {
    grant.target ??= `/run/secrets/${grant.source}`;
    if (!isAbsolute(grant.target)) grant.target = `/run/secrets/${grant.target}`;
  }
  for (const kind of ["pre_start", "post_start", "pre_stop"] as const) {
    for (const [index, hook] of numbered(service[kind])) {
      if (hook.environment === undefined) continue;
      const where = [...path, kind, index, "environment"];
      hook.environment = sorted(given(hook.environment, new Map(), where, context));
    }
  }
  for (const [, device] of numbered(service.devices)) {
    device.target ??= device.source;
  }
  return service;
}

/** Keys whose meaning has gone elsewhere: into other keys, or out of the model. */
const RESOLVED_AWAY = [
  "env_file",
  "label_file",
  "extends",
  "profiles",
  "scale",
  "restart",
  "cpus",
  "mem_limit",
  "mem_reservation",
  "pids_limit",
] as const;

function without<T extends object, K extends keyof T>(value: T, keys: readonly K[]): Omit<T, K> {
  const result = { ...value };
  for (const key of keys) delete result[key];
  return result;
}

function hasError(path: Path, context: ResolveContext): boolean {
  const wanted = formatPath(path);
  return context.report.errors.some((error) => formatPath(error.path) === wanted);
}

function networksOf(raw: RawService): Service["networks"] {
  const networks = raw.networks ?? {};
  if (raw.network_mode !== undefined) return networks;
  return Object.keys(networks).length > 0 ? networks : { default: { priority: 0, gw_priority: 0 } };
}

// ---- deploy

/** How an update goes that says nothing about itself. */
export const UPDATE_DEFAULTS: UpdateConfig = {
  parallelism: 1,
  delay: 0,
  failure_action: "pause",
  monitor: 5000,
  max_failure_ratio: 0,
  order: "stop-first",
};

function resolveDeploy(
  raw: RawService,
  restart: RestartPolicy,
  path: Path,
  context: ResolveContext,
): Service["deploy"] {
  const given: Deploy = raw.deploy ?? { mode: "replicated", endpoint_mode: "vip" };
  const result = { ...given } as Service["deploy"];
  const replicas = agreed(
    [
      ["scale", raw.scale],
      ["deploy.replicas", given.replicas],
    ],
    path,
    context,
  );
  if (given.mode === "global" || given.mode === "global-job") {
    if (replicas !== undefined) {
      const key = raw.scale === undefined ? ["deploy", "replicas"] : ["scale"];
      context.report.error(
        "conflict",
        [...path, ...key],
        context.positionOf([...path, ...key]),
        `a service in ${given.mode} mode has one task on each node`,
        { hint: "Leave the number out, or use mode: replicated." },
      );
    }
  } else result.replicas = replicas ?? 1;

  const { limits, reservations } = given.resources ?? {};
  const allLimits = {
    ...limits,
    ...some(
      "cpus",
      agreed(
        [
          ["cpus", raw.cpus],
          ["deploy.resources.limits.cpus", limits?.cpus],
        ],
        path,
        context,
      ),
    ),
    ...some(
      "memory",
      agreed(
        [
          ["mem_limit", raw.mem_limit],
          ["deploy.resources.limits.memory", limits?.memory],
        ],
        path,
        context,
      ),
    ),
    ...some(
      "pids",
      agreed(
        [
          ["pids_limit", raw.pids_limit],
          ["deploy.resources.limits.pids", limits?.pids],
        ],
        path,
        context,
      ),
    ),
  };
  const allReservations = {
    ...reservations,
    ...some(
      "memory",
      agreed(
        [
          ["mem_reservation", raw.mem_reservation],
          ["deploy.resources.reservations.memory", reservations?.memory],
        ],
        path,
        context,
      ),
    ),
  };
  const resources = {
    ...given.resources,
    ...(Object.keys(allLimits).length > 0 && { limits: allLimits }),
    ...(Object.keys(allReservations).length > 0 && { reservations: allReservations }),
  };
  if (Object.keys(resources).length > 0) result.resources = resources;
  result.restart_policy = restart;
  result.update_config = { ...UPDATE_DEFAULTS, ...given.update_config };
  result.rollback_config = { ...UPDATE_DEFAULTS, ...given.rollback_config };
  return result;
}

function some<K extends string, V>(key: K, value: V | undefined): { [P in K]?: V } {
  return (value === undefined ? {} : { [key]: value }) as { [P in K]?: V };
}

/** One value that two keys may give: either, or both when they say the same. */
function agreed<T>(
  candidates: readonly (readonly [string, T | undefined])[],
  path: Path,
  context: ResolveContext,
): T | undefined {
  const given = candidates.filter(([, value]) => value !== undefined);
  const [first, second] = given;
  if (first !== undefined && second !== undefined && first[1] !== second[1]) {
    const at = [...path, ...first[0].split(".")];
    context.report.error("conflict", at, context.positionOf(at), `says something else than ${second[0]}`, {
      hint: `Give one of the two; ${second[0]} is the newer form.`,
    });
  }
  return (second ?? first)?.[1];
}

const JOB_MODES = ["replicated-job", "global-job"];

/** The policy under `deploy`, or what `restart` means, or the default of the mode. */
function restartOf(raw: RawService, path: Path, isAwaited: boolean, context: ResolveContext): RestartPolicy {
  const ends = isAwaited || JOB_MODES.includes(raw.deploy?.mode ?? "replicated");
  const base: RestartPolicy = { condition: ends ? "on-failure" : "any", delay: 1000, max_attempts: 0, window: 0 };
  const given = raw.deploy?.restart_policy;
  // What is started again when it has succeeded never ends; a policy without a condition gets the mode's own.
  const says = given === undefined ? undefined : { ...base, ...given };
  const wholePolicy = [...path, "deploy", "restart_policy"];
  const isSaid = context.positionOf([...wholePolicy, "condition"]) !== context.positionOf(wholePolicy);
  const never = (at: Path): void =>
    context.report.error(
      "conflict",
      at,
      context.positionOf(at),
      isAwaited ? "would never let the service complete, and another waits for that" : "would never let the job end",
      {
        hint: "Use on-failure or none.",
      },
    );
  if (ends && says?.condition === "any") {
    if (isSaid) never([...wholePolicy, "condition"]);
    says.condition = "on-failure";
  }
  if (raw.restart === undefined) return says ?? base;
  const meant = meaningOf(raw.restart, base);
  if (ends && meant.condition === "any") never([...path, "restart"]);
  if (
    says !== undefined &&
    (says.condition !== meant.condition || (meant.max_attempts > 0 && says.max_attempts !== meant.max_attempts))
  ) {
    const at = [...path, "restart"];
    context.report.error(
      "conflict",
      at,
      context.positionOf(at),
      `${raw.restart} says something else than deploy.restart_policy`,
      { hint: "Keep deploy.restart_policy." },
    );
  }
  return says ?? meant;
}

function meaningOf(restart: string, base: RestartPolicy): RestartPolicy {
  if (restart === "no") return { ...base, condition: "none" };
  if (!restart.startsWith("on-failure")) return { ...base, condition: "any" };
  return { ...base, condition: "on-failure", max_attempts: Number(restart.split(":")[1] ?? 0) };
}

// ---- environment and labels

function environmentOf(raw: RawService, path: Path, context: ResolveContext): Record<string, string> {
  const result = new Map<string, string>();
  for (const [index, file] of numbered(raw.env_file)) {
    const where = [...path, "env_file", index];
    if (!file.required && !exists(file.path, context)) continue;
    const source = readSource(file.path, MAX_ENV_FILE_BYTES, context, at(where, context));
    if (source === undefined) continue;
    const lookup: Variables = (name) => context.variables(name) ?? result.get(name);
    const values =
      file.format === "raw" ? parseRawEnvFile(source, lookup) : parseEnvFile(source, lookup, context.report);
    for (const [name, value] of values) result.set(name, value);
  }
  return sorted(given(raw.environment ?? {}, result, [...path, "environment"], context));
}

/** Variables with their values: their own, or what the environment of the load has. */
function given(
  variables: Readonly<Record<string, string | null>>,
  below: ReadonlyMap<string, string>,
  path: Path,
  context: ResolveContext,
): Record<string, string> {
  const result = new Map(below);
  for (const [name, value] of Object.entries(variables)) {
    const actual = value ?? context.variables(name);
    if (actual !== undefined) result.set(name, actual);
    else if (!result.has(name)) {
      const where = [...path, name];
      context.report.warn(where, context.positionOf(where), "has no value here and is left out", {
        hint: `Set ${name} where the stack is deployed, or give it a value.`,
      });
    }
  }
  return Object.fromEntries(result);
}

function labelFiles(files: readonly string[], path: Path, context: ResolveContext): Record<string, string> {
  const labels: Record<string, string> = {};
  for (const [index, file] of numbered(files)) {
    const source = readSource(file, MAX_ENV_FILE_BYTES, context, at([...path, "label_file", index], context));
    if (source === undefined) continue;
    for (const line of source.text.split(/\r?\n/)) {
      const trimmed = line.trim();
      if (trimmed === "" || trimmed.startsWith("#")) continue;
      const cut = trimmed.indexOf("=");
      const name = cut === -1 ? trimmed : trimmed.slice(0, cut);
      labels[name] = cut === -1 ? "" : trimmed.slice(cut + 1).replace(/^(["'])(.*)\1$/, "$2");
    }
  }
  return labels;
}

function at(path: Path, context: ResolveContext): { readonly path: Path; readonly at: Position } | undefined {
  const position = context.positionOf(path);
  return position && { path, at: position };
}

function exists(path: string, context: ResolveContext): boolean {
  try {
    return context.files.realpath(path) !== undefined;
  } catch (error) {
    if (error instanceof FileProblem) return true;
    throw error;
  }
}
