import { ClusterError, isErrno, messageOf } from "../../lib/errors/errors.ts";
import { call, channelOptions } from "../../lib/grpc/client.ts";
import { lockDirectory } from "../../lib/lock/lock.ts";
import type { Log } from "../../lib/log/log.ts";
import { localAddressTowards } from "../../lib/net/local-address.ts";
import { defaultPorts } from "../../lib/net/ports.ts";
import { readCertificate } from "../../lib/pki/certificate.ts";
import { createCsr } from "../../lib/pki/csr.ts";
import { checkIdentity, writeIdentity } from "../../lib/pki/identity.ts";
import { fetchPinnedCa, joinCredentials } from "../../lib/pki/pin.ts";
import { parseToken } from "../../lib/pki/token.ts";
import { type EnrollRequest, type EnrollResponse, JoinClient } from "../../proto/gen/embassy/v1/dispatcher.ts";
import type { JoinConfig } from "../config.ts";
import { identityFiles, type NodeFile, nodeFilePath, readNodeFile, writeNodeFile } from "./node.ts";

/**
 * Makes this host a node: gets a certificate for a key that never leaves the host, from the control plane that the token
 * names and from no other. node.json is written last, so a host that has it has joined. A host whose node was removed joins
 * again once its tasks have been stopped; what lies in volumes/ and images/ stays.
 * Throws `conflict` when the host is a node, or still stops the tasks of one that was removed; `denied` (wrong token or wrong cluster), `unavailable` (no answer).
 */
export async function joinCluster(config: JoinConfig, log: Log): Promise<NodeFile> {
  const token = parseToken(config.token);
  // Of a host that was a node, noded may still be at work.
  await using _lock = (await refuseSecondJoin(config.stateDir))
    ? await lockDirectory(config.stateDir, "noded")
    : undefined;

  const { host, port } = config.manager;
  const ca = await fetchPinnedCa({ host, port, caFingerprint: token.caFingerprint });
  const underlay = config.underlay ?? (await localAddressTowards(host, port, "--underlay IP"));

  const { csrDer, key } = await createCsr();
  const address = formatHost(host, port);
  const client = new JoinClient(address, joinCredentials(ca), channelOptions);
  let response: EnrollResponse;
  try {
    const request = { token: config.token.trim(), nodeName: config.name, csrDer };
    response = await call<EnrollRequest, EnrollResponse>((...args) => client.enroll(...args), request);
  } finally {
    client.close();
  }

  const identity = { ca: response.caPem, certificate: response.certificatePem, key };
  checkIdentity(identity, "from the control plane");
  const certificate = readCertificate(identity.certificate);
  if (certificate.commonName !== response.nodeId || certificate.role !== "node") {
    throw new ClusterError("the control plane gave a certificate that is not this node's", {
      code: "internal",
      subject: address,
    });
  }
  const managers = response.managers.length > 0 ? response.managers : [formatHost(host, defaultPorts.main.port)];
  const file: NodeFile = {
    nodeId: response.nodeId,
    name: config.name,
    clusterId: response.clusterId,
    managers,
    underlay,
  };
  await writeIdentity(identityFiles(config.stateDir), identity);
  await writeNodeFile(config.stateDir, file);
  log.info("joined", { nodeId: file.nodeId, name: file.name, clusterId: file.clusterId, managers, underlay });
  return file;
}

function formatHost(host: string, port: number): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}

/** Resolves with whether the host was a node, which was removed and has left nothing of its tasks. */
async function refuseSecondJoin(stateDir: string): Promise<boolean> {
  try {
    const file = await readNodeFile(stateDir);
    if (file.removed === "done") return true;
    const node = `node ${file.name} (${file.nodeId}) of cluster ${file.clusterId}`;
    const stopping = file.removed === "stopping";
    throw new ClusterError(
      stopping ? `this host was ${node}, and its tasks are not stopped yet` : `this host is ${node} already`,
      {
        code: "conflict",
        subject: nodeFilePath(stateDir),
        hint: stopping
          ? "Wait until noded has ended, or start noded and netd when they do not run: they stop what is left. Then join."
          : `To join again, forget the node with \`clusterctl node rm ${file.name}\` and leave noded and netd running, or start them: they learn of it, stop what is left and end. Volumes stay. Then join.`,
      },
    );
  } catch (error) {
    if (error instanceof ClusterError && error.code === "not-found") return false;
    if (isErrno(error, "ENOTDIR") || isErrno(error, "EACCES")) {
      throw new ClusterError(`${stateDir} cannot be used: ${messageOf(error)}`, {
        code: "invalid",
        subject: stateDir,
        hint: "Run as root, and name a directory with --state-dir.",
        cause: error,
      });
    }
    throw error;
  }
}
