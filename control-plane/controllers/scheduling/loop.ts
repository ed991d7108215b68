import { ReconcileLoop } from "../../../lib/reconcile/loop.ts";
import type { Task } from "../../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../../domain/index.ts";
import type { Placement } from "../../scheduler/index.ts";
import type { Write } from "../../store/types.ts";
import { aborted, type ControllerDeps, commitFenced, isStaleView, staleViewDelayMs } from "../deps.ts";
import { type Hold, SchedulerFeed } from "./feed.ts";
import { planAdoption } from "./homes.ts";
import { type CommitPlan, planCommit } from "./plan.ts";

const onlyKey = "cluster";
const reasonsKey = "reasons";
/** So long may a task tell a reason that is no longer the one; and so seldom are they counted anew, however much changes. */
const recountMs = 5_000;
/** Nodes looked at, and tasks told, at a time: some 20 ms. */
const recountLimits = { nodes: 20_000, tasks: 1_000 };
/** Placements of one commit: what a transaction costs beside its writes is small then, and a node hears of its tasks soon still. */
const mostPlacements = 2_000;
/** Bytes of one commit, of which each task's specification is nearly all. etcd takes 1.5 MiB if nothing else is set. */
const mostCommitBytes = 1024 * 1024;
/** Commits under way at once: enough that etcd always has one, and few enough that a conflict costs little. */
const mostUnderWay = 4;

/**
 * Gives tasks that wait a node, in batches of at most `most`, and keeps the reasons of those without one no older than
 * `reasonsMs` or so, until the signal is aborted.
 */
export async function runScheduling(
  deps: ControllerDeps,
  signal: AbortSignal,
  most = mostPlacements,
  reasonsMs = recountMs,
): Promise<void> {
  const { index } = deps;
  const feed = new SchedulerFeed(index, deps.log);
  let adopted = false;
  await using loop: ReconcileLoop = new ReconcileLoop({
    name: "scheduling",
    log: deps.log,
    reconcile: async (key, stopped) => {
      if (key === reasonsKey) {
        if (await recountReasons(deps, feed, stopped)) loop.markAfter(reasonsKey, reasonsMs);
        return;
      }
      if (!adopted) await commitFenced(deps, planAdoption(index), undefined, stopped);
      adopted = true;
      if (await placeAll(deps, feed, stopped, most)) loop.markAfter(onlyKey, staleViewDelayMs);
    },
  });
  using _ = index.subscribe((changes) => {
    if (feed.apply(changes)) loop.mark(onlyKey);
    if (feed.scheduler.hasUnplaced) loop.markAfter(reasonsKey, reasonsMs);
  });
  loop.mark(onlyKey);
  await aborted(signal);
}

/**
 * Places all that waits and fits, several commits under way at once, and writes down why the rest does not fit. Ends early when
 * a commit fails, after those under way: true when it only met a newer state, or not all that it did could stand, so that another pass
 * is due. What failed waits again.
 */
