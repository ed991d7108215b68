import { scanFloor } from "./filters/floor.ts";
import { givePorts } from "./filters/host-port.ts";
import { filtersFor } from "./filters/index.ts";
import type { SchedulerSnapshot } from "./scheduler.ts";
import { compareNodes, costOf } from "./scores/index.ts";
import { ClusterState } from "./state/cluster.ts";
import { type GroupRecord, type NodeRecord, TaskRecord } from "./state/records.ts";
import type { Placement, SchedulerTask, Strategy } from "./types.ts";

/** The same rules and terms without any index: looks at every node for every decision. What the index must agree with. */
export class BruteForce {
  readonly state: ClusterState;
  readonly tasks = new Map<string, TaskRecord>();

  constructor(snapshot: SchedulerSnapshot, options: { readonly strategy?: Strategy; readonly seed?: number } = {}) {
    this.state = new ClusterState({ strategy: options.strategy ?? "spread", seed: options.seed ?? 0 });
    this.state.floors = { floor: (group, level) => scanFloor(this.state, group, level) };
    for (const node of snapshot.nodes) this.state.upsertNode(node);
    for (const volume of snapshot.volumes) this.state.upsertVolume(volume);
    for (const group of snapshot.groups) this.state.upsertGroup(group);
    for (const { group, node, count } of snapshot.failures) {
      this.state.setFailures(this.group(group), this.state.nodes.get(node) as NodeRecord, count);
    }
    for (const task of snapshot.tasks) this.add(task);
  }

  add(spec: SchedulerTask): void {
    const task = new TaskRecord(spec.id, this.group(spec.group), spec.name ?? spec.id, this.tasks.size);
    task.ports = spec.ports ?? [];
    task.down = spec.down ?? false;
    task.onlyNode = spec.onlyNode;
    this.tasks.set(spec.id, task);
    const node = this.state.nodes.get(spec.node ?? "");
    if (node !== undefined) this.state.attach(task, node);
  }

  remove(id: string): void {
    const task = this.tasks.get(id);
    this.tasks.delete(id);
    if (task !== undefined) this.state.detach(task);
  }

  group(id: string): GroupRecord {
    return this.state.groups.get(id) as GroupRecord;
  }

  /** The best node for a task, by looking at all. */
  best(taskId: string): { readonly node: NodeRecord; readonly cost: number } | undefined {
    const { group, onlyNode } = this.tasks.get(taskId) as TaskRecord;
    let best: { node: NodeRecord; cost: number } | undefined;
    for (const node of this.state.nodes.values()) {
      if (onlyNode !== undefined && node.spec.id !== onlyNode) continue;
      if (!filtersFor(onlyNode).every((filter) => filter.passes(this.state, group, node))) continue;
      const cost = costOf(this.state, group, node);
      if (best === undefined || compareNodes(cost, node, best.cost, best.node) < 0) best = { node, cost };
    }
    return best;
  }

  /** Carries out what was decided. */
  apply({ task: id, node: nodeId, preempts }: Placement): void {
    const task = this.tasks.get(id) as TaskRecord;
    const node = this.state.nodes.get(nodeId) as NodeRecord;
    for (const victim of preempts) this.state.detach(this.tasks.get(victim) as TaskRecord);
    task.ports = givePorts(task.group.spec.ports ?? [], node) ?? [];
    this.state.attach(task, node);
  }
}
