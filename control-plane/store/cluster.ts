import { ClusterError } from "../../lib/errors/errors.ts";
import { Compare, RangeRequest, TxnRequest } from "../../proto/gen/etcd/rpc.ts";
import type { EtcdClient } from "./client.ts";
import { clusterKey } from "./schema.ts";

/**
 * Claims etcd for this cluster, or finds that it is. Throws `conflict` when it
 * holds another cluster.
 */
export async function claimCluster(client: EtcdClient, clusterId: string, signal: AbortSignal): Promise<void> {
  const key = Buffer.from(clusterKey);
  const put = { key, value: Buffer.from(clusterId), lease: 0n, prevKv: false, ignoreValue: false, ignoreLease: false };
  const targetUnion = { $case: "createRevision", value: 0n } as const;
  const request = TxnRequest.create({
    compare: [Compare.create({ result: 0, target: 1, key, targetUnion })],
    success: [{ request: { $case: "requestPut", value: put } }],
    failure: [{ request: { $case: "requestRange", value: RangeRequest.create({ key }) } }],
  });
  const response = await client.call(({ kv }) => kv.txn.bind(kv), request, { signal });
  if (response.succeeded) return;
  const found = response.responses[0]?.response;
  const owner = found?.$case === "responseRange" ? found.value.kvs[0]?.value.toString() : undefined;
  if (owner === clusterId) return;
  throw new ClusterError(`etcd holds cluster ${owner}, and this member belongs to cluster ${clusterId}`, {
    code: "conflict",
    subject: "etcd",
    hint: "Give the --etcd-endpoints of this cluster, or the --state-dir of the other.",
  });
}
