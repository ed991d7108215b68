import { expect, it } from "vitest";
import * as apiTypes from "../proto/gen/embassy/v1/api.ts";
import { ListTasksResponse, NodeView } from "../proto/gen/embassy/v1/api.ts";
import * as stackTypes from "../proto/gen/embassy/v1/stack.ts";
import * as stateTypes from "../proto/gen/embassy/v1/state.ts";
import { Availability, DesiredState, NodeState, TaskState } from "../proto/gen/embassy/v1/state.ts";
import { enumWords, jsonOf } from "./json.ts";

it("says enums in plain words, wherever they stand", () => {
  const tasks = [
    { task: { desired: DesiredState.DESIRED_STATE_SHUTDOWN }, status: { state: TaskState.TASK_STATE_RUNNING } },
  ];
  expect(jsonOf(ListTasksResponse, ListTasksResponse.fromPartial({ tasks }))).toMatchObject({
    tasks: [{ task: { desired: "shutdown" }, status: { state: "running" } }],
  });
  const node = {
    spec: { name: "TASK_STATE_RUNNING", availability: Availability.AVAILABILITY_DRAIN },
    status: { state: NodeState.NODE_STATE_DOWN },
  };
  expect(jsonOf(NodeView, NodeView.fromPartial(node))).toMatchObject({
    spec: { name: "TASK_STATE_RUNNING", availability: "drain" },
    status: { state: "down" },
  });
});

it("has a word for every value of every enum of the API, one each within an enum", () => {
  const modules: Record<string, unknown>[] = [apiTypes, stackTypes, stateTypes];
  const enums = modules
    .flatMap((module) => Object.values(module))
    .filter((value): value is Record<string, number> => typeof value === "object" && value !== null)
    .filter((value) => Object.keys(value).length > 0 && Object.values(value).every((one) => typeof one === "number"));
  expect(enums.length).toBeGreaterThan(8);
  for (const values of enums) {
    const words = Object.keys(values).map((name) => enumWords.get(name));
    expect(words).not.toContain(undefined);
    expect(new Set(words).size).toBe(words.length);
    for (const word of words) expect(word).toMatch(/^[a-z]+(-[a-z]+)*$/);
  }
});
