// Makes this machine and checkout ready: Debian packages, npm packages, the bundles in dist/. Each step does nothing when
// its work is done already. Plain JavaScript for whatever Node the machine has; everything after it runs on Node 24.
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

export const root = join(dirname(fileURLToPath(import.meta.url)), "..");

/** What a host needs, and what the lab, the examples and the tests need beside it: package, and a file that it brings. */
export const packages = {
  "etcd-server": "/usr/bin/etcd",
  "etcd-client": "/usr/bin/etcdctl",
  runc: "/usr/sbin/runc",
  crun: "/usr/bin/crun",
  conmon: "/usr/bin/conmon",
  "golang-github-containers-common": "/usr/share/containers/seccomp.json",
  nftables: "/usr/sbin/nft",
  iproute2: "/usr/sbin/ip",
  conntrack: "/usr/sbin/conntrack",
  tini: "/usr/bin/tini-static",
  tar: "/usr/bin/tar",
  zstd: "/usr/bin/zstd",
  curl: "/usr/bin/curl",
  procps: "/usr/sbin/sysctl",
  "docker-registry": "/usr/bin/docker-registry",
  "busybox-static": "/usr/bin/busybox",
};

/** Ends the program with a sentence that says what to do. */
export function fail(sentence) {
  console.error(`\n${sentence}`);
  process.exit(1);
}

/** Prints what is being done, in a line. */
export function step(text) {
  console.log(`==> ${text}`);
}

function installedOnThisMachine([, file]) {
  return existsSync(file) || existsSync(file.replace("/usr/", "/"));
}

function run(command, args, failure, options = {}) {
  const result = spawnSync(command, args, { cwd: root, stdio: ["ignore", "inherit", "inherit"], ...options });
  if (result.error !== undefined || result.status !== 0) fail(failure);
}

function ensurePackages() {
  const missing = Object.entries(packages)
    .filter((entry) => !installedOnThisMachine(entry))
    .map(([name]) => name);
  if (missing.length === 0) return;
  const line = `apt-get install -y --no-install-recommends ${missing.join(" ")}`;
  if (!existsSync("/usr/bin/apt-get")) {
    fail(
      `This machine has no apt-get, and these programs are missing: ${missing.join(", ")}.\nInstall them by its package manager, then run this again.`,
    );
  }
  const asRoot = process.getuid() === 0 ? [] : ["sudo"];
  step(`installing from Debian, a minute or two: ${missing.join(", ")}`);
  const environment = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  const quiet = (words) => {
    const [command, ...args] = [...asRoot, ...words];
    return spawnSync(command, args, { encoding: "utf8", env: environment, stdio: ["inherit", "pipe", "pipe"] });
  };
  const update = quiet(["apt-get", "update", "-qq"]);
  // Debian starts what it installs; these services are started by Embassy alone, on data directories of its own.
  const policy = "/usr/sbin/policy-rc.d";
  const ownPolicy = process.getuid() === 0 && !existsSync(policy);
  if (ownPolicy) writeFileSync(policy, "#!/bin/sh\nexit 101\n", { mode: 0o755 });
  const install = quiet(line.split(" "));
  if (ownPolicy) spawnSync("rm", ["-f", policy]);
  if (install.error !== undefined || install.status !== 0) {
    fail(
      `Installing failed:\n${update.stderr ?? ""}${install.stderr ?? install.error?.message ?? ""}\nRun this as root, see what it says, then run this again:\n  apt-get update && ${line}`,
    );
  }
}

/** A stamp file holds the hash of what a step was made from, so that the step runs again only when that changes. */
function whenChanged(stamp, inputs, work) {
  const hash = createHash("sha256");
  for (const input of inputs) hash.update(input).update("\0").update(readFileSync(input)).update("\0");
  const digest = hash.digest("hex");
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === digest) return;
  work();
  mkdirSync(dirname(stamp), { recursive: true });
  writeFileSync(stamp, digest);
}

function sources(directory) {
  return readdirSync(directory)
    .sort()
    .flatMap((name) => {
      const path = join(directory, name);
      if (statSync(path).isDirectory()) return sources(path);
      return path.endsWith(".ts") && !path.endsWith(".test.ts") ? [path] : [];
    });
}

/** Debian packages, npm packages, bundles. */
export function setUp() {
  process.chdir(root);
  if (process.platform !== "linux") fail("Embassy runs on Linux. Use a Debian 12 machine or virtual machine.");
  ensurePackages();
  whenChanged("node_modules/.embassy-installed", ["package-lock.json"], () => {
    step("installing npm packages into node_modules, from npm's registry: a minute or two, more over a slow line");
    run(
      "npm",
      ["ci", "--no-audit", "--no-fund", "--loglevel=error"],
      "npm ci failed; its message is above. Mend that, then run this again.",
    );
  });
  if (!existsSync("node_modules/node/bin/node")) {
    fail(
      "npm did not install the `node` package's program, because it does not run install scripts here.\nRun `npm rebuild node`, then run this again.",
    );
  }
  const inputs = ["lib", "proto/gen", "control-plane", "node-agent", "netd", "cli"].flatMap(sources);
  whenChanged("dist/.built", ["scripts/build.ts", "package-lock.json", ...inputs], () => {
    step("building the four programs into dist/: a few seconds");
    run("node_modules/node/bin/node", ["scripts/build.ts"], "The build failed; its message is above.");
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) setUp();
