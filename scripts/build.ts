/**
 * Bundles the four programs into dist/: a daemon that starts from one file uses less memory and starts faster than one
 * that strips types from a hundred. Run by `npm run build`.
 */
import { readdirSync, rmSync } from "node:fs";
import { type BuildOptions, build } from "esbuild";
import { bundleOptions } from "./bundle.ts";

const programs = {
  clusterd: "control-plane/main.ts",
  noded: "node-agent/main.ts",
  netd: "netd/main.ts",
  clusterctl: "cli/main.ts",
};

const only = process.argv.slice(2);
const wanted = (name: string) => only.length === 0 || only.includes(name);
const entries = (names: readonly (keyof typeof programs)[]) =>
  Object.fromEntries(names.filter(wanted).map((name) => [name, programs[name]]));

const options: BuildOptions = {
  outdir: "dist",
  outExtension: { ".js": ".mjs" },
  ...bundleOptions,
  sourcemap: "linked",
};

await build({ ...options, entryPoints: entries(["clusterd", "noded", "netd"]) });

// A command imports what it needs when it runs, so the CLI is split where it does: most of it is never loaded.
if (wanted("clusterctl")) {
  const chunks = "clusterctl";
  const { metafile } = await build({
    ...options,
    entryPoints: entries(["clusterctl"]),
    splitting: true,
    chunkNames: `${chunks}/[name]-[hash]`,
    metafile: true,
  });
  const made = new Set(Object.keys(metafile.outputs));
  for (const name of readdirSync(`dist/${chunks}`)) {
    if (!made.has(`dist/${chunks}/${name}`)) rmSync(`dist/${chunks}/${name}`);
  }
}
