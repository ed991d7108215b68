import { expect, it } from "vitest";
import { loadStack, memoryFiles } from "./index.ts";

it("warns of a template in environment, which is passed on as it is", () => {
  const text = `services:
  web:
    image: web:1
    hostname: "web-{{.Task.Slot}}"
    environment: {NODE: "{{.Node.Hostname}}", FORMAT: "{{ .Names }}", PLAIN: a}
`;
  const loaded = loadStack({
    files: ["/shop/stack.yml"],
    workingDirectory: "/shop",
    reader: memoryFiles({ "/shop/stack.yml": text }),
    environment: {},
  });
  expect(loaded.ok).toBe(true);
  expect(loaded.warnings.map(({ path }) => path.join("."))).toEqual(["services.web.environment.NODE"]);
});
