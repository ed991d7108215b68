import { describe, expect, it } from "vitest";
import { BatchChild, type BatchTool, ipTool } from "./batch.ts";

const inShell = (script: string): BatchTool => ({ ...ipTool, program: "sh", args: ["-c", script] });

describe("BatchChild", () => {
  it("ties failures to their commands and goes on past them", async () => {
    await using ip = new BatchChild(ipTool);
    const failures = await ip.run(["link show dev lo", "link show dev none1", "link show dev lo", "bogus"]);
    expect(failures.map(({ command }) => command)).toEqual(["link show dev none1", "bogus"]);
    expect(failures[0]?.message).toContain("does not exist");
    expect(await ip.run(["link show dev lo"])).toEqual([]);
  });

  it("keeps apart the answers of batches that were given at once", async () => {
    await using ip = new BatchChild(ipTool);
    const results = await Promise.all(
      ["a", "b", "c", "d"].map(async (name) => await ip.run([`link show dev none${name}`, "link show dev lo"])),
    );
    expect(results.map((failures) => failures.map(({ command }) => command.at(-1)))).toEqual([
      ["a"],
      ["b"],
      ["c"],
      ["d"],
    ]);
  });

  it("fails what a child was at when it died, with its last words, and starts another", async () => {
    await using child = new BatchChild(inShell("read line; echo 'out of luck' >&2; exit 3"));
    await expect(child.run(["x"])).rejects.toThrow(/ended with 3: out of luck/);
    await expect(child.run(["x"])).rejects.toThrow(/ended with 3/);
  });

  it("says which program is missing", async () => {
    await using child = new BatchChild({ ...ipTool, program: "no-such-program" });
    await expect(child.run(["x"])).rejects.toThrow(/no-such-program/);
  });
});
