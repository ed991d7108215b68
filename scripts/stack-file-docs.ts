/**
 * Writes docs/stack-file.md, the reference of stack files, from the key table that the loader uses. `--check` compares
 * instead, and exits 1 when the page is not current.
 */
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { stackFileReference } from "../cli/stack/docs.ts";

const root = join(import.meta.dirname, "..");
const page = join(root, "docs", "stack-file.md");
// In the form that the formatter would give it, so that formatting the repository does not change it.
const text = execFileSync(join(root, "node_modules/.bin/biome"), ["format", "--stdin-file-path=stack-file.md"], {
  cwd: root,
  input: stackFileReference(),
  encoding: "utf8",
});

if (process.argv.includes("--check")) {
  let current = "";
  try {
    current = readFileSync(page, "utf8");
  } catch {
    // Missing: not current.
  }
  if (current !== text) {
    console.error("docs/stack-file.md is not current: run `npm run docs:stack-file`");
    process.exitCode = 1;
  }
} else {
  writeFileSync(page, text);
  console.log(`wrote ${page}: ${text.length} characters`);
}
