import { expect, it } from "vitest";
import { loadStack, memoryFiles } from "../index.ts";

function errorsFor(constraint: string): string[] {
  const text = JSON.stringify({
    services: { web: { image: "a", deploy: { placement: { constraints: [constraint] } } } },
  });
  const result = loadStack({
    files: ["s.yml"],
    workingDirectory: "/p",
    reader: memoryFiles({ "/p/s.yml": text }),
    environment: {},
  });
  return result.ok ? [] : result.errors.map((error) => error.message);
}

it.each([
  "node.labels.zone == a",
  "node.role!=manager",
  "Node.Role == worker",
  "node.labels.zone in (a, b)",
  "node.labels.zone not in (a)",
  "node.labels.gpu exists",
  "node.labels.gpu not exists",
  "node.hostname =~ ^web-[0-9]+",
  "node.labels.kernel >= 6.1",
  "node.labels.x == 'two words'",
])("%s is a constraint", (constraint) => {
  expect(errorsFor(constraint)).toEqual([]);
});

it.each([
  ["node.labels.zone", "takes a constraint"],
  ["node.labels.zone = a", "takes a constraint"],
  ["node.labels.zone ==", "takes a constraint"],
  ["node.labels.zone in a", "takes a constraint"],
  ["node.labels.zone in ()", "takes values in brackets"],
  ["engine.labels.os == linux", '"engine.labels.os" is not an attribute of a node'],
  ["node.ip == 10.0.0.1", '"node.ip" is not an attribute of a node'],
  ["node.labels. == a", '"node.labels." is not an attribute of a node'],
])("%s is refused", (constraint, message) => {
  expect(errorsFor(constraint)).toEqual([expect.stringContaining(message)]);
});
