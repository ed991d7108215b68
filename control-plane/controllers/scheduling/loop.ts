import { messageOf } from "../../../lib/errors/errors.ts";
import type { Log } from "../../../lib/log/log.ts";
import { ReconcileLoop } from "../../../lib/reconcile/loop.ts";
import { PublishMode } from "../../../proto/gen/embassy/v1/stack.ts";
import type { Task } from "../../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../../domain/index.ts";
import { groupId, schedulerNode, taskGroup } from "../../domain/scheduler-facts.ts";
import { hasFailed } from "../../domain/service-tasks.ts";
import { hasEnded, isWanted, observedState, taskName } from "../../domain/tasks.ts";
import { type Placement, Scheduler } from "../../scheduler/index.ts";
import type { Change, CommitOptions, Write } from "../../store/types.ts";
import { aborted, type ControllerDeps, commitFenced, isStaleView, staleViewDelayMs } from "../deps.ts";
import { blockId, blocksNeeded, freeBlocks, tasksByNetwork } from "../ipam/plan.ts";

const onlyKey = "cluster";
/** Placements of one pass: with their blocks below what one transaction takes. */
const mostPlacements = 200;

/** Gives tasks that wait a node, in batches, until the signal is aborted. */
export async function runScheduling(deps: ControllerDeps, signal: AbortSignal): Promise<void> {
  const { index } = deps;
  const feed = new SchedulerFeed(index, deps.log);
  await using loop: ReconcileLoop = new ReconcileLoop({
    name: "scheduling",
    log: deps.log,
    reconcile: async (_, stopped) => {
      const { placements, unplaced } = feed.scheduler.schedule([], { mostPlacements });
      const plan = planCommit(index, placements, deps.settings.blockPrefix);
      for (const one of unplaced) {
        for (const taskId of one.tasks) plan.unplaced.set(taskId, one.explanation.summary);
      }
      for (const [taskId, why] of feed.refused) plan.unplaced.set(taskId, why);
      const writes = [...plan.writes, ...unplacedWrites(index, plan.unplaced)];
      feed.hold(placements);
      try {
        if (writes.length > 0) await commitFenced(deps, writes, plan.expect, stopped);
      } catch (error) {
        if (!isStaleView(error)) throw error;
        loop.markAfter(onlyKey, staleViewDelayMs);
      } finally {
        feed.release(placements);
      }
      if (placements.length >= mostPlacements) loop.mark(onlyKey);
    },
  });
  using _ = index.subscribe((changes) => {
    if (feed.apply(changes)) loop.mark(onlyKey);
  });
  loop.mark(onlyKey);
  await aborted(signal);
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
  /** Placed by the scheduler, and not yet in the view. */
  readonly #held = new Set<string>();
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
          this.#task(change.id);
          worth ||= change.after === undefined || change.after.nodeId === "";
          break;
        case "taskStatuses":
          if (change.before?.state === change.after?.state) break;
          this.#task(change.id);
          worth ||= change.after === undefined || hasEnded(change.after.state);
          break;
        default:
          break;
      }
    }
    return worth;
  }

  /** Until their release these tasks are where the scheduler placed them, whatever the view says. */
  hold(placements: readonly Placement[]): void {
    for (const { task } of placements) this.#held.add(task);
  }

  /** The view decides again: placed when the commit has happened, waiting when not. */
  release(placements: readonly Placement[]): void {
    for (const { task } of placements) this.#held.delete(task);
    for (const { task } of placements) this.#task(task);
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

interface CommitPlan {
  readonly writes: Write[];
  readonly expect: NonNullable<CommitOptions["expect"]>;
  /** Task id to reason: placed by the scheduler, but its network has no room. */
  readonly unplaced: Map<string, string>;
}

/**
 * The writes of placements, with the blocks that their nodes need on the tasks' networks, so that a node can give an
 * address as soon as it knows of its task. Blocks that exist are expected to: one may be about to be freed.
 */
export function planCommit(index: ClusterIndex, placements: readonly Placement[], blockPrefix: number): CommitPlan {
  const { view } = index;
  const plan = {
    writes: [] as Write[],
    expect: [] as { table: "blocks"; id: string; revision: number }[],
    unplaced: new Map<string, string>(),
  };
  const counts = new Map<string, Map<string, number>>();
  const owned = new Map<string, string[]>();
  const taken = new Set<string>();
  const expected = new Set<string>();

  const room = (networkId: string, nodeId: string): string | undefined => {
    const network = view.networks.get(networkId);
    if (network === undefined) return "its network is gone";
    const ofNode = counts.get(nodeId) ?? tasksByNetwork(index, nodeId);
    counts.set(nodeId, ofNode);
    const count = (ofNode.get(networkId) ?? 0) + 1;
    const key = `${networkId} ${nodeId}`;
    let blocks = owned.get(key);
    if (blocks === undefined) {
      blocks = [...index.blockIdsOfNetwork(networkId)].filter((id) => view.blocks.get(id)?.nodeId === nodeId);
      owned.set(key, blocks);
      for (const id of blocks) {
        if (expected.has(id)) continue;
        expected.add(id);
        plan.expect.push({ table: "blocks", id, revision: view.blocks.revisionOf(id) });
      }
    }
    while (blocks.length < blocksNeeded(count, blockPrefix)) {
      const cidr = freeBlocks(index, network, blockPrefix, taken)[Symbol.iterator]().next().value;
      if (cidr === undefined) {
        // Its spare addresses may do; without any block there is nothing to give.
        if (blocks.length > 0) break;
        return `network ${network.stack}_${network.spec?.name ?? ""} is full: every block of ${network.subnet} is given to a node`;
      }
      taken.add(cidr);
      const block = { networkId, cidr, nodeId };
      blocks.push(blockId(block));
      plan.writes.push({ table: "blocks", id: blockId(block), value: block, ifRevision: 0 });
    }
    ofNode.set(networkId, count);
    return undefined;
  };

  for (const placement of placements) {
    const task = view.tasks.get(placement.task);
    if (task === undefined) continue;
    const lacking = Object.values(task.networkIds)
      .map((networkId) => room(networkId, placement.node))
      .find((why) => why !== undefined);
    if (lacking !== undefined) {
      plan.unplaced.set(task.id, lacking);
      continue;
    }
    plan.writes.push({
      table: "tasks",
      id: task.id,
      value: { ...task, nodeId: placement.node, unplaced: "", hostPorts: hostPorts(task, placement.ports) },
      ifRevision: view.tasks.revisionOf(task.id),
    });
  }
  return plan;
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
