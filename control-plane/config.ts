import { type Cidr, formatCidr, overlaps, parseCidr } from "../lib/cidr/cidr.ts";
import { ClusterError, messageOf } from "../lib/errors/errors.ts";
import { type LogLevel, logLevels } from "../lib/log/log.ts";
import { defaultPorts, type OwnPort } from "../lib/net/ports.ts";
import { isHost } from "./pki/init.ts";

export const defaultStateDir = "/var/lib/embassy/clusterd";
export const mainPort = defaultPorts.main.port;
export const joinPort = defaultPorts.join.port;

/** Where the state lies: in an etcd of our own, or in one that is there. */
export type EtcdConfig =
  | {
      readonly kind: "embedded";
      readonly binary: string;
      readonly clientListen: string;
      readonly peerListen: string;
      readonly quotaBytes: number;
    }
  | {
      readonly kind: "external";
      /** host:port */
      readonly endpoints: readonly string[];
      /** PEM files; undefined: plain HTTP. */
      readonly tls: { readonly ca: string; readonly certificate: string; readonly key: string } | undefined;
    };

/** What `clusterd run` is told. */
export interface Config {
  readonly stateDir: string;
  /** address:port */
  readonly listen: string;
  readonly joinListen: string;
  readonly httpListen: string;
  readonly etcd: EtcdConfig;
  readonly heartbeatIntervalMs: number;
  readonly leaseTtlMs: number;
  /** 0: no hold. */
  readonly silentHoldMs: number;
  readonly rebalanceSettleMs: number;
  readonly rebalanceCooldownMs: number;
  /** Subnets of networks are taken from it. */
  readonly networkPool: string;
  readonly networkPrefix: number;
  /** What a node gets of a network at a time. */
  readonly blockPrefix: number;
  readonly vipPool: string;
  readonly logLevel: LogLevel;
}

/** What this member and its etcd listen on; of an etcd that is not clusterd's the ports of its endpoints. */
export function listenedPorts(config: Pick<Config, "listen" | "joinListen" | "httpListen" | "etcd">): OwnPort[] {
  const { etcd } = config;
  return [
    at(config.listen, defaultPorts.main.by),
    at(config.joinListen, defaultPorts.join.by),
    at(config.httpListen, defaultPorts.clusterdStatus.by),
    ...(etcd.kind === "embedded"
      ? [at(etcd.clientListen, defaultPorts.etcd.by), at(etcd.peerListen, defaultPorts.etcdPeer.by)]
      : etcd.endpoints.map((endpoint) => at(endpoint, "etcd (--etcd-endpoints)"))),
  ];
}

function at(address: string, by: string): OwnPort {
  return { port: Number(address.slice(address.lastIndexOf(":") + 1)), protocol: "tcp", by };
}

/** Those of the embedded etcd, as commander gives them. */
export interface EtcdFlags {
  readonly etcdBinary: string;
  readonly etcdListen: string;
  readonly etcdPeerListen: string;
  readonly etcdQuota: string;
}

/** Those of an etcd that is not clusterd's. */
export interface OwnEtcdFlags {
  readonly etcdEndpoints?: string;
  readonly etcdCa?: string;
  readonly etcdCert?: string;
  readonly etcdKey?: string;
}

/** The flags as commander gives them. */
export interface Flags extends EtcdFlags, OwnEtcdFlags {
  readonly stateDir: string;
  readonly listen: string;
  readonly joinListen: string;
  readonly httpListen: string;
  readonly heartbeatInterval: string;
  readonly leaseTtl: string;
  readonly silentHold: string;
  readonly rebalanceSettle: string;
  readonly rebalanceCooldown: string;
  readonly networkPool: string;
  readonly networkPrefix: string;
  readonly blockPrefix: string;
  readonly vipPool: string;
  readonly logLevel: string;
}

function bad(flag: string, value: string, expected: string, cause?: unknown): ClusterError {
  return new ClusterError(`${flag} ${JSON.stringify(value)} is not ${expected}`, {
    code: "invalid",
    subject: flag,
    cause,
  });
}

