import { isAbsolute, join } from "node:path";
import { parseArgs } from "node:util";
import { ClusterError, messageOf } from "../lib/errors/errors.ts";
import { type LogLevel, logLevels } from "../lib/log/log.ts";
import { defaultPorts } from "../lib/net/ports.ts";

const netdStatus = `127.0.0.1:${defaultPorts.netdStatus.port}`;

export const usage = `Usage:
  netd [run] [options]      this host's overlay, name server and ambassadors (the default)
  netd cleanup [options]    take everything of netd's off this host
  netd version              print the version

  --state-dir DIR           what netd keeps                     (default /var/lib/embassy/netd)
  --run-dir DIR             what lasts until the next boot      (default /run/embassy/netns)
  --noded-dir DIR           where node.json and identity/ are   (default /var/lib/embassy/noded)
  --socket PATH             for noded                           (default /run/embassy/netd.sock)
  --http-listen IP:PORT     /healthz and /metrics               (default ${netdStatus})
  --resolv-conf PATH        resolvers for names elsewhere       (default /etc/resolv.conf)
  --pool N                  network namespaces kept ready, 0-64 (default 4)
  --log-level debug|info|warn|error                             (default info)
`;

export interface Config {
  readonly command: "run" | "cleanup";
  readonly stateDir: string;
  /** Pins of network namespaces. */
  readonly runDir: string;
  readonly nodedDir: string;
  readonly socket: string;
  readonly httpListen: { readonly host: string; readonly port: number };
  readonly resolvConf: string;
  readonly poolSize: number;
  readonly logLevel: LogLevel;
}

function bad(flag: string, value: string, accepted: string): ClusterError {
  return new ClusterError(`${flag} ${JSON.stringify(value)}: must be ${accepted}`, {
    code: "invalid",
    subject: flag,
    hint: "Run `netd help` for every option.",
  });
}

const options = {
  "state-dir": { type: "string", default: "/var/lib/embassy/netd" },
  "run-dir": { type: "string", default: "/run/embassy/netns" },
  "noded-dir": { type: "string", default: "/var/lib/embassy/noded" },
  socket: { type: "string", default: "/run/embassy/netd.sock" },
  "http-listen": { type: "string", default: netdStatus },
  "resolv-conf": { type: "string", default: "/etc/resolv.conf" },
  pool: { type: "string", default: "4" },
  "log-level": { type: "string", default: "info" },
  help: { type: "boolean", default: false },
  version: { type: "boolean", default: false },
} as const;

function parse(argv: readonly string[]) {
  try {
    return parseArgs({ args: [...argv], allowPositionals: true, options });
  } catch (cause) {
    throw new ClusterError(messageOf(cause), { code: "invalid", hint: "Run `netd help` for every option.", cause });
  }
}

/** The configuration that the arguments say, or "help" or "version". Throws `invalid`, naming the flag, its value and what it accepts. */
export function parseConfig(argv: readonly string[]): Config | "help" | "version" {
  const { values, positionals } = parse(argv);
  const [command = "run", ...rest] = positionals;
  if (values.help || command === "help") return "help";
  if (values.version || command === "version") return "version";
  if ((command !== "run" && command !== "cleanup") || rest.length > 0) {
    throw bad("command", positionals.join(" "), "run, cleanup, version or help");
  }
  const path = (flag: "state-dir" | "run-dir" | "noded-dir" | "socket" | "resolv-conf") => {
    const value = values[flag];
    if (!isAbsolute(value)) throw bad(`--${flag}`, value, "an absolute path");
    return join(value);
  };
  const listen = /^(\d{1,3}(?:\.\d{1,3}){3}):(\d{1,5})$/.exec(values["http-listen"]);
  const port = Number(listen?.[2]);
  if (listen?.[1] === undefined || port < 1 || port > 65_535) {
    throw bad("--http-listen", values["http-listen"], "IP:PORT, port 1-65535");
  }
  const logLevel = logLevels.find((level) => level === values["log-level"]);
  if (logLevel === undefined) throw bad("--log-level", values["log-level"], `one of ${logLevels.join(", ")}`);
  if (!/^\d{1,2}$/.test(values.pool) || Number(values.pool) > 64) throw bad("--pool", values.pool, "a number of 0-64");
  return {
    command,
    stateDir: path("state-dir"),
    runDir: path("run-dir"),
    nodedDir: path("noded-dir"),
    socket: path("socket"),
    httpListen: { host: listen[1], port },
    resolvConf: path("resolv-conf"),
    poolSize: Number(values.pool),
    logLevel,
  };
}
