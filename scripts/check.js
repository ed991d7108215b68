// `npm run check`: types, lint, import rules, format, and whether the generated code is current.
import { spawnSync } from "node:child_process";
import { fail, root, setUp, step } from "./setup.js";

setUp();
const node = "node_modules/node/bin/node";
const checks = {
  types: ["node_modules/.bin/tsc"],
  "lint and format": ["node_modules/.bin/biome", "check", "--error-on-warnings", "."],
  "promises and import rules": ["node_modules/.bin/oxlint", "--type-aware", "--deny-warnings"],
  "generated code": [node, "scripts/generate.ts", "--check"],
};
const environment = { ...process.env, PATH: `${root}/node_modules/node/bin:${process.env.PATH}` };
let failed = 0;
for (const [name, [command, ...args]] of Object.entries(checks)) {
  step(`checking ${name}`);
  const started = Date.now();
  const result = spawnSync(command, args, { cwd: root, encoding: "utf8", env: environment });
  if (result.status !== 0) {
    failed++;
    console.error(`${result.stdout ?? ""}${result.stderr ?? ""}${result.error?.message ?? ""}`);
  }
  console.log(`    ${result.status === 0 ? "good" : "FAILED"}, ${((Date.now() - started) / 1000).toFixed(1)} s`);
}
if (failed > 0)
  fail(
    `${failed} of ${Object.keys(checks).length} checks failed. \`npm run format\` mends what can be mended by itself.`,
  );
