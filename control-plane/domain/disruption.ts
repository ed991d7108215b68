import { MountType, UpdateOrder } from "../../proto/gen/embassy/v1/stack.ts";
import { Availability, type Service, type Task } from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "./index.ts";
import { importanceOf, isGlobal } from "./scheduler-facts.ts";
import { isComplete, isDrained, lastEnded, restartOf, type SeatTasks, seatsOf } from "./service-tasks.ts";
import { isHeardServing, serviceFullName } from "./tasks.ts";

/**
 * How many slots of a service have to be up (`x-disruption.min_available`), and how many are: what a drain, a taint or an update may
 * stop. Counts what it is asked for: of one view, and for one pass. A slot is up when a task of it is that goes on, on a node that is heard;
 * what a forced drain takes counts as gone. Nothing is kept of a service that is removed, or of slots that are scaled away.
 */
export class DisruptionBudget {
  /** 0: nothing is kept. */
  readonly least: number;
  /** Could it never spare a slot, whatever comes up that is not? Then a task is stopped once its successor is up, where both may run. */
  readonly sparesNone: boolean;
  /** Tasks that were asked for and have to go on, in the order of asking. */
  readonly kept: Task[] = [];
  readonly #index: ClusterIndex;
  readonly #up: number;
  /** Slots that have been given up in this pass. */
  readonly #lost = new Set<string>();

  constructor(index: ClusterIndex, service: Service, seats: readonly SeatTasks[]) {
    this.#index = index;
    this.least = service.removed ? 0 : leastOf(service);
    this.#up = 0;
    this.sparesNone = false;
    if (this.least === 0) return;
    const counted = seats.filter((seat) => seat.wanted || isGlobal(service));
    this.#up = counted.filter((seat) => this.#servesAt(seat)).length;
    const coming = counted.filter((seat) => seat.wanted && (this.#servesAt(seat) || isComing(index, service, seat)));
    this.sparesNone = this.least >= coming.length;
  }

  /** May the task be stopped now, and leave its slot to `instead` or to nothing? If so it counts as stopped. */
  take(seat: SeatTasks, task: Task, instead?: Task): boolean {
    const { key } = seat.seat;
    if (this.#lost.has(key) || (instead !== undefined && serves(this.#index, instead))) return true;
    if (this.keeps(task)) {
      this.kept.push(task);
      return false;
    }
    if (serves(this.#index, task)) this.#lost.add(key);
    return true;
  }

  /** Has it to go on, as long as nothing else of its slot is up? */
  keeps(task: Task): boolean {
    return this.least > 0 && serves(this.#index, task) && this.#up - this.#lost.size <= this.least;
  }

  /** Were slots given up, so that others have to go on? */
  get spends(): boolean {
    return this.#lost.size > 0;
  }

  /** "has to keep 2 up (x-disruption.min_available), and has 2" */
  get words(): string {
    return `has to keep ${this.least} up (x-disruption.min_available), and has ${this.#up}`;
  }

  #servesAt({ good, stale }: SeatTasks): boolean {
    return [...good, ...stale].some((task) => serves(this.#index, task));
  }
}

/** Most records that a commit compares for this: below what etcd takes in a transaction, with all that it writes. */
const mostCompared = 256;

/**
 * What a commit has to compare that stops tasks of a service within its budget: the tasks that it counts on, as others may be stopped in the
 * same moment for another reason. Nothing for a service without a budget. Of more than 256 tasks none: they are many, and one or two more may be down for a moment.
 */
export function countedOn(
  index: ClusterIndex,
  serviceId: string,
  stopped: ReadonlySet<string>,
): { readonly table: "tasks"; readonly id: string; readonly revision: number }[] {
  const service = index.view.services.get(serviceId);
  if (service === undefined || leastOf(service) === 0) return [];
  const rest = index.tasksOfService(serviceId).filter((task) => !stopped.has(task.id) && serves(index, task));
  if (rest.length > mostCompared) return [];
  return rest.map(({ id }) => ({ table: "tasks", id, revision: index.view.tasks.revisionOf(id) }));
}

/** How many tasks of the service have to be up; 0: it says nothing. */
function leastOf(service: Service): number {
  return importanceOf(service.spec).minAvailable ?? 0;
}

function serves(index: ClusterIndex, task: Task): boolean {
  return isHeardServing(index.view, task) && !isForcedOff(index, task);
}

/** Is it on a node whose drain looks at no budget? */
function isForcedOff({ view }: ClusterIndex, task: Task): boolean {
  const node = view.nodes.get(task.nodeId);
  return node?.availability === Availability.AVAILABILITY_DRAIN && node.drainForced;
}

/** Is the slot one that may be up by itself: that has not given up, and does not wait for room? */
function isComing(index: ClusterIndex, service: Service, seat: SeatTasks): boolean {
  const live = [...seat.good, ...seat.stale];
  if (live.length > 0) return live.some(({ nodeId, unplaced }) => nodeId !== "" || unplaced === "");
  const last = lastEnded(seat);
  const gaveUp = last !== undefined && restartOf(index, service, last)?.kind === "never";
  return !gaveUp && !isComplete(index, service, seat);
}

/** May two tasks of a slot run on one node: does the stack say so, or do they share nothing that they could write? */
export function mayOverlap({ spec }: Pick<Service, "spec">): boolean {
  if (spec?.update?.order === UpdateOrder.UPDATE_ORDER_START_FIRST) return true;
  const mounts = spec?.container?.mounts ?? [];
  return !mounts.some(({ type, source, readOnly }) => {
    return type !== MountType.MOUNT_TYPE_TMPFS && source !== "" && !readOnly;
  });
}

/** Tells of tasks of one view why they go on although their nodes give them away. */
export class KeptTasks {
  readonly #index: ClusterIndex;
  readonly #services = new Map<string, { readonly seats: readonly SeatTasks[]; readonly budget: DisruptionBudget }>();

  constructor(index: ClusterIndex) {
    this.#index = index;
  }

  /** "s_web has to keep 2 up (x-disruption.min_available), and has 2; its successor has no place: …"; "": nothing keeps the task. `unplaced`: better words for why. */
  why(task: Task, unplaced?: string): string {
    const service = this.#index.view.services.get(task.serviceId);
    if (service === undefined || !isDrained(this.#index, task)) return "";
    if (leastOf(service) === 0) return "";
    const { seats, budget } = this.#of(service);
    const seat = seats.find(({ stale }) => stale.includes(task));
    const taken = seat?.good.some((other) => serves(this.#index, other)) ?? true;
    if (seat === undefined || taken || (!seat.wanted && !isGlobal(service)) || !budget.keeps(task)) return "";
    const lacks = unplaced ?? seat.good.find(({ nodeId }) => nodeId === "")?.unplaced ?? "";
    const successor = lacks === "" ? "" : `; its successor has no place: ${lacks}`;
    return `${serviceFullName(service)} ${budget.words}${successor}`;
  }

  #of(service: Service): { readonly seats: readonly SeatTasks[]; readonly budget: DisruptionBudget } {
    const known = this.#services.get(service.id);
    if (known !== undefined) return known;
    const seats = seatsOf(this.#index, service);
    const made = { seats, budget: new DisruptionBudget(this.#index, service, seats) };
    this.#services.set(service.id, made);
    return made;
  }
}
