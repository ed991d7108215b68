/**
 * Loads mutated stack files: texts with lines moved, cut and spliced, and trees with parts exchanged between the whole files
 * and keys of the key table. Whatever comes: a stack that prints and loads again to itself, or errors with places inside the
 * file; never an exception, and never a load that takes seconds. `npm run test:fuzz:stack [cases] [seed]`, 10,000 by default.
 */
import { isDeepStrictEqual } from "node:util";
import fc from "fast-check";
import { parse, stringify } from "yaml";
import { convertStack } from "../../cli/stack/convert.ts";
import { diagnosticJson, formatDiagnostics, formatStack, loadStack, memoryFiles } from "../../cli/stack/index.ts";
import { keyPaths } from "../../cli/stack/keys/paths.ts";
import { readStackCases } from "./stacks.ts";

const DIRECTORY = "/stack";
/** Ten times what the largest of the whole files takes on a slow machine. */
const MAX_MS = 5000;

interface Corpus {
  readonly texts: readonly string[];
  /** Texts and trees of those that load, where one mutation often leaves something that still does. */
  readonly goodTexts: readonly string[];
  readonly goodTrees: readonly unknown[];
  readonly files: Readonly<Record<string, Uint8Array>>;
  readonly parts: readonly unknown[];
  readonly keys: readonly string[];
}

/** Texts of stack files, mutated. */
export function mutatedTexts(): fc.Arbitrary<string> {
  return textMutation(readCorpus());
}

function readCorpus(): Corpus {
  const cases = readStackCases();
  const texts = cases.flatMap((one) =>
    Object.entries(one.files).flatMap(([path, bytes]) =>
      path.endsWith(".yml") ? [new TextDecoder().decode(bytes)] : [],
    ),
  );
  const files = Object.fromEntries(
    cases.flatMap((one) =>
      Object.entries(one.files).map(([path, bytes]) => [path.replace(`/${one.name}/`, `${DIRECTORY}/`), bytes]),
    ),
  );
  const parts: unknown[] = keyPaths().map((key) => key.example);
  for (const text of texts) {
    try {
      const tree: unknown = parse(text, { logLevel: "silent", maxAliasCount: 100 });
      // As JSON, which has no shared and no circular parts.
      if (typeof tree === "object" && tree !== null) parts.push(JSON.parse(JSON.stringify(tree)));
    } catch {
      // Some of the whole files are broken on purpose.
    }
  }
  const keys = [...new Set(keyPaths().flatMap((key) => key.path.split(/[.[\]*]+/)))].filter((key) => key !== "");
  const good = cases.filter((one) => one.expected?.kind === "stack").flatMap((one) => Object.entries(one.files));
  const goodTexts = good.flatMap(([path, bytes]) =>
    path.endsWith("/stack.yml") ? [new TextDecoder().decode(bytes)] : [],
  );
  const goodTrees = goodTexts
    .filter((text) => !text.includes("\n---"))
    .map((text) => JSON.parse(JSON.stringify(parse(text, { merge: true }))));
  return { texts, goodTexts, goodTrees, files, parts, keys };
}

const ODD_SCALARS = [
  ..."~ null -1 0 1e309 yes 2024-01-01 $$ *x << 0x7f 1_000 99999999999999999999 ../../.. C:\\x \u202e é [ {a ' \" # | > @ ` % __proto__ constructor 80:80 /a:/b:ro".split(
    " ",
  ),
  "",
  "$" + "{",
  "$" + "{A:-$" + "{B:-$" + "{C}}}",
  "&x y",
  "!reset null",
  "!override []",
  "a: b",
  "- a",
];

/** From 0 to 1, evenly: fast-check likes the ends, and with them the first and last lines. */
const SHARE = fc.noBias(fc.nat(9999)).map((value) => value / 10_000);