export async function placeAll(
  deps: ControllerDeps,
  feed: SchedulerFeed,
  signal: AbortSignal,
  most = mostPlacements,
): Promise<boolean> {
  const { index } = deps;
  const reasons = new Map<string, string>();
  const putOff: Hold[] = [];
  const errors: unknown[] = [];
  let again = false;
  const underWay = new Map<CommitPlan, Promise<void>>();
  const commit = async (plan: CommitPlan, placed: Hold) => {
    try {
      // A block must be there before the tasks that count on it, and etcd may take transactions in any order.
      for (const earlier of plan.after) await underWay.get(earlier);
      const { writes, expect } = plan;
      if (errors.length > 0 || writes.length === 0) return;
      await deps.store.commit(writes, { fenced: true, expect, signal });
      for (const taskId of plan.stopped) {
        deps.log.info("task preempted", { taskId, by: index.view.tasks.get(taskId)?.preemptedBy });
      }
    } catch (error) {
      errors.push(error);
    } finally {
      feed.release(placed);
    }
  };
  try {
    for (let more = true; more && errors.length === 0; ) {
      const limit = Math.min(most, feed.placementsWithin(mostCommitBytes));
      const { placements, unplaced } = feed.scheduler.schedule([], { mostPlacements: limit });
      more = placements.length >= limit;
      for (const { tasks, explanation } of unplaced) {
        for (const taskId of tasks) reasons.set(taskId, feed.whyNowhere(taskId, explanation));
      }
      const hold = feed.hold(placements);
      let plan: CommitPlan;
      let written = placements;
      try {
        // Who is to be stopped may be in a commit under way.
        if (placements.some(({ preempts }) => preempts.length > 0)) await Promise.all(underWay.values());
        plan = planCommit(index, placements, deps.settings.blockPrefix, [...underWay.keys()]);
        for (const [taskId, why] of plan.unplaced) reasons.set(taskId, why);
        const isPutOff = ({ task }: Placement) => plan.unplaced.has(task) || plan.later.has(task);
        if (plan.unplaced.size + plan.later.size > 0) {
          written = placements.filter((placement) => !isPutOff(placement));
          const rest = placements.filter(isPutOff);
          putOff.push(feed.hold(rest));
          feed.spare(rest);
          // There may be another place for those that had counted on theirs. Each such pass places something, so they end.
          again ||= written.length > 0 && placements.some(({ preempts }) => preempts.length > 0);
        }
      } catch (error) {
        feed.release(hold);
        throw error;
      }
      const held = feed.hold(written, plan.placed);
      // Before the commit begins: it may give up at once, and what it releases must not be held any more.
      feed.forgetHold(hold);
      const underWayNow = commit(plan, held).finally(() => underWay.delete(plan));
      underWay.set(plan, underWayNow);
      // Others count on what its victims leave: not before it has happened.
      if (plan.stopped.length > 0) await underWayNow;
      else if (underWay.size >= mostUnderWay) await Promise.race(underWay.values());
    }
  } finally {
    await Promise.all(underWay.values());
    // These waited for this: earlier, the scheduler would find them a place again, for ever.
    for (const hold of putOff) feed.release(hold);
  }
  for (const [taskId, why] of feed.waitingForHomes()) if (!reasons.has(taskId)) reasons.set(taskId, why);
  for (const [taskId, why] of feed.refused) reasons.set(taskId, why);
  const failed = errors.find((error) => !isStaleView(error));
  if (failed !== undefined) throw failed;
  try {
    const writes = unplacedWrites(index, reasons);
    if (writes.length > 0) await commitFenced(deps, writes, undefined, signal);
  } catch (error) {
    if (!isStaleView(error)) throw error;
    errors.push(error);
  }
  return errors.length > 0 || again;
}

/**
 * Counts anew why tasks fit nowhere, some at a time, and writes down what has changed: a node that changes wakes only what might fit
 * there. True when there are others to be counted.
 */
export async function recountReasons(
  deps: ControllerDeps,
  feed: SchedulerFeed,
  signal: AbortSignal,
  limits = recountLimits,
): Promise<boolean> {
  const { unplaced, more } = feed.scheduler.recount(limits);
  const reasons = new Map<string, string>();
  for (const { tasks, explanation } of unplaced) {
    for (const taskId of tasks) reasons.set(taskId, feed.whyNowhere(taskId, explanation));
  }
  const writes = unplacedWrites(deps.index, reasons);
  try {
    if (writes.length > 0) await commitFenced(deps, writes, undefined, signal);
  } catch (error) {
    // The next change asks again.
    if (!isStaleView(error)) throw error;
  }
  return more;
}

/** The writes that say of tasks why they have no place; none for what is said already. */
export function unplacedWrites(index: ClusterIndex, unplaced: ReadonlyMap<string, string>): Write[] {
  const writes: Write[] = [];
  for (const [id, why] of unplaced) {
    const value = index.view.tasks.get(id);
    if (value === undefined || value.nodeId !== "") continue;
    const words = unplacedWords(index, value, why);
    if (value.unplaced === words) continue;
    writes.push({
      table: "tasks",
      id,
      value: { ...value, unplaced: words },
      ifRevision: index.view.tasks.revisionOf(id),
    });
  }
  return writes;
}

/** Why the task has no place, and why it needs another one if it lost its own. */
export function unplacedWords({ view }: ClusterIndex, task: Task, why: string): string {
  const preemptedBy = view.tasks.get(task.replaces)?.preemptedBy ?? "";
  return preemptedBy === "" ? why : `preempted by ${preemptedBy}; ${why}`;
}
