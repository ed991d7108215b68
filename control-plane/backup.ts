import { readFile, rm } from "node:fs/promises";
import { promisify } from "node:util";
import { gunzip, gzip } from "node:zlib";
import type { Clock } from "../lib/clock/clock.ts";
import { ClusterError, isErrno, messageOf } from "../lib/errors/errors.ts";
import { newId } from "../lib/ids/ids.ts";
import { lockDirectory } from "../lib/lock/lock.ts";
import type { Log } from "../lib/log/log.ts";
import { Authority } from "../lib/pki/authority.ts";
import { writeWhole } from "../lib/pki/identity.ts";
import { Backup } from "../proto/gen/embassy/v1/state.ts";
import type { EtcdConfig } from "./config.ts";
import { EmbeddedEtcd } from "./embedded.ts";
import { MemberCertificates } from "./pki/certificates.ts";
import { adminContext, makeDirectory, refuseExisting, writeMember } from "./pki/init.ts";
import {
  ClusterFileKeeper,
  exists,
  parseStoreKey,
  readClusterFile,
  type StateFiles,
  stateFiles,
  writeClusterFile,
} from "./pki/state-dir.ts";
import type { EtcdClient } from "./store/client.ts";
import { readEntries, writeEntries } from "./store/entries.ts";

const version = 1;

export interface BackupMade {
  readonly clusterId: string;
  readonly revision: number;
  readonly entries: number;
  /** Of the file. */
  readonly bytes: number;
}

/**
 * Writes what a cluster is to a file, whole or not at all: the state at one revision, the CA and the key of the secrets. The cluster
 * serves meanwhile. Throws `unavailable` without a quorum of etcd, `denied` when the file cannot be written.
 */
export async function makeBackup(
  deps: { readonly client: EtcdClient; readonly files: StateFiles; readonly clock: Pick<Clock, "nowMs"> },
  out: string,
  signal: AbortSignal,
): Promise<BackupMade> {
  const { client, files, clock } = deps;
  const { clusterId, member } = await readClusterFile(files);
  const { entries, revision } = await readEntries(client, signal);
  const backup = Backup.create({
    version,
    clusterId,
    madeBy: member,
    madeAtMs: clock.nowMs(),
    revision,
    caCertificatePem: await readFile(files.manager.ca),
    caKeyPem: await readFile(files.caKey),
    storeKey: (await readFile(files.storeKey, "utf8")).trim(),
    entries,
  });
  const bytes = await promisify(gzip)(Backup.encode(backup).finish());
  try {
    await writeWhole(out, bytes, 0o600);
  } catch (cause) {
    throw new ClusterError(`the backup cannot be written to ${out}: ${messageOf(cause)}`, {
      code: "denied",
      subject: out,
      hint: "Give --out a file in a directory that can be written to, with room.",
      cause,
    });
  }
  return { clusterId, revision, entries: entries.length, bytes: bytes.length };
}

/** Reads a backup. Throws `not-found`, or `invalid` when it is damaged, cut short, or of another format. */
export async function readBackup(file: string): Promise<Backup> {
  let bytes: Buffer;
  try {
    bytes = await readFile(file);
  } catch (cause) {
    throw new ClusterError(`the backup ${file} cannot be read: ${messageOf(cause)}`, {
      code: isErrno(cause, "ENOENT") ? "not-found" : "denied",
      subject: file,
      cause,
    });
  }
  let backup: Backup;
  try {
    // Its checksum tells a damaged file, and one that is cut short.
    backup = Backup.decode(await promisify(gunzip)(bytes));
    parseStoreKey(backup.storeKey);
  } catch (cause) {
    throw new ClusterError(`${file} is no backup, or is damaged: ${messageOf(cause)}`, {
      code: "invalid",
      subject: file,
      hint: "Take an earlier one; `clusterd backup` writes each whole or not at all.",
      cause,
    });
  }
  if (backup.version === version) return backup;
  throw new ClusterError(`${file} is a backup of format ${backup.version}, and this clusterd reads format ${version}`, {
    code: "invalid",
    subject: file,
    hint: "Restore it with the version of clusterd that made it.",
  });
}

export interface RestoreOptions {
  readonly stateDir: string;
  readonly member: string;
  /** `host:port` of the main listener. */
  readonly advertise: string;
  readonly etcd: Extract<EtcdConfig, { kind: "embedded" }>;
}

/**
 * Makes the cluster of a backup in a state directory without one, of which this is the only member then, with an etcd of its own.
 * Interrupted, it is done again from the start. Throws `conflict` when a cluster is there; `unavailable` when etcd does not serve.
 */
export async function restoreBackup(
  { log, clock }: { readonly log: Log; readonly clock: Clock },
  backup: Backup,
  options: RestoreOptions,
  signal: AbortSignal,
): Promise<void> {
  const { stateDir, member, advertise, etcd } = options;
  const files = stateFiles(stateDir);
  await makeDirectory(stateDir);
  await using _ = await lockDirectory(stateDir, "clusterd");
  if (!(await isHalfRestored(files))) await refuseExisting(files);
  await rm(files.etcdData, { recursive: true, force: true });
  const authority = await Authority.load(Buffer.from(backup.caCertificatePem), Buffer.from(backup.caKeyPem));
  const nowMs = clock.nowMs();
  await writeWhole(files.caKey, Buffer.from(backup.caKeyPem), 0o600);
  await writeWhole(files.storeKey, `${backup.storeKey}\n`, 0o600);
  await writeMember(files, authority, member, advertise, nowMs);
  await writeWhole(files.admin, await adminContext(authority, advertise, nowMs), 0o600);
  const cluster = { version: 1, clusterId: backup.clusterId, member, instance: newId(), advertise } as const;
  await writeClusterFile(files, { ...cluster, restoring: true });
  const keeper = await ClusterFileKeeper.open(files);
  const certificates = await MemberCertificates.load({ files, authority, cluster, clock, log });
  const identity = () => certificates.identities.etcd;
  await using embedded = await EmbeddedEtcd.start({ config: etcd, files, keeper, identity, log, clock }, signal);
  await embedded.serving(signal);
  await writeEntries(embedded.client, backup.entries, signal);
  await keeper.change({ restoring: undefined });
}

async function isHalfRestored(files: StateFiles): Promise<boolean> {
  return (await exists(files.cluster)) && (await readClusterFile(files)).restoring === true;
}
