import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ClusterError, errorCodes } from "../lib/errors/errors.ts";
import { everyCommand, pathOf } from "./commands/tree.ts";
import { commandReference } from "./docs.ts";
import { examples } from "./examples.ts";
import { exitCodeOf, exitCodes } from "./exit.ts";
import { processCli } from "./process-cli.ts";
import { makeProgram, withDashes } from "./program.ts";

const program = () => makeProgram(processCli(new AbortController().signal));
const leaves = everyCommand(program()).filter((command) => command.commands.length === 0);

describe("every command", () => {
  it.each(leaves.map((command) => [pathOf(command), command] as const))(
    "%s has an example, a sentence and words for each option",
    (path, command) => {
      expect(examples[path]?.length ?? 0).toBeGreaterThan(0);
      expect(command.description()).toMatch(/^[A-Z].*\.$/s);
      for (const { description } of [...command.options, ...command.registeredArguments])
        expect(description).not.toBe("");
    },
  );

  it.each(Object.entries(examples).flatMap(([path, lines]) => lines.map((line) => [line, path] as const)))(
    "the example %j is right",
    async (line, path) => {
      const words = line.match(/'[^']*'|\S+/g)?.map((word) => word.replaceAll("'", "")) ?? [];
      const parsed: string[] = [];
      const tried = program();
      for (const command of everyCommand(tried)) {
        if (command.commands.length === 0) command.action(() => void parsed.push(pathOf(command)));
      }
      await tried.parseAsync(withDashes(tried, words), { from: "user" });
      expect(parsed).toEqual([path]);
    },
  );
});

describe("exit codes", () => {
  // The page is compared with the code by the test of docs/.
  it("are all in the reference, each once", () => {
    const rows = [...commandReference(program()).matchAll(/^\| (\d+) \| \S.*\|$/gm)].map(([, code]) => Number(code));
    expect(rows).toEqual(Object.values(exitCodes));
  });

  it("of every error are in the table", () => {
    for (const code of errorCodes) {
      expect(Object.values(exitCodes)).toContain(exitCodeOf(new ClusterError("x", { code })));
    }
  });
});

describe("completion", () => {
  let directory: string;
  beforeAll(() => {
    directory = mkdtempSync(join(tmpdir(), "embassy-completion-"));
    writeFileSync(join(directory, "stack.yml"), "");
  });
  afterAll(() => rmSync(directory, { recursive: true }));

  async function scriptFor(shell: string): Promise<string> {
    let written = "";
    const cli = processCli(new AbortController().signal);
    const made = makeProgram({ ...cli, out: { ...cli.out, write: (text) => (written += text) } });
    await made.parseAsync(["completion", shell], { from: "user" });
    return written;
  }

  it.each([
    ["clusterctl dr", []],
    ["clusterctl de", ["deploy"]],
    ["clusterctl node ", ["activate", "drain", "label", "pause", "rm", "taint"]],
    ["clusterctl node dr", ["drain"]],
    ["clusterctl --context x node drain --ti", ["--timeout"]],
    ["clusterctl ps --output ", ["json", "table"]],
    ["clusterctl config --format y", ["yaml"]],
    ["clusterctl deploy st", ["stack.yml"]],
    ["clusterctl deploy -f ", ["stack.yml"]],
    ["clusterctl nodes ", []],
  ])("of %j in bash is %j", async (line, expected) => {
    const words = line.split(" ");
    const shell = `${await scriptFor("bash")}
COMP_WORDS=(${words.map((word) => `'${word}'`).join(" ")}); COMP_CWORD=${words.length - 1}; _clusterctl; printf '%s\\n' "\${COMPREPLY[@]}"`;
    const shown = execFileSync("bash", ["-uc", shell], { cwd: directory, encoding: "utf8" });
    expect(shown.split("\n").filter(Boolean).toSorted()).toEqual(expected);
  });

  it("is the same in zsh, by way of its functions for bash", async () => {
    expect(await scriptFor("zsh")).toBe(`autoload -U +X bashcompinit && bashcompinit\n${await scriptFor("bash")}`);
  });
});
