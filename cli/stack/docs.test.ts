import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { expect, it } from "vitest";
import { loadOver } from "../../test/conformance/walk.ts";
import { exampleFile, stackFileReference } from "./docs.ts";
import { diskFiles, formatDiagnostics, loadStack, toStackSpec } from "./index.ts";
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

it("the whole file that it shows loads, and is run by this version's cluster without a warning", () => {
  const loaded = loadStack({
    files: [exampleFile],
    workingDirectory: root,
    reader: diskFiles(),
    environment: {},
  });
  if (!loaded.ok) throw new Error(formatDiagnostics(loaded.errors));
  expect(loaded.warnings).toEqual([]);
  expect(toStackSpec(loaded)).toMatchObject({ ok: true });
});

it("every link of its contents leads to a heading, and every key is there", () => {
  const page = stackFileReference();
  const anchors = new Set<string>();
  for (const [, title = ""] of page.replace(/^```[\s\S]*?^```$/gm, "").matchAll(/^#+ (.*)$/gm)) {
    // As GitHub makes them.
    const anchor = title
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, "")
      .replaceAll(" ", "-");
    let name = anchor;
    for (let n = 1; anchors.has(name); n++) name = `${anchor}-${n}`;
    anchors.add(name);
  }
  const links = [...page.matchAll(/\]\(#([^)]*)\)/g)].map(([, anchor = ""]) => anchor);
  expect(links.filter((link) => !anchors.has(link))).toEqual([]);
  expect(new Set(links).size).toBe(anchors.size - 2);
});

it("docs/stack-file.md and docs/cli.md are what the code gives", () => {
  const run = () => execFileSync(process.execPath, [join(root, "scripts/docs.ts"), "--check"], { cwd: root });
  expect(run).not.toThrow();
});
