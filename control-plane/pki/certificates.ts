import { experimental, type ServerCredentials } from "@grpc/grpc-js";
import type { Clock } from "../../lib/clock/clock.ts";
import type { TlsIdentity } from "../../lib/grpc/tls.ts";
import type { Log } from "../../lib/log/log.ts";
import type { Authority } from "../../lib/pki/authority.ts";
import { readCertificate } from "../../lib/pki/certificate.ts";
import { loadIdentity } from "../../lib/pki/identity.ts";
import { writeMember } from "./init.ts";
import { type ClusterFile, exists, type StateFiles } from "./state-dir.ts";

export interface CertificateDeps {
  readonly files: StateFiles;
  readonly authority: Authority;
  readonly cluster: Pick<ClusterFile, "member" | "advertise">;
  readonly clock: Pick<Clock, "nowMs" | "sleep">;
  readonly log: Log;
}

/** A member's certificates: for its listeners and clients, and for etcd. */
export interface MemberIdentities {
  readonly manager: TlsIdentity;
  readonly etcd: TlsIdentity;
}

type CaListener = experimental.CaCertificateUpdateListener;
type IdentityListener = experimental.IdentityCertificateUpdateListener;

const checkIntervalMs = 60 * 60 * 1000;

/** This member's certificates, renewed at two thirds of their life; listeners and clients take the new ones without a restart. */
export class MemberCertificates implements experimental.CertificateProvider {
  readonly #deps: CertificateDeps;
  readonly #caListeners = new Set<CaListener>();
  readonly #identityListeners = new Set<IdentityListener>();
  #identities: MemberIdentities;

  private constructor(deps: CertificateDeps, identities: MemberIdentities) {
    this.#deps = deps;
    this.#identities = identities;
  }

  /** Reads them; renews them when they are due or missing. */
  static async load(deps: CertificateDeps): Promise<MemberCertificates> {
    return new MemberCertificates(deps, await current(deps));
  }

  get identities(): MemberIdentities {
    return this.#identities;
  }

  /**
   * Credentials of a listener, with the CA in the chain: a joiner looks for it there. `clients`: whether a caller needs a
   * certificate of the cluster.
   */
  listener(clients: "required" | "optional"): ServerCredentials {
    return experimental.createCertificateProviderServerCredentials(this, this, clients === "required");
  }

  /** Looks each hour whether they are due, until the signal is aborted. `renewed` is called after each renewal. */
  async keep(renewed: (identities: MemberIdentities) => void, signal: AbortSignal): Promise<void> {
    const { clock, log } = this.#deps;
    while (!signal.aborted) {
      await clock.sleep(checkIntervalMs, signal).catch(() => undefined);
      if (signal.aborted) return;
      try {
        const before = this.#identities;
        this.#identities = await current(this.#deps);
        if (before.manager.certificate.equals(this.#identities.manager.certificate)) continue;
        for (const listener of this.#identityListeners) listener(this.#identity());
        renewed(this.#identities);
      } catch (error) {
        log.error("this member's certificates could not be renewed", { error });
      }
    }
  }

  addCaCertificateListener(listener: CaListener): void {
    this.#caListeners.add(listener);
    // Not at once: grpc-js asks before it has noted down who is to be told.
    queueMicrotask(() => listener({ caCertificate: this.#identities.manager.ca }));
  }
  removeCaCertificateListener(listener: CaListener): void {
    this.#caListeners.delete(listener);
  }
  addIdentityCertificateListener(listener: IdentityListener): void {
    this.#identityListeners.add(listener);
    queueMicrotask(() => listener(this.#identity()));
  }
  removeIdentityCertificateListener(listener: IdentityListener): void {
    this.#identityListeners.delete(listener);
  }

  #identity(): experimental.IdentityCertificateUpdate {
    const { certificate, ca, key } = this.#identities.manager;
    return { certificate: Buffer.concat([certificate, ca]), privateKey: key };
  }
}

async function current(deps: CertificateDeps): Promise<MemberIdentities> {
  const { files, authority, cluster, clock, log } = deps;
  if (!(await fresh(files, clock.nowMs()))) {
    await writeMember(files, authority, cluster.member, cluster.advertise, clock.nowMs());
    log.info("this member's certificates renewed");
  }
  const [manager, etcd] = await Promise.all([loadIdentity(files.manager), loadIdentity(files.etcd)]);
  return { manager, etcd };
}

async function fresh(files: StateFiles, nowMs: number): Promise<boolean> {
  for (const one of [files.manager, files.etcd]) {
    if (!(await exists(one.certificate))) return false;
    if (readCertificate((await loadIdentity(one)).certificate).renewAtMs <= nowMs) return false;
  }
  return true;
}
