import { randomBytes } from "node:crypto";
import { mkdir, readFile } from "node:fs/promises";
import { isIP } from "node:net";
import { networkInterfaces } from "node:os";
import { ClusterError, messageOf } from "../../lib/errors/errors.ts";
import { newId } from "../../lib/ids/ids.ts";
import { Authority, createAuthority } from "../../lib/pki/authority.ts";
import { checkIdentity, writeIdentity, writeWhole } from "../../lib/pki/identity.ts";
import { formatToken, hashSecret, newSecret } from "../../lib/pki/token.ts";
import { etcdHostName } from "../etcd/arguments.ts";
import { type ClusterFile, exists, type StateFiles, stateFiles, writeClusterFile } from "./state-dir.ts";

export const firstTokenTtlMs = 24 * 60 * 60 * 1000;

export interface InitOptions {
  readonly stateDir: string;
  /** Member name; default by the caller. */
  readonly member: string;
  /** `host:port` of the main listener. */
  readonly advertise: string;
  readonly nowMs: number;
}

/**
 * Makes a new cluster in a state directory: CA, this member's certificates, the administrator's context, the store key,
 * and a first join token, which it resolves with. Throws `conflict`, and changes nothing, when a cluster is there.
 */
export async function initCluster(options: InitOptions): Promise<string> {
  const { stateDir, member, advertise, nowMs } = options;
  const files = stateFiles(stateDir);
  await makeDirectory(stateDir);
  await refuseExisting(files);
  const { certificate, key } = await createAuthority("Embassy cluster CA", nowMs);
  const authority = await Authority.load(certificate, key);
  const secret = newSecret();
  await writeWhole(files.caKey, key, 0o600);
  await writeWhole(files.storeKey, `${randomBytes(32).toString("hex")}\n`, 0o600);
  await writeMember(files, authority, member, advertise, nowMs);
  await writeWhole(files.admin, await adminContext(authority, advertise, nowMs), 0o600);
  const cluster: ClusterFile = {
    version: 1,
    clusterId: newId(),
    member,
    instance: newId(),
    advertise,
    firstToken: {
      id: newId(),
      secretSha256: hashSecret(secret).toString("hex"),
      createdAtMs: nowMs,
      expiresAtMs: nowMs + firstTokenTtlMs,
    },
  };
  // Last: an interrupted init left no cluster, and can be run again.
  await writeClusterFile(files, cluster);
  return formatToken({ caFingerprint: authority.fingerprint, secret });
}

/** A CLI context with a new certificate of role admin, JSON. */
export async function adminContext(
  authority: Authority,
  advertise: string,
  nowMs: number,
  user = "admin",
): Promise<string> {
  const admin = await authority.issue({ commonName: user, role: "admin", nowMs });
  const context = {
    name: "embassy",
    endpoints: [advertise],
    ca: admin.ca.toString(),
    certificate: admin.certificate.toString(),
    key: admin.key.toString(),
  };
  return `${JSON.stringify(context, undefined, 2)}\n`;
}

/** The CA of a state directory. Throws `denied` or `invalid`. */
export async function loadAuthority(files: StateFiles): Promise<Authority> {
  let certificate: Buffer;
  let key: Buffer;
  try {
    [certificate, key] = await Promise.all([readFile(files.manager.ca), readFile(files.caKey)]);
  } catch (cause) {
    throw new ClusterError(`the cluster's CA cannot be read: ${messageOf(cause)}`, {
      code: "denied",
      subject: files.caKey,
      hint: "Run clusterd as the owner of the state directory; restore a missing file from a backup.",
      cause,
    });
  }
  return await Authority.load(certificate, key);
}

/** Writes new certificates of a member: for its listeners and for etcd. */
export async function writeMember(
  files: StateFiles,
  authority: Authority,
  member: string,
  advertise: string,
  nowMs: number,
): Promise<void> {
  const host = advertise.slice(0, advertise.lastIndexOf(":")).replace(/^\[|\]$/g, "");
  const local = ["127.0.0.1", "localhost"];
  const hosts = [host, ...local.filter((one) => one !== host)];
  const manager = await authority.issue({ commonName: member, role: "manager", nowMs, hosts });
  // The name that lets a certificate into etcd stands in this one only.
  // etcd compares a client's address with its certificate, and a host may call from any that it has.
  const etcdHosts = [...new Set([...hosts, ...ownAddresses()]), etcdHostName];
  const etcd = await authority.issue({ commonName: member, role: "manager", nowMs, hosts: etcdHosts });
  checkIdentity(manager, files.manager.certificate);
  await writeIdentity(files.etcd, etcd);
  await writeIdentity(files.manager, manager);
}

function ownAddresses(): string[] {
  const all = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? []);
  return all
    .filter(({ family, internal, address }) => family === "IPv4" && !internal && !address.startsWith("169.254."))
    .map(({ address }) => address)
    .sort();
}

/** Throws `conflict` when the state directory holds a cluster. */
export async function refuseExisting(files: StateFiles): Promise<void> {
  if (!(await exists(files.cluster))) return;
  throw new ClusterError(`${files.directory} holds a cluster already`, {
    code: "conflict",
    subject: files.directory,
    hint: "Start it with `clusterd run`, or give another --state-dir. `clusterd token create` prints a new join token.",
  });
}

/** Throws `denied`. */
export async function makeDirectory(directory: string): Promise<void> {
  try {
    await mkdir(directory, { recursive: true, mode: 0o700 });
  } catch (cause) {
    throw new ClusterError(`the state directory ${directory} cannot be made: ${messageOf(cause)}`, {
      code: "denied",
      subject: directory,
      hint: "Run clusterd as root, or give another --state-dir.",
      cause,
    });
  }
}

/** Is it a host name or an IPv4 address? */
export function isHost(text: string): boolean {
  return (
    isIP(text) === 4 || /^(?=.{1,253}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$/i.test(text)
  );
}
