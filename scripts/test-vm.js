// `npm run test:vm`: sets up what is missing, then boots a Debian machine in an emulator and runs tests in it (test/vm/).
import { spawnSync } from "node:child_process";
import { fail, packages, root, setUp } from "./setup.js";

setUp();
if (process.getuid() !== 0) {
  fail("Making a root file system out of packages needs root.\nRun `sudo npm run test:vm`.");
}
const environment = { ...process.env, EMBASSY_VM_PACKAGES: Object.keys(packages).join(" ") };
// It cleans up after itself when it is told to end, and is told so when this is killed.
const args = ["--pdeathsig", "TERM", "--", "node_modules/node/bin/node", "test/vm/main.ts", ...process.argv.slice(2)];
const tests = spawnSync("setpriv", args, { cwd: root, stdio: "inherit", env: environment });
process.exit(tests.status ?? 1);
