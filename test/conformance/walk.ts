/**
 * Walks every key path of a stack file and shows what becomes of it: honoured, with the fixture that shows what it does to the
 * model, or refused, with the message. `npm run test:conformance` prints it and fails for a path without a fixture.
 *
 * A fixture (fixtures/keys/*.yml) is an override file laid over one base, and the places of the canonical stack that it changes. With
 * `--write-missing` fixtures are made for paths that have none, from the key table's examples: read them before committing.
 */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { parse, stringify } from "yaml";
import { diagnosticJson, type LoadResult, loadStack, memoryFiles, stackFile } from "../../cli/stack/index.ts";
import { EXAMPLE_BASE, type KeyPath, keyPaths } from "../../cli/stack/keys/paths.ts";
import { COMPOSE_KEY_PATHS } from "./compose-keys.ts";

export interface KeyFixture {
  /** Key path that it shows. */
  readonly path: string;
  /** Override file over the base. */
  readonly add: unknown;
  readonly profiles?: readonly string[];
  /** Places of the canonical stack and their values after it; null: gone. */
  readonly gives?: Readonly<Record<string, unknown>>;
  /** A warning, as `path: message`. */
  readonly warns?: string;
  /** The one error, as `path: message`. */
  readonly error?: string;
}

export interface WalkRow {
  readonly path: string;
  readonly outcome: "honoured" | "refused" | "failed";
  readonly text: string;
}

const KEYS = join(import.meta.dirname, "fixtures", "keys");
const DIRECTORY = "/stack";
const ENVIRONMENT = { DB_PASSWORD: "s3cret", APP_CONF: "listen 81;", MODE: "test" };

/** Loads an override over the base of fixtures. */
export function loadOver(override: unknown, profiles: readonly string[] = []): LoadResult {
  const files = Object.fromEntries(Object.entries(EXAMPLE_BASE).map(([name, text]) => [`${DIRECTORY}/${name}`, text]));
  return loadStack({
    files: ["base.yml", "override.yml"],
    workingDirectory: DIRECTORY,
    reader: memoryFiles({ ...files, [`${DIRECTORY}/override.yml`]: stringify(override) }),
    environment: ENVIRONMENT,
    profiles,
  });
}

/** One row for each key path of the table, of the Compose specification, and of the fixtures. */
export function walkKeys(): WalkRow[] {
  const fixtures = readFixtures();
  const known = new Map(keyPaths().map((key) => [key.path, key]));
  const paths = new Set([...known.keys(), ...COMPOSE_KEY_PATHS, ...fixtures.map((fixture) => fixture.path)]);
  return [...paths].map((path) => {
    const key = known.get(path);
    if (key === undefined) return { path, outcome: "failed", text: "is not in the key table (cli/stack/keys)" };
    const own = fixtures.filter((fixture) => fixture.path === path);
    if (own.length === 0) return { path, outcome: "failed", text: "has no fixture (test/conformance/fixtures/keys)" };
    for (const fixture of own) {
      const wrong = failure(fixture, key);
      if (wrong !== undefined) return { path, outcome: "failed", text: wrong };
    }
    const first = own.find((fixture) => (fixture.error === undefined) === (key.decision === "honoured"));
    if (first === undefined) return { path, outcome: "failed", text: "has only fixtures that fail" };
    return key.decision === "honoured"
      ? { path, outcome: "honoured", text: oneLine(first?.add) }
      : { path, outcome: "refused", text: first?.error ?? "" };
  });
}

function failure(fixture: KeyFixture, key: KeyPath): string | undefined {
  const result = loadOver(fixture.add, fixture.profiles);
  if (!result.ok) {
    const found = result.errors.map((error) => `${diagnosticJson(error).path}: ${error.message}`).join("; ");
    return found === fixture.error ? undefined : `fails with ${JSON.stringify(found)}`;
  }
  if (fixture.error !== undefined) return `loads, and should fail with ${JSON.stringify(fixture.error)}`;
  if (key.decision !== "honoured") return `loads, although the table says ${key.decision}`;
  const warnings = result.warnings.map((warning) => `${diagnosticJson(warning).path}: ${warning.message}`).join("; ");
  if (warnings !== (fixture.warns ?? "")) return `warns ${JSON.stringify(warnings)}`;
  if (Object.keys(fixture.gives ?? {}).length === 0 && fixture.warns === undefined)
    return "has a fixture that shows nothing";
  const plain = stackFile(result.stack);
  for (const [place, value] of Object.entries(fixture.gives ?? {})) {
    const found = at(plain, place) ?? null;
    if (!isDeepStrictEqual(found, value)) return `gives ${place}: ${oneLine(found)}, and should give ${oneLine(value)}`;
  }
  return undefined;
}

