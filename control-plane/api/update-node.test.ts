import { expect, it } from "vitest";
import { UpdateNodeRequest } from "../../proto/gen/embassy/v1/api.ts";
import { Availability } from "../../proto/gen/embassy/v1/state.ts";
import { SteppedCluster } from "../controllers/testing.ts";
import { aService, aStack, replicas } from "../domain/testing.ts";
import { planNodeUpdate } from "./update-node.ts";

async function update(cluster: SteppedCluster, [node = "", ...more]: string[], availability: Availability) {
  const { writes } = planNodeUpdate(cluster.index, UpdateNodeRequest.create({ node, more, availability }));
  await cluster.store.commit(writes);
  await cluster.settle();
}

function perNode(cluster: SteppedCluster): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const one of cluster.running("s", "web")) {
    const node = one.split("@")[1] ?? "";
    counts[node] = (counts[node] ?? 0) + 1;
  }
  return counts;
}

it("what waited is spread over all nodes that are activated at once", async () => {
  using cluster = new SteppedCluster();
  await cluster.addNodes("a", "b", "c");
  await update(cluster, ["a", "b", "c"], Availability.AVAILABILITY_DRAIN);
  await cluster.deploy(aStack("s", [aService("web", { mode: replicas(6) })]));
  await cluster.settle();
  await update(cluster, ["a", "b", "c", "a"], Availability.AVAILABILITY_ACTIVE);
  expect(perNode(cluster)).toEqual({ a: 2, b: 2, c: 2 });
});

it("nothing moves from one node that is drained to another that is too", async () => {
  using cluster = new SteppedCluster();
  await cluster.addNodes("a", "b", "c");
  await cluster.deploy(aStack("s", [aService("web", { mode: replicas(6) })]));
  await cluster.settle();
  await update(cluster, ["a", "b"], Availability.AVAILABILITY_DRAIN);
  expect(perNode(cluster)).toEqual({ c: 6 });
  expect(cluster.tasks("s", "web").filter(({ nodeId, epoch }) => epoch > 1 && nodeId !== "c")).toEqual([]);
});

it("a wrong name among several changes none", () => {
  using cluster = new SteppedCluster();
  const request = UpdateNodeRequest.create({ node: "a", more: ["nope"] });
  expect(() => planNodeUpdate(cluster.index, request)).toThrow("there is no node a");
});

it.each([
  ["bad key", "x", '"bad key" cannot be a label\'s key'],
  ["k".repeat(300), "x", "(300 characters) cannot be a label's key"],
  ["a<b", "x", "cannot be a label's key"],
  ["\u001b[31m", "x", '"\\u001b[31m" cannot be a label\'s key'],
  ["a", "\u001b[31mred", '"\\u001b[31mred" cannot be the value of label a'],
  ["a", "v".repeat(257), "cannot be the value of label a"],
])("the label %j=%j is refused", async (key, value, message) => {
  using cluster = new SteppedCluster();
  await cluster.addNodes("a");
  const plan = (setLabels: Record<string, string>) => () =>
    planNodeUpdate(cluster.index, UpdateNodeRequest.create({ node: "a", setLabels }));
  expect(plan({ [key]: value })).toThrow(message);
  expect(plan({ "example.com/rack-1_é": "two words, é" })).not.toThrow();
});
