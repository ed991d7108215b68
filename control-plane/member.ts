import type { Member } from "../proto/gen/embassy/v1/state.ts";
import { removedMember } from "./embedded.ts";
import type { Store } from "./store/types.ts";

export interface MemberDeps {
  readonly store: Pick<Store, "view" | "commit" | "subscribe">;
}

/**
 * Writes this member's record. It stays while the member is down, so that nodes and users go on to know it, and goes when
 * somebody removes the member. Throws `denied` when that has happened (`registered`: it was there before).
 */
export async function registerMember({ store }: MemberDeps, own: Member, registered: boolean): Promise<void> {
  const { name, instance } = own;
  const found = store.view.members.get(name);
  // One without an instance is of a release before records lasted.
  const others = found !== undefined && found.instance !== "" && found.instance !== instance;
  if (others || (registered && found === undefined)) throw removedMember(name);
  await store.commit([{ table: "members", id: name, value: own, ifRevision: store.view.members.revisionOf(name) }]);
}

/** Resolves when the signal is aborted. Throws `denied` once the record is gone or another host's. */
export async function watchMember({ store }: MemberDeps, own: Member, signal: AbortSignal): Promise<void> {
  const over = Promise.withResolvers<void>();
  const look = () => {
    if (store.view.members.get(own.name)?.instance !== own.instance) over.reject(removedMember(own.name));
  };
  const stop = () => over.resolve();
  signal.addEventListener("abort", stop, { once: true });
  using _ = store.subscribe(look);
  try {
    look();
    await over.promise;
  } finally {
    signal.removeEventListener("abort", stop);
  }
}