/** Milliseconds of "250ms", "1.5s", "10m" or "24h". Throws `invalid`. */
export function parseDuration(flag: string, text: string): number {
  const [, number, unit] = /^([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)$/.exec(text) ?? [];
  if (number === undefined || unit === undefined) throw bad(flag, text, "a time like 1500ms, 5s, 10m or 24h");
  const factor = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000 }[unit] ?? Number.NaN;
  return Math.round(Number(number) * factor);
}

/** `host:port` of `HOST[:PORT]`. Throws `invalid`. */
export function parseHostPort(flag: string, text: string, defaultPort?: number): string {
  const [, host, port = defaultPort] = /^([^:]+)(?::([0-9]{1,5}))?$/.exec(text) ?? [];
  const ok = host !== undefined && isHost(host) && port !== undefined && Number(port) >= 1 && Number(port) <= 65_535;
  if (!ok)
    throw bad(
      flag,
      text,
      `a host name or IPv4 address ${defaultPort === undefined ? "with" : "and perhaps"} a port, HOST:PORT`,
    );
  return `${host}:${Number(port)}`;
}

function parseListen(flag: string, text: string): string {
  const [, address, port] = /^([0-9.]+):([0-9]{1,5})$/.exec(text) ?? [];
  const ok =
    address !== undefined &&
    isHost(address) &&
    /^[0-9.]+$/.test(address) &&
    Number(port) <= 65_535 &&
    Number(port) >= 1;
  if (!ok) throw bad(flag, text, "an IPv4 address and port, ADDRESS:PORT");
  return `${address}:${Number(port)}`;
}

function parseBytes(flag: string, text: string): number {
  const [, number, unit = ""] = /^([0-9]+)(|m|g)$/i.exec(text) ?? [];
  if (number === undefined) throw bad(flag, text, "a size like 512m or 4g");
  return Number(number) * ({ m: 2 ** 20, g: 2 ** 30 }[unit.toLowerCase()] ?? 1);
}

function parseInteger(flag: string, text: string, least: number, most: number): number {
  const value = Number(text);
  if (!/^[0-9]+$/.test(text) || value < least || value > most)
    throw bad(flag, text, `a number from ${least} to ${most}`);
  return value;
}

function parsePool(flag: string, text: string): Cidr {
  try {
    return parseCidr(text);
  } catch (cause) {
    throw bad(flag, text, `an IPv4 network like 10.96.0.0/12 (${messageOf(cause)})`, cause);
  }
}

/** Checks the flags of the embedded etcd. Throws `invalid`. */
export function parseEmbeddedEtcd(flags: EtcdFlags): Extract<EtcdConfig, { kind: "embedded" }> {
  const quotaBytes = parseBytes("--etcd-quota", flags.etcdQuota);
  if (quotaBytes < 2 ** 24 || quotaBytes > 8 * 2 ** 30) throw bad("--etcd-quota", flags.etcdQuota, "from 16m to 8g");
  return {
    kind: "embedded",
    binary: flags.etcdBinary,
    clientListen: parseListen("--etcd-listen", flags.etcdListen),
    peerListen: parseListen("--etcd-peer-listen", flags.etcdPeerListen),
    quotaBytes,
  };
}

/** Checks the flags that say which etcd. Throws `invalid`. */
export function parseEtcd(flags: EtcdFlags & OwnEtcdFlags): EtcdConfig {
  const { etcdEndpoints, etcdCa, etcdCert, etcdKey } = flags;
  if (etcdEndpoints === undefined) {
    const given = { "--etcd-ca": etcdCa, "--etcd-cert": etcdCert, "--etcd-key": etcdKey };
    const [stray] = Object.entries(given).find(([, value]) => value !== undefined) ?? [];
    if (stray !== undefined) {
      throw new ClusterError(`${stray} is for an etcd of your own`, {
        code: "invalid",
        subject: stray,
        hint: "Give --etcd-endpoints too, or leave it out: the embedded etcd has certificates.",
      });
    }
    return parseEmbeddedEtcd(flags);
  }
  const urls = etcdEndpoints.split(",").map((one) => one.trim());
  const schemes = new Set<string>();
  const endpoints = urls.map((url) => {
    const [, scheme = "", rest = ""] = /^(https?):\/\/([^/]+)\/?$/.exec(url) ?? [];
    if (scheme === "") throw bad("--etcd-endpoints", url, "a URL like https://10.0.0.1:2379");
    schemes.add(scheme);
    return parseHostPort("--etcd-endpoints", rest, 2379);
  });
  if (schemes.size > 1) throw bad("--etcd-endpoints", etcdEndpoints, "all https or all http");
  if (schemes.has("http")) {
    if ((etcdCa ?? etcdCert ?? etcdKey) !== undefined) {
      throw bad("--etcd-endpoints", etcdEndpoints, "https, which --etcd-ca, --etcd-cert and --etcd-key need");
    }
    return { kind: "external", endpoints, tls: undefined };
  }
  if (etcdCa === undefined || etcdCert === undefined || etcdKey === undefined) {
    throw new ClusterError("an https etcd needs --etcd-ca, --etcd-cert and --etcd-key", {
      code: "invalid",
      subject: "--etcd-endpoints",
    });
  }
  return { kind: "external", endpoints, tls: { ca: etcdCa, certificate: etcdCert, key: etcdKey } };
}

