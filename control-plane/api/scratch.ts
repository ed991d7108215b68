import { setImmediate as turn } from "node:timers/promises";
import { silentLog } from "../../lib/log/log.ts";
import { SchedulerFeed } from "../controllers/scheduling/feed.ts";
import { ClusterIndex } from "../domain/index.ts";
import type { Scheduler } from "../scheduler/index.ts";
import type { TableName, Write } from "../store/types.ts";
import { type Entry, MutableView } from "../store/view.ts";

/** How long this may keep the member from everything else. */
const mostBusyMs = 20;
/** Looking at the clock after each would cost more than they do. */
const recordsAtOnce = 200;

/** What to await between the steps of long work: lets others have their turn whenever one has lasted long enough. */
export function pauses(): () => Promise<void> {
  let sinceMs = performance.now();
  return async () => {
    if (performance.now() - sinceMs < mostBusyMs) return;
    await turn();
    sinceMs = performance.now();
  };
}

/**
 * A copy of the state with a scheduler that knows it, to try things on: nothing of it is ever written. It decides as the leader's
 * does, as that knows no more than the view.
 */
export class Scratch implements Disposable {
  readonly index: ClusterIndex;
  readonly feed: SchedulerFeed;
  readonly #view = new MutableView();

  private constructor() {
    const { view } = this.#view;
    this.index = new ClusterIndex({ view, subscribe: (listener) => this.#view.subscribe(listener) });
    // Explaining is left to who asks, as it takes a look at every node for each service that waits.
    this.feed = new SchedulerFeed(this.index, silentLog, { untold: true, explainLimit: 0 });
  }

  /** Of the state as it is when this resolves. With 100,000 tasks that takes a second of work, a bit at a time. */
  static async of(live: ClusterIndex): Promise<Scratch> {
    const scratch = new Scratch();
    const pause = pauses();
    await scratch.#copy(live, pause);
    let told = 0;
    for (const _ of scratch.feed.tell()) if (++told % recordsAtOnce === 0) await pause();
    scratch.index.subscribe((changes) => void scratch.feed.apply(changes));
    return scratch;
  }

  get scheduler(): Scheduler {
    return this.feed.scheduler;
  }

  /** Makes the writes, whatever they compare. */
  apply(writes: readonly Write[]): void {
    if (writes.length > 0) this.#view.apply(writes, this.#view.revision + 1);
  }

  [Symbol.dispose](): void {
    this.index[Symbol.dispose]();
  }

  /** Row by row, while what changes meanwhile is changed here too: in the end it is the state at one revision. */
  async #copy(live: ClusterIndex, pause: () => Promise<void>): Promise<void> {
    using _ = live.subscribe((changes, revision) => {
      this.#view.apply(
        changes.map(({ table, id, after }) => ({ table, id, value: after }) as Entry),
        revision,
      );
    });
    const { view } = live;
    let entries: Entry[] = [];
    for (const table of Object.keys(view).filter((name): name is TableName => name !== "revision")) {
      for (const [id, value] of view[table].entries()) {
        entries.push({ table, id, value, revision: view[table].revisionOf(id) } as Entry);
        if (entries.length < recordsAtOnce) continue;
        this.#view.apply(entries, view.revision);
        entries = [];
        await pause();
      }
    }
    this.#view.apply(entries, view.revision);
  }
}
