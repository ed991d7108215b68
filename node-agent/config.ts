import { hostname } from "node:os";
import { isAbsolute, join } from "node:path";
import { parseArgs } from "node:util";
import { ClusterError } from "../lib/errors/errors.ts";
import { type LogLevel, logLevels } from "../lib/log/log.ts";
import { defaultPorts } from "../lib/net/ports.ts";
import { parseBytes } from "../lib/units/bytes.ts";
import { plainName, plainNameWords } from "../lib/words/plain-name.ts";
import type { DiskLimits } from "./disk/pressure.ts";

const nodedStatus = `127.0.0.1:${defaultPorts.nodedStatus.port}`;

export const usage = `Usage:
  noded [run] [options]     run this host's tasks (the default)
  noded join [options]      make this host a node of a cluster
  noded version             print the version

run:
  --state-dir DIR           what the node keeps              (default /var/lib/embassy/noded)
  --run-dir DIR             what lasts until the next boot   (default /run/embassy/noded)
  --netd-socket PATH        netd's socket                    (default /run/embassy/netd.sock)
  --agent-listen IP:PORT    where clusterd reaches this node (default the underlay address, port ${defaultPorts.agent.port})
  --http-listen IP:PORT     /healthz and /metrics            (default ${nodedStatus})
  --insecure-registry HOST[:PORT]   a registry spoken to over http; may be given several times
  --generic-resource KIND=COUNT   something counted that tasks here may reserve; may be given several times
  --disk-low-percent 0-50   no new tasks while less of the disk than this is free  (default 10)
  --disk-low-bytes SIZE     and less than this; 0 in either: never   (default 5g)
  --runtime runc|crun|PATH  the OCI runtime                  (default: the first that works here)
  --log-level debug|info|warn|error                          (default info)

join:
  --manager HOST[:7401]     a control-plane member           (required)
  --token TOKEN             from \`clusterd token create\`     (required)
  --name NAME               this node's name                 (default: the host's name)
  --underlay IP             the address other hosts reach    (default: the one that reaches the manager)
  --state-dir DIR           what the node keeps              (default /var/lib/embassy/noded)
`;

export interface Listen {
  readonly host: string;
  readonly port: number;
}

export interface RunConfig {
  readonly command: "run";
  readonly stateDir: string;
  readonly runDir: string;
  readonly netdSocket: string;
  /** undefined: the underlay address, the agent's usual port. */
  readonly agentListen: Listen | undefined;
  readonly httpListen: Listen;
  readonly insecureRegistries: readonly string[];
  /** How many there are of each kind: at least 1. */
  readonly genericResources: Readonly<Record<string, number>>;
  /** When a disk is low: see `DiskLimits`. */
  readonly diskLow: DiskLimits;
  /** "runc", "crun" or an absolute path; undefined: the first that works. */
  readonly runtime: string | undefined;
  readonly logLevel: LogLevel;
}

export interface JoinConfig {
  readonly command: "join";
  readonly stateDir: string;
  readonly manager: Listen;
  readonly token: string;
  readonly name: string;
  /** undefined: the local address of the connection to the manager. */
  readonly underlay: string | undefined;
}

export type Config = RunConfig | JoinConfig | { readonly command: "help" | "version" };

function bad(flag: string, value: string, accepted: string): ClusterError {
  return new ClusterError(`${flag} ${JSON.stringify(value)}: must be ${accepted}`, {
    code: "invalid",
    subject: flag,
    hint: "Run `noded help` for every option.",
  });
}

/** Parses "HOST:PORT", "[IPv6]:PORT" or, with a default port, "HOST". Throws `invalid`, naming the flag. */
export function parseListen(flag: string, text: string, defaultPort?: number): Listen {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]\s]+))(?::(\d{1,5}))?$/.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = match?.[3] === undefined ? defaultPort : Number(match[3]);
  if (host === undefined || port === undefined || port < 1 || port > 65_535) {
    throw bad(flag, text, defaultPort === undefined ? "HOST:PORT, port 1-65535" : "HOST or HOST:PORT, port 1-65535");
  }
  return { host, port };
}

function ipv4(flag: string, text: string): string {
  const parts = text.split(".");
  if (parts.length !== 4 || !parts.every((part) => /^(0|[1-9]\d{0,2})$/.test(part) && Number(part) <= 255)) {
    throw bad(flag, text, "an IPv4 address");
  }
  return text;
}

function absolute(flag: string, text: string): string {
  if (!isAbsolute(text)) throw bad(flag, text, "an absolute path");
  // Without "." and "..", so that paths compare as text.
  return join(text);
}

function genericResources(flag: string, texts: readonly string[]): Record<string, number> {
  const counts = new Map<string, number>();
  for (const text of texts) {
    const equals = text.indexOf("=");
    const kind = text.slice(0, equals);
    if (equals < 0 || !plainName.test(kind)) throw bad(flag, text, `KIND=COUNT; KIND is ${plainNameWords}`);
    // Docker takes names as well, one for each: they would have to be told to the containers.
    const count = text.slice(equals + 1);
    if (!/^[1-9]\d{0,14}$/.test(count)) throw bad(flag, text, "KIND=COUNT; COUNT is a whole number from 1");
    if (counts.has(kind)) throw bad(flag, text, "given once for each kind");
    counts.set(kind, Number(count));
  }
  return Object.fromEntries(counts);
}