/** Mutations of text: what editors, merges and accidents do. */
function textMutation(corpus: Corpus): fc.Arbitrary<string> {
  const text = fc.oneof(fc.constantFrom(...corpus.goodTexts), fc.constantFrom(...corpus.texts));
  const step = fc.record({
    kind: fc.nat(9),
    at: SHARE,
    length: fc.nat(5),
    odd: fc.constantFrom(...ODD_SCALARS, ...corpus.keys),
  });
  return fc.tuple(text, text, fc.array(step, { minLength: 1, maxLength: 4 })).map(([first, second, steps]) => {
    const lines = first.split("\n");
    const other = second.split("\n");
    for (const { kind, at, length, odd } of steps) {
      const line = Math.floor(at * lines.length);
      const old = lines[line] ?? "";
      const middle = Math.floor(at * old.length);
      if (kind === 0) lines.splice(line, length + 1);
      else if (kind === 1) lines.splice(line, 0, ...lines.slice(line, line + length + 1));
      else if (kind === 2)
        lines.splice(line, 0, ...other.slice(line % other.length, (line % other.length) + length + 1));
      else if (kind === 3) lines[line] = `${" ".repeat(length)}${old}`;
      else if (kind === 4) lines[line] = old.slice(Math.min(length, old.length));
      else if (kind === 5) lines[line] = `${old.slice(0, middle)}${odd}${old.slice(middle)}`;
      else if (kind === 6) lines[line] = old.replace(/:.*$/, `: ${odd}`);
      else if (kind === 7) lines[line] = old.replace(/[\w-]+(?=:)/, odd);
      else if (kind === 8) lines[line] = `${old.slice(0, middle)}${old.slice(middle + length + 1)}`;
      else lines.length = Math.max(1, line);
    }
    return lines.join("\n");
  });
}

/** Mutations of trees: keys and values where they do not belong, which stay good YAML. */
function treeMutation(corpus: Corpus): fc.Arbitrary<string> {
  const part = fc.constantFrom(...corpus.parts);
  const whole = fc.oneof(fc.constantFrom(...corpus.goodTrees), fc.constantFrom(...corpus.goodTrees), part);
  const step = fc.record({
    // Grafts are most, because they are what leaves a stack that still loads.
    kind: fc.noBias(fc.nat(19)),
    pick: fc.array(SHARE, { minLength: 8, maxLength: 8 }),
    from: part,
    key: fc.constantFrom(...corpus.keys),
    odd: fc.oneof(
      fc.constantFrom<unknown>(...ODD_SCALARS, null, true, 0, -1, 1.5, [], {}),
      fc.string({ maxLength: 12 }),
      fc.integer(),
    ),
  });
  return fc.tuple(whole, fc.array(step, { minLength: 1, maxLength: 4 })).map(([first, steps]) => {
    const root = structuredClone(first) as Record<string, unknown>;
    for (const { kind, pick, from, key, odd: shared } of steps) {
      const odd = structuredClone(shared);
      const holder = choose(root, pick);
      const names = Object.keys(holder);
      const name = names[Math.floor((pick[0] ?? 0) * names.length)] ?? key;
      const donor = choose(structuredClone(from) as Record<string, unknown>, pick.toReversed());
      if (kind === 0) set(holder, name, odd);
      else if (kind === 1) set(holder, key, odd);
      else if (kind === 2) set(holder, name, donor);
      else if (kind === 3) set(holder, key, donor);
      else if (kind === 4) delete holder[name];
      else if (kind === 5) set(holder, name, [holder[name], odd]);
      else graft(root, from as Record<string, unknown>, pick[0] ?? 0);
    }
    return stringify(root, { aliasDuplicateObjects: false });
  });
}

/** Gives one of the services (and the sections beside them) what an example has. */
function graft(root: Record<string, unknown>, example: Record<string, unknown>, pick: number): void {
  const services = root["services"];
  const names = isMap(services) ? Object.keys(services) : [];
  const name = names[Math.floor(pick * names.length)] ?? "web";
  for (const [section, content] of Object.entries(structuredClone(example))) {
    if (section !== "services" || !isMap(content)) blend(root, { [section]: content });
    else for (const service of Object.values(content)) blend(root, { services: { [name]: service } });
  }
}

function blend(target: Record<string, unknown>, more: Record<string, unknown>): void {
  for (const [key, value] of Object.entries(more)) {
    const old = target[key];
    if (isMap(old) && isMap(value)) blend(old, value);
    else set(target, key, value);
  }
}

