import { describe, expect, it } from "vitest";
import { ClusterError } from "../../lib/errors/errors.ts";
import { unary } from "../../lib/grpc/server.ts";
import { NodeState, NodeStatus, VolumeHome } from "../../proto/gen/embassy/v1/state.ts";
import { SteppedCluster } from "../controllers/testing.ts";
import { aService, aStack, mounting, replicas } from "../domain/testing.ts";
import type { Store } from "../store/types.ts";
import { Agents } from "./agents.ts";
import { placeAgent, TestAgents } from "./testing.ts";
import { listVolumes, removeVolume } from "./volumes.ts";

const withData = () => aService("db", { mode: replicas(1), container: mounting(["s_data"]) });

/** Three nodes, of which c is down, with agents that have these volumes. */
async function setUp(volumes: Readonly<Record<string, string[]>>) {
  const cluster = new SteppedCluster();
  await cluster.addNodes("a", "b", "c");
  const servers = await TestAgents.create();
  /** Nodes on which a task mounts everything. */
  const busy = new Set<string>();
  for (const [node, names] of Object.entries(volumes)) {
    const { port } = await servers.listen(node, (call) => call.end(), 0, {
      listVolumes: unary(({ sizes }: { sizes: boolean }) => {
        // Of the second one it took too long.
        return {
          names: [...names],
          bytes: sizes ? Object.fromEntries(names.slice(0, 1).map((name) => [name, 42])) : {},
        };
      }),
      removeVolume: unary(({ name }: { name: string }) => {
        if (busy.has(node)) throw new ClusterError("s_db.2 mounts it", { code: "conflict" });
        if (!names.includes(name)) throw new ClusterError(`there is no volume ${name}`, { code: "not-found" });
        names.splice(names.indexOf(name), 1);
        return {};
      }),
    });
    await placeAgent(cluster, node, port);
  }
  const down = NodeStatus.create({ ...cluster.index.nodeStatus("c"), state: NodeState.NODE_STATE_DOWN });
  await cluster.store.commit([{ table: "nodeStatuses", id: "c", value: down }]);
  const agents = new Agents(cluster.index, () => servers.manager);
  const hooks = { beforeCommit: async () => {} };
  const store: Pick<Store, "commit"> = {
    commit: async (...given) => {
      await hooks.beforeCommit();
      return await cluster.store.commit(...given);
    },
  };
  const deps = { index: cluster.index, agents, store };
  return Object.assign(hooks, {
    cluster,
    busy,
    list: async (sizes = false) => await listVolumes(deps, { sizes }),
    remove: async (name: string, node = "", dryRun = false) => await removeVolume(deps, { name, node, dryRun }),
    [Symbol.dispose]() {
      agents[Symbol.dispose]();
      servers[Symbol.dispose]();
      cluster[Symbol.dispose]();
    },
  });
}

const down = { nodeName: "c", why: "node c is not reachable: it is down" };

