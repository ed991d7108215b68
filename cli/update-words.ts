import { UpdateState } from "../proto/gen/embassy/v1/state.ts";

/** What the cluster does next by itself about an update in that state, and what the user can do; empty: it goes its way. */
export function nextOf(state: UpdateState, stack: string): string {
  switch (state) {
    case UpdateState.UPDATE_STATE_PAUSED:
      return `The others stay as before. What failed is tried again unless it gave up, and once it stays up the update goes on. Deploy a mended file, or go back with \`clusterctl rollback ${stack}\`.`;
    case UpdateState.UPDATE_STATE_ROLLBACK_PAUSED:
      return `The version before fails too. What failed is tried again unless it gave up, and once it stays up the rollback goes on. Deploy a mended file, or \`clusterctl rollback ${stack}\`.`;
    case UpdateState.UPDATE_STATE_ROLLED_BACK:
      return `It stays so until it is deployed: a mended file, or the same one to try that again. \`clusterctl rollback ${stack}\` takes the whole stack back.`;
    case UpdateState.UPDATE_STATE_NONE:
    case UpdateState.UPDATE_STATE_UPDATING:
    case UpdateState.UPDATE_STATE_ROLLING_BACK:
      return "";
    default:
      return state satisfies never;
  }
}
