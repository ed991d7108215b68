/**
 * The main job, shown: a linked stack on three hosts, whose redis moves from host to host under requests while no web
 * container notices. Run by `npm run quickstart`; idempotent; leaves the lab up for a look around.
 */
import { spawn, spawnSync } from "node:child_process";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

const root = join(import.meta.dirname, "..");
const clusterctl = join(root, "bin/clusterctl");
const environment = { ...process.env, PATH: `${join(root, "node_modules/node/bin")}:${process.env["PATH"] ?? ""}` };

/** Runs clusterctl before the reader's eyes. Ends the program when it fails: its own message says why. */
function show(...args: string[]): void {
  console.log(`\n$ npx clusterctl ${args.join(" ")}`);
  const result = spawnSync(clusterctl, args, { cwd: root, env: environment, stdio: "inherit" });
  if (result.status !== 0) stop(`\`clusterctl ${args.join(" ")}\` failed; its message is above.`);
}

/** Runs clusterctl and returns what it printed, without holding up whatever else goes on here. */
async function ask(...args: string[]): Promise<string> {
  const child = spawn(clusterctl, args, { cwd: root, env: environment, stdio: ["ignore", "pipe", "pipe"] });
  let output = "";
  let words = "";
  child.stdout.on("data", (chunk: Buffer) => {
    output += chunk.toString();
  });
  child.stderr.on("data", (chunk: Buffer) => {
    words += chunk.toString();
  });
  const code = await new Promise<number | null>((resolve) => child.on("close", resolve));
  if (code !== 0) stop(`\`clusterctl ${args.join(" ")}\` failed: ${words}`);
  return output.trim();
}

function stop(sentence: string): never {
  console.error(
    `\n${sentence}\nThe lab is still up: \`npx clusterctl lab status\`, its logs are named there. \`npx clusterctl lab down\` removes it.`,
  );
  process.exit(1);
}

function say(text: string): void {
  console.log(`\n==> ${text}`);
}

interface Placed {
  readonly name: string;
  readonly node: string;
  readonly pid: number;
}

/** The running tasks of the stack, by name. */
async function tasks(): Promise<Placed[]> {
  const { tasks: listed } = JSON.parse(await ask("ps", "counter", "--output", "json")) as {
    tasks: { task: { serviceName: string; slot: number }; status: { state: string; pid: number }; nodeName: string }[];
  };
  return listed
    .filter(({ status }) => status?.state === "running")
    .map(({ task, status, nodeName }) => ({
      name: `${task.serviceName}.${task.slot}`,
      node: nodeName,
      pid: status.pid,
    }))
    .sort((a, b) => a.name.localeCompare(b.name));
}

const placeOf = async (name: string) => (await tasks()).find((task) => task.name === name)?.node ?? "";
const webs = async () => (await tasks()).filter((task) => task.name.startsWith("web."));
const redisAsSeenBy = async (web: string) =>
  (await ask("exec", `counter_${web}`, "--", "getent", "hosts", "redis")).split(/\s+/)[0] ?? "";

/** Asks the page over and over until stopped; counts answers and the longest time without one. */
async function visit(
  url: string,
  during: () => Promise<void>,
): Promise<{ answers: number; failures: number; longestMs: number }> {
  const counts = { answers: 0, failures: 0, longestMs: 0 };
  let lastAnswer = performance.now();
  let on = true;
  const visitor = (async () => {
    while (on) {
      try {
        const response = await fetch(url, { signal: AbortSignal.timeout(1_000) });
        await response.text();
        if (!response.ok) throw new Error(response.statusText);
        counts.answers++;
        counts.longestMs = Math.max(counts.longestMs, performance.now() - lastAnswer);
        lastAnswer = performance.now();
      } catch {
        counts.failures++;
      }
      await delay(20);
    }
  })();
  await during();
  on = false;
  await visitor;
  return counts;
}

async function until(what: string, holds: () => Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 30_000;
  while (!(await holds())) {
    if (performance.now() > deadline) stop(`Not within 30 s: ${what}.`);
    await delay(100);
  }
}

say("a lab of three hosts, each with a node agent, a network daemon and namespaces of its own");
show("lab", "up", "--hosts", "3");

say("the example's two images, made from Debian packages and pushed to the lab's registry");
const images = spawnSync(process.execPath, [join(root, "examples/images.ts"), "counter"], {
  cwd: root,
  env: environment,
  stdio: "inherit",
});
if (images.status !== 0) stop("The images could not be made; the message is above.");

say("the stack: three web servers, one a host, linked to one redis");
show("deploy", "examples/counter/stack.yml");
show("ps", "counter");

const { hosts } = JSON.parse(await ask("lab", "status", "--output", "json")) as {
  hosts: { name: string; address: string }[];
};
const page = `http://${hosts[0]?.address}:8080/`;
say(`the page, at every host's port 8080: ${page}`);
for (const { address } of hosts) {
  const response = await fetch(`http://${address}:8080/`, { signal: AbortSignal.timeout(5_000) });
  process.stdout.write(`    ${address} says ${await response.text()}`);
}

say(`redis runs on ${await placeOf("redis.1")}. Moving it twice, by draining its host, while the page is visited:`);
const addresses = new Set<string>();
let replaced = 0;
const visits = await visit(page, async () => {
  for (let move = 1; move <= 2; move++) {
    const from = await placeOf("redis.1");
    console.log(`    move ${move}: draining ${from}`);
    const bystanders = (await webs()).filter(({ node }) => node !== from);
    const observer = bystanders[0]?.name ?? "web.1";
    addresses.add(await redisAsSeenBy(observer));
    await ask("node", "drain", from);
    addresses.add(await redisAsSeenBy(observer));
    const after = await webs();
    replaced += bystanders.filter(({ name, pid }) => after.find((task) => task.name === name)?.pid !== pid).length;
    console.log(
      `    move ${move}: ${from} -> ${await placeOf("redis.1")}; ${observer} sees redis at ${await redisAsSeenBy(observer)}`,
    );
    console.log(`    move ${move}: activating ${from}, and waiting until web runs on every host again`);
    await ask("node", "activate", from);
    await until("web runs on every host again", async () => (await webs()).length === hosts.length);
  }
});
console.log(
  `    ${visits.answers} answers, longest wait ${Math.round(visits.longestMs)} ms; ${visits.failures} visits met no redis, between its end and its start`,
);
console.log(
  `    web containers on the other hosts: ${replaced === 0 ? "the same processes throughout" : `${replaced} were replaced`}`,
);
if (addresses.size !== 1 || replaced > 0) {
  stop(
    `redis was seen at ${[...addresses].join(" and ")}, and ${replaced} web containers were replaced: neither may happen.`,
  );
}

say("That is the main job. The lab is still up; look around:");
console.log(`    curl ${page}
    npx clusterctl ps counter
    npx clusterctl logs -f counter_web
    npx clusterctl exec -it counter_web.1 sh
    npx clusterctl lab down        # removes everything`);
