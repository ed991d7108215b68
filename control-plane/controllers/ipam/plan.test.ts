import { describe, expect, it } from "vitest";
import { contains, overlaps, parseAddress, parseCidr } from "../../../lib/cidr/cidr.ts";
import { PublishedPort } from "../../../proto/gen/embassy/v1/stack.ts";
import { type Network, NodeState } from "../../../proto/gen/embassy/v1/state.ts";
import { aService, aStack, replicas } from "../../domain/testing.ts";
import { SteppedCluster } from "../testing.ts";
import { blocksNeeded, planBlocks } from "./plan.ts";

async function cluster(count: number, over = {}): Promise<SteppedCluster> {
  const made = new SteppedCluster();
  await made.addNodes("a", "b", "c");
  await made.deploy(aStack("s", [aService("web", { mode: replicas(count), ...over })]));
  await made.settle();
  return made;
}

function network(of: SteppedCluster): Network {
  const [one] = of.index.networksOfStack("s");
  if (one === undefined) throw new Error("the stack has a network");
  return one;
}

const owners = (of: SteppedCluster) => [...of.index.view.blocks.values()].map(({ nodeId }) => nodeId).sort();
const plan = (of: SteppedCluster, restedSince: number | undefined, nowMs: number) =>
  planBlocks(of.index, network(of), 27, () => restedSince, { nowMs, restMs: 60_000 });

describe("blocks", () => {
  it.each([
    [0, 1],
    [1, 1],
    [21, 1],
    [22, 2],
    [50, 2],
    [51, 3],
  ])("of %i tasks on a node are %i", (tasks, blocks) => {
    expect(blocksNeeded(tasks, 27)).toBe(blocks);
  });

  it("go to the nodes that have tasks, within the subnet, each to one node", async () => {
    using one = await cluster(90);
    const subnet = parseCidr(network(one).subnet);
    const blocks = [...one.index.view.blocks.values()].map(({ cidr }) => parseCidr(cidr));
    expect(owners(one)).toEqual(["a", "a", "b", "b", "c", "c"]);
    for (const [n, block] of blocks.entries()) {
      expect(contains(subnet, block)).toBe(true);
      expect(blocks.some((other, m) => m !== n && overlaps(block, other))).toBe(false);
    }
    expect(plan(one, undefined, 0).actions).toEqual([]);
  });

  it("go to every node when a service publishes ports on every host", async () => {
    using one = await cluster(1, { ports: [PublishedPort.create({ target: 80 })] });
    expect(owners(one)).toEqual(["a", "b", "c"]);
  });

  it("are freed when a node has not needed them for the rest, and kept while it is lost", async () => {
    using one = await cluster(3);
    await one.setNode("a", NodeState.NODE_STATE_DOWN);
    await one.drain("b");
    await one.settle();
    expect(plan(one, 0, 59_999).actions).toEqual([]);
    expect([...plan(one, 0, 59_999).unneeded]).toEqual(["b"]);
    expect(plan(one, 0, 60_000).actions).toMatchObject([{ kind: "free" }]);
    await one.store.commit([{ table: "nodes", id: "a", value: undefined }]);
    expect(plan(one, undefined, 0).actions).toMatchObject([{ kind: "free", why: "its node was removed" }]);
  });

  it("are kept while a node is silent, whatever it is that needs them", async () => {
    using one = await cluster(1, { ports: [PublishedPort.create({ target: 80 })] });
    for (const id of ["a", "b", "c"]) await one.setNode(id, NodeState.NODE_STATE_SILENT);
    expect(plan(one, 0, 60_000)).toMatchObject({ actions: [], unneeded: new Set() });
  });

  it("that are all given leave a task unplaced with the reason", async () => {
    using one = new SteppedCluster();
    await one.addNodes("a", "b");
    const spec = aStack("s", [aService("web", { mode: replicas(2) })]);
    for (const net of spec.networks) net.subnet = "10.50.0.0/27";
    await one.deploy(spec);
    await one.settle();
    expect(owners(one)).toEqual(["a"]);
    expect(contains(parseCidr("10.50.0.0/27"), parseAddress("10.50.0.31"))).toBe(true);
    const waiting = one.tasks("s", "web").filter(({ nodeId }) => nodeId === "");
    expect(waiting).toMatchObject([
      { unplaced: "network s_default is full: every block of 10.50.0.0/27 is given to a node" },
    ]);
  });
});
