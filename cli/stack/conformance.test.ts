import { expect, it } from "vitest";
import { describeResult, loadCase, readStackCases } from "../../test/conformance/stacks.ts";
import { walkKeys } from "../../test/conformance/walk.ts";
import { convertStack } from "./convert.ts";
import { memoryFiles } from "./files.ts";
import { formatStack, loadStack } from "./index.ts";

it("every key path of the table and of the Compose specification has a fixture that shows what becomes of it", () => {
  const rows = walkKeys();
  expect(rows.filter((row) => row.outcome === "failed")).toEqual([]);
  expect(rows.filter((row) => row.outcome === "refused" && row.text === "")).toEqual([]);
  expect(rows.length).toBeGreaterThan(400);
});

const cases = readStackCases();

it("there are at least 40 whole files", () => {
  expect(cases.length).toBeGreaterThanOrEqual(40);
});

it.each(cases.map((one) => [one.name, one] as const))("%s loads to what is expected", (_name, one) => {
  expect(describeResult(loadCase(one))).toEqual(one.expected);
});

const loadable = cases.filter((one) => one.expected?.kind === "stack");

it.each(loadable.map((one) => [one.name, one] as const))(
  "%s: loading what is printed gives the same stack",
  (_name, one) => {
    const first = loadCase(one);
    if (!first.ok) throw new Error("does not load");
    for (const format of ["yaml", "json"] as const) {
      const again = loadStack({
        files: ["/elsewhere/printed.yml"],
        workingDirectory: "/elsewhere",
        reader: memoryFiles({ ...one.files, "/elsewhere/printed.yml": formatStack(first.stack, format) }),
        environment: one.options.environment,
      });
      expect(again.ok ? again.stack : again.errors).toEqual(first.stack);
    }
  },
);

it.each(loadable.map((one) => [one.name, one] as const))(
  "%s converts whole, or says what the cluster does not run",
  (_name, one) => {
    const loaded = loadCase(one);
    if (!loaded.ok) throw new Error("does not load");
    const converted = convertStack(loaded);
    if (converted.ok)
      expect(converted.spec.services.map((service) => service.name)).toEqual(Object.keys(loaded.stack.services));
    else
      for (const error of converted.errors)
        expect(error).toMatchObject({
          code: "not-in-cluster",
          message: expect.stringContaining("not run by this version's cluster yet"),
        });
  },
);