describe("volumes", () => {
  it("are listed as the nodes have them, and nodes that cannot be asked are named", async () => {
    using one = await setUp({ a: ["s_data", "old"], b: ["s_data"] });
    expect(await one.list()).toEqual({
      volumes: [
        { name: "old", nodeName: "a" },
        { name: "s_data", nodeName: "a" },
        { name: "s_data", nodeName: "b" },
      ],
      failures: [down],
      homes: [],
    });
    expect((await one.list(true)).volumes.map(({ name, nodeName, bytes }) => [name, nodeName, bytes])).toEqual([
      ["old", "a", undefined],
      ["s_data", "a", 42],
      ["s_data", "b", 42],
    ]);
  });

  it("have homes, which are listed and go with them, or keep them when they do not answer", async () => {
    using one = await setUp({ a: ["s_data"], b: ["s_data"] });
    const home = (slot: number, nodeId: string) => {
      const value = VolumeHome.create({ volume: "s_data", slot, nodeId, service: "s_db" });
      return { table: "volumeHomes" as const, id: `s_data/${slot}`, value };
    };
    await one.cluster.store.commit([home(1, "b"), home(2, "c"), home(3, "a")]);
    const homes = async () =>
      (await one.list()).homes.map(({ home: of, nodeName, problem }) => [of?.slot, nodeName, problem]);
    expect(await homes()).toEqual([
      [1, "b", ""],
      [2, "c", "down"],
      [3, "a", ""],
    ]);
    await expect(one.remove("s_data")).rejects.toMatchObject({
      code: "unavailable",
      message: "volume s_data has data on c: node c is not reachable: it is down",
      hint: expect.stringContaining("Nothing was removed.") as string,
    });
    await expect(one.remove("s_data", "c")).rejects.toMatchObject({ code: "unavailable" });
    expect((await one.list()).volumes).toHaveLength(2);
    expect(await one.remove("s_data", "b")).toEqual({ nodes: ["b"], failures: [] });
    expect(await homes()).toEqual([
      [2, "c", "down"],
      [3, "a", ""],
    ]);
    await one.cluster.store.commit([{ table: "volumeHomes", id: "s_data/2", value: undefined }]);
    expect(await one.remove("s_data")).toEqual({ nodes: ["a"], failures: [down] });
    expect(await homes()).toEqual([]);
    // Its task was placed, and its node has made nothing yet.
    await one.cluster.store.commit([home(1, "b")]);
    expect(await one.remove("s_data")).toEqual({ nodes: [], failures: [down] });
    expect(await homes()).toEqual([]);
  });

  it("keep the homes of data that is still there, as a task has not let go of it yet", async () => {
    using one = await setUp({ a: ["s_data"], b: ["s_data"] });
    const home = (slot: number, nodeId: string) => {
      const value = VolumeHome.create({ volume: "s_data", slot, nodeId });
      return { table: "volumeHomes" as const, id: `s_data/${slot}`, value };
    };
    await one.cluster.store.commit([home(1, "a"), home(2, "b")]);
    one.busy.add("b");
    await expect(one.remove("s_data")).rejects.toMatchObject({ code: "conflict", message: "s_db.2 mounts it" });
    const { volumes, homes } = await one.list();
    expect(volumes.map(({ nodeName }) => nodeName)).toEqual(["b"]);
    expect(homes.map(({ nodeName }) => nodeName)).toEqual(["b"]);
    one.busy.delete("b");
    expect(await one.remove("s_data")).toEqual({ nodes: ["b"], failures: [down] });
  });

  it("keep all their data when a task is placed in the same moment", async () => {
    using one = await setUp({ a: ["s_data"], b: ["s_data"] });
    const home = VolumeHome.create({ volume: "s_data", slot: 1, nodeId: "a", taskId: "before" });
    await one.cluster.store.commit([{ table: "volumeHomes", id: "s_data/1", value: home }]);
    one.beforeCommit = async () => {
      await one.cluster.deploy(aStack("s", [withData()]));
      await one.cluster.settle();
    };
    await expect(one.remove("s_data")).rejects.toMatchObject({ code: "conflict", message: /placed with it just now/ });
    expect((await one.list()).volumes).toHaveLength(2);
    await expect(one.remove("s_data")).rejects.toMatchObject({
      message: expect.stringMatching(/in use: service s_db/),
    });
  });

  it("that nothing mounts are removed from every node, or from one", async () => {
    using one = await setUp({ a: ["old", "left"], b: ["old", "left"] });
    expect(await one.remove("old")).toEqual({ nodes: ["a", "b"], failures: [down] });
    expect(await one.remove("left", "b")).toEqual({ nodes: ["b"], failures: [] });
    expect((await one.list()).volumes).toEqual([{ name: "left", nodeName: "a" }]);
    await expect(one.remove("left", "b")).rejects.toMatchObject({ code: "not-found" });
    await expect(one.remove("nosuch")).rejects.toMatchObject({
      message: "no node has a volume nosuch",
      hint: "Not asked, as it does not answer: c.",
    });
    await expect(one.remove("left", "c")).rejects.toMatchObject({ code: "unavailable", message: down.why });
    await expect(one.remove("left", "d")).rejects.toMatchObject({ code: "not-found", subject: "node/d" });
  });

  it("are only looked for when that is asked", async () => {
    using one = await setUp({ a: ["old"], b: [] });
    expect(await one.remove("old", "", true)).toEqual({ nodes: ["a"], failures: [down] });
    await expect(one.remove("old", "b", true)).rejects.toMatchObject({ code: "not-found" });
    await expect(one.remove("nosuch", "", true)).rejects.toMatchObject({ code: "not-found" });
    expect((await one.list()).volumes).toEqual([{ name: "old", nodeName: "a" }]);
  });

  it("that a service mounts stay, but where none of its tasks is", async () => {
    using one = await setUp({ a: ["s_data"], b: ["s_data"] });
    await one.cluster.deploy(aStack("s", [withData()]));
    await one.cluster.settle();
    const here = one.cluster.tasks("s", "db")[0]?.nodeId ?? "";
    const there = here === "a" ? "b" : "a";
    await expect(one.remove("s_data")).rejects.toMatchObject({
      code: "conflict",
      message: "volume s_data is in use: service s_db mounts it",
    });
    await expect(one.remove("s_data", here)).rejects.toMatchObject({
      code: "conflict",
      message: "volume s_data is in use: task s_db.1 mounts it",
    });
    expect(await one.remove("s_data", there)).toEqual({ nodes: [there], failures: [] });
  });
});
