// `npm test`: sets up what is missing, then runs every test. Arguments go to vitest: `npm test -- netd`.
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, rmSync } from "node:fs";
import { fail, root, setUp, step } from "./setup.js";

setUp();
if (process.getuid() !== 0) {
  fail("The tests make namespaces, mounts and containers, which needs root.\nRun `sudo npm test`.");
}
// One project after the other: the system tests have deadlines that the unit tests' load would spoil.
const node = "node_modules/node/bin/node";
const counts = { passed: 0, failed: 0, skipped: 0 };
let failures = 0;
for (const project of ["unit", "system"]) {
  step(`running the ${project} tests`);
  const results = `dist/test-results-${project}.json`;
  const reporters = ["--reporter=default", "--reporter=json", `--outputFile.json=${results}`];
  const options = ["run", "--project", project, "--passWithNoTests", ...reporters, ...process.argv.slice(2)];
  const tests = spawnSync(node, ["node_modules/vitest/vitest.mjs", ...options], { cwd: root, stdio: "inherit" });
  if (tests.status !== 0) failures++;
  if (!existsSync(results)) continue;
  const { numPassedTests, numFailedTests, numPendingTests } = JSON.parse(readFileSync(results, "utf8"));
  rmSync(results);
  counts.passed += numPassedTests;
  counts.failed += numFailedTests;
  counts.skipped += numPendingTests;
}
console.log(
  `\n${counts.passed} passed, ${counts.failed} failed${counts.skipped > 0 ? `, ${counts.skipped} skipped` : ""}`,
);
process.exit(failures === 0 ? 0 : 1);
