import { parseBytes } from "../../lib/units/bytes.ts";
import { stack as stackType } from "./keys/stack.ts";
import type { Stack } from "./model.ts";
import type { Key, Type } from "./schema.ts";
import { parseTmpfs } from "./tmpfs.ts";
import type { Path } from "./tree.ts";

/** Something that the model holds and the cluster of this version does not run. */
export interface Unsupported {
  readonly path: Path;
  readonly message: string;
}

/** True: all of it, with whatever is below. A function: undefined when it runs this value, else what it does not. */
type Runs = true | ((value: unknown, stack: Stack, path: Path) => string | undefined);

const only =
  (...values: readonly unknown[]): Runs =>
  (value) =>
    values.includes(value) ? undefined : `${JSON.stringify(value)} is`;

const ownName =
  (section: string): Runs =>
  (value, stack, path) =>
    value === `${stack.name}_${String(path[1])}` ||
    (stack as unknown as Record<string, Record<string, { external?: boolean }>>)[section]?.[String(path[1])]
      ?.external === true
      ? undefined
      : "a name of its own in the cluster is";

/** Paths that the contract with the cluster has a place for. What is not here is not run. */
const RUNS: Readonly<Record<string, Runs>> = {
  name: true,
  "services.*.image": true,
  "services.*.command": true,
  "services.*.entrypoint": true,
  "services.*.working_dir": true,
  "services.*.user": true,
  "services.*.group_add": true,
  "services.*.hostname": (value) => (String(value).includes("{{") ? "a template in it is" : undefined),
  "services.*.init": true,
  "services.*.tty": true,
  "services.*.stdin_open": true,
  "services.*.environment": true,
  "services.*.labels": true,
  "services.*.annotations": true,
  "services.*.stop_signal": true,
  "services.*.stop_grace_period": true,
  "services.*.container_name": true,
  "services.*.depends_on.*.condition": true,
  "services.*.depends_on.*.required": true,
  "services.*.pull_policy": only("always", "never", "missing"),
  "services.*.platform": true,
  "services.*.oom_score_adj": true,
  "services.*.shm_size": true,
  "services.*.ulimits": true,
  "services.*.sysctls": true,
  "services.*.cap_add": true,
  "services.*.cap_drop": true,
  "services.*.security_opt[]": (value) =>
    String(value).startsWith("no-new-privileges") ? undefined : `${JSON.stringify(value)} is`,
  "services.*.read_only": true,
  "services.*.networks.*.aliases": true,
  "services.*.networks.*.priority": true,
  "services.*.networks.*.gw_priority": true,
  "services.*.links": true,
  "services.*.expose": true,
  "services.*.ports[].target": true,
  "services.*.ports[].published": (value) => {
    const { from, to } = value as { from: number; to: number };
    return from === to ? undefined : "a range to take a free port from is";
  },
  "services.*.ports[].protocol": true,
  "services.*.ports[].mode": true,
  "services.*.ports[].host_ip": true,
  "services.*.ports[].name": true,
  "services.*.dns": true,
  "services.*.dns_search": true,
  "services.*.dns_opt": true,
  "services.*.extra_hosts": true,
  "services.*.healthcheck": true,
  "services.*.logging.driver": only("json-file"),
  "services.*.logging.options.*": (value, _stack, path) => {
    const name = path.at(-1);
    if (name === "max-size")
      return parseBytes(String(value)) === undefined ? `${JSON.stringify(value)} as a size is` : undefined;
    if (name === "max-file")
      return /^\d{1,4}$/.test(String(value)) ? undefined : `${JSON.stringify(value)} as a number of files is`;
    return "this option is";
  },
  "services.*.volumes[].type": true,
  "services.*.volumes[].source": true,
  "services.*.volumes[].target": true,
  "services.*.volumes[].read_only": true,
  "services.*.volumes[].consistency": true,
  "services.*.volumes[].bind.create_host_path": true,
  "services.*.volumes[].tmpfs.size": true,
  "services.*.volumes[].tmpfs.mode": true,
  "services.*.tmpfs[]": (value) => {
    const { unknown } = parseTmpfs(String(value));
    return unknown.length > 0 ? `the option ${unknown[0]} is` : undefined;
  },
  "services.*.configs[].source": true,
  "services.*.configs[].target": true,
  "services.*.configs[].uid": true,
  "services.*.configs[].gid": true,
  "services.*.configs[].mode": (value) => (value === 0 ? "a file that nobody may read is" : undefined),
  "services.*.secrets[].source": true,
  "services.*.secrets[].target": true,
  "services.*.secrets[].uid": true,
  "services.*.secrets[].gid": true,
  "services.*.secrets[].mode": (value) => (value === 0 ? "a file that nobody may read is" : undefined),
  "services.*.x-placement": true,
  "services.*.x-priority": true,
  "services.*.x-disruption": true,
  "services.*.deploy.mode": only("replicated", "global"),
  "services.*.deploy.replicas": true,
  "services.*.deploy.endpoint_mode": true,
  "services.*.deploy.labels": true,
  "services.*.deploy.placement": true,
  "services.*.deploy.resources.limits": true,
  "services.*.deploy.resources.reservations": true,
  "services.*.deploy.restart_policy": true,
  "services.*.deploy.update_config": true,
  "services.*.deploy.rollback_config": true,
  "networks.*.name": ownName("networks"),
  "networks.*.driver": only("overlay"),
  "networks.*.driver_opts.icc": true,
  "networks.*.driver_opts.mtu": true,
  "networks.*.internal": true,
  "networks.*.external": true,
  "networks.*.labels": true,
  "networks.*.enable_ipv4": true,
  "networks.*.enable_ipv6": true,
  "networks.*.ipam.driver": true,
  "networks.*.ipam.config[].subnet": true,
  "volumes.*.name": true,
  "volumes.*.driver": true,
  "volumes.*.external": true,
  "volumes.*.x-on-node-loss": true,
  "configs.*.name": ownName("configs"),
  "configs.*.file": true,
  "configs.*.content": true,
  "configs.*.environment": true,
  "configs.*.labels": true,
  "secrets.*.name": ownName("secrets"),
  "secrets.*.file": true,
  "secrets.*.environment": true,
  "secrets.*.labels": true,
};