function isMap(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function choose(root: Record<string, unknown>, picks: readonly number[]): Record<string, unknown> {
  let here = root;
  for (const pick of picks) {
    const inner = Object.values(here).filter(
      (value): value is Record<string, unknown> => typeof value === "object" && value !== null,
    );
    const next = inner[Math.floor(pick * (inner.length + 1))];
    if (next === undefined) return here;
    here = next;
  }
  return here;
}

function set(holder: Record<string, unknown>, name: string, value: unknown): void {
  Object.defineProperty(holder, name, { value, enumerable: true, configurable: true, writable: true });
}

const ENVIRONMENT = { TAG: "1", PW: "secret", HOME: "/root", EMPTY: "" };

/** Whether the text loaded; throws when the loader broke its promise. */
function check(text: string, corpus: Corpus): boolean {
  const load = (files: readonly string[], more: Record<string, string>) =>
    loadStack({
      files,
      workingDirectory: DIRECTORY,
      reader: memoryFiles({ ...corpus.files, ...more }),
      environment: ENVIRONMENT,
      profiles: ["debug"],
    });
  const started = performance.now();
  const result = load(["fuzzed.yml"], { [`${DIRECTORY}/fuzzed.yml`]: text });
  const took = performance.now() - started;
  if (took > MAX_MS) throw new Error(`took ${Math.round(took)} ms`);
  if (!result.ok) {
    if (result.errors.length === 0) throw new Error("fails without an error");
    formatDiagnostics([...result.errors, ...result.warnings]);
    for (const error of result.errors) {
      if (error.message === "") throw new Error("an error without words");
      const { line = 1 } = diagnosticJson(error);
      const lines = error.at?.source.text.split("\n").length ?? 1;
      if (line < 1 || line > lines) throw new Error(`line ${line} of ${lines}`);
    }
    return false;
  }
  convertStack(result);
  const printed = formatStack(result.stack, "yaml");
  const again = load(["printed.yml"], { [`${DIRECTORY}/printed.yml`]: printed });
  if (!again.ok) throw new Error(`what is printed does not load:\n${formatDiagnostics(again.errors)}\n${printed}`);
  const difference = firstDifference(
    JSON.parse(JSON.stringify(result.stack)),
    JSON.parse(JSON.stringify(again.stack)),
    "",
  );
  if (difference !== undefined) throw new Error(`what is printed loads to another stack: ${difference}`);
  return true;
}

function firstDifference(before: unknown, after: unknown, place: string): string | undefined {
  if (isDeepStrictEqual(before, after)) return undefined;
  if (isMap(before) && isMap(after)) {
    for (const key of new Set([...Object.keys(before), ...Object.keys(after)])) {
      const found = firstDifference(before[key], after[key], `${place}/${key}`);
      if (found !== undefined) return found;
    }
  }
  return `${place}: ${JSON.stringify(before)} became ${JSON.stringify(after)}`;
}

/** Throws with the smallest failing text. Returns how many of the cases loaded. */
export function fuzzStackFiles(
  cases: number,
  seed: number,
): { readonly loaded: number; readonly refused: number; readonly slowestMs: number } {
  const corpus = readCorpus();
  const counts = { loaded: 0, refused: 0, slowestMs: 0 };
  fc.assert(
    fc.property(fc.oneof(textMutation(corpus), treeMutation(corpus)), (text) => {
      const started = performance.now();
      if (check(text, corpus)) counts.loaded++;
      else counts.refused++;
      counts.slowestMs = Math.max(counts.slowestMs, performance.now() - started);
    }),
    { numRuns: cases, seed, interruptAfterTimeLimit: 600_000 },
  );
  return counts;
}

if (import.meta.main) {
  const cases = Number(process.argv[2] ?? 10_000);
  const seed = Number(process.argv[3] ?? Date.now() % 2 ** 31);
  console.log(`${cases} cases, seed ${seed}`);
  const started = performance.now();
  const { loaded, refused, slowestMs } = fuzzStackFiles(cases, seed);
  console.log(
    `${loaded} loaded, ${refused} refused, all good in ${((performance.now() - started) / 1000).toFixed(1)} s; the slowest took ${Math.round(slowestMs)} ms`,
  );
}
