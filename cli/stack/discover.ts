import { join } from "node:path";
import { FileProblem, type Files } from "./files.ts";

const NAMES = ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml", "stack.yaml", "stack.yml"];
const OVERRIDES = [
  "compose.override.yaml",
  "compose.override.yml",
  "docker-compose.override.yaml",
  "docker-compose.override.yml",
];

/**
 * The stack files to load when none is named: those of COMPOSE_FILE (split at COMPOSE_PATH_SEPARATOR, else at a colon), or
 * the first usual name in the directory, with its override file. Empty when there is none.
 */
export function findStackFiles(
  directory: string,
  environment: Readonly<Record<string, string | undefined>>,
  files: Files,
): string[] {
  const named = environment["COMPOSE_FILE"];
  if (named !== undefined && named !== "") {
    return named.split(environment["COMPOSE_PATH_SEPARATOR"] ?? ":").filter((path) => path !== "");
  }
  const isThere = (name: string): boolean => {
    try {
      return files.realpath(join(directory, name)) !== undefined;
    } catch (error) {
      if (error instanceof FileProblem) return true;
      throw error;
    }
  };
  const main = NAMES.find(isThere);
  if (main === undefined) return [];
  const override = main.startsWith("stack") ? undefined : OVERRIDES.find(isThere);
  return override === undefined ? [main] : [main, override];
}
