import { capabilityNames } from "../../../lib/capabilities/capabilities.ts";
import {
  bool,
  bytes,
  cpus,
  duration,
  fileMode,
  integer,
  localPath,
  looseText,
  matching,
  oneOf,
  text,
} from "../scalars.ts";
import { Bad, type Fail, key, later, list, object, record, reject, type ScalarType, scalarType } from "../schema.ts";
import { describeKind, type ListTree, type MapTree, scalar, type Tree, treeOf } from "../tree.ts";
import {
  byKeys,
  byValue,
  command,
  environment,
  ipAddress,
  isIpv4,
  isIpv6,
  labels,
  options,
  pairsFromList,
  single,
  textOrList,
  texts,
} from "./common.ts";
import { DEVICE_KEYS, deploy } from "./deploy.ts";
import { autoscale, disruption, loadBalancing, onChange, placement, probes, schedule } from "./extensions.ts";
import { mounts, tmpfsLine } from "./mounts.ts";
import { checkDnsName, dnsName, serviceNetwork } from "./network.ts";
import { exposed, ports } from "./ports.ts";

const IMAGE =
  /^(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::\d{1,5})?\/)?[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*)*(?::\w[\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?$/;

function image(): ScalarType<string> {
  return text("an image such as nginx:1.27 or registry.example.com/team/app@sha256:...", (value) => {
    if (value.length <= 512 && IMAGE.test(value)) return undefined;
    const hint = /[A-Z]/.test(value.split(/[:@]/)[0] ?? "") ? "Repository names are lower case." : undefined;
    return new Bad(`${JSON.stringify(value)} is not an image reference`, hint);
  });
}

const USER = matching(
  /^(?:\d{1,10}|[a-zA-Z_][a-zA-Z0-9_.-]{0,31}\$?)(?::(?:\d{1,10}|[a-zA-Z_][a-zA-Z0-9_.-]{0,31}))?$/,
  'a user such as app, "1000" or "1000:1000"',
);
const PLATFORM = text("a platform such as linux/amd64 or linux/arm64/v8", (value) => {
  if (/^windows(\/|$)/.test(value))
    return new Bad("nodes run Linux", "Leave `platform` out, or name linux/amd64 or linux/arm64.");
  return /^linux\/(amd64|arm64|arm|386|riscv64|ppc64le|s390x)(\/v[5-8])?$/.test(value)
    ? undefined
    : new Bad(`takes a platform such as linux/amd64 or linux/arm64/v8, and found ${JSON.stringify(value)}`);
});
const SIGNAL = matching(/^(SIG)?[A-Z][A-Z0-9+-]{1,9}$|^\d{1,2}$/, "a signal such as SIGTERM or SIGINT");
const CAPABILITIES = ["ALL", ...capabilityNames];
const CAPABILITY = scalarType<string>({
  accepts: "a capability such as NET_ADMIN",
  values: CAPABILITIES,
  parse: (tree) => {
    const name = tree.text.toUpperCase().replace(/^CAP_/, "");
    return CAPABILITIES.includes(name)
      ? name
      : new Bad(
          `takes a capability such as NET_ADMIN, and found ${describeKind(tree)}`,
          "capabilities(7) has them all.",
        );
  },
  format: (value) => value,
});

/** Whom a link leads to, and under what name. */
export interface LinkTarget {
  readonly service: string;
  readonly alias: string;
}

/** `service` or `service:alias`. */
function link(accepts: string): ScalarType<LinkTarget> {
  return scalarType<LinkTarget>({
    accepts,
    parse(tree) {
      const [service = "", alias, ...rest] = tree.text.split(":");
      if (typeof tree.value !== "string" || service === "" || alias === "" || rest.length > 0)
        return new Bad(`takes ${accepts}, and found ${describeKind(tree)}`);
      const name = alias ?? service.slice(service.lastIndexOf("/") + 1);
      return checkDnsName(name) ?? { service, alias: name };
    },
    format: (value) => `${value.service}:${value.alias}`,
  });
}

function linkKey(item: Tree): string | undefined {
  if (item.kind !== "scalar") return undefined;
  return typeof item.value === "object" && item.value !== null ? (item.value as LinkTarget).alias : item.text;
}

const LATER_NAMESPACE = "sharing a namespace needs both tasks on one node, which the scheduler does not arrange yet";

function namespace<const V extends string>(
  what: string,
  values: readonly V[],
  refused: (value: string) => Bad | undefined,
): ScalarType<V> {
  const accepts = `one of ${values.join(", ")}`;
  return scalarType<V>({
    accepts,
    values,
    parse(tree) {
      const found = values.find((value) => value === tree.text);
      if (found !== undefined) return found;
      const why = refused(tree.text);
      if (why !== undefined) return why;
      if (tree.text.startsWith("service:"))
        return new Bad(
          `${what} of another service is not supported yet: ${LATER_NAMESPACE}`,
          "Run both programs in one service, or connect them over a network.",
        );
      if (tree.text.startsWith("container:"))
        return new Bad(
          `${what} of a container cannot be shared: containers of a cluster come and go`,
          "Connect services over a network.",
        );
      return new Bad(`takes ${accepts}, and found ${describeKind(tree)}`);
    },
    format: (value) => value,
  });
}

const pullPolicy = scalarType<string>({
  accepts: "one of always, never, missing, daily, weekly, every_<duration>",
  values: ["always", "never", "missing", "if_not_present", "daily", "weekly"],
  parse(tree) {
    if (tree.text === "if_not_present") return "missing";
    if (["always", "never", "missing", "daily", "weekly"].includes(tree.text)) return tree.text;
    if (/^every_(\d+[wdhms])+$/.test(tree.text)) return tree.text;
    if (tree.text === "build")
      return new Bad("images are not built here", "Build and push the image first, and leave `pull_policy` out.");
    if (tree.text === "refresh")
      return new Bad("refresh is not supported yet", "Use daily, weekly or every_<duration>.");
    return new Bad(
      `takes one of always, never, missing, daily, weekly, every_<duration>, and found ${describeKind(tree)}`,
    );
  },
  format: (value) => value,
});

const restart = scalarType<string>({
  accepts: 'one of "no", always, on-failure, on-failure:<n>, unless-stopped',
  values: ["no", "always", "on-failure", "unless-stopped"],
  parse(tree) {
    if (tree.value === false) return "no";
    if (/^(no|always|unless-stopped|on-failure(:\d{1,9})?)$/.test(tree.text)) return tree.text;
    return new Bad(
      `takes one of "no", always, on-failure, on-failure:<n>, unless-stopped, and found ${describeKind(tree)}`,
    );
  },
  format: (value) => value,
});

const sysctls = record(looseText(), {
  accepts: "a mapping of kernel parameters, or a list of NAME=VALUE",
  key: (name) => {
    if (/^(net\.|fs\.mqueue\.|kernel\.(msg\w+|sem|shm\w+|hostname|domainname)$)/.test(name)) return undefined;
    return new Bad(
      `${JSON.stringify(name)} is not a kernel parameter of its own for a container`,
      "Set it on the nodes. Namespaced are net.*, fs.mqueue.*, kernel.msg*, kernel.sem and kernel.shm*.",
    );
  },
  fromList: pairsFromList(["="]),
});

const ULIMITS =
  "core, cpu, data, fsize, locks, memlock, msgqueue, nice, nofile, nproc, rss, rtprio, rttime, sigpending, stack";
const ulimitValue = integer(-1, Number.MAX_SAFE_INTEGER, "a whole number, or -1 for no limit");
const ulimits = record(
  object(
    {
      soft: key(ulimitValue, { doc: "What is in force.", example: "1024", beside: "hard: 4096" }),
      hard: key(ulimitValue, { doc: "Up to where the process may raise it.", example: "4096", beside: "soft: 1024" }),
    },
    {
      accepts: "a number, or a mapping with soft and hard",
      required: ["soft", "hard"],
      short: (tree) => ({
        kind: "map",
        at: tree.at,
        entries: new Map(["soft", "hard"].map((name) => [name, { key: tree.at, value: tree }])),
      }),
      check: (tree, fail) => {
        const of = (name: string): number => {
          const value = tree.entries.get(name)?.value;
          return value?.kind === "scalar" && typeof value.value === "number" ? value.value : 0;
        };
        if (of("hard") !== -1 && (of("soft") === -1 || of("soft") > of("hard")))
          fail(tree, "the soft limit is above the hard one");
      },
    },
  ),
  {
    accepts: "a mapping of limits",
    key: (name) =>
      ULIMITS.split(", ").includes(name)
        ? undefined
        : new Bad(`${JSON.stringify(name)} is not a limit`, `Limits are ${ULIMITS}.`),
  },
);

const HOST_ADDRESS = text("an IP address or host-gateway", (value) =>
  value === "host-gateway" || isIpv4(value) || isIpv6(value)
    ? undefined
    : new Bad(`takes an IP address or host-gateway, and found ${JSON.stringify(value)}`),
);

const extraHosts = record(list(HOST_ADDRESS, { accepts: "an address or a list of addresses", short: single }), {
  accepts: 'a mapping of names to addresses, or a list of "name=address"',
  key: (name) => checkDnsName(name),
  fromList: (tree, fail) => {
    const hosts = new Map<string, { key: Tree["at"]; value: Tree }>();
    for (const [index, item] of tree.items.entries()) {
      const match = item.kind === "scalar" ? /^([^=:]+)[=:](?:\[(.+)\]|(.+))$/.exec(item.text) : null;
      if (match === null) {
        fail(item, `takes "name=address", and found ${describeKind(item)}`, undefined, [index]);
        continue;
      }
      const address = match[2] ?? match[3] ?? "";
      const before = hosts.get(match[1] ?? "")?.value;
      const items = before?.kind === "list" ? before.items : [];
      hosts.set(match[1] ?? "", {
        key: item.at,
        value: { kind: "list", items: [...items, scalar(address, item.at, address)], at: item.at },
      });
    }
    return { kind: "map", entries: hosts, at: tree.at };
  },
});

/** A list of names in place of a mapping of names to (empty) mappings. */
function namesToMap(what: string, value?: unknown) {
  return (tree: ListTree, fail: Fail): MapTree => {
    const entries = new Map<string, { key: Tree["at"]; value: Tree }>();
    for (const [index, item] of tree.items.entries()) {
      if (item.kind !== "scalar" || item.value === null)
        fail(item, `takes the name of ${what}, and found ${describeKind(item)}`, undefined, [index]);
      else if (entries.has(item.text)) fail(item, `${item.text} is named twice`, undefined, [index]);
      else entries.set(item.text, { key: item.at, value: treeOf(value ?? {}, item.at) });
    }
    return { kind: "map", entries, at: tree.at };
  };
}

/** Configs and secrets are the same when they are the same file in the container. */
const byPlace = (directory: string) => (item: Tree) => {
  if (item.kind !== "map") return undefined;
  const file = item.entries.get("target")?.value ?? item.entries.get("source")?.value;
  if (file?.kind !== "scalar") return undefined;
  return file.text.startsWith("/") ? file.text : `${directory}${file.text}`;
};

const grant = (what: string, where: string) =>
  object(
    {
      source: key(text("a name"), {
        doc: `The ${what}'s key under \`${what}s\`.`,
        example: what === "config" ? "app_conf" : "db_password",
      }),
      target: key(text("a path"), {
        doc: `File in the container; one without \`/\` at its beginning lies in ${where}.`,
        example: "/etc/app.conf",
        beside: what === "config" ? "source: app_conf" : "source: db_password",
        defaultNote: `${where === "/" ? "" : where}/<source>`,
      }),
      uid: key(matching(/^\d{1,10}$/, "a number"), {
        doc: "Owner of the file.",
        example: '"1000"',
        beside: what === "config" ? "source: app_conf" : "source: db_password",
        default: "0",
      }),
      gid: key(matching(/^\d{1,10}$/, "a number"), {
        doc: "Group of the file.",
        example: '"1000"',
        beside: what === "config" ? "source: app_conf" : "source: db_password",
        default: "0",
      }),
      mode: key(fileMode(), {
        doc: "Permission bits of the file.",
        example: '"0440"',
        beside: what === "config" ? "source: app_conf" : "source: db_password",
        default: 0o444,
      }),
      "x-on-change": key(onChange(), {
        doc: "What running tasks do when the value changes: be replaced, get a signal, or nothing.",
        example: "SIGHUP",
        beside: what === "config" ? "source: app_conf" : "source: db_password",
        default: "restart",
      }),
    },
    {
      accepts: "a name, or a mapping with source and target",
      required: ["source"],
      short: (tree) => treeOf({ source: tree.text }, tree.at),
    },
  );

const hookKeys = {
  command: key(command(), { doc: "Command to run.", example: '["/bin/warm-up"]' }),
  user: key(USER, {
    doc: "User that runs it.",
    example: "root",
    beside: 'command: ["/bin/warm-up"]',
    defaultNote: "the service's",
  }),
  privileged: key(bool(), {
    doc: "Runs it with all privileges.",
    example: "true",
    beside: 'command: ["/bin/warm-up"]',
    default: false,
    gated: true,
  }),
  working_dir: key(text("a path"), {
    doc: "Directory it runs in.",
    example: "/tmp",
    beside: 'command: ["/bin/warm-up"]',
  }),
  environment: key(environment(), {
    doc: "Further variables.",
    example: "{MODE: warm}",
    beside: 'command: ["/bin/warm-up"]',
  }),
};
const hook = object(hookKeys, { required: ["command"] });
const startHook = object(
  {
    ...hookKeys,
    per_replica: key(bool(), {
      doc: "Whether it runs before each task or once for the service.",
      example: "true",
      beside: 'command: ["/bin/warm-up"]',
      default: false,
    }),
  },
  { required: ["command"] },
);

const healthcheck = object(
  {
    test: key(
      list(looseText("text"), {
        accepts: "a list that begins with CMD, CMD-SHELL or NONE, or one line for the shell",
        merge: "replace",
        short: (tree) =>
          tree.kind === "scalar"
            ? { kind: "list", at: tree.at, items: [scalar("CMD-SHELL", tree.at, "CMD-SHELL"), tree] }
            : undefined,
      }),
      {
        doc: "Command that says by its exit code whether the task is healthy.",
        example: '["CMD", "pg_isready"]',
        defaultNote: "the image's",
      },
    ),
    interval: key(duration(1), {
      doc: "Time between checks.",
      example: "10s",
      defaultNote: "the image's, else 30s",
    }),
    timeout: key(duration(1), {
      doc: "Time that one may take.",
      example: "2s",
      defaultNote: "the image's, else 30s",
    }),
    retries: key(integer(0, 1_000_000, "a whole number"), {
      doc: "Failures in a row that make the task unhealthy.",
      example: "5",
      defaultNote: "the image's, else 3",
    }),
    start_period: key(duration(), {
      doc: "Time after the start in which failures do not count.",
      example: "30s",
      defaultNote: "the image's, else 0s",
    }),
    start_interval: key(duration(1), {
      doc: "Time between checks in the start period.",
      example: "1s",
      defaultNote: "the image's, else 5s",
    }),
    disable: key(bool(), { doc: "Switches the image's check off.", example: "true", default: false }),
  },
  {
    check: (tree, fail) => {
      const test = tree.entries.get("test")?.value;
      if (test?.kind !== "list") return;
      const first = test.items[0];
      const word = first?.kind === "scalar" ? first.text : "";
      if (!["CMD", "CMD-SHELL", "NONE"].includes(word)) {
        fail(
          first ?? test,
          `begins with CMD, CMD-SHELL or NONE, and found ${first === undefined ? "an empty list" : describeKind(first)}`,
          "Write one line to run it in a shell.",
          ["test"],
        );
      } else if (word === "CMD-SHELL" && test.items.length !== 2) {
        fail(test, "CMD-SHELL takes one line", undefined, ["test"]);
      } else if (word === "CMD" && test.items.length < 2) {
        fail(test, "CMD takes a command", undefined, ["test"]);
      }
    },
  },
);

function driverOf(tree: MapTree): string | undefined {
  const driver = tree.entries.get("driver")?.value;
  return driver?.kind === "scalar" ? driver.text : undefined;
}

const HOST_POLICY = "Needs a cluster policy that allows it.";
const BLKIO = [
  "weight",
  "weight_device",
  "device_read_bps",
  "device_read_iops",
  "device_write_bps",
  "device_write_iops",
];
const blkioBelow = [
  ...BLKIO,
  "weight_device[].path",
  "weight_device[].weight",
  ...BLKIO.slice(2).flatMap((name) => [`${name}[].path`, `${name}[].rate`]),
];
const BUILD = [
  "context",
  "dockerfile",
  "dockerfile_inline",
  "entitlements",
  "args",
  "ssh",
  "labels",
  "cache_from",
  "cache_to",
  "no_cache",
  "additional_contexts",
  "network",
  "provenance",
  "sbom",
  "pull",
  "target",
  "shm_size",
  "extra_hosts",
  "isolation",
  "privileged",
  "tags",
  "ulimits",
  "platforms",
  "secrets",
  "secrets[].source",
  "secrets[].target",
  "secrets[].uid",
  "secrets[].gid",
  "secrets[].mode",
];
const WATCH = [
  "path",
  "action",
  "target",
  "ignore",
  "include",
  "exec",
  "exec.command",
  "exec.user",
  "exec.privileged",
  "exec.working_dir",
  "exec.environment",
];

/** `services.*`: every service key of the Compose specification, and our own. */
export const service = object({
  // Image, process, environment
  image: key(image(), {
    doc: "Image to run; a tag is resolved to a digest when the stack is deployed.",
    example: "nginx:1.27",
  }),
  command: key(command(), {
    doc: "Replaces the image's command. One line is split into words and not run by a shell.",
    example: '["node", "server.js"]',
    defaultNote: "the image's",
  }),
  entrypoint: key(command(), {
    doc: "Replaces the image's entrypoint, and with it the image's command.",
    example: '["/entry.sh"]',
    defaultNote: "the image's",
  }),
  working_dir: key(text("a path"), {
    doc: "Directory the process starts in.",
    example: "/srv",
    defaultNote: "the image's",
  }),
  user: key(USER, { doc: "User and group of the process.", example: '"1000:1000"', defaultNote: "the image's" }),
  group_add: key(texts(matching(/^[a-zA-Z0-9_.-]+$/, "a group's name or number"), "a list of groups"), {
    doc: "Further groups of the process.",
    example: '["audio", "2000"]',
  }),
  hostname: key(
    text("a host name, in which {{.Task.Slot}} and the like may stand", (value) =>
      checkDnsName(
        value.replace(/\{\{\s*\.(Service\.Name|Task\.Slot|Task\.Name|Node\.Hostname|Node\.ID)\s*\}\}/g, "x"),
      ),
    ),
    {
      doc: "Host name in the container; `{{.Service.Name}}`, `{{.Task.Slot}}`, `{{.Task.Name}}`, `{{.Node.Hostname}}` and `{{.Node.ID}}` are filled in.",
      example: '"web-{{.Task.Slot}}"',
      defaultNote: "the task's name",
    },
  ),
  domainname: key(dnsName(), { doc: "Domain in the container.", example: "example.com" }),
  init: key(bool(), {
    doc: "Runs a small init as process 1, which reaps children and passes signals on.",
    example: "true",
    default: false,
  }),
  tty: key(bool(), { doc: "Gives the process a terminal.", example: "true", default: false }),
  stdin_open: key(bool(), { doc: "Keeps standard input open.", example: "true", default: false }),
  environment: key(environment(), {
    doc: "Environment variables, over those of `env_file` and the image. One without a value is taken from the environment of the deploy.",
    example: "{LOG_LEVEL: info}",
  }),
  env_file: key(
    list(
      object(
        {
          path: key(localPath(), { doc: "The file, relative to the stack file.", example: "./web.env" }),
          required: key(bool(), {
            doc: "Whether it is an error when the file is missing.",
            example: "false",
            beside: "path: ./missing.env",
            default: true,
          }),
          format: key(oneOf("raw"), {
            doc: "`raw`: values are taken as they are, without quotes or variables.",
            example: "raw",
            beside: "path: ./web.env",
          }),
        },
        {
          accepts: "a path, or a mapping with path, required, format",
          required: ["path"],
          short: (tree) => treeOf({ path: tree.text }, tree.at),
        },
      ),
      { accepts: "a path or a list of paths", short: single, unique: byKeys("path") },
    ),
    {
      doc: "Files with environment variables; later ones win. Their content becomes `environment`.",
      example: "./web.env",
    },
  ),
  labels: key(labels(), { doc: "Labels of the service's containers.", example: '{traefik.enable: "true"}' }),
  label_file: key(textOrList("a path or a list of paths", localPath()), {
    doc: "Files with labels, one KEY=VALUE a line. Their content becomes `labels`.",
    example: "./web.labels",
  }),
  annotations: key(labels("a mapping of annotations, or a list of KEY=VALUE"), {
    doc: "Annotations in the OCI bundle.",
    example: '{com.example.run: "yes"}',
  }),
  stop_signal: key(SIGNAL, {
    doc: "Signal that asks the process to stop.",
    example: "SIGINT",
    defaultNote: "the image's, else SIGTERM",
  }),
  stop_grace_period: key(duration(), { doc: "Time until the process is killed.", example: "1m30s", default: 10_000 }),
  restart: key(restart, {
    doc: "What happens when a task ends, in Compose's words; `deploy.restart_policy` says more, and only one of them may be given unless they agree.",
    example: "on-failure:3",
  }),
  scale: key(integer(0, 100_000, "a whole number from 0 to 100000"), {
    doc: "The same as `deploy.replicas`.",
    example: "3",
  }),
  container_name: key(dnsName("a name"), {
    doc: "Name of the one task of the service, and its alias in DNS.",
    example: "db-main",
  }),
  profiles: key(
    texts(
      matching(/^[a-zA-Z0-9][a-zA-Z0-9_.-]+$/, "a name of at least two letters, digits, _, . and -"),
      "a list of profiles",
    ),
    { doc: "The service exists only when one of these profiles is chosen.", example: "[debug]" },
  ),
  extends: key(
    object(
      {
        service: key(text("a name"), { doc: "Service whose keys this one starts from.", example: "base" }),
        file: key(localPath(), {
          doc: "File it is in.",
          example: "./common.yml",
          beside: "service: base",
          defaultNote: "this file",
        }),
      },
      {
        accepts: "a service, or a mapping with service and file",
        required: ["service"],
        extensions: false,
        short: (tree) => treeOf({ service: tree.text }, tree.at),
      },
    ),
    { doc: "Starts from the keys of another service.", example: "{service: base, file: ./common.yml}" },
  ),
  depends_on: key(
    record(
      object(
        {
          condition: key(oneOf("service_started", "service_healthy", "service_completed_successfully"), {
            doc: "What is waited for. A service without health check, in the file and in its image, counts as healthy once it runs.",
            example: "service_healthy",
            default: "service_started",
          }),
          required: key(bool(), {
            doc: "Whether the other service must be in the stack.",
            example: "false",
            default: true,
          }),
          restart: key(bool(), {
            doc: "Whether tasks are replaced when the other service is updated.",
            example: "true",
            default: false,
          }),
        },
        { accepts: "a mapping with condition, required, restart" },
      ),
      {
        accepts: "a list of services, or a mapping of services to conditions",
        fromList: namesToMap("a service", { condition: "service_started" }),
      },
    ),
    { doc: "Services that come first.", example: "{db: {condition: service_healthy}}" },
  ),
  post_start: key(list(hook, { accepts: "a list of commands" }), {
    doc: "Commands that run in the container after it has started.",
    example: '[{command: ["/bin/warm-up"]}]',
  }),
  pre_stop: key(list(hook, { accepts: "a list of commands" }), {
    doc: "Commands that run in the container before it is asked to stop.",
    example: '[{command: ["/bin/flush"]}]',
  }),
  pre_start: key(list(startHook, { accepts: "a list of commands" }), {
    doc: "Commands that run to their end before a task starts, such as migrations.",
    example: '[{command: ["/bin/migrate"]}]',
  }),
  pull_policy: key(pullPolicy, {
    doc: "When nodes ask the registry: `always`, `never`, `missing`, `daily`, `weekly` or `every_12h`.",
    example: "always",
    default: "missing",
  }),
  platform: key(PLATFORM, {
    doc: "Platform of the image; tasks run on nodes of that platform.",
    example: "linux/amd64",
  }),

  // Resources, kernel, security
  cpus: key(cpus(), { doc: "The same as `deploy.resources.limits.cpus`.", example: '"1.5"' }),
  mem_limit: key(bytes(4 * 2 ** 20), { doc: "The same as `deploy.resources.limits.memory`.", example: "512m" }),
  mem_reservation: key(bytes(0), { doc: "The same as `deploy.resources.reservations.memory`.", example: "256m" }),
  pids_limit: key(integer(-1, 4_194_304, "a whole number, or -1 for no limit"), {
    doc: "The same as `deploy.resources.limits.pids`.",
    example: "200",
  }),
  cpu_shares: key(integer(2, 262_144, "a whole number from 2 to 262144"), {
    doc: "Weight among tasks when CPU is short; 1024 is usual.",
    example: "512",
  }),
  cpu_quota: key(integer(-1, 1_000_000_000, "microseconds, or -1 for no limit"), {
    doc: "CPU time in each period, in microseconds.",
    example: "50000",
  }),
  cpu_period: key(integer(1000, 1_000_000, "microseconds from 1000 to 1000000"), {
    doc: "Length of that period in microseconds.",
    example: "100000",
    beside: "cpu_quota: 50000",
  }),
  memswap_limit: key(bytes(0, { minusOne: true }), {
    doc: "Memory and swap together; -1 is no limit.",
    example: "1g",
    beside: "mem_limit: 512m",
  }),
  oom_score_adj: key(integer(-1000, 1000), {
    doc: "Who is killed first when a node is out of memory: higher goes first.",
    example: "500",
    default: 0,
  }),
  shm_size: key(bytes(0), { doc: "Size of /dev/shm.", example: "128m", default: 64 * 2 ** 20 }),
  ulimits: key(ulimits, {
    doc: "Limits of the process, one number or soft and hard.",
    example: "{nofile: {soft: 1024, hard: 4096}}",
  }),
  sysctls: key(sysctls, {
    doc: "Kernel parameters of the container's own namespaces.",
    example: '{net.core.somaxconn: "1024"}',
  }),
  cap_add: key(texts(CAPABILITY, "a list of capabilities"), {
    doc: "Capabilities beyond the default set: the names of capabilities(7), with or without CAP_, or ALL.",
    example: "[NET_ADMIN]",
  }),
  cap_drop: key(texts(CAPABILITY, "a list of capabilities"), {
    doc: "Capabilities taken out of the default set.",
    example: "[ALL]",
  }),
  security_opt: key(
    texts(
      text("an option such as no-new-privileges:true or seccomp=profile.json", (value) =>
        /^(no-new-privileges([:=](true|false))?|(seccomp|apparmor|label)[:=].+)$/.test(value)
          ? undefined
          : new Bad(`takes no-new-privileges, seccomp=, apparmor= or label=, and found ${JSON.stringify(value)}`),
      ),
      "a list of options",
    ),
    {
      doc: "`no-new-privileges:true|false` (true is the default), `seccomp=`, `apparmor=` and `label=`.",
      example: '["no-new-privileges:true"]',
    },
  ),
  privileged: key(bool(), {
    doc: `All capabilities and devices. ${HOST_POLICY}`,
    example: "true",
    default: false,
    gated: true,
  }),
  devices: key(
    list(
      object(
        {
          source: key(text("a path"), { doc: "Device of the node.", example: "/dev/ttyUSB0" }),
          target: key(text("a path"), {
            doc: "Where the container sees it.",
            example: "/dev/tty0",
            beside: "source: /dev/ttyUSB0",
            defaultNote: "the source",
          }),
          permissions: key(matching(/^[rwm]{1,3}$/, "letters of r, w and m"), {
            doc: "Read, write, mknod.",
            example: "rw",
            beside: "source: /dev/ttyUSB0",
            default: "rwm",
          }),
        },
        {
          accepts: '"/dev/source[:/dev/target[:rwm]]", or a mapping with source',
          required: ["source"],
          short: (tree) => {
            const [source = "", target, permissions, ...rest] = tree.text.split(":");
            if (rest.length > 0) return new Bad(`has too many colons, in ${JSON.stringify(tree.text)}`);
            if (!source.startsWith("/"))
              return new Bad(
                `takes a device such as /dev/ttyUSB0, and found ${JSON.stringify(source)}`,
                /^[\w.-]+\/[\w.-]+=/.test(tree.text) ? "CDI devices are not supported yet." : undefined,
              );
            return treeOf({ source, target: target ?? source, permissions }, tree.at);
          },
        },
      ),
      { accepts: "a list of devices", unique: byKeys("target") },
    ),
    { doc: `Devices of the node. ${HOST_POLICY}`, example: '["/dev/ttyUSB0:/dev/ttyUSB0"]', gated: true },
  ),
  read_only: key(bool(), { doc: "Mounts the root file system read-only.", example: "true", default: false }),
  pid: key(
    namespace("the process namespace", ["host"], () => undefined),
    { doc: `\`host\`: sees the node's processes. ${HOST_POLICY}`, example: "host", gated: true },
  ),
  ipc: key(
    namespace("the IPC namespace", ["private", "shareable", "none", "host"], () => undefined),
    { doc: `IPC namespace. \`host\`: ${HOST_POLICY}`, example: "private", gated: true },
  ),
  uts: key(
    namespace("the UTS namespace", ["host"], () => undefined),
    { doc: `\`host\`: has the node's host name. ${HOST_POLICY}`, example: "host", gated: true },
  ),
  cgroup: key(oneOf("private", "host"), {
    doc: `Cgroup namespace. \`host\`: ${HOST_POLICY}`,
    example: "private",
    gated: true,
  }),

  // Network
  networks: key(
    record(serviceNetwork, {
      accepts: "a list of networks, or a mapping of networks to options",
      fromList: namesToMap("a network"),
    }),
    { doc: "Networks of the service.", example: "{back: {aliases: [database]}}", defaultNote: "`default`" },
  ),
  network_mode: key(
    namespace("the network", ["none", "host"], (value) =>
      value === "bridge"
        ? new Bad(
            "there is no bridge network in a cluster",
            "Leave network_mode out: services join the stack's default network.",
          )
        : undefined,
    ),
    { doc: `\`none\`: only loopback. \`host\`: the node's own network. ${HOST_POLICY}`, example: "none", gated: true },
  ),
  links: key(list(link("a service, or service:alias"), { accepts: "a list of links", unique: linkKey }), {
    doc: "Services that this one consumes: a name for each, the environment variables of links, a way through to its exposed ports, and start order. Services may link each other: a start waits for another service for 5 s at most.",
    example: '["db:database"]',
  }),
  external_links: key(
    list(link("a service of another stack such as shared/db, an x-external-services name, or either with :alias"), {
      accepts: "a list of links",
      unique: linkKey,
    }),
    {
      doc: "Links to a service of another stack (`stack/service`) or to one of `x-external-services`.",
      example: '["shared/db:database"]',
    },
  ),
  expose: key(list(exposed(), { accepts: "a list of ports", unique: byValue }), {
    doc: "Ports that links open; nothing is published on the hosts.",
    example: '["3000", "53/udp"]',
  }),
  ports: key(ports, { doc: "Ports published on the hosts.", example: '["8080:80"]' }),
  dns: key(textOrList("an address or a list of addresses", ipAddress()), {
    doc: "Servers asked for names outside the cluster, instead of the host's.",
    example: "[10.0.0.53]",
  }),
  dns_search: key(
    textOrList(
      "a domain or a list of domains",
      text("a domain", (value) => (value === "." ? undefined : checkDnsName(value))),
    ),
    { doc: "Domains in which names are searched.", example: "[example.com]" },
  ),
  dns_opt: key(texts(matching(/^\S+$/, "an option such as ndots:1"), "a list of options"), {
    doc: "Options of resolv.conf.",
    example: '["ndots:1"]',
  }),
  extra_hosts: key(extraHosts, {
    doc: "Lines of /etc/hosts; `host-gateway` is the node.",
    example: '["printer=10.0.0.9"]',
  }),

  // Health, logs, storage
  healthcheck: key(healthcheck, {
    doc: "How the task is found healthy.",
    example: '{test: ["CMD", "pg_isready"], interval: 10s}',
  }),
  logging: key(
    object(
      {
        driver: key(oneOf("json-file", "journald", "syslog", "gelf", "fluentd", "none", "local"), {
          doc: "Where output goes.",
          example: "json-file",
          default: "json-file",
        }),
        options: key(options(), {
          doc: "Options of the driver, such as max-size and max-file.",
          example: '{max-size: 10m, max-file: "3"}',
        }),
      },
      {
        replaces: (base, over) =>
          driverOf(over) !== undefined && driverOf(base) !== undefined && driverOf(base) !== driverOf(over),
      },
    ),
    { doc: "What becomes of the output.", example: '{driver: json-file, options: {max-size: 10m, max-file: "3"}}' },
  ),
  volumes: key(mounts, {
    doc: "Named volumes, paths of the node and memory, mounted in the container.",
    example: '["data:/var/lib/data"]',
  }),
  tmpfs: key(textOrList("a path or a list of paths", tmpfsLine), {
    doc: "Paths that are memory, with options of mount.",
    example: '["/run:size=64m"]',
  }),
  configs: key(list(grant("config", "/"), { accepts: "a list of configs", unique: byPlace("/") }), {
    doc: "Configs that the containers get as files.",
    example: "[app_conf]",
  }),
  secrets: key(
    list(grant("secret", "/run/secrets"), { accepts: "a list of secrets", unique: byPlace("/run/secrets/") }),
    { doc: "Secrets that the containers get as files in memory.", example: "[db_password]" },
  ),

  deploy: key(deploy, { doc: "How the service is run across the cluster.", example: "{replicas: 3}" }),

  // Our own
  "x-lb": key(loadBalancing, {
    doc: "How connections to the service are balanced, held and drained.",
    example: "{policy: least, hold: 30s}",
  }),
  "x-probe": key(probes, {
    doc: "Probes by the node: startup, readiness, liveness.",
    example: "{readiness: {http: {path: /ready, port: 8080}}}",
  }),
  "x-schedule": key(schedule, {
    doc: "Starts a job at set times.",
    example: '{cron: "30 3 * * *", timezone: Europe/Berlin}',
    beside: "deploy: {mode: replicated-job}",
  }),
  "x-autoscale": key(autoscale, {
    doc: "Sets the number of tasks by load.",
    example: "{min: 2, max: 10, signal: cpu, target: 70}",
    beside: 'deploy: {resources: {reservations: {cpus: "0.5"}}}',
  }),
  "x-placement": key(placement, {
    doc: "Where tasks may run, beyond what `deploy.placement` can say.",
    example: "{tolerations: [{key: gpu}]}",
  }),
  "x-priority": key(integer(-1000, 1000, "a whole number from -1000 to 1000"), {
    doc: "How important the service is. Tasks of a higher priority are placed first; when one fits nowhere, tasks of lower priority are stopped to make room for it, the least important and the fewest that do, and wait for another place. A change of it replaces no task.",
    example: "100",
    defaultNote: "0",
  }),
  "x-disruption": key(disruption, {
    doc: "How much may be taken from the service at a time.",
    example: '{min_available: "50%"}',
  }),
  "x-singleton": key(bool(), {
    doc: "Never two tasks at once, even when a node is cut off.",
    example: "true",
    default: false,
  }),
  "x-source-ip": key(oneOf("preserve", "proxy", "snat"), {
    doc: "How published ports keep the client's address; a port may say its own.",
    example: "proxy",
    default: "preserve",
  }),

  // Refused
  build: later({
    doc: "How the image is built.",
    example: "./app",
    why: "images are not built here",
    instead: "build and push it first, and name it with `image`",
    replacedBy: "image",
    below: BUILD,
  }),
  pull_refresh_after: later({
    doc: "Age at which an image is asked for again.",
    example: "24h",
    why: "it belongs to pull_policy: refresh, which is not supported yet",
    instead: "use pull_policy: daily, weekly or every_<duration>",
  }),
  runtime: later({
    doc: "OCI runtime.",
    example: "kata",
    why: "nodes do not announce their runtimes yet",
    instead: "leave it out: the node's own is used",
  }),
  cpuset: later({
    doc: "CPUs to run on.",
    example: "0-3",
    why: "CPUs are not given out one by one yet",
    instead: "use deploy.resources.limits.cpus",
  }),
  blkio_config: later({
    doc: "Limits of disk access.",
    example: "{weight: 300}",
    why: "disk access is not limited yet",
    instead: "place the service by constraints on nodes with a disk of their own",
    below: blkioBelow,
  }),
  device_cgroup_rules: later({
    doc: "Rules for devices.",
    example: '["c 1:3 mr"]',
    why: "device rules are not supported yet",
    instead: "name the devices under `devices`",
  }),
  gpus: later({
    doc: "GPUs.",
    example: "all",
    why: "devices are not scheduled yet",
    instead: "announce them as generic resources and constrain the service to the nodes that have them",
    below: DEVICE_KEYS,
  }),
  userns_mode: later({
    doc: "User namespace.",
    example: "host",
    why: "containers run in the node's user namespace",
    instead: "leave it out, and set `user`",
  }),
  storage_opt: later({
    doc: "Size of the root file system.",
    example: "{size: 10G}",
    why: "root file systems have no quota yet",
    instead: "write to a volume or a tmpfs with a size",
    below: ["size"],
  }),
  mac_address: later({
    doc: "A fixed hardware address.",
    example: "02:42:ac:11:00:02",
    why: "overlays have no use for a fixed hardware address yet",
    instead: "use networks.<name>.ipv4_address to fix the address",
  }),
  volumes_from: later({
    doc: "Mounts of another service.",
    example: "[db]",
    why: "it needs both services on one node, which the scheduler does not arrange yet",
    instead: "name the same volumes in both services",
  }),
  attach: reject({
    doc: "Whether `up` shows its output.",
    example: "false",
    why: "it concerns the view of `compose up`",
    instead: "use `clusterctl logs`",
  }),
  develop: reject({
    doc: "Watches files of a laptop.",
    example: "{watch: [{path: ./src, action: rebuild}]}",
    why: "file synchronisation from a laptop has no meaning on remote nodes",
    instead: "keep it in a file of its own that is not deployed",
    below: ["watch", ...WATCH.map((name) => `watch[].${name}`)],
  }),
  provider: reject({
    doc: "A plugin that runs the service.",
    example: "{type: awesomecloud}",
    why: "it runs a program of the machine that deploys",
    instead: "use x-external-services to reach what runs elsewhere",
    below: ["type", "options", "options.*"],
  }),
  models: reject({
    doc: "AI models that the service uses.",
    example: "[llm]",
    why: "models are run by Docker Desktop and are no object of a cluster",
    instead: "run a model server as a service and link it",
    below: ["*.endpoint_var", "*.model_var"],
  }),
  use_api_socket: reject({
    doc: "Mounts Docker's socket.",
    example: "true",
    why: "there is no Docker on the nodes",
    instead: "give the service a token of this cluster's API as a secret",
  }),
  credential_spec: reject({
    doc: "Windows service account.",
    example: "{file: spec.json}",
    why: "nodes run Linux",
    instead: "leave it out",
    below: ["config", "file", "registry"],
  }),
  isolation: reject({ doc: "Windows isolation.", example: "hyperv", why: "nodes run Linux", instead: "leave it out" }),
  cpu_count: reject({
    doc: "CPUs of a Windows container.",
    example: "2",
    why: "it exists on Windows only",
    instead: "use deploy.resources.limits.cpus",
  }),
  cpu_percent: reject({
    doc: "CPU share of a Windows container.",
    example: "50",
    why: "it exists on Windows only",
    instead: "use deploy.resources.limits.cpus",
  }),
  cpu_rt_runtime: reject({
    doc: "Real-time CPU time.",
    example: "400ms",
    why: "cgroup v2 has no real-time control for groups",
    instead: "use deploy.resources.reservations.cpus",
  }),
  cpu_rt_period: reject({
    doc: "Real-time period.",
    example: "1400us",
    why: "cgroup v2 has no real-time control for groups",
    instead: "use deploy.resources.reservations.cpus",
  }),
  mem_swappiness: reject({
    doc: "Tendency to swap.",
    example: "60",
    why: "cgroup v2 has none for each group",
    instead: "use memswap_limit",
  }),
  oom_kill_disable: reject({
    doc: "Switches the OOM killer off.",
    example: "true",
    why: "cgroup v2 cannot",
    instead: "use oom_score_adj, or raise the memory limit",
  }),
  cgroup_parent: reject({
    doc: "Parent of the container's cgroup.",
    example: "m-executor",
    why: "the node's agent owns the cgroup tree",
    instead: "leave it out",
  }),
});
