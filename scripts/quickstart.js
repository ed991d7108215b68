// `npm run quickstart`: sets up what is missing, then shows the main job on a lab of three hosts.
import { spawnSync } from "node:child_process";
import { fail, root, setUp } from "./setup.js";

setUp();
if (process.getuid() !== 0) {
  fail("The lab makes namespaces, mounts and containers, which needs root.\nRun `sudo npm run quickstart`.");
}
const show = spawnSync("node_modules/node/bin/node", ["scripts/quickstart.ts"], { cwd: root, stdio: "inherit" });
process.exit(show.status ?? 1);
