// Starts dist/<program>.mjs under Node 24: at once when this is Node 24, else by the `node` package of node_modules.
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { constants } from "node:os";
import { basename, join } from "node:path";
import { pathToFileURL } from "node:url";

const program = basename(process.argv[1]);
const root = join(import.meta.dirname, "..");
const bundle = join(root, "dist", `${program}.mjs`);

if (!existsSync(bundle)) {
  console.error(`${program} is not built yet.\nRun \`npm run setup\` in ${root}.`);
  process.exit(1);
}
if (Number(process.versions.node.split(".")[0]) >= 24) {
  process.argv[1] = bundle;
  await import(pathToFileURL(bundle).href);
} else {
  const node = join(root, "node_modules/node/bin/node");
  const child = spawn(node, [...process.execArgv, bundle, ...process.argv.slice(2)], { stdio: "inherit" });
  // A terminal sends control-C to both; what was sent to this process alone is passed on, and waited for.
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
    process.on(signal, () => {
      if (signal !== "SIGINT" || !process.stdin.isTTY) child.kill(signal);
    });
  }
  child.on("error", (error) => {
    console.error(`${program} needs Node 24, which \`npm run setup\` installs: ${error.message}`);
    process.exit(1);
  });
  child.on("close", (code, signal) => process.exit(code ?? 128 + (constants.signals[signal] ?? 0)));
}
