import { isDeepStrictEqual } from "node:util";
import { messageOf } from "../../../lib/errors/errors.ts";
import type { Log } from "../../../lib/log/log.ts";
import { ServiceSpec } from "../../../proto/gen/embassy/v1/stack.ts";
import type { Service, Task } from "../../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../../domain/index.ts";
import { groupId, importanceOf, schedulerNode, taskGroup } from "../../domain/scheduler-facts.ts";
import { hasFailed } from "../../domain/service-tasks.ts";
import { hasEnded, isNodeLost, isUp, isWanted, observedState, taskName } from "../../domain/tasks.ts";
import { type Bound, boundOf, homeProblem, volumesOf, waitsForNode } from "../../domain/volumes.ts";
import { type Explanation, type Placement, Scheduler, type SchedulerOptions } from "../../scheduler/index.ts";
import type { Change } from "../../store/types.ts";
import { HomeWatch } from "./home-watch.ts";

/** Of one placement beside the specification: its other fields, and its key three times. */
const usualPlacementBytes = 320;
/** Of the home that a placement gives to a volume, with its key twice. */
const usualHomeBytes = 320;

/** Placements of a commit under way. */
export interface Hold {
  readonly placements: readonly Placement[];
  /** The tasks as the commit writes them. The view comes to hold just these values, in this order. */
  readonly placed: readonly Task[];
  /** How many of them the view shows. */
  shown: number;
}

/** Keeps the scheduler told of what the view holds. */
export class SchedulerFeed {
  readonly scheduler: Scheduler;
  /** Tasks whose service the scheduler does not take, and why. */
  readonly refused = new Map<string, string>();
  readonly #index: ClusterIndex;
  readonly #log: Log;
  readonly #groups = new Map<string, Set<string>>();
  readonly #groupOf = new Map<string, string>();
  /** Bytes of the largest specification so far, with the homes of its volumes. */
  #largestSpec = 0;
  readonly #homes = new HomeWatch();
  /** Tasks that wait for the node of a volume, of which that has been told to have changed. */
  readonly #homesChanged = new Set<string>();
  readonly #holds = new Set<Hold>();
  readonly #lostNodes = new Set<string>();
  /** Services of which so many are to stay up. */
  readonly #budgets = new Set<string>();
  /** By the task whose end they wait for. */
  readonly #successors = new Map<string, string>();
  /** Tasks that failed and are still on record, by group and node: the scheduler prefers other nodes. */
  readonly #failures = new Map<string, Map<string, Set<string>>>();
  readonly #failureOf = new Map<string, { readonly group: string; readonly node: string }>();

  /** `untold`: the scheduler knows nothing yet, see `tell`. */
  constructor(index: ClusterIndex, log: Log, options: SchedulerOptions & { readonly untold?: boolean } = {}) {
    this.#index = index;
    this.#log = log;
    this.scheduler = new Scheduler(options);
    if (options.untold !== true) for (const _ of this.tell());
  }

