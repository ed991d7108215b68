import { readFileSync } from "node:fs";
import { join } from "node:path";
import { root } from "../cluster/command.ts";

/** Commands of a page. */
export interface Block {
  /** What stands behind "```sh": on which hosts its commands run; empty: in a checkout on this machine. */
  readonly where: string;
  readonly commands: readonly string[];
}

/** The command blocks of a Markdown file, in order. */
export function blocksOf(file: string): Block[] {
  const text = readFileSync(join(root, file), "utf8");
  return [...text.matchAll(/^```sh *(.*)\n([\s\S]*?)^```$/gm)].map(([, where = "", body = ""]) => ({
    where,
    commands: body.split("\n").filter((line) => line.trim() !== "" && !line.startsWith("#")),
  }));
}
