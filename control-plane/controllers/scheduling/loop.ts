import { messageOf } from "../../../lib/errors/errors.ts";
import type { Log } from "../../../lib/log/log.ts";
import { ReconcileLoop } from "../../../lib/reconcile/loop.ts";
import { PublishMode, ServiceSpec } from "../../../proto/gen/embassy/v1/stack.ts";
import type { Block, Task } from "../../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../../domain/index.ts";
import { groupId, schedulerNode, taskGroup } from "../../domain/scheduler-facts.ts";
import { hasFailed } from "../../domain/service-tasks.ts";
import { hasEnded, isNodeLost, isWanted, observedState, taskName } from "../../domain/tasks.ts";
import { type Placement, Scheduler } from "../../scheduler/index.ts";
import type { Change, Write } from "../../store/types.ts";
import { aborted, type ControllerDeps, commitFenced, isStaleView, staleViewDelayMs } from "../deps.ts";
import { blockId, blocksNeeded, freeBlocks, tasksByNetwork } from "../ipam/plan.ts";

const onlyKey = "cluster";
/** Placements of one commit: what a transaction costs beside its writes is small then, and a node hears of its tasks soon still. */
const mostPlacements = 1_000;
/** Bytes of one commit, of which each task's specification is nearly all. etcd takes 1.5 MiB if nothing else is set. */
const mostCommitBytes = 1024 * 1024;
/** Of one placement beside the specification: its other fields, and its key three times. */
const usualPlacementBytes = 320;
/** Commits under way at once: enough that etcd always has one, and few enough that a conflict costs little. */
const mostUnderWay = 4;

/** Gives tasks that wait a node, in batches of at most `most`, until the signal is aborted. */
export async function runScheduling(deps: ControllerDeps, signal: AbortSignal, most = mostPlacements): Promise<void> {
  const { index } = deps;
  const feed = new SchedulerFeed(index, deps.log);
  await using loop: ReconcileLoop = new ReconcileLoop({
    name: "scheduling",
    log: deps.log,
    reconcile: async (_, stopped) => {
      if (await placeAll(deps, feed, stopped, most)) loop.markAfter(onlyKey, staleViewDelayMs);
    },
  });
  using _ = index.subscribe((changes) => {
    if (feed.apply(changes)) loop.mark(onlyKey);
  });
  loop.mark(onlyKey);
  await aborted(signal);
}

/**
 * Places all that waits and fits, several commits under way at once, and writes down why the rest does not fit. Ends early when
 * a commit fails, after those under way: true when it only met a newer state, so that another pass is due. What failed waits again.
 */
export async function placeAll(
  deps: ControllerDeps,
  feed: SchedulerFeed,
  signal: AbortSignal,
  most = mostPlacements,
): Promise<boolean> {
  const { index } = deps;
  const reasons = new Map<string, string>();
  const decided: Placement[] = [];
  const errors: unknown[] = [];
  const underWay = new Map<CommitPlan, Promise<void>>();
  const commit = async (plan: CommitPlan, placed: readonly Placement[]) => {
    try {
      // A block must be there before the tasks that count on it, and etcd may take transactions in any order.
      for (const earlier of plan.after) await underWay.get(earlier);
      const { writes, expect } = plan;
      if (errors.length === 0 && writes.length > 0) await deps.store.commit(writes, { fenced: true, expect, signal });
    } catch (error) {
      errors.push(error);
    } finally {
      underWay.delete(plan);
      feed.release(placed);
    }
  };
  try {
    for (let more = true; more && errors.length === 0; ) {
      const limit = Math.min(most, feed.placementsWithin(mostCommitBytes));
      const { placements, unplaced } = feed.scheduler.schedule([], { mostPlacements: limit });
      more = placements.length >= limit;
      for (const one of unplaced) for (const taskId of one.tasks) reasons.set(taskId, one.explanation.summary);
      feed.hold(placements);
      for (const placement of placements) decided.push(placement);
      const plan = planCommit(index, placements, deps.settings.blockPrefix, underWay.keys());
      for (const [taskId, why] of plan.unplaced) reasons.set(taskId, why);
      const placed = placements.filter(({ task }) => !plan.unplaced.has(task));
      underWay.set(plan, commit(plan, placed));
      if (underWay.size >= mostUnderWay) await Promise.race(underWay.values());
    }
  } finally {
    await Promise.all(underWay.values());
    // Those without an address waited for this: earlier, the scheduler would find them a place again, for ever.
    feed.release(decided);
  }
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
  return errors.length > 0;
}

