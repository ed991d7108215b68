/**
 * Writes the pages of docs/ that are made from the code: stack-file.md from the key table of the loader, cli.md from the
 * commands. `--check` compares instead, and exits 1 when a page is not current.
 */
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { commandReference } from "../cli/docs.ts";
import { processCli } from "../cli/process-cli.ts";
import { makeProgram } from "../cli/program.ts";
import { stackFileReference } from "../cli/stack/docs.ts";

const root = join(import.meta.dirname, "..");
const pages: Readonly<Record<string, string>> = {
  "stack-file.md": stackFileReference(),
  "cli.md": commandReference(makeProgram(processCli(new AbortController().signal))),
};

for (const [name, made] of Object.entries(pages)) {
  const page = join(root, "docs", name);
  // In the form that the formatter would give it, so that formatting the repository does not change it.
  const text = execFileSync(join(root, "node_modules/.bin/biome"), ["format", `--stdin-file-path=${name}`], {
    cwd: root,
    input: made,
    encoding: "utf8",
  });
  if (!process.argv.includes("--check")) {
    writeFileSync(page, text);
    console.log(`wrote ${page}: ${text.length} characters`);
  } else if (text !== currentText(page)) {
    console.error(`docs/${name} is not current: run \`npm run docs\``);
    process.exitCode = 1;
  }
}

function currentText(page: string): string | undefined {
  try {
    return readFileSync(page, "utf8");
  } catch {
    return undefined;
  }
}
