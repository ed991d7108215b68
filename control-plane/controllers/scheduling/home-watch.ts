import type { Task } from "../../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../../domain/index.ts";
import { type Bound, homeId, volumesOf } from "../../domain/volumes.ts";

interface Watched {
  readonly bound: Bound;
  readonly keys: readonly string[];
}

/** Tasks that wait and mount volumes, by what decides where they may go: the homes, the nodes of those, and what their service says. */
export class HomeWatch {
  readonly #watched = new Map<string, Watched>();
  readonly #byKey = new Map<string, Set<string>>();

  /** Watches a task that waits, or again after a change. One without volumes is not watched. */
  watch(index: ClusterIndex, task: Task, bound: Bound): void {
    this.forget(task.id);
    const volumes = volumesOf(task.spec?.container);
    if (volumes.length === 0) return;
    const keys = new Set([`service ${task.serviceId}`]);
    for (const volume of volumes) {
      const id = homeId(volume, task);
      keys.add(`home ${id}`);
      const nodeId = index.view.volumeHomes.get(id)?.nodeId;
      if (nodeId !== undefined) keys.add(`node ${nodeId}`);
    }
    this.#watched.set(task.id, { bound, keys: [...keys] });
    for (const key of keys) {
      const tasks = this.#byKey.get(key);
      if (tasks === undefined) this.#byKey.set(key, new Set([task.id]));
      else tasks.add(task.id);
    }
  }

  forget(taskId: string): void {
    const known = this.#watched.get(taskId);
    if (known === undefined) return;
    this.#watched.delete(taskId);
    for (const key of known.keys) {
      const tasks = this.#byKey.get(key);
      tasks?.delete(taskId);
      if (tasks?.size === 0) this.#byKey.delete(key);
    }
  }

  /** As it was when it was last watched; undefined: it is not. */
  boundOf(taskId: string): Bound | undefined {
    return this.#watched.get(taskId)?.bound;
  }

  ofHome(homeId: string): readonly string[] {
    return this.#of(`home ${homeId}`);
  }

  ofNode(nodeId: string): readonly string[] {
    return this.#of(`node ${nodeId}`);
  }

  ofService(serviceId: string): readonly string[] {
    return this.#of(`service ${serviceId}`);
  }

  /** A copy: telling one of them anew watches it anew. */
  #of(key: string): readonly string[] {
    const tasks = this.#byKey.get(key);
    return tasks === undefined ? nothing : [...tasks];
  }
}

const nothing: readonly string[] = Object.freeze([]);
