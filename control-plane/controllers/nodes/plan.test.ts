import { describe, expect, it } from "vitest";
import { NodeState } from "../../../proto/gen/embassy/v1/state.ts";
import { TestCluster } from "../../domain/testing.ts";
import { planNode } from "./plan.ts";

const graceMs = 10_000;

/** Node "a" is up by its status; session and member as given. */
async function aNode(session: boolean, member: string | undefined, state: NodeState = NodeState.NODE_STATE_READY) {
  const cluster = new TestCluster();
  await cluster.addNodes("a");
  const status = cluster.index.nodeStatus("a");
  if (status === undefined) throw new Error("a node has a status");
  await cluster.store.commit([
    { table: "nodeStatuses", id: "a", value: { ...status, state, clusterd: "m", incarnation: "one" } },
    ...(session ? [] : [{ table: "sessions" as const, id: "a", value: undefined }]),
    ...(member === undefined
      ? []
      : [{ table: "memberSessions" as const, id: "m", value: { name: "m", incarnation: member } }]),
  ]);
  return cluster.index.view;
}

describe("a node", () => {
  it.each([
    ["with its session", true, "one", "keep"],
    ["with its session, whatever became of its member", true, undefined, "keep"],
    ["without its session, while the member that held it lives", false, "one", "down"],
    ["without its session, when its member is gone", false, undefined, "wait"],
    ["without its session, when its member has started again", false, "two", "wait"],
  ] as const)("%s", async (_, session, member, expected) => {
    expect(planNode(await aNode(session, member), "a", 1_000, 2_000, graceMs).kind).toBe(expected);
  });

  it("is down once the grace is over, and not before", async () => {
    const view = await aNode(false, undefined);
    expect(planNode(view, "a", 1_000, 10_999, graceMs)).toEqual({ kind: "wait", untilMs: 11_000 });
    expect(planNode(view, "a", 1_000, 11_000, graceMs).kind).toBe("down");
    expect(planNode(view, "a", undefined, 5_000, graceMs)).toEqual({ kind: "wait", untilMs: 15_000 });
  });

  it("that is down stays as it is", async () => {
    const view = await aNode(false, "one", NodeState.NODE_STATE_DOWN);
    expect(planNode(view, "a", 1_000, 99_000, graceMs).kind).toBe("keep");
  });
});
