import { join } from "node:path";
import { pushExample } from "../../examples/images.ts";
import type { Cluster, TaskView } from "../cluster/cluster.ts";
import { SteadyRequests } from "./steady.ts";

export const counterStack = join(import.meta.dirname, "../../examples/counter/stack.yml");

/** The running tasks among these, of one service. */
export function running(tasks: readonly TaskView[], service: string): TaskView[] {
  return tasks.filter((view) => view.task?.serviceName === service && view.status?.state === "running");
}

/** Pid by task id of the service's running tasks that are not on the node. */
export function pids(tasks: readonly TaskView[], service: string, exceptOn = ""): Record<string, number> {
  const kept = running(tasks, service).filter((view) => view.nodeName !== exceptOn);
  return Object.fromEntries(kept.map((view) => [view.task?.id ?? "", view.status?.pid ?? 0]));
}

/** The host on which the service's one running task is. */
export async function hostOf(cluster: Cluster, service: string): Promise<string> {
  const [view] = running(await cluster.tasks(), service);
  if (view === undefined) throw new Error(`no task of ${service} is running`);
  return view.nodeName;
}

/** Pushes the example's images and deploys it; returns when it has converged. */
export async function deployCounter(cluster: Cluster): Promise<void> {
  await pushExample("counter", cluster.registry);
  await cluster.run(["deploy", counterStack], { environment: { REGISTRY: cluster.registry } });
}

/** Requests to the counter at every host that is named. */
export function visitors(cluster: Cluster, hosts: readonly string[], perSecond = 50): SteadyRequests {
  const urls = cluster.hosts.filter(({ name }) => hosts.includes(name)).map(({ address }) => `http://${address}:8080/`);
  return new SteadyRequests(urls, perSecond);
}
