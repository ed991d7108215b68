import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { NetworkState } from "../../../proto/gen/embassy/v1/dispatcher.ts";
import { Link, PublishedPort, ServiceNetwork } from "../../../proto/gen/embassy/v1/stack.ts";
import { type Availability, Health, NodeState, TaskState } from "../../../proto/gen/embassy/v1/state.ts";
import { SteppedCluster } from "../../controllers/testing.ts";
import type { Change } from "../../store/types.ts";
import { isUp } from "../tasks.ts";
import { aService, aStack, replicas } from "../testing.ts";
import { emptyTouched, SilentServices, touch } from "./touched.ts";
import { type NetworkSettings, NetworkStateTracker, networkStateFor } from "./tracker.ts";

const settings: NetworkSettings = { clusterId: "c", vipPool: "10.112.0.0/16", addressPools: ["10.96.0.0/12"] };
const nodes = ["a", "b", "c"];
const nodeStates = [NodeState.NODE_STATE_READY, NodeState.NODE_STATE_DOWN, NodeState.NODE_STATE_SILENT];

/** What a host holds after it has applied messages. */
class Host {
  readonly items = new Map<string, unknown>();

  apply(state: NetworkState): void {
    if (state.complete) this.items.clear();
    for (const one of state.hosts) this.items.set(`host ${one.id}`, one);
    for (const one of state.networks) this.items.set(`network ${one.id}`, one);
    for (const one of state.services) this.items.set(`service ${one.id}`, one);
    for (const one of state.endpoints) this.items.set(`endpoint ${one.taskId}`, one);
    for (const id of state.removed?.hosts ?? []) this.items.delete(`host ${id}`);
    for (const id of state.removed?.networks ?? []) this.items.delete(`network ${id}`);
    for (const id of state.removed?.services ?? []) this.items.delete(`service ${id}`);
    for (const id of state.removed?.endpoints ?? []) this.items.delete(`endpoint ${id}`);
  }
}

function held(state: NetworkState): ReadonlyMap<string, unknown> {
  const host = new Host();
  host.apply(state);
  return host.items;
}