/** Keeps the scheduler told of what the view holds. */
export class SchedulerFeed {
  readonly scheduler = new Scheduler();
  /** Tasks whose service the scheduler does not take, and why. */
  readonly refused = new Map<string, string>();
  readonly #index: ClusterIndex;
  readonly #log: Log;
  readonly #groups = new Map<string, Set<string>>();
  readonly #groupOf = new Map<string, string>();
  /** Bytes of the largest specification so far. */
  #largestSpec = 0;
  /** Placed by the scheduler, and not yet in the view. */
  readonly #held = new Map<string, Placement>();
  /** Tasks that failed and are still on record, by group and node: the scheduler prefers other nodes. */
  readonly #failures = new Map<string, Map<string, Set<string>>>();
  readonly #failureOf = new Map<string, { readonly group: string; readonly node: string }>();

  constructor(index: ClusterIndex, log: Log) {
    this.#index = index;
    this.#log = log;
    for (const [id] of index.view.nodes.entries()) this.#node(id);
    for (const [id] of index.view.tasks.entries()) this.#task(id);
  }

  /** Tells what the changes alter; true when something that waits might be placed now. */
  apply(changes: readonly Change[]): boolean {
    let worth = false;
    for (const change of changes) {
      switch (change.table) {
        case "nodes":
        case "nodeStatuses":
          this.#node(change.id);
          for (const task of this.#index.tasksOfNode(change.id)) this.#task(task.id);
          worth = true;
          break;
        case "tasks":
          // The scheduler has it there since it decided so.
          if (change.after !== undefined && this.#isAsPlaced(change.id, change.after)) this.#held.delete(change.id);
          else this.#task(change.id);
          worth ||= change.after === undefined || change.after.nodeId === "";
          break;
        case "taskStatuses":
          if (change.before?.state === change.after?.state) break;
          this.#task(change.id);
          worth ||= change.after === undefined || hasEnded(change.after.state);
          break;
        case "blocks":
          // A network that was full has room again.
          worth ||= change.after === undefined;
          break;
        default:
          break;
      }
    }
    return worth;
  }

  /** How many placements a commit of so many bytes takes for sure, by the largest specification there has been; at least 1. */
  placementsWithin(bytes: number): number {
    return Math.max(1, Math.floor(bytes / (this.#largestSpec + usualPlacementBytes)));
  }

  /** Until their release these tasks are where the scheduler placed them, whatever the view says. */
  hold(placements: readonly Placement[]): void {
    for (const placement of placements) this.#held.set(placement.task, placement);
  }

  /** The view decides again, of those that it does not show yet: placed when the commit has happened, waiting when not. */
  release(placements: readonly Placement[]): void {
    const left = placements.filter(({ task }) => this.#held.delete(task));
    for (const { task } of left) this.#task(task);
  }

  #isAsPlaced(id: string, { nodeId }: Task): boolean {
    return nodeId !== "" && this.#held.get(id)?.node === nodeId && !isNodeLost(this.#index.view, nodeId);
  }

  #node(id: string): void {
    const spec = this.#index.view.nodes.get(id);
    if (spec === undefined) this.scheduler.removeNode(id);
    else this.scheduler.upsertNode(schedulerNode(spec, this.#index.nodeStatus(id)));
  }

  #task(id: string): void {
    const { view } = this.#index;
    const task = view.tasks.get(id);
    this.#noteFailure(id, task);
    const waits = task?.nodeId === "";
    const counts = task !== undefined && !hasEnded(observedState(view, task)) && (!waits || isWanted(task));
    if (!counts) {
      this.#forget(id);
      return;
    }
    if (waits && this.#held.has(id)) return;
    const group = groupId(task);
    try {
      if (!this.#groups.has(group)) {
        this.scheduler.upsertGroup(taskGroup(task));
        this.#groups.set(group, new Set());
        if (task.spec !== undefined) {
          this.#largestSpec = Math.max(this.#largestSpec, ServiceSpec.encode(task.spec).finish().length);
        }
        for (const [node, tasks] of this.#failures.get(group) ?? []) {
          this.scheduler.setFailures(group, node, tasks.size);
        }
      }
      this.#groups.get(group)?.add(id);
      this.#groupOf.set(id, group);
      this.scheduler.addTask({
        id,
        group,
        name: taskName(view, task),
        node: waits ? undefined : task.nodeId,
        onlyNode: task.onlyNode === "" ? undefined : task.onlyNode,
        ports: waits || task.hostPorts.length === 0 ? undefined : task.hostPorts.map(({ published }) => published),
      });
      this.refused.delete(id);
    } catch (error) {
      this.#log.warn("the scheduler does not take a task", { taskId: id, error });
      this.refused.set(id, messageOf(error));
    }
  }

  #noteFailure(id: string, task: Task | undefined): void {
    const known = this.#failureOf.get(id);
    const failed = task !== undefined && hasFailed(this.#index, task);
    if (failed === (known !== undefined)) return;
    const place = known ?? (task === undefined ? undefined : { group: groupId(task), node: task.nodeId });
    if (place === undefined) return;
    const byNode = this.#failures.get(place.group) ?? new Map<string, Set<string>>();
    const tasks = byNode.get(place.node) ?? new Set<string>();
    if (failed) {
      tasks.add(id);
      this.#failureOf.set(id, place);
    } else {
      tasks.delete(id);
      this.#failureOf.delete(id);
    }
    if (tasks.size > 0) byNode.set(place.node, tasks);
    else byNode.delete(place.node);
    if (byNode.size > 0) this.#failures.set(place.group, byNode);
    else this.#failures.delete(place.group);
    this.scheduler.setFailures(place.group, place.node, tasks.size);
  }

  #forget(id: string): void {
    this.refused.delete(id);
    this.scheduler.removeTask(id);
    const group = this.#groupOf.get(id);
    if (group === undefined) return;
    this.#groupOf.delete(id);
    const tasks = this.#groups.get(group);
    tasks?.delete(id);
    if (tasks?.size === 0) {
      this.#groups.delete(group);
      this.scheduler.removeGroup(group);
    }
  }
}

/** What one commit writes. */
export interface CommitPlan {
  readonly writes: Write[];
  readonly expect: { readonly table: "blocks"; readonly id: string; readonly revision: number }[];
  /** Task id to reason: placed by the scheduler, but its network has no room. */
  readonly unplaced: Map<string, string>;
  /** Blocks among the writes. */
  readonly blocks: Block[];
  /** The addresses that its tasks will need. */
  readonly addresses: { readonly task: string; readonly networkId: string; readonly nodeId: string }[];
  /** Commits under way that have to happen first, since they give blocks that this one counts on. */
  readonly after: Set<CommitPlan>;
}

/**
 * The writes of placements, with the blocks that their nodes need on the tasks' networks, so that a node can give an
 * address as soon as it knows of its task. Blocks that exist are expected to: one may be about to be freed. What is under way
 * counts as if it had happened.
 */
export function planCommit(
  index: ClusterIndex,
  placements: readonly Placement[],
  blockPrefix: number,
  underWay: Iterable<CommitPlan> = [],
): CommitPlan {
  const { view } = index;
  const plan: CommitPlan = {
    writes: [],
    expect: [],
    unplaced: new Map(),
    blocks: [],
    addresses: [],
    after: new Set(),
  };
  const counts = new Map<string, Map<string, number>>();
  const owned = new Map<string, string[]>();
  const taken = new Set<string>();
  const free = new Map<string, Iterator<string>>();
  const coming = comingOf(index, underWay, taken);

  const blocksOf = (networkId: string, nodeId: string): string[] => {
    const blocks: string[] = [];
    for (const id of index.blockIdsOfNode(nodeId)) {
      if (view.blocks.get(id)?.networkId !== networkId) continue;
      blocks.push(id);
      plan.expect.push({ table: "blocks", id, revision: view.blocks.revisionOf(id) });
    }
    for (const { block, from } of coming.get(`${networkId} ${nodeId}`)?.blocks ?? []) {
      blocks.push(blockId(block));
      plan.after.add(from);
    }
    return blocks;
  };

  const room = (task: string, networkId: string, nodeId: string): string | undefined => {
    const network = view.networks.get(networkId);
    if (network === undefined) return "its network is gone";
    const ofNode = counts.get(nodeId) ?? tasksByNetwork(index, nodeId);
    counts.set(nodeId, ofNode);
    const count = (ofNode.get(networkId) ?? 0) + 1;
    const key = `${networkId} ${nodeId}`;
    const blocks = owned.get(key) ?? blocksOf(networkId, nodeId);
    owned.set(key, blocks);
    while (blocks.length < blocksNeeded(count + (coming.get(key)?.addresses ?? 0), blockPrefix)) {
      const left = free.get(networkId) ?? freeBlocks(index, network, blockPrefix, taken)[Symbol.iterator]();
      free.set(networkId, left);
      const next = left.next();
      if (next.done === true) {
        // Its spare addresses may do; without any block there is nothing to give.
        if (blocks.length > 0) break;
        return `network ${network.stack}_${network.spec?.name ?? ""} is full: every block of ${network.subnet} is given to a node`;
      }
      const block = { networkId, cidr: next.value, nodeId };
      blocks.push(blockId(block));
      plan.blocks.push(block);
      plan.writes.push({ table: "blocks", id: blockId(block), value: block, ifRevision: 0 });
    }
    ofNode.set(networkId, count);
    plan.addresses.push({ task, networkId, nodeId });
    return undefined;
  };

  for (const placement of placements) {
    const task = view.tasks.get(placement.task);
    if (task === undefined) continue;
    let lacking: string | undefined;
    for (const networkId of Object.values(task.networkIds)) lacking ??= room(task.id, networkId, placement.node);
    if (lacking !== undefined) {
      plan.unplaced.set(task.id, lacking);
      continue;
    }
    plan.writes.push({
      table: "tasks",
      id: placement.task,
      value: { ...task, nodeId: placement.node, unplaced: "", hostPorts: hostPorts(task, placement.ports) },
      ifRevision: view.tasks.revisionOf(task.id),
    });
  }
  return plan;
}

interface Coming {
  readonly blocks: { readonly block: Block; readonly from: CommitPlan }[];
  addresses: number;
}

/** What commits under way give and need that the view does not show yet, by network and node; their CIDRs are added to `taken`. */
function comingOf({ view }: ClusterIndex, underWay: Iterable<CommitPlan>, taken: Set<string>): Map<string, Coming> {
  const coming = new Map<string, Coming>();
  const at = (networkId: string, nodeId: string): Coming => {
    const key = `${networkId} ${nodeId}`;
    const known = coming.get(key) ?? { blocks: [], addresses: 0 };
    coming.set(key, known);
    return known;
  };
  for (const from of underWay) {
    for (const block of from.blocks) {
      if (view.blocks.get(blockId(block)) !== undefined) continue;
      taken.add(block.cidr);
      at(block.networkId, block.nodeId).blocks.push({ block, from });
    }
    for (const { task, networkId, nodeId } of from.addresses) {
      if (view.tasks.get(task)?.nodeId === "") at(networkId, nodeId).addresses++;
    }
  }
  return coming;
}

function hostPorts(task: Task, given: readonly number[]): Task["hostPorts"] {
  const ports = (task.spec?.ports ?? []).filter(({ mode }) => mode === PublishMode.PUBLISH_MODE_HOST);
  return ports.map((port, position) => ({ ...port, published: given[position] ?? port.published }));
}

function unplacedWrites(index: ClusterIndex, unplaced: ReadonlyMap<string, string>): Write[] {
  const writes: Write[] = [];
  for (const [id, why] of unplaced) {
    const value = index.view.tasks.get(id);
    if (value === undefined || value.nodeId !== "" || value.unplaced === why) continue;
    writes.push({
      table: "tasks",
      id,
      value: { ...value, unplaced: why },
      ifRevision: index.view.tasks.revisionOf(id),
    });
  }
  return writes;
}
