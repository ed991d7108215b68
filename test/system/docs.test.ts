import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { startCluster } from "../cluster/cluster.ts";
import { root, runCommand } from "../cluster/command.ts";
import { deployCounter, pids, running } from "./counter.ts";
import { blocksOf } from "./markdown.ts";

const clusterd = [join(root, "node_modules/node/bin/node"), join(root, "dist/clusterd.mjs")];

it("docs/getting-started.md: every command, one after the other, and redis keeps its address", async () => {
  // A lab and a configuration of its own, so that the reader's lab stays as it is.
  const environment = {
    EMBASSY_LAB_DIR: mkdtempSync("/var/lib/embassy-docs-"),
    EMBASSY_CONFIG_DIR: mkdtempSync(join(tmpdir(), "embassy-docs-")),
  };
  try {
    const commands = blocksOf("docs/getting-started.md").flatMap(({ commands }) => commands);
    expect(commands.length).toBeGreaterThan(20);
    const addresses: string[] = [];
    for (const line of commands) {
      const result = await runCommand(["sh", "-c", line], { environment });
      expect(result.code, `${line}\n${result.stdout}${result.stderr}`).toBe(0);
      if (line.includes("getent")) addresses.push(result.stdout);
      if (line.includes("curl")) expect(result.stdout).toMatch(/"hits": 1/);
    }
    expect(addresses).toHaveLength(2);
    expect(addresses[0]).toBe(addresses[1]);
  } finally {
    await runCommand(["npx", "clusterctl", "lab", "down"], { environment });
    for (const folder of Object.values(environment)) rmSync(folder, { recursive: true, force: true });
  }
});

it("docs/operations.md: a host goes, and a restored cluster goes on with the same containers", async () => {
  await using cluster = await startCluster({ hosts: 3 });
  await deployCounter(cluster);
  // A node that is given options is one that starts; here they have started.
  const [first, why, whatIf, goBack, drain, remove, join, spread, _resources, _disk, taint, backup, restore, ...more] =
    blocksOf("docs/operations.md");
  expect(more).toEqual([]);
  const run = async (block: typeof first) => {
    for (const line of block?.commands ?? []) {
      const words = line.split(" ");
      if (block?.where === "host=first") {
        const program = words[0] === "clusterd" ? clusterd : [words[0] ?? ""];
        const address = cluster.hosts[0]?.address ?? "";
        const own = words.slice(1).map((word) => (word === "10.0.0.11" ? address : word));
        const result = await cluster.exec("host-1", [...program, ...own]);
        expect(result.code, `${line}\n${result.stderr}`).toBe(0);
      } else {
        expect(words.shift()).toBe("clusterctl");
        await cluster.run(words);
      }
    }
  };
  await run(first);
  await run(why);
  await run(whatIf);
  await run(goBack);
  await run(drain);
  await cluster.killHost("host-3");
  await cluster.untilNodes("host-3 is down", (nodes) =>
    nodes.some(({ spec, status }) => spec.name === "host-3" && status?.state === "down"),
  );
  await run(remove);
  expect((await cluster.nodes()).map(({ spec }) => spec.name)).toEqual(["host-1", "host-2"]);
  await run(join);
  await run(spread);
  await run(taint);
  await cluster.until("what the taint drove away is back", (now) => {
    return running(now, "redis").length === 1 && running(now, "web").length === 2;
  });

  const stopClusterd = async () => {
    await cluster.exec("host-1", ["sh", "-c", "kill $(cat /run/lab/clusterd.pid)"]);
    const ended = ["sh", "-c", "! kill -0 $(cat /run/lab/clusterd.pid) && ! ps -C etcd"];
    await cluster.untilTrue(
      "clusterd and etcd have ended",
      async () => (await cluster.exec("host-1", ended)).code === 0,
    );
  };
  const startClusterd = async () => {
    await cluster.start("host-1", "clusterd");
    await cluster.untilTrue("clusterd answers", async () => (await cluster.clusterctl(["info"])).code === 0);
  };
  const before = { ...pids(await cluster.tasks(), "web"), ...pids(await cluster.tasks(), "redis") };
  expect(Object.keys(before)).toHaveLength(3);
  await run(backup);
  await cluster.run(["scale", "counter_redis=2"]);
  await stopClusterd();
  // Cut short, it is no backup; and over a cluster that is there nothing is restored.
  const restored = async (file: string) => {
    const result = await cluster.exec("host-1", [...clusterd, "restore", file, "--advertise", "10.0.0.11"]);
    return result.stderr;
  };
  const file = "/var/lib/embassy/cluster.backup";
  await cluster.exec("host-1", ["sh", "-c", `head -c 1000 ${file} > ${file}.part`]);
  expect(await restored(`${file}.part`)).toContain("is no backup, or is damaged");
  expect(await restored(file)).toContain("holds a cluster already");
  await run(restore);
  await startClusterd();
  const tasks = await cluster.until(
    "the second redis is gone again",
    (now) => running(now, "redis").length === 1 && running(now, "web").length === 2,
  );
  expect({ ...pids(tasks, "web"), ...pids(tasks, "redis") }).toEqual(before);
});
