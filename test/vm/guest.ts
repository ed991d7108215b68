/**
 * Runs in the machine that main.ts boots, as a service of its systemd: checks that the cgroups are those that were asked for, runs the
 * tests that README.md names, and says at the end what came of them.
 */
import { spawnSync } from "node:child_process";
import { readFileSync, symlinkSync } from "node:fs";
import { readCgroupTree } from "../../node-agent/runtime/cgroups.ts";

/** What the machine is to do; main.ts leaves it in the checkout. */
export interface Order {
  /** v1, hybrid or v2 */
  readonly mode: string;
  /** Filters of test files; empty: all that are meant for this machine. */
  readonly tests: readonly string[];
}

/** What came of the tests. */
export interface Summary {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
}

interface Report {
  readonly numPassedTests: number;
  readonly numFailedTests: number;
  readonly numFailedTestSuites: number;
  readonly numPendingTests: number;
}

const meant = ["node-agent/runtime/", "test/system/limits", "test/system/lab"];

function runTests(tests: readonly string[]): Summary {
  const results = "/run/results.json";
  const reporters = ["--reporter=verbose", "--reporter=json", `--outputFile.json=${results}`];
  const options = ["run", "--no-file-parallelism", ...reporters, ...tests];
  spawnSync(process.execPath, ["node_modules/vitest/vitest.mjs", ...options], {
    stdio: ["ignore", "inherit", "inherit"],
    env: { ...process.env, NO_COLOR: "1", CI: "1", EMBASSY_TEST_PATIENCE: "8" },
  });
  const report = JSON.parse(readFileSync(results, "utf8")) as Report;
  // A file that cannot be loaded has no tests that could fail.
  const failed = Math.max(report.numFailedTests, report.numFailedTestSuites > 0 ? 1 : 0);
  return { passed: report.numPassedTests, failed, skipped: report.numPendingTests };
}

const { mode, tests } = JSON.parse(readFileSync("order.json", "utf8")) as Order;
const tree = await readCgroupTree();
console.log(`cgroups ${tree.mode}: ${tree.mountPoints.join(" ")}`);
if (tree.mode !== mode) throw new Error(`the machine has cgroups ${tree.mode} and not ${mode}`);
// bin/ starts by whatever Node is on the PATH.
symlinkSync(process.execPath, "/usr/local/bin/node");
console.log(`summary: ${JSON.stringify(runTests(tests.length === 0 ? meant : tests))}`);
