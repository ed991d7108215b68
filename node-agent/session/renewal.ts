import type { Clock } from "../../lib/clock/clock.ts";
import { call, channelOptions, clientCredentials } from "../../lib/grpc/client.ts";
import type { TlsIdentity } from "../../lib/grpc/tls.ts";
import type { Log } from "../../lib/log/log.ts";
import { readCertificate } from "../../lib/pki/certificate.ts";
import { checkIdentity } from "../../lib/pki/identity.ts";
import { DispatcherClient, type RenewRequest, type RenewResponse } from "../../proto/gen/embassy/v1/dispatcher.ts";

export interface RenewalDeps {
  readonly log: Log;
  readonly clock: Clock;
  readonly managers: () => readonly string[];
  readonly identity: () => TlsIdentity;
  /** Keeps the new identity, on disk and for connections from now on. */
  readonly replace: (identity: TlsIdentity) => Promise<void>;
}

// Timers hold at most 24.8 days, and a machine may sleep: look again now and then.
const lookAgainMs = 3_600_000;
const firstRetryMs = 5_000;
const maxRetryMs = 600_000;

/** Renews the node's certificate at two thirds of its life, by any of the managers, until the signal is aborted. */
export async function keepCertificate(deps: RenewalDeps, signal: AbortSignal): Promise<void> {
  let retryMs = firstRetryMs;
  while (!signal.aborted) {
    const dueMs = readCertificate(deps.identity().certificate).renewAtMs - deps.clock.nowMs();
    let waitMs = Math.min(dueMs, lookAgainMs);
    if (dueMs <= 0) {
      try {
        const renewed = await renew(deps, signal);
        const { notAfterMs } = readCertificate(renewed.certificate);
        await deps.replace(renewed);
        deps.log.info("certificate renewed", { validUntil: new Date(notAfterMs).toISOString() });
        retryMs = firstRetryMs;
        // Never in a tight loop, whatever life the new one has.
        waitMs = firstRetryMs;
      } catch (error) {
        deps.log.warn("certificate not renewed", { error, retryInMs: retryMs });
        waitMs = retryMs;
        retryMs = Math.min(retryMs * 2, maxRetryMs);
      }
    }
    await deps.clock.sleep(waitMs, signal).catch(() => undefined);
  }
}

async function renew(deps: RenewalDeps, signal: AbortSignal): Promise<TlsIdentity> {
  const present = deps.identity();
  // Loaded only now: the ASN.1 library is large, and needed once in sixty days.
  const { createCsr } = await import("../../lib/pki/csr.ts");
  const { csrDer, key } = await createCsr(present.key);
  let failure: unknown;
  for (const manager of deps.managers()) {
    const client = new DispatcherClient(manager, clientCredentials(present), channelOptions);
    try {
      const response = await call<RenewRequest, RenewResponse>(
        (...args) => client.renew(...args),
        { csrDer },
        { signal },
      );
      const identity = { ca: response.caPem, certificate: response.certificatePem, key };
      checkIdentity(identity, "from the control plane");
      return identity;
    } catch (error) {
      signal.throwIfAborted();
      failure = error;
    } finally {
      client.close();
    }
  }
  throw failure;
}
