import type { Clock } from "../../lib/clock/clock.ts";
import type { Log } from "../../lib/log/log.ts";
import { AlarmRequest, AlarmType, RangeRequest } from "../../proto/gen/etcd/rpc.ts";
import type { EtcdClient } from "./client.ts";
import { clusterKey } from "./schema.ts";

export interface MaintenanceDeps {
  readonly client: EtcdClient;
  readonly clock: Clock;
  readonly log: Log;
}

const intervalMs = 15_000;
/** Defragmenting blocks etcd: worth it when this much comes free, and that is more than half. */
const worthBytes = 256 * 2 ** 20;
const slowMs = 60_000;

/**
 * Keeps the embedded etcd from staying full, until the signal is aborted: gives the disk space of old revisions back when there is
 * much of it, and when etcd has stopped taking writes for want of space, throws away its history and lets it go on.
 * Not for an etcd that belongs to others.
 */
export async function maintainEtcd(deps: MaintenanceDeps, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    try {
      await maintainOnce(deps, signal);
    } catch (error) {
      if (signal.aborted) return;
      deps.log.warn("etcd's space could not be looked after", { error });
    }
    await deps.clock.sleep(intervalMs, signal).catch(() => undefined);
  }
}

/** One look, and what follows from it. */
export async function maintainOnce({ client, log }: MaintenanceDeps, signal: AbortSignal): Promise<void> {
  const alarms = await client.call(
    ({ maintenance }) => maintenance.alarm.bind(maintenance),
    AlarmRequest.create({ action: 0, alarm: AlarmType.None }),
    { signal },
  );
  const full = alarms.alarms.filter(({ alarm }) => alarm === AlarmType.Nospace);
  const { dbSize, dbSizeInUse } = await client.call(
    ({ maintenance }) => maintenance.status.bind(maintenance),
    {},
    { signal },
  );
  const free = Number(dbSize - dbSizeInUse);
  if (full.length > 0) {
    const request = RangeRequest.create({ key: Buffer.from(clusterKey), countOnly: true });
    const { header } = await client.call(({ kv }) => kv.range.bind(kv), request, { signal });
    const revision = header?.revision ?? 0n;
    await client
      .call(({ kv }) => kv.compact.bind(kv), { revision, physical: true }, { signal, deadlineMs: slowMs })
      .catch((error: unknown) => {
        // Nothing has been written since the last time.
        if (!String(error).includes("has been compacted")) throw error;
      });
  }
  if (full.length > 0 || (free > worthBytes && free > Number(dbSizeInUse))) {
    await client.call(
      ({ maintenance }) => maintenance.defragment.bind(maintenance),
      {},
      { signal, deadlineMs: slowMs },
    );
  }
  for (const { memberID } of full) {
    const disarm = { action: 2, alarm: AlarmType.Nospace, memberID } as const;
    await client.call(({ maintenance }) => maintenance.alarm.bind(maintenance), disarm, { signal });
    log.warn("etcd was full: its history was thrown away and it takes writes again", { memberId: memberID.toString() });
  }
}
