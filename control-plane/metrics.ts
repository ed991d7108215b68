import { Counter, Gauge, Histogram, type Registry } from "prom-client";
import { NodeState, TaskState } from "../proto/gen/embassy/v1/state.ts";
import type { StoreMetrics } from "./store/metrics.ts";
import type { Leadership, TableName, View } from "./store/types.ts";

/** Counts what the store does. */
export function createStoreMetrics(registry: Registry): StoreMetrics {
  const registers = [registry];
  const commits = new Histogram({
    name: "embassy_store_commit_seconds",
    help: "Time of a commit, from the call until the view has it.",
    labelNames: ["outcome"],
    buckets: [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5],
    registers,
  });
  const relists = new Counter({
    name: "embassy_store_lists_total",
    help: "Times the whole state was listed.",
    registers,
  });
  const rewatches = new Counter({
    name: "embassy_store_watch_failures_total",
    help: "Times the watch ended and was opened again.",
    registers,
  });
  return {
    commit: (outcome, seconds) => commits.observe({ outcome }, seconds),
    relisted: () => relists.inc(),
    rewatched: () => rewatches.inc(),
  };
}

export interface ClusterMetricsDeps {
  readonly registry: Registry;
  readonly store: { readonly view: View; readonly silentMs: number };
  readonly leadership: Pick<Leadership, "leader">;
  readonly member: string;
}

/** Gauges over the view, computed when they are asked for. */
export function registerClusterMetrics({ registry, store, leadership, member }: ClusterMetricsDeps): void {
  const registers = [registry];
  const gauge = (name: string, help: string, value: () => number) =>
    new Gauge({
      name,
      help,
      registers,
      collect() {
        this.set(value());
      },
    });
  gauge("embassy_store_revision", "Revision that the view has reached.", () => store.view.revision);
  gauge(
    "embassy_store_watch_silent_seconds",
    "Time since etcd last said something on the watch; it is asked every 5 s.",
    () => store.silentMs / 1000,
  );
  gauge("embassy_leader", "1 on the leader.", () => (leadership.leader() === member ? 1 : 0));
  gauge("embassy_sessions", "Nodes with a live session in the cluster.", () => store.view.sessions.size);
  gauge("process_resident_memory_bytes", "Memory.", () => process.memoryUsage.rss());
  gauge("process_cpu_seconds_total", "User and system time.", () => {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1e6;
  });
  new Gauge({
    name: "embassy_store_entries",
    help: "Values in the view.",
    labelNames: ["table"],
    registers,
    collect() {
      const { revision: _, ...tables } = store.view;
      for (const [table, { size }] of Object.entries(tables) as [TableName, { size: number }][]) {
        this.set({ table }, size);
      }
    },
  });
  new Gauge({
    name: "embassy_nodes",
    help: "Nodes by state; silent: lost together with most, and not yet replaced.",
    labelNames: ["state"],
    registers,
    collect() {
      this.reset();
      for (const state of ["ready", "silent", "down"]) this.set({ state }, 0);
      for (const [id] of store.view.nodes.entries()) {
        this.inc({ state: stateWord(NodeState, "NODE_STATE_", store.view.nodeStatuses.get(id)?.state) });
      }
    },
  });
  new Gauge({
    name: "embassy_services_rebalanced",
    help: "Services that have been spread by themselves, by what the last move came to.",
    labelNames: ["state"],
    registers,
    collect() {
      this.reset();
      for (const state of ["moving", "failed", "rests"]) this.set({ state }, 0);
      for (const { rebalance } of store.view.serviceStatuses.values()) {
        if (rebalance === undefined) continue;
        this.inc({ state: rebalance.taskId !== "" ? "moving" : rebalance.failures > 0 ? "failed" : "rests" });
      }
    },
  });
  new Gauge({
    name: "embassy_tasks",
    help: "Tasks by observed state; those that no node has reported on are pending.",
    labelNames: ["state"],
    registers,
    collect() {
      this.reset();
      for (const id of ids(store.view))
        this.inc({ state: stateWord(TaskState, "TASK_STATE_", store.view.taskStatuses.get(id)?.state) });
    },
  });
}

function* ids(view: View): Iterable<string> {
  for (const [id] of view.tasks.entries()) yield id;
}

/** "running" for TASK_STATE_RUNNING; what is not there is as 0. */
function stateWord(
  states: Readonly<Record<string, string | number>>,
  prefix: string,
  state: number | undefined,
): string {
  const [name] = Object.entries(states).find(([, value]) => value === (state ?? 0)) ?? [];
  return (name ?? "").replace(prefix, "").toLowerCase();
}
