import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { expect, it } from "vitest";
import { loadOver } from "../../test/conformance/walk.ts";
import { stackFileReference } from "./docs.ts";
import { keyPaths } from "./keys/paths.ts";

const root = join(import.meta.dirname, "..", "..");

it("the reference page has every honoured key, with an example that loads", () => {
  const page = stackFileReference();
  for (const key of keyPaths().filter((one) => !one.below)) {
    expect(page).toContain(`\`${key.path}\``);
    if (key.decision !== "honoured") continue;
    const loaded = loadOver(key.example, ["debug"]);
    expect(loaded.ok ? [] : loaded.errors, key.path).toEqual([]);
  }
});

it("docs/stack-file.md is what the key table gives", () => {
  const run = () =>
    execFileSync(process.execPath, [join(root, "scripts/stack-file-docs.ts"), "--check"], { cwd: root });
  expect(run).not.toThrow();
});
