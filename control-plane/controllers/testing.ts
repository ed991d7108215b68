import { silentLog } from "../../lib/log/log.ts";
import { DesiredState, type Service, type Task, TaskState } from "../../proto/gen/embassy/v1/state.ts";
import { hasEnded, isNodeUp, observedState, serviceFullName } from "../domain/tasks.ts";
import { TestCluster } from "../domain/testing.ts";
import type { Write } from "../store/types.ts";
import { defaultControllerSettings } from "./deps.ts";
import { blockId, planBlocks } from "./ipam/plan.ts";
import { moveWrites } from "./rebalance/loop.ts";
import { noMemory, planRebalancing, type RebalanceAction, type RebalanceSettings } from "./rebalance/plan.ts";
import { SchedulerFeed } from "./scheduling/feed.ts";
import { unplacedWrites } from "./scheduling/loop.ts";
import { planCommit } from "./scheduling/plan.ts";
import { writesOf } from "./services/loop.ts";
import { planService } from "./services/plan.ts";
import { planSweep } from "./sweep/plan.ts";

const blockPrefix = 27;

/** A cluster whose controllers and nodes are stepped by hand, in a fixed order and with no clock but `nowMs`. */
export class SteppedCluster extends TestCluster {
  readonly feed = new SchedulerFeed(this.index, silentLog);
  /** Tasks whose containers fail as soon as they start, by service name. */
  readonly crashing = new Set<string>();
  /** Of those the tasks that do not, by id. */
  spared: ReadonlySet<string> = new Set();
  /** The same, by service version. */
  readonly crashingVersions = new Set<number>();
  /** Tasks whose image does not exist, by service version. */
  readonly rejected = new Set<number>();
  /** What was done to spread services by itself, with the time; and by which settings. */
  readonly rebalanced: (RebalanceAction & { readonly atMs: number })[] = [];
  rebalanceSettings: RebalanceSettings = defaultControllerSettings;
  #rebalanceMemory = noMemory;
  /** The nodes do nothing. */
  frozen = false;
  readonly #subscription = this.index.subscribe((changes) => void this.feed.apply(changes));

  override [Symbol.dispose](): void {
    this.#subscription[Symbol.dispose]();
    super[Symbol.dispose]();
  }

  /** One pass of each controller over everything. Returns what they wrote. */
  async plan(): Promise<Write[]> {
    const made: Write[] = [];
    const commit = async (writes: readonly Write[]) => {
      if (writes.length > 0) await this.store.commit(writes);
      made.push(...writes);
    };
    // By name, as the controllers take those that a node concerns.
    const byName = (a: Service, b: Service) => (serviceFullName(a) < serviceFullName(b) ? -1 : 1);
    for (const service of [...this.index.view.services.values()].sort(byName)) {
      const plan = planService(this.index, service, this.nowMs);
      await commit(writesOf(this.index, service, plan, this.nowMs, this.mintId));
    }
    const { placements, unplaced } = this.feed.scheduler.schedule();
    const plan = planCommit(this.index, placements, blockPrefix);
    for (const { tasks, explanation } of unplaced) {
      for (const id of tasks) plan.unplaced.set(id, this.feed.whyNowhere(id, explanation));
    }
    for (const [id, why] of [...this.feed.waitingForHomes(), ...this.feed.refused]) plan.unplaced.set(id, why);
    const hold = this.feed.hold(placements, plan.placed);
    await commit([...plan.writes, ...unplacedWrites(this.index, plan.unplaced)]);
    this.feed.release(hold);
    for (const network of this.index.view.networks.values()) {
      const rest = { nowMs: this.nowMs, restMs: 60_000 };
      const { actions } = planBlocks(this.index, network, blockPrefix, () => undefined, rest);
      await commit(
        actions.map((action) =>
          action.kind === "give"
            ? { table: "blocks", id: blockId(action.block), value: action.block, ifRevision: 0 }
            : { table: "blocks", id: action.blockId, value: undefined },
        ),
      );
    }
    await commit(planSweep(this.index));
    const rebalance = planRebalancing(this.index, this.#rebalanceMemory, this.nowMs, this.rebalanceSettings);
    this.#rebalanceMemory = rebalance.memory;
    for (const action of rebalance.actions) {
      await commit(moveWrites(this.index, action, this.nowMs).writes);
      this.rebalanced.push({ ...action, atMs: this.nowMs });
    }
    return made;
  }

  /** A new leader, which remembers nothing. */
  newLeader(): void {
    this.#rebalanceMemory = noMemory;
  }

  /** Each node that is up takes each of its tasks one step on. Returns how many steps that were. */
  async stepNodes(): Promise<number> {
    let steps = 0;
    if (this.frozen) return steps;
    for (const task of this.index.view.tasks.values()) {
      if (task.nodeId === "" || !isNodeUp(this.index.view, task.nodeId)) continue;
      const next = this.#nextState(task);
      if (next === undefined) continue;
      steps++;
      await this.report(task, next);
    }
    return steps;
  }

  #nextState(task: Task): TaskState | undefined {
    const state = observedState(this.index.view, task);
    if (hasEnded(state)) return undefined;
    if (task.desired === DesiredState.DESIRED_STATE_SHUTDOWN) return TaskState.TASK_STATE_SHUTDOWN;
    if (state < TaskState.TASK_STATE_READY) {
      return this.rejected.has(task.serviceVersion) ? TaskState.TASK_STATE_REJECTED : TaskState.TASK_STATE_READY;
    }
    if (task.desired === DesiredState.DESIRED_STATE_READY) return undefined;
    const inTheWay = task.preempts.map((id) => this.index.view.tasks.get(id));
    const remains = (other: Task | undefined) =>
      other !== undefined && !hasEnded(observedState(this.index.view, other));
    if (inTheWay.some(remains)) return undefined;
    if (state < TaskState.TASK_STATE_RUNNING) return TaskState.TASK_STATE_RUNNING;
    const crashes = this.crashing.has(task.serviceName) || this.crashingVersions.has(task.serviceVersion);
    return crashes && !this.spared.has(task.id) ? TaskState.TASK_STATE_FAILED : undefined;
  }

  /** Steps controllers and nodes until neither does anything; throws when they go on for ever. */
  async settle(onStep: () => void = () => undefined): Promise<void> {
    for (let round = 0; round < 200; round++) {
      const writes = await this.plan();
      onStep();
      const steps = await this.stepNodes();
      onStep();
      if (writes.length === 0 && steps === 0) return;
    }
    throw new Error("controllers and nodes do not come to rest");
  }

  /** Comes to rest, and again after each of so many seconds. */
  async settleFor(seconds: number, onStep?: () => void): Promise<void> {
    await this.settle(onStep);
    for (let n = 0; n < seconds; n++) {
      this.nowMs += 1_000;
      await this.settle(onStep);
    }
  }

  /** Tasks of the service that run, and where: "1@a". */
  running(stack: string, name: string): string[] {
    return this.tasks(stack, name)
      .filter((task) => observedState(this.index.view, task) === TaskState.TASK_STATE_RUNNING)
      .map(({ slot, nodeId, onlyNode }) => `${slot > 0 ? slot : onlyNode}@${nodeId}`);
  }
}
