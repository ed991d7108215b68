import { ClusterError } from "../../lib/errors/errors.ts";
import { call, channelOptions, clientCredentials } from "../../lib/grpc/client.ts";
import { newId } from "../../lib/ids/ids.ts";
import { localAddressTowards } from "../../lib/net/local-address.ts";
import { Authority } from "../../lib/pki/authority.ts";
import { createCsr } from "../../lib/pki/csr.ts";
import { checkIdentity, writeWhole } from "../../lib/pki/identity.ts";
import { fetchPinnedCa, joinCredentials } from "../../lib/pki/pin.ts";
import { parseToken } from "../../lib/pki/token.ts";
import {
  type EnrollManagerRequest,
  type EnrollManagerResponse,
  JoinClient,
  ManagerClient,
  type SecretsRequest,
  type SecretsResponse,
} from "../../proto/gen/embassy/v1/dispatcher.ts";
import { adminContext, makeDirectory, refuseExisting, writeMember } from "./init.ts";
import { type ClusterFile, parseStoreKey, stateFiles, writeClusterFile } from "./state-dir.ts";

export interface JoinOptions {
  readonly stateDir: string;
  readonly token: string;
  /** `host:port` of a manager's join listener. */
  readonly manager: string;
  readonly member: string;
  /** `host:port` of this member's main listener; undefined: the address that packets to the manager carry, and that port. */
  readonly advertise: string | undefined;
  readonly defaultPort: number;
  readonly nowMs: number;
}

/**
 * Makes the state directory of a further manager, on its own host: asks the control plane that the token names, and no
 * other, for a certificate, and with that for what a manager needs. etcd is not touched before the first start. Its last
 * step is the one that counts, so one that was interrupted is just run again. Throws `conflict` (there is a cluster here, the
 * name is another manager's), `denied` (token, wrong cluster), `unavailable` (no answer).
 */
export async function joinAsManager(options: JoinOptions): Promise<ClusterFile> {
  const { stateDir, member, nowMs } = options;
  const files = stateFiles(stateDir);
  const token = parseToken(options.token);
  const [host = "", port] = options.manager.split(":");
  await makeDirectory(stateDir);
  await refuseExisting(files);
  const ca = await fetchPinnedCa({ host, port: Number(port), caFingerprint: token.caFingerprint });
  const advertise =
    options.advertise ?? `${await localAddressTowards(host, Number(port), "--advertise HOST")}:${options.defaultPort}`;
  const { csrDer, key } = await createCsr();
  const instance = newId();
  const request = { token: options.token.trim(), name: member, address: advertise, instance, csrDer };
  const enrolled = await enroll(options.manager, ca, request);
  const identity = { ca, certificate: enrolled.certificatePem, key };
  checkIdentity(identity, "from the control plane");
  const secrets = await fetchSecrets(enrolled.address, identity, request.token);
  parseStoreKey(secrets.storeKey);
  const authority = await Authority.load(ca, secrets.caKeyPem);
  await writeWhole(files.caKey, secrets.caKeyPem, 0o600);
  await writeWhole(files.storeKey, `${secrets.storeKey}\n`, 0o600);
  await writeMember(files, authority, member, advertise, nowMs);
  await writeWhole(files.admin, await adminContext(authority, advertise, nowMs), 0o600);
  const { clusterId } = enrolled;
  const etcd = { joined: true, started: false, others: secrets.etcd };
  const cluster: ClusterFile = { version: 1, clusterId, member, instance, advertise, registered: true, etcd };
  await writeClusterFile(files, cluster);
  return cluster;
}

async function enroll(address: string, ca: Buffer, request: EnrollManagerRequest): Promise<EnrollManagerResponse> {
  const client = new JoinClient(address, joinCredentials(ca), channelOptions);
  try {
    return await call<EnrollManagerRequest, EnrollManagerResponse>(client.enrollManager.bind(client), request);
  } finally {
    client.close();
  }
}

async function fetchSecrets(
  address: string,
  identity: Parameters<typeof clientCredentials>[0],
  token: string,
): Promise<SecretsResponse> {
  const client = new ManagerClient(address, clientCredentials(identity), channelOptions);
  try {
    return await call<SecretsRequest, SecretsResponse>(client.secrets.bind(client), { token });
  } catch (cause) {
    if (!(cause instanceof ClusterError) || cause.code !== "unavailable") throw cause;
    throw new ClusterError(`the manager at ${address} cannot be reached: ${cause.message}`, {
      code: "unavailable",
      subject: address,
      hint: "TCP 7400, 7401, 7404 and 7405 must pass between managers. Then run this command again.",
      cause,
    });
  } finally {
    client.close();
  }
}
