import type { IdentityFiles } from "../../lib/pki/identity.ts";

/** A certificate must name this host to be let into etcd: nodes hold certificates of the same CA and must not. */
export const etcdHostName = "etcd.embassy.internal";

export interface EtcdSettings {
  /** Of the etcd member; fixed for the life of the data directory. */
  readonly name: string;
  readonly clusterId: string;
  /** Absolute. */
  readonly dataDir: string;
  /** `address:port`, both on an address of this host, or on 0.0.0.0. */
  readonly clientListen: string;
  readonly peerListen: string;
  /** How the other members reach them: `host:port`. Default: where they listen. */
  readonly clientAdvertise?: string;
  readonly peerAdvertise?: string;
  /** Of a member that joins others: all of them, as --initial-cluster takes it. undefined: the first of a new etcd. */
  readonly joins?: string | undefined;
  /** Makes it the only member of its etcd, whoever else there was. */
  readonly alone?: boolean;
  readonly files: IdentityFiles;
  readonly quotaBytes: number;
}

/** How many writes and comparisons one transaction may have. etcd's own default is 128. */
export const maxTxnOps = 10_000;
/** etcd's own default is 1.5 MiB; a batch of thousands of tasks is more. */
export const maxRequestBytes = 32 * 1024 * 1024;

/** The command line of the embedded etcd. `--name=value` throughout, so that a process can be compared with it. */
export function etcdArguments(settings: EtcdSettings): readonly string[] {
  const client = `https://${settings.clientListen}`;
  const peer = `https://${settings.peerAdvertise ?? settings.peerListen}`;
  const { ca, certificate, key } = settings.files;
  return [
    `--name=${settings.name}`,
    `--data-dir=${settings.dataDir}`,
    `--listen-client-urls=${client}`,
    `--advertise-client-urls=https://${settings.clientAdvertise ?? settings.clientListen}`,
    `--listen-peer-urls=https://${settings.peerListen}`,
    `--initial-advertise-peer-urls=${peer}`,
    `--initial-cluster=${settings.joins ?? `${settings.name}=${peer}`}`,
    `--initial-cluster-state=${settings.joins === undefined ? "new" : "existing"}`,
    `--initial-cluster-token=embassy-${settings.clusterId}`,
    `--cert-file=${certificate}`,
    `--key-file=${key}`,
    `--trusted-ca-file=${ca}`,
    "--client-cert-auth",
    `--client-cert-allowed-hostname=${etcdHostName}`,
    `--peer-cert-file=${certificate}`,
    `--peer-key-file=${key}`,
    `--peer-trusted-ca-file=${ca}`,
    "--peer-client-cert-auth",
    `--peer-cert-allowed-hostname=${etcdHostName}`,
    // A host may have more addresses than the one that its certificate names.
    "--experimental-peer-skip-client-san-verification",
    // A member that comes back does not depose the leader.
    "--pre-vote",
    `--max-txn-ops=${maxTxnOps}`,
    `--max-request-bytes=${maxRequestBytes}`,
    `--quota-backend-bytes=${settings.quotaBytes}`,
    // Watchers that were away for less catch up from events; others list again.
    "--auto-compaction-mode=periodic",
    "--auto-compaction-retention=10m",
    // The default of 100,000 keeps that many transactions in memory.
    "--snapshot-count=10000",
    // Its JSON gateway cannot show itself a client certificate, and would try for ever.
    "--enable-grpc-gateway=false",
    "--logger=zap",
    "--log-level=warn",
    "--log-outputs=stderr",
    ...(settings.alone === true ? ["--force-new-cluster"] : []),
  ];
}
