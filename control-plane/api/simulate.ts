import { compareTexts } from "../../lib/words/compare.ts";
import type { PlannedStop, PlannedWait, SimulateRequest, SimulateResponse } from "../../proto/gen/embassy/v1/api.ts";
import { type Service, type Task, TaskState, TaskStatus } from "../../proto/gen/embassy/v1/state.ts";
import type { Hold } from "../controllers/scheduling/feed.ts";
import { unplacedWords } from "../controllers/scheduling/loop.ts";
import { planCommit } from "../controllers/scheduling/plan.ts";
import { writesOf } from "../controllers/services/loop.ts";
import { planService } from "../controllers/services/plan.ts";
import { KeptTasks } from "../domain/disruption.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { groupId } from "../domain/scheduler-facts.ts";
import { seatOf } from "../domain/seats.ts";
import { servicesOfNodes } from "../domain/service-tasks.ts";
import { hasEnded, isLive, observedState, taskName } from "../domain/tasks.ts";
import { boundOf } from "../domain/volumes.ts";
import type { Placement } from "../scheduler/index.ts";
import type { Write } from "../store/types.ts";
import { changesOf, type SimulatedSettings } from "./changes.ts";
import { pauses, Scratch } from "./scratch.ts";
import { verdict } from "./why.ts";

/** Rounds of the controllers: a task that fits nowhere has its predecessor stopped, and may fit then. A few are the rule. */
const mostRounds = 10;
/** Placements before others have a turn. */
const placementsAtOnce = 200;

/**
 * What the changes of the request, all made at once, would lead to. The controllers and the scheduler themselves decide on a copy of
 * the state, as far as placing goes: no task of it ever gets ready. Throws `not-found` and `invalid`.
 */
export async function simulate(
  index: ClusterIndex,
  request: SimulateRequest,
  settings: SimulatedSettings,
  nowMs: number,
): Promise<SimulateResponse> {
  // A wrong name is told at once; what counts is the state that the copy has come to.
  changesOf(index, request, settings);
  using scratch = await Scratch.of(index);
  const { writes, gone, added, scaledServices, notes } = changesOf(scratch.index, request, settings);
  const concerned = servicesOfNodes(scratch.index, [...gone, ...added]).map(({ id }) => id);
  const services = [...new Set([...concerned, ...scaledServices])];
  const run = new Simulation(scratch, { services, gone: new Set(gone), settings, nowMs });
  scratch.apply(writes);
  await run.settle();
  return { ...(await run.outcome()), notes };
}

interface SimulationFacts {
  /** Ids of those that the changes may concern, in the order in which the controllers plan them. */
  readonly services: readonly string[];
  /** Nodes that are drained or lost. */
  readonly gone: ReadonlySet<string>;
  readonly settings: SimulatedSettings;
  readonly nowMs: number;
}

interface Wait {
  readonly task: Task;
  readonly wait: PlannedWait;
  /** The one that it replaces. */
  readonly instead: Task | undefined;
}

/** By service, and slot. */
function byName(a: Task, b: Task): number {
  const name = (task: Task) => `${task.stack}_${task.serviceName}`;
  return compareTexts(name(a), name(b)) || a.slot - b.slot;
}

class Simulation {
  readonly #scratch: Scratch;
  readonly #facts: SimulationFacts;
  readonly #pause = pauses();
  /** Of those services what lived before the changes, and all that waited, by id. */
  readonly #before = new Map<string, Task>();
  /** By id of a task that the controllers have made: why, and the one that it replaces. */
  readonly #made = new Map<string, { readonly why: string; readonly instead: Task | undefined }>();
  /** Ids of services in the order in which they are planned. */
  readonly #services: Set<string>;
  /** By id of a task that is asked to stop: why. */
  readonly #stopped = new Map<string, string>();
  /** Those of them that have not ended yet. */
  readonly #ending: string[] = [];
  readonly #placements = new Map<string, Placement>();
  /** Why tasks wait that a node would take. */
  readonly #held = new Map<string, string>();
  #minted = 0;