  /** Tells all that the view holds, a record at a step. */
  *tell(): Generator<void> {
    const { view } = this.#index;
    for (const [id] of view.nodes.entries()) yield this.#node(id);
    for (const [id] of view.tasks.entries()) yield this.#task(id);
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
          for (const id of this.#homes.ofNode(change.id)) {
            this.#homesChanged.add(id);
            this.#task(id);
          }
          worth = true;
          break;
        case "tasks":
          // The scheduler has it there since it decided so.
          if (!this.#shows(change.id, change.after)) this.#task(change.id);
          worth ||= change.after === undefined || change.after.nodeId === "";
          break;
        case "taskStatuses":
          if (change.before?.state === change.after?.state && change.before?.health === change.after?.health) break;
          this.#task(change.id);
          worth ||= change.after === undefined || hasEnded(change.after.state);
          // One more that is up may let another be stopped.
          worth ||=
            this.#budgets.size > 0 &&
            isUp(change.after) &&
            this.#budgets.has(this.#index.view.tasks.get(change.id)?.serviceId ?? "");
          break;
        case "services":
          if (this.#importanceChanged(change.before?.spec, change.after?.spec)) {
            this.#regroup(change.id);
            worth = true;
          }
          for (const id of this.#drawnAnew(change.before, change.after)) this.#regroup(id);
          for (const id of this.#homes.ofService(change.id)) {
            this.#task(id);
            worth = true;
          }
          break;
        case "members":
          // Of the node on its host the role.
          if (change.before?.address === change.after?.address) break;
          for (const [id] of this.#index.view.nodes.entries()) this.#node(id);
          worth = true;
          break;
        case "volumeHomes":
          for (const id of this.#homes.ofHome(change.id)) {
            this.#task(id);
            worth = true;
          }
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

  /** Why a task that waits fits nowhere, in words for people. */
  whyNowhere(taskId: string, { reasons, summary }: Explanation): string {
    const bound = this.#homes.boundOf(taskId);
    if (bound?.kind !== "home") return summary;
    return waitsForNode(this.#index.view, bound, `it does not fit: ${reasons[0]?.text ?? summary}`);
  }

  /** Tasks that wait for the node of a volume and may not be looked at although the reason is another one since the last call, with the reason. */
  waitingForHomes(): [taskId: string, why: string][] {
    const { view } = this.#index;
    const found = [...this.#homesChanged].flatMap((id): [string, string][] => {
      const bound = this.#homes.boundOf(id);
      const waits = bound?.kind === "home" && homeProblem(view, bound.nodeId) !== undefined;
      return waits ? [[id, waitsForNode(view, bound, "")]] : [];
    });
    this.#homesChanged.clear();
    return found;
  }

  /** How many placements a commit of so many bytes takes for sure, by the largest specification there has been; at least 1. */
  placementsWithin(bytes: number): number {
    return Math.max(1, Math.floor(bytes / (this.#largestSpec + usualPlacementBytes)));
  }

  /** Until the release these tasks are where the scheduler placed them, whatever the view says. `placed`: what a commit writes of them. */
  hold(placements: readonly Placement[], placed: readonly Task[] = []): Hold {
    const hold: Hold = { placements, placed, shown: 0 };
    this.#holds.add(hold);
    return hold;
  }

  /** Ends a hold whose placements are held anew. */
  forgetHold(hold: Hold): void {
    this.#holds.delete(hold);
  }

  /** These tasks are not stopped after all: they count where they are. */
  spare(placements: readonly Placement[]): void {
    for (const { preempts } of placements) {
      for (const victim of preempts) {
        this.scheduler.removeTask(victim);
        this.#task(victim);
      }
    }
  }

  /** The view decides again, of those that it does not show yet: placed when the commit has happened, waiting when not. */
  release(hold: Hold): void {
    this.#holds.delete(hold);
    const { placements, placed } = hold;
    if (hold.shown === placements.length) return;
    const shown = new Set(placed.slice(0, hold.shown).map(({ id }) => id));
    const left = placements.filter(({ task }) => !shown.has(task));
    this.spare(left);
    for (const { task } of left) this.#task(task);
  }

  /** Does the view show the task where it was placed in a commit under way, on a node that is still there? */
  #shows(id: string, after: Task | undefined): boolean {
    if (after === undefined) return false;
    for (const hold of this.#holds) {
      if (hold.placed[hold.shown] !== after) continue;
      hold.shown++;
      this.#homes.forget(id);
      return !this.#lostNodes.has(after.nodeId);
    }
    return false;
  }

  #isHeld(id: string): boolean {
    if (this.#holds.size === 0 || !this.scheduler.isPlaced(id)) return false;
    for (const { placements } of this.#holds) if (placements.some(({ task }) => task === id)) return true;
    return false;
  }

  #node(id: string): void {
    const spec = this.#index.view.nodes.get(id);
    if (isNodeLost(this.#index.view, id)) this.#lostNodes.add(id);
    else this.#lostNodes.delete(id);
    if (spec === undefined) this.scheduler.removeNode(id);
    else this.scheduler.upsertNode(schedulerNode(this.#index.view, spec, this.#index.nodeStatus(id)));
  }

  #task(id: string): void {
    const { view } = this.#index;
    const row = view.tasks.row(id);
    const task = row?.value;
    this.#noteFailure(id, task);
    const waits = task?.nodeId === "";
    const counts = task !== undefined && !hasEnded(observedState(view, task)) && (!waits || isWanted(task));
    if (!counts) {
      this.#homes.forget(id);
      this.#forget(id);
      const successor = this.#successors.get(id);
      if (successor === undefined) return;
      this.#successors.delete(id);
      this.#task(successor);
      return;
    }
    const bound = boundOf(this.#index, task);
    if (waits) this.#homes.watch(this.#index, task, bound);
    else this.#homes.forget(id);
    if (waits && this.#isHeld(id)) return;
    if (waits && bound.kind === "apart") {
      this.#forget(id);
      this.refused.set(id, bound.why);
      return;
    }
    const group = groupId(task);
    try {
      if (!this.#groups.has(group)) {
        this.#group(task);
        this.#groups.set(group, new Set());
        if (task.spec !== undefined) {
          const homes = volumesOf(task.spec.container).length * usualHomeBytes;
          this.#largestSpec = Math.max(this.#largestSpec, ServiceSpec.encode(task.spec).finish().length + homes);
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
        onlyNode: onlyNodeOf(task, bound),
        // One that was asked to stop is up for a moment more, and is none to count on.
        down: this.#budgets.has(task.serviceId) && !(isWanted(task) && isUp(view.taskStatuses.get(id))),
        patient: waits && this.#waitsForOther(task),
        // From the view alone, so that the next leader and a copy of the view decide as this one.
        turn: waits ? { sinceMs: task.createdAtMs, slot: task.slot } : undefined,
        handle: row,
        ports: waits || task.hostPorts.length === 0 ? undefined : task.hostPorts.map(({ published }) => published),
      });
      this.refused.delete(id);
    } catch (error) {
      this.#log.warn("the scheduler does not take a task", { taskId: id, error });
      this.refused.set(id, messageOf(error));
    }
  }

  #group(task: Task): void {
    const group = taskGroup(this.#index, task);
    this.scheduler.upsertGroup(group);
    if ((group.minAvailable ?? 0) > 0) this.#budgets.add(task.serviceId);
    else this.#budgets.delete(task.serviceId);
  }

  /** Does it wait for something else than room? It will have that of its predecessor, or may not start yet whatever it has. */
  #waitsForOther(task: Task): boolean {
    if (task.waitsFor !== "") return true;
    if (task.replaces === "") return false;
    const predecessor = this.#index.view.tasks.get(task.replaces);
    if (predecessor === undefined || hasEnded(observedState(this.#index.view, predecessor))) return false;
    this.#successors.set(task.replaces, task.id);
    return true;
  }

  #importanceChanged(before: ServiceSpec | undefined, after: ServiceSpec | undefined): boolean {
    if (before === undefined || after === undefined) return false;
    const [was, is] = [importanceOf(before), importanceOf(after)];
    return was.priority !== is.priority || was.minAvailable !== is.minAvailable;
  }

  /** Services that the one which has changed had other affinities to, or none: they want of it what it wants of them. */
  #drawnAnew(before: Service | undefined, after: Service | undefined): string[] {
    const [was, is] = [drawnTo(before), drawnTo(after)];
    if (was.length + is.length === 0 || isDeepStrictEqual(was, is)) return [];
    const names = new Set([...was, ...is].map(({ service }) => service));
    const others = this.#index.servicesOfStack((after ?? before)?.stack ?? "");
    return others.flatMap(({ id, spec }) => (names.has(spec?.name ?? "") ? [id] : []));
  }

  /** Tells the service's groups again. */
  #regroup(serviceId: string): void {
    for (const [group, tasks] of this.#groups) {
      if (!group.startsWith(`${serviceId}@`)) continue;
      const [first = ""] = tasks;
      const task = this.#index.view.tasks.get(first);
      if (task === undefined) continue;
      this.#group(task);
      for (const id of tasks) this.#task(id);
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

/** What the service is drawn to of other services. */
function drawnTo(service: Service | undefined): ServiceAffinity[] {
  const affinities = service?.spec?.placement?.affinities;
  if (service === undefined || service.removed || affinities === undefined) return [];
  return affinities.flatMap(({ to, weight }) => (to?.$case === "service" ? [{ ...to.value, weight }] : []));
}

interface ServiceAffinity {
  readonly service: string;
  readonly over: string;
  readonly weight: number;
}

/** The one node that the task may run on, or may move to. */
function onlyNodeOf(task: Task, bound: Bound): string | undefined {
  if (task.onlyNode !== "") return task.onlyNode;
  // One that runs may leave a home that is not waited for.
  return bound.kind === "home" && (bound.waits || task.nodeId === "") ? bound.nodeId : undefined;
}