describe("the network state of a node", () => {
  it("holds the networks of its tasks, their services and endpoints, and the hosts that share them", async () => {
    using cluster = new SteppedCluster();
    await cluster.addNodes(...nodes);
    const on = (network: string) => [ServiceNetwork.create({ network })];
    await cluster.deploy(
      aStack("s", [
        aService("web", { networks: on("front"), mode: replicas(3) }),
        aService("db", { networks: on("back"), mode: replicas(1) }),
      ]),
    );
    await cluster.settle();
    const [db] = cluster.tasks("s", "db");
    for (const node of nodes) {
      const state = networkStateFor(cluster.index, node, settings);
      const isHome = node === db?.nodeId;
      expect(state.networks.map(({ name }) => name).sort()).toEqual(isHome ? ["back", "front"] : ["front"]);
      expect(state.services.map(({ name }) => name).sort()).toEqual(isHome ? ["db", "web"] : ["web"]);
      expect(state.endpoints).toHaveLength(isHome ? 4 : 3);
      expect(state.hosts.map(({ id }) => id)).toEqual(nodes);
      expect(state.endpoints.every(({ ready }) => ready)).toBe(true);
    }
  });

  it("has services published on every host, with their given port, wherever their tasks are", async () => {
    using cluster = new SteppedCluster();
    await cluster.addNodes(...nodes);
    const ports = [PublishedPort.create({ target: 80 })];
    await cluster.deploy(aStack("s", [aService("web", { ports, mode: replicas(1) })]));
    await cluster.settle();
    for (const node of nodes) {
      const state = networkStateFor(cluster.index, node, settings);
      expect(state.services).toMatchObject([{ name: "web", exposed: [{ port: 80 }] }]);
      expect(state.services[0]?.ports[0]?.published).toBeGreaterThanOrEqual(49_000);
      expect(state.networks[0]?.blocks.map(({ nodeId }) => nodeId).sort()).toEqual(nodes);
    }
  });

  it("has no endpoint that is asked to stop, on a lost node, or not running, and none that is unhealthy as ready", async () => {
    using cluster = new SteppedCluster();
    await cluster.addNodes(...nodes);
    await cluster.deploy(aStack("s", [aService("web")]));
    await cluster.settle();
    cluster.frozen = true;
    const [one, two, three] = cluster.tasks("s", "web");
    if (one === undefined || two === undefined || three === undefined) throw new Error("three tasks");
    const endpoints = () =>
      networkStateFor(cluster.index, three.nodeId, settings).endpoints.map(({ slot, ready }) => [slot, ready]);
    const slots = () => endpoints().sort(([a], [b]) => Number(a) - Number(b));
    expect(slots()).toEqual([
      [1, true],
      [2, true],
      [3, true],
    ]);
    await cluster.report(one, TaskState.TASK_STATE_RUNNING, { health: Health.HEALTH_UNHEALTHY });
    expect(slots()).toEqual([
      [1, false],
      [2, true],
      [3, true],
    ]);
    await cluster.setNode(two.nodeId, NodeState.NODE_STATE_DOWN);
    expect(slots()).toEqual([
      [1, false],
      [3, true],
    ]);
    expect(networkStateFor(cluster.index, three.nodeId, settings).hosts.map(({ id }) => id)).not.toContain(two.nodeId);
    await cluster.deploy(aStack("s", [aService("web", { mode: replicas(0) })]));
    await cluster.plan();
    expect(slots()).toEqual([]);
  });

  it("leads to endpoints on silent nodes only where a service has no others, and keeps their hosts", async () => {
    using cluster = new SteppedCluster();
    await cluster.addNodes(...nodes);
    await cluster.deploy(aStack("s", [aService("web"), aService("db", { mode: replicas(1) })]));
    await cluster.settle();
    cluster.frozen = true;
    const [db] = cluster.tasks("s", "db");
    const other = nodes.find((node) => node !== db?.nodeId) ?? "";
    const state = () => networkStateFor(cluster.index, other, settings);
    const tracker = new NetworkStateTracker(cluster.index, other, settings);
    const host = new Host();
    host.apply(tracker.complete());
    const silent = new SilentServices();
    using _ = cluster.index.subscribe((changes) => {
      const touched = emptyTouched();
      touch(cluster.index, changes, touched, silent);
      const delta = tracker.delta(touched);
      if (delta !== undefined) host.apply(delta);
      expect(host.items).toEqual(held(state()));
    });
    const ready = (name: string) => {
      const ids = new Map(cluster.tasks("s", name).map(({ id, nodeId }) => [id, nodeId]));
      const told = state().endpoints.filter(({ taskId }) => ids.has(taskId));
      return {
        told: told.length,
        ready: told
          .filter((one) => one.ready)
          .map(({ nodeId }) => nodeId)
          .sort(),
      };
    };
    for (const node of nodes) if (node !== other) await cluster.setNode(node, NodeState.NODE_STATE_SILENT);
    expect(ready("web")).toEqual({ told: 3, ready: [other] });
    expect(ready("db")).toEqual({ told: 1, ready: [db?.nodeId] });
    expect(state().hosts.map(({ id }) => id)).toEqual(nodes);
    expect(
      state()
        .networks[0]?.blocks.map(({ nodeId }) => nodeId)
        .sort(),
    ).toEqual(nodes);
    // The one that is heard is not healthy: then the silent ones are as good.
    const mine = cluster.tasks("s", "web").find(({ nodeId }) => nodeId === other);
    if (mine === undefined) throw new Error("a task is there");
    await cluster.report(mine, TaskState.TASK_STATE_RUNNING, { health: Health.HEALTH_UNHEALTHY });
    expect(ready("web")).toEqual({ told: 3, ready: nodes.filter((node) => node !== other) });
  });

  it("names links by their provider, and the provider's address in the consumer's environment", async () => {
    using cluster = new SteppedCluster();
    await cluster.addNodes("a");
    await cluster.deploy(
      aStack("s", [aService("web", { links: [Link.create({ service: "db", alias: "cache" })] }), aService("db")]),
    );
    await cluster.settle();
    const { services } = networkStateFor(cluster.index, "a", settings);
    const web = services.find(({ name }) => name === "web");
    const db = services.find(({ name }) => name === "db");
    expect(web?.links).toEqual([{ serviceId: db?.id, alias: "cache" }]);
    expect(db?.networks[0]?.vip).toMatch(/^10\.112\./);
  });

  it("reaches a host by deltas as it would by a complete state, whatever happens, and says nothing twice", async () => {
    const steps = fc.oneof(
      fc.record({ kind: fc.constant("work" as const) }),
      fc.record({
        kind: fc.constant("deploy" as const),
        web: fc.nat(4),
        port: fc.boolean(),
        link: fc.boolean(),
        other: fc.boolean(),
      }),
      fc.record({ kind: fc.constant("remove" as const) }),
      fc.record({ kind: fc.constant("crash" as const), pick: fc.nat(20) }),
      fc.record({
        kind: fc.constant("node" as const),
        id: fc.constantFrom(...nodes),
        to: fc.constantFrom(...nodeStates),
      }),
      fc.record({ kind: fc.constant("drain" as const), id: fc.constantFrom(...nodes), on: fc.boolean() }),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(steps, { maxLength: 20 }), async (history) => {
        using cluster = new SteppedCluster();
        await cluster.addNodes(...nodes);
        await cluster.deploy(aStack("s", [aService("db", { mode: replicas(1) }), aService("web")]));
        await cluster.settle();
        const hosts = nodes.map((id) => ({
          id,
          host: new Host(),
          tracker: new NetworkStateTracker(cluster.index, id, settings),
        }));
        for (const { host, tracker } of hosts) host.apply(tracker.complete());
        const silent = new SilentServices();
        using _ = cluster.index.subscribe((changes: readonly Change[]) => {
          const touched = emptyTouched();
          touch(cluster.index, changes, touched, silent);
          for (const { host, tracker } of hosts) {
            const delta = tracker.delta(touched);
            if (delta !== undefined) host.apply(delta);
            expect(tracker.delta(touched)).toBeUndefined();
          }
        });
        for (const step of history) {
          if (step.kind === "work") {
            await cluster.plan();
            await cluster.stepNodes();
          } else if (step.kind === "deploy") {
            const networks = ["default", ...(step.other ? ["back"] : [])].map((network) =>
              ServiceNetwork.create({ network }),
            );
            const links = step.link ? [Link.create({ service: "db" })] : [];
            const ports = step.port ? [PublishedPort.create({ target: 80, published: 80 })] : [];
            const services = [
              aService("db", { mode: replicas(1), networks }),
              aService("web", { mode: replicas(step.web), links, ports }),
            ];
            await cluster.deploy(aStack("s", services));
          } else if (step.kind === "remove") await cluster.removeStack("s");
          else if (step.kind === "node") await cluster.setNode(step.id, step.to);
          else if (step.kind === "drain") await cluster.setAvailability(step.id, (step.on ? 2 : 0) as Availability);
          else {
            const running = [...cluster.index.view.tasks.values()].filter(({ id }) =>
              isUp(cluster.index.view.taskStatuses.get(id)),
            );
            const task = running[step.pick % Math.max(1, running.length)];
            if (task !== undefined) await cluster.report(task, TaskState.TASK_STATE_FAILED);
          }
          for (const { id, host } of hosts) {
            expect(host.items).toEqual(held(networkStateFor(cluster.index, id, settings)));
          }
        }
      }),
      { seed: 11, numRuns: 60 },
    );
  });
});