  /** To be made before the changes. */
  constructor(scratch: Scratch, facts: SimulationFacts) {
    this.#scratch = scratch;
    this.#facts = facts;
    this.#services = new Set(facts.services);
    const { index } = scratch;
    for (const task of facts.services.flatMap((id) => index.tasksOfService(id))) {
      if (isLive(index.view, task)) this.#before.set(task.id, task);
    }
    for (const task of this.#waiting()) this.#before.set(task.id, task);
  }

  /** Lets the services' controller and the scheduler do all that they want to do now. */
  async settle(): Promise<void> {
    const { view } = this.#scratch.index;
    let moved = true;
    for (let round = 0; round < mostRounds; round++) {
      let acted = false;
      for (const id of this.#services) {
        const service = view.services.get(id);
        if (service !== undefined) acted = this.#plan(service) || acted;
        await this.#pause();
      }
      if (!acted && !moved) return;
      moved = await this.#place();
      moved = this.#end() || moved;
    }
  }

  #plan(service: Service): boolean {
    const { index } = this.#scratch;
    const plan = planService(index, service, this.#facts.nowMs);
    const { actions } = plan;
    const writes = writesOf(index, service, plan, this.#facts.nowMs, () => `simulated-${++this.#minted}`);
    if (writes.length === 0) return false;
    const written = writes.flatMap(({ table, value }) => (table === "tasks" && value !== undefined ? [value] : []));
    const made = new Map(
      written.filter(({ id }) => index.view.tasks.get(id) === undefined).map((task) => [seatOf(task), task]),
    );
    // Of a slot that had several the newest, but for the one that its successor names.
    const lived = index.tasksOfService(service.id).filter(({ id }) => this.#before.has(id));
    const newest = new Map(lived.sort((a, b) => a.epoch - b.epoch).map((task) => [seatOf(task), task]));
    for (const action of actions) {
      const task = action.kind === "create" ? made.get(action.seat.key) : undefined;
      if (task === undefined) continue;
      // Of one that was made and stopped again what that was made for.
      const replaced = this.#before.get(task.replaces) ?? this.#made.get(task.replaces)?.instead;
      const instead = replaced ?? newest.get(seatOf(task));
      this.#made.set(task.id, { why: action.why, instead });
    }
    for (const action of actions) {
      if (action.kind !== "stop" || this.#stopped.has(action.taskId)) continue;
      const task = index.view.tasks.get(action.taskId);
      if (task === undefined || hasEnded(observedState(index.view, task))) continue;
      this.#stopped.set(action.taskId, this.#facts.gone.has(task.nodeId) ? "its node gives it away" : action.why);
      this.#ending.push(action.taskId);
    }
    this.#scratch.apply(writes);
    return true;
  }

  /** What was asked to stop has done so, after all that was to be placed at the same time: what waits for its place gets it. */
  #end(): boolean {
    const ended = this.#ending.splice(0).map((taskId): Write => {
      const value = TaskStatus.create({ taskId, state: TaskState.TASK_STATE_SHUTDOWN });
      return { table: "taskStatuses", id: taskId, value };
    });
    this.#scratch.apply(ended);
    return ended.length > 0;
  }

  /** True when something was placed: the next round sees what that changes for others, the home of a volume say. */
  async #place(): Promise<boolean> {
    const { scheduler, index, feed } = this.#scratch;
    const putOff: Hold[] = [];
    let placed = false;
    for (let more = true; more; ) {
      const { placements } = scheduler.schedule([], { mostPlacements: placementsAtOnce });
      more = placements.length >= placementsAtOnce;
      const { writes, unplaced, later, stopped } = planCommit(index, placements, this.#facts.settings.blockPrefix);
      const isPutOff = ({ task }: Placement) => unplaced.has(task) || later.has(task);
      const rest = placements.filter(isPutOff);
      const hold = feed.hold(rest);
      feed.spare(rest);
      putOff.push(hold);
      for (const placement of placements) if (!isPutOff(placement)) this.#placements.set(placement.task, placement);
      for (const [task, reason] of unplaced) this.#held.set(task, reason);
      placed ||= placements.length > unplaced.size;
      for (const id of stopped) this.#preempt(id);
      this.#scratch.apply(writes);
      await this.#pause();
    }
    // They wait again: earlier, the scheduler would find them a place again, for ever.
    for (const hold of putOff) feed.release(hold);
    const fitNowhere = this.#waiting().filter(({ id, unplaced }) => unplaced === "" && this.#made.has(id));
    this.#scratch.apply(
      fitNowhere.map(
        (task): Write => ({ table: "tasks", id: task.id, value: { ...task, unplaced: "it fits nowhere" } }),
      ),
    );
    return placed;
  }

  /** A task is stopped to make room for another: its service replaces it. */
  #preempt(id: string): void {
    const task = this.#scratch.index.view.tasks.get(id);
    if (task === undefined) return;
    if (!this.#made.has(id)) this.#before.set(id, task);
    this.#placements.delete(id);
    this.#stopped.set(id, "makes room for one of higher priority");
    this.#ending.push(id);
    this.#services.add(task.serviceId);
  }

