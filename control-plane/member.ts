import type { Clock } from "../lib/clock/clock.ts";
import type { Log } from "../lib/log/log.ts";
import type { Member } from "../proto/gen/embassy/v1/state.ts";
import type { Store } from "./store/types.ts";

export interface MemberDeps {
  readonly store: Store;
  readonly clock: Clock;
  readonly log: Log;
}

// Long: a member that is down for a while is still one that nodes shall know of and try.
const ttlMs = 600_000;
const refreshMs = 60_000;

/** Keeps this member's record in the state until the signal is aborted. It outlives the process by its lease. */
export async function keepMember(deps: MemberDeps, member: Member, signal: AbortSignal): Promise<void> {
  const { store, clock, log } = deps;
  let lease: bigint | undefined;
  while (!signal.aborted) {
    let waitMs = refreshMs;
    try {
      if (lease === undefined || !(await store.keepAlive(lease)) || store.view.members.get(member.name) === undefined) {
        lease = await store.grantLease(ttlMs);
        await store.commit([{ table: "members", id: member.name, value: member, lease }], { signal });
      }
    } catch (error) {
      if (signal.aborted) return;
      waitMs = 1_000;
      log.warn("this member could not be registered", { error, retryInMs: waitMs });
    }
    await clock.sleep(waitMs, signal).catch(() => undefined);
  }
}