/** Keys whose meaning other keys carry by the time a stack is converted. */
const CARRIED =
  /^(version|include|services|networks|volumes|configs|secrets)$|^include\[|^services\.\*\.(env_file|label_file|extends|profiles|scale|restart|cpus|mem_limit|mem_reservation|pids_limit)\b/;

/** Whether the cluster of this version runs a key: all of it, only some values, or not at all. By key path. */
export function runsInCluster(pattern: string): "all" | "some" | "none" {
  if (CARRIED.test(pattern)) return "all";
  let found: "some" | "none" = "none";
  for (const [path, runs] of Object.entries(RUNS)) {
    const isSame = path === pattern || path === `${pattern}[]`;
    if (runs === true && (isSame || isAbove(path, pattern))) return "all";
    if (isSame || isAbove(pattern, path)) found = "some";
  }
  return found;
}

/** Whether a stack can do without the key at a path: it is honoured, and nothing of it is run by the cluster of this version. */
export function canBeLeftOut(path: Path): boolean {
  let type: Type = stackType;
  let pattern = "";
  for (const part of path) {
    if (typeof part === "number") {
      if (type.kind !== "list") return false;
      type = type.item;
      pattern += "[]";
    } else if (type.kind === "record") {
      type = type.value;
      pattern += ".*";
    } else {
      const key: Key | undefined =
        type.kind === "object" && Object.hasOwn(type.keys, part) ? type.keys[part] : undefined;
      if (key?.decision !== "honoured") return false;
      type = key.type;
      pattern += pattern === "" ? part : `.${part}`;
    }
  }
  return typeof path.at(-1) === "string" && !pattern.endsWith("*") && runsInCluster(pattern) === "none";
}

/** Whether a value is the default of a key that the cluster of this version does not run: it says nothing. */
export function isUnused(pattern: string, value: unknown, normal: unknown): boolean {
  return (
    normal !== undefined && isSame(value, normal) && !/\.x-[^.]*\./.test(pattern) && runsInCluster(pattern) === "none"
  );
}

function isAbove(above: string, below: string): boolean {
  return below.startsWith(`${above}.`) || below.startsWith(`${above}[`);
}

const SENTENCE = "not run by this version's cluster yet";

/**
 * Everything in the model that the cluster of this version has no place for, in the order of the model. A value that is its
 * key's default says nothing and needs no place.
 */
export function unsupported(stack: Stack): Unsupported[] {
  const found: Unsupported[] = [];
  walk(stack, stackType, [], "", undefined, stack, found);
  for (const [name, service] of Object.entries(stack.services)) {
    for (const [index, mount] of (service.volumes ?? []).entries()) {
      if (mount.type === "volume" && mount.source === undefined) {
        found.push({
          path: ["services", name, "volumes", index],
          message: `a volume without a name is ${SENTENCE}; name one under volumes`,
        });
      }
    }
  }
  return found;
}

function walk(
  value: unknown,
  type: Type,
  path: Path,
  pattern: string,
  normal: unknown,
  stack: Stack,
  found: Unsupported[],
): void {
  const runs = RUNS[pattern];
  if (runs === true || isSame(value, normal)) return;
  if (runs !== undefined) {
    const what = runs(value, stack, path);
    if (what !== undefined) found.push({ path, message: `${what} ${SENTENCE}` });
  } else if (type.kind === "object" && /\.x-[a-z-]+$/.test(pattern) && runsInCluster(pattern) === "none") {
    // Its defaults describe what the cluster would do if it ran the key, so even they cannot be promised.
    found.push({ path, message: `is ${SENTENCE}` });
  } else if (type.kind === "object") {
    // By what is there: most of the keys of the table are not.
    for (const [name, below] of Object.entries(value as Record<string, unknown>)) {
      const key = Object.hasOwn(type.keys, name) ? type.keys[name] : undefined;
      if (key === undefined || below === undefined) continue;
      walk(below, key.type, [...path, name], pattern === "" ? name : `${pattern}.${name}`, key.default, stack, found);
    }
  } else if (type.kind === "record") {
    for (const [name, item] of Object.entries(value as Record<string, unknown>))
      walk(item, type.value, [...path, name], `${pattern}.*`, undefined, stack, found);
  } else if (type.kind === "list") {
    const items = value as unknown[];
    if (items.length > 0 && runsInCluster(pattern) === "none") found.push({ path, message: `is ${SENTENCE}` });
    else
      for (const [index, item] of items.entries())
        walk(item, type.item, [...path, index], `${pattern}[]`, undefined, stack, found);
  } else {
    found.push({ path, message: `is ${SENTENCE}` });
  }
}

function isSame(value: unknown, normal: unknown): boolean {
  if (value === normal) return true;
  return typeof normal === "object" && JSON.stringify(value) === JSON.stringify(normal);
}
