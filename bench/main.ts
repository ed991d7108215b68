/**
 * `npm run bench -- NAME [options]`: runs one benchmark, bench/NAME.ts, and prints its figures as a Markdown table below the
 * machine that they are of. Without a name it lists them.
 */
import { readdirSync } from "node:fs";
import { machine } from "./figures.ts";

interface Benchmark {
  readonly title: string;
  run(args: readonly string[]): Promise<void>;
}

const notBenchmarks = new Set(["main", "figures", "load"]);

const names = readdirSync(import.meta.dirname)
  .filter((file) => file.endsWith(".ts") && !file.endsWith(".test.ts"))
  .map((file) => file.slice(0, -".ts".length))
  .filter((name) => !notBenchmarks.has(name))
  .sort();

async function load(name: string): Promise<Benchmark> {
  const module = (await import(`./${name}.ts`)) as Partial<Benchmark>;
  if (typeof module.title !== "string" || typeof module.run !== "function") {
    throw new Error(`bench/${name}.ts must export title and run`);
  }
  return module as Benchmark;
}

async function list(): Promise<void> {
  const width = Math.max(...names.map((name) => name.length));
  console.error("usage: npm run bench -- NAME [options]");
  for (const name of names) console.error(`  ${name.padEnd(width)}  ${(await load(name)).title}`);
}

const [name, ...args] = process.argv.slice(2);
if (name === undefined) await list();
else if (!names.includes(name)) {
  console.error(`there is no benchmark ${name}`);
  await list();
  process.exitCode = 1;
} else {
  const benchmark = await load(name);
  console.log(`${name}: ${benchmark.title}\n${machine()}\n`);
  const startedMs = performance.now();
  await benchmark.run(args);
  console.log(`\nafter ${((performance.now() - startedMs) / 1_000).toFixed(0)} s`);
}