/** Checks the flags, all of them. Throws `invalid` with the flag, its value and what it takes. */
export function parseConfig(flags: Flags): Config {
  const heartbeatIntervalMs = parseDuration("--heartbeat-interval", flags.heartbeatInterval);
  const leaseTtlMs = parseDuration("--lease-ttl", flags.leaseTtl);
  if (heartbeatIntervalMs < 100 || heartbeatIntervalMs > 60_000) {
    throw bad("--heartbeat-interval", flags.heartbeatInterval, "from 100ms to 60s");
  }
  if (leaseTtlMs < 2_000 || leaseTtlMs > 600_000 || leaseTtlMs % 1_000 !== 0) {
    throw bad("--lease-ttl", flags.leaseTtl, "whole seconds from 2s to 10m");
  }
  if (leaseTtlMs < 2 * heartbeatIntervalMs) {
    throw bad("--lease-ttl", flags.leaseTtl, `twice the --heartbeat-interval (${flags.heartbeatInterval}) or more`);
  }
  const silentHoldMs = parseDuration("--silent-hold", flags.silentHold);
  if (silentHoldMs > 86_400_000) throw bad("--silent-hold", flags.silentHold, "from 0s to 24h");
  const rebalanceSettleMs = parseDuration("--rebalance-settle", flags.rebalanceSettle);
  if (rebalanceSettleMs < 1_000 || rebalanceSettleMs > 86_400_000) {
    throw bad("--rebalance-settle", flags.rebalanceSettle, "from 1s to 24h");
  }
  const rebalanceCooldownMs = parseDuration("--rebalance-cooldown", flags.rebalanceCooldown);
  if (rebalanceCooldownMs < 1_000 || rebalanceCooldownMs > 86_400_000) {
    throw bad("--rebalance-cooldown", flags.rebalanceCooldown, "from 1s to 24h");
  }
  const networkPool = parsePool("--network-pool", flags.networkPool);
  const vipPool = parsePool("--vip-pool", flags.vipPool);
  if (overlaps(networkPool, vipPool)) {
    throw bad("--vip-pool", flags.vipPool, `apart from the --network-pool ${formatCidr(networkPool)}`);
  }
  const networkPrefix = parseInteger("--network-prefix", flags.networkPrefix, networkPool.prefix, 28);
  const blockPrefix = parseInteger("--block-prefix", flags.blockPrefix, networkPrefix, 30);
  const logLevel = logLevels.find((level) => level === flags.logLevel);
  if (logLevel === undefined) throw bad("--log-level", flags.logLevel, `one of ${logLevels.join(", ")}`);
  return Object.freeze({
    stateDir: flags.stateDir,
    listen: parseListen("--listen", flags.listen),
    joinListen: parseListen("--join-listen", flags.joinListen),
    httpListen: parseListen("--http-listen", flags.httpListen),
    etcd: parseEtcd(flags),
    heartbeatIntervalMs,
    leaseTtlMs,
    silentHoldMs,
    rebalanceSettleMs,
    rebalanceCooldownMs,
    networkPool: formatCidr(networkPool),
    networkPrefix,
    blockPrefix,
    vipPool: formatCidr(vipPool),
    logLevel,
  });
}