/** The value at a place such as `services/web/ports/0/target`. */
function at(value: unknown, place: string): unknown {
  return place
    .split("/")
    .reduce<unknown>(
      (here, step) => (typeof here === "object" && here !== null ? (here as Record<string, unknown>)[step] : undefined),
      value,
    );
}

export function readFixtures(): KeyFixture[] {
  return readdirSync(KEYS)
    .toSorted()
    .flatMap((name) => parse(readFileSync(join(KEYS, name), "utf8")) as KeyFixture[]);
}

function oneLine(value: unknown): string {
  return stringify(value, { collectionStyle: "flow", lineWidth: 0 }).trim();
}

// ---- making fixtures

function fixtureFor(key: KeyPath): KeyFixture {
  const { path, example: add } = key;
  const before = stackFile(expectOk(loadOver({})).stack);
  const profiles = path === "services.*.profiles" ? ["debug"] : [];
  const result = loadOver(add, profiles);
  if (!result.ok)
    return {
      path,
      add,
      error: result.errors.map((error) => `${diagnosticJson(error).path}: ${error.message}`).join("; "),
    };
  const gives: Record<string, unknown> = {};
  differences(before, stackFile(result.stack), "", gives);
  const warns = result.warnings.map((warning) => `${diagnosticJson(warning).path}: ${warning.message}`).join("; ");
  return { path, add, ...(warns !== "" && { warns }), ...(profiles.length > 0 && { profiles }), gives };
}

function expectOk(result: LoadResult) {
  if (!result.ok) throw new Error(`the base does not load: ${JSON.stringify(result.errors.map(diagnosticJson))}`);
  return result;
}

function differences(before: unknown, after: unknown, place: string, found: Record<string, unknown>): void {
  if (isDeepStrictEqual(before, after)) return;
  const isPlain = (value: unknown): value is Record<string, unknown> =>
    typeof value === "object" && value !== null && !Array.isArray(value);
  if (isPlain(before) && isPlain(after)) {
    for (const name of new Set([...Object.keys(before), ...Object.keys(after)]))
      differences(before[name], after[name], place === "" ? name : `${place}/${name}`, found);
  } else found[place] = after ?? null;
}

function writeMissing(): void {
  const have = new Set(readFixtures().map((fixture) => fixture.path));
  const missing = keyPaths().filter((key) => !have.has(key.path));
  for (const key of missing) {
    const section =
      /^services\.\*\.(x-[a-z-]+|deploy|networks|ports|volumes|build)/.exec(key.path)?.[1] ??
      key.path.split(/[.[]/)[0] ??
      "stack";
    const group = key.decision === "honoured" ? section.replace(/^x-.*/, "extensions") : "refused";
    const file = join(KEYS, `${group === "name" || group === "version" || group === "include" ? "stack" : group}.yml`);
    let text = "";
    try {
      text = readFileSync(file, "utf8");
    } catch {
      // The first fixture of the group.
    }
    writeFileSync(file, `${text}${stringify([fixtureFor(key)], { lineWidth: 0, collectionStyle: "any" })}`);
  }
  console.log(`${missing.length} fixtures written; read them before committing`);
}

if (import.meta.main) {
  if (process.argv.includes("--write-missing")) writeMissing();
  else {
    const rows = walkKeys();
    const width = Math.max(...rows.map((row) => row.path.length));
    for (const { path, outcome, text } of rows)
      console.log(
        `${path.padEnd(width)}  ${outcome.padEnd(8)}  ${text.length > 160 ? `${text.slice(0, 157)}...` : text}`,
      );
    const count = (outcome: string): number => rows.filter((row) => row.outcome === outcome).length;
    console.log(
      `\n${rows.length} key paths: ${count("honoured")} honoured, ${count("refused")} refused, ${count("failed")} failed`,
    );
    if (count("failed") > 0) process.exitCode = 1;
  }
}