function diskLimits(percent: string, size: string): DiskLimits {
  if (!/^\d{1,2}(\.\d+)?$/.test(percent) || Number(percent) > 50) throw bad("--disk-low-percent", percent, "0-50");
  const lowBytes = parseBytes(size);
  if (lowBytes === undefined) throw bad("--disk-low-bytes", size, "a size such as 512m or 5g");
  return Object.freeze({ lowPercent: Number(percent), lowBytes });
}

function nodeName(text: string): string {
  if (!/^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,61}[a-zA-Z0-9])?$/.test(text)) {
    throw bad("--name", text, "1-63 letters, digits, dots and hyphens, beginning and ending with a letter or digit");
  }
  return text;
}

function parse<O extends NonNullable<Parameters<typeof parseArgs>[0]>["options"] & object>(args: string[], options: O) {
  try {
    return parseArgs({ args, options, strict: true, allowPositionals: false }).values;
  } catch (error) {
    throw new ClusterError(error instanceof Error ? (error.message.split(". ")[0] ?? "bad arguments") : String(error), {
      code: "invalid",
      hint: "Run `noded help` for every option.",
      cause: error,
    });
  }
}

const defaultStateDir = "/var/lib/embassy/noded";

/** Reads the command line (without node and script). Throws `invalid` with one sentence that names the flag and what it accepts. */
export function parseConfig(argv: readonly string[]): Config {
  const [first = "run", ...rest] = argv;
  if (first === "help" || argv.includes("--help") || argv.includes("-h")) return { command: "help" };
  if (first === "version" || first === "--version") return { command: "version" };
  if (first === "join") return Object.freeze(joinConfig(rest));
  if (first === "run") return Object.freeze(runConfig(rest));
  if (first.startsWith("-")) return Object.freeze(runConfig([...argv]));
  throw new ClusterError(`noded has no command ${JSON.stringify(first)}`, {
    code: "invalid",
    hint: "The commands are run, join, version and help.",
  });
}

function runConfig(args: string[]): RunConfig {
  const values = parse(args, {
    "state-dir": { type: "string", default: defaultStateDir },
    "run-dir": { type: "string", default: "/run/embassy/noded" },
    "netd-socket": { type: "string", default: "/run/embassy/netd.sock" },
    "agent-listen": { type: "string" },
    "http-listen": { type: "string", default: nodedStatus },
    "insecure-registry": { type: "string", multiple: true, default: [] },
    "generic-resource": { type: "string", multiple: true, default: [] },
    "disk-low-percent": { type: "string", default: "10" },
    "disk-low-bytes": { type: "string", default: "5g" },
    runtime: { type: "string" },
    "log-level": { type: "string", default: "info" },
  });
  const logLevel = logLevels.find((level) => level === values["log-level"]);
  if (logLevel === undefined) throw bad("--log-level", values["log-level"], logLevels.join(", "));
  const runtime = values.runtime;
  if (runtime !== undefined && runtime !== "runc" && runtime !== "crun" && !isAbsolute(runtime)) {
    throw bad("--runtime", runtime, "runc, crun or an absolute path");
  }
  const agent = values["agent-listen"];
  for (const registry of values["insecure-registry"]) parseListen("--insecure-registry", registry, 80);
  return {
    command: "run",
    stateDir: absolute("--state-dir", values["state-dir"]),
    runDir: absolute("--run-dir", values["run-dir"]),
    netdSocket: absolute("--netd-socket", values["netd-socket"]),
    agentListen: agent === undefined ? undefined : parseListen("--agent-listen", agent),
    httpListen: parseListen("--http-listen", values["http-listen"]),
    insecureRegistries: Object.freeze(values["insecure-registry"]),
    genericResources: Object.freeze(genericResources("--generic-resource", values["generic-resource"])),
    diskLow: diskLimits(values["disk-low-percent"], values["disk-low-bytes"]),
    runtime,
    logLevel,
  };
}

function joinConfig(args: string[]): JoinConfig {
  const values = parse(args, {
    "state-dir": { type: "string", default: defaultStateDir },
    manager: { type: "string" },
    token: { type: "string" },
    name: { type: "string" },
    underlay: { type: "string" },
  });
  const { manager, token } = values;
  if (manager === undefined || token === undefined) {
    throw new ClusterError(`noded join needs ${manager === undefined ? "--manager HOST[:7401]" : "--token TOKEN"}`, {
      code: "invalid",
      hint: "`clusterd token create` prints a token and the command to run.",
    });
  }
  return {
    command: "join",
    stateDir: absolute("--state-dir", values["state-dir"]),
    manager: parseListen("--manager", manager, 7401),
    token,
    name: nodeName(values.name ?? hostname()),
    underlay: values.underlay === undefined ? undefined : ipv4("--underlay", values.underlay),
  };
}
