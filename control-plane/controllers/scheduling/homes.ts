import type { Task, VolumeHome } from "../../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../../domain/index.ts";
import { hasEnded, observedState } from "../../domain/tasks.ts";
import { homeId, volumesOf } from "../../domain/volumes.ts";
import type { Write } from "../../store/types.ts";
import type { CommitPlan } from "./plan.ts";

/** The homes that the placements of one commit give to volumes. */
export class HomesOfCommit {
  readonly #index: ClusterIndex;
  readonly #plan: CommitPlan;
  readonly #underWay: readonly CommitPlan[];

  constructor(index: ClusterIndex, plan: CommitPlan, underWay: readonly CommitPlan[]) {
    this.#index = index;
    this.#plan = plan;
    this.#underWay = underWay;
  }

  /** False when another placement gives one of the volumes a home elsewhere: two tasks that share it were placed as if neither had one. */
  admits(task: Task, volumes: readonly string[], nodeId: string): boolean {
    return volumes.every((volume) => {
      const id = homeId(volume, task);
      const given = this.#plan.homes.get(id) ?? this.#earlier(id)?.homes.get(id);
      return given === undefined || given === nodeId;
    });
  }

  /**
   * Writes the home of each volume with the placement, also where it stays the same: whoever removes the volume meanwhile finds that it
   * has changed.
   */
  give(task: Task, volumes: readonly string[], nodeId: string): void {
    for (const volume of volumes) {
      const id = homeId(volume, task);
      if (this.#plan.homes.has(id)) continue;
      const earlier = this.#earlier(id);
      if (earlier !== undefined) {
        this.#plan.after.add(earlier);
        continue;
      }
      this.#plan.homes.set(id, nodeId);
      this.#plan.writes.push(homeWrite(this.#index, id, homeOf(volume, { ...task, nodeId })));
    }
  }

  #earlier(id: string): CommitPlan | undefined {
    return this.#underWay.find(({ homes }) => homes.has(id));
  }
}

function homeOf(volume: string, { id, slot, nodeId, stack, serviceName }: Task): VolumeHome {
  return { volume, slot, nodeId, taskId: id, service: `${stack}_${serviceName}` };
}

function homeWrite(index: ClusterIndex, id: string, value: VolumeHome): Write {
  return { table: "volumeHomes", id, value, ifRevision: index.view.volumeHomes.revisionOf(id) };
}

/**
 * Homes of volumes whose tasks were placed before homes were kept: where the seat's task is, or was last. Of several services that
 * share a volume on different nodes, those that run come first, then the one placed last.
 */
export function planAdoption(index: ClusterIndex): Write[] {
  const { view } = index;
  const found = new Map<string, { readonly volume: string; readonly task: Task; readonly live: boolean }>();
  for (const task of view.tasks.values()) {
    if (view.nodes.get(task.nodeId) === undefined) continue;
    for (const volume of volumesOf(task.spec?.container)) {
      const id = homeId(volume, task);
      if (view.volumeHomes.get(id) !== undefined) continue;
      const one = { volume, task, live: !hasEnded(observedState(view, task)) };
      const known = found.get(id);
      if (known === undefined || comesBefore(one, known)) found.set(id, one);
    }
  }
  return [...found].map(([id, { volume, task }]) => homeWrite(index, id, homeOf(volume, task)));
}

function comesBefore(
  one: { readonly task: Task; readonly live: boolean },
  other: { readonly task: Task; readonly live: boolean },
): boolean {
  if (one.live !== other.live) return one.live;
  const newer = one.task.createdAtMs - other.task.createdAtMs || one.task.epoch - other.task.epoch;
  return newer !== 0 ? newer > 0 : one.task.id > other.task.id;
}