  #waiting(): Task[] {
    const { view } = this.#scratch.index;
    const waiting: Task[] = [];
    for (const task of view.tasks.values()) if (task.nodeId === "" && isLive(view, task)) waiting.push(task);
    return waiting;
  }

  /** What has come of it. Costs a look at every node for each service that waits. */
  async outcome(): Promise<Omit<SimulateResponse, "notes">> {
    const { index } = this.#scratch;
    const { view } = index;
    const nodeName = (id: string) => view.nodes.get(id)?.name ?? id;
    const replaced = new Set([...this.#made.values()].flatMap(({ instead }) => instead?.id ?? []));
    const moves = [...this.#placements.values()].flatMap(({ task: id, node }) => {
      const task = view.tasks.get(id);
      if (task === undefined) return [];
      const { why, instead } = this.#made.get(id) ?? { why: "there is room for it", instead: undefined };
      const from = instead === undefined || instead.nodeId === "" ? "" : nodeName(instead.nodeId);
      const taskId = instead?.id ?? (this.#made.has(id) ? "" : id);
      return [{ taskId, taskName: taskName(view, task), stack: task.stack, from, to: nodeName(node), why }];
    });
    const ended = new Map(this.#stopped);
    for (const [id, task] of this.#before) {
      const lost = observedState(view, task) === TaskState.TASK_STATE_ORPHANED;
      if (lost) ended.set(id, "its node is lost");
    }
    const stops = [...ended].flatMap(([id, why]) => {
      const task = this.#before.get(id);
      if (task === undefined || replaced.has(id)) return [];
      const node = task.nodeId === "" ? "" : nodeName(task.nodeId);
      return [{ taskId: id, taskName: taskName(view, task), stack: task.stack, node, why }];
    });
    return { moves, stops, ...this.#stays(await this.#waits()) };
  }

  /** Tells those that go on where they are until their successor has a place from those that wait. */
  #stays(all: readonly Wait[]): Pick<SimulateResponse, "stays" | "waits"> {
    const { index } = this.#scratch;
    const kept = new KeptTasks(index);
    const stays: PlannedStop[] = [];
    for (const task of [...this.#before.values()].sort(byName)) {
      const wait = all.find(({ instead }) => instead?.id === task.id);
      const why = this.#stopped.has(task.id) ? "" : kept.why(task, wait?.wait.why);
      const moves = wait === undefined && [...this.#made.values()].some(({ instead }) => instead?.id === task.id);
      if (why === "" || moves) continue;
      const node = index.view.nodes.get(task.nodeId)?.name ?? task.nodeId;
      stays.push({ taskId: task.id, taskName: taskName(index.view, task), stack: task.stack, node, why });
    }
    const going = new Set(stays.map(({ taskId }) => taskId));
    return { stays, waits: all.filter(({ instead }) => !going.has(instead?.id ?? "")).map(({ wait }) => wait) };
  }

  async #waits(): Promise<readonly Wait[]> {
    const { feed } = this.#scratch;
    const { view } = this.#scratch.index;
    const waiting = this.#waiting()
      .sort(byName)
      .map((task) => {
        const instead = this.#made.get(task.id)?.instead;
        const wait: PlannedWait = {
          taskId: instead?.id ?? (this.#made.has(task.id) ? "" : task.id),
          taskName: taskName(view, task),
          stack: task.stack,
          from: view.nodes.get(instead?.nodeId ?? "")?.name ?? "",
          already: this.#before.has(task.id),
          why: feed.refused.get(task.id) ?? this.#held.get(task.id) ?? "",
          nearest: undefined,
        };
        return { task, wait, instead };
      });
    // Tasks of one version of a service wait for the same, but for those that wait for a node.
    const unexplained = waiting.filter(({ wait }) => wait.why === "");
    const kinds = [...Map.groupBy(unexplained, ({ task }) => `${groupId(task)} ${this.#only(task)}`).values()];
    for (const alike of kinds) {
      this.#explain(alike);
      await this.#pause();
    }
    // To take back what is simulated mends nothing: the next best is told then.
    const { scheduler } = this.#scratch;
    for (const node of this.#facts.gone) scheduler.removeNode(node);
    for (const alike of kinds) {
      if (!this.#facts.gone.has(alike[0]?.wait.nearest?.score?.nodeId ?? "")) continue;
      this.#explain(alike);
      await this.#pause();
    }
    return waiting;
  }

  #only(task: Task): string {
    const bound = boundOf(this.#scratch.index, task);
    return bound.kind === "home" ? bound.nodeId : task.onlyNode;
  }

  /** Says of tasks that wait for the same why they do, unless it is said, and which node is nearest. */
  #explain(alike: readonly { readonly task: Task; readonly wait: PlannedWait }[]): void {
    const { index, scheduler, feed } = this.#scratch;
    const [first] = alike;
    if (first === undefined) return;
    const { explanation } = scheduler.explain(first.task.id);
    const { nearest } = explanation;
    const decision =
      nearest === undefined
        ? undefined
        : scheduler.whyNot(groupId(first.task), nearest.node, this.#only(first.task) !== "");
    for (const { task, wait } of alike) {
      wait.why ||= unplacedWords(index, task, feed.whyNowhere(task.id, explanation));
      wait.nearest = decision === undefined ? undefined : verdict(index, decision);
    }
  }
}
