import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { startCluster } from "../cluster/cluster.ts";
import { root, runCommand } from "../cluster/command.ts";
import { blocksOf } from "./markdown.ts";

describe("every command of the README", () => {
  const blocks = blocksOf("README.md");
  const local = blocks.filter(({ where }) => where === "").map(({ commands }) => commands);
  // A lab and a configuration of its own, so that the reader's lab stays as it is.
  let environment: Record<string, string>;
  beforeAll(() => {
    const folder = mkdtempSync(join(tmpdir(), "embassy-readme-"));
    environment = { EMBASSY_LAB_DIR: mkdtempSync("/var/lib/embassy-readme-"), EMBASSY_CONFIG_DIR: folder };
  });
  afterAll(async () => {
    await runCommand(["npx", "clusterctl", "lab", "down"], { environment });
    for (const folder of Object.values(environment)) rmSync(folder, { recursive: true, force: true });
  });

  async function shell(line: string): Promise<string> {
    const result = await runCommand(["sh", "-c", line], { environment, timeoutMs: 280_000 });
    expect(result.code, `${line}\n${result.stdout}${result.stderr}`).toBe(0);
    return result.stdout;
  }

  it("is in a block that is tried here", () => {
    expect(local.map(([first]) => first)).toEqual([
      "npm run quickstart",
      "npm test",
      "npx clusterctl lab up --hosts 3",
      "npx clusterctl exec counter_web.2 getent hosts redis",
      "npx clusterctl rm counter",
      "npm run setup",
    ]);
    expect(blocks.map(({ where }) => where).filter(Boolean)).toEqual([
      "host=first",
      "host=each",
      "host=first",
      "host=first",
      "host=others",
      "host=first",
    ]);
  });

  it("quickstart shows the main job", async () => {
    const shown = await shell("npm run quickstart");
    expect(shown).toMatch(/the same processes throughout/);
    await shell("npx clusterctl lab down");
  });

  it("by hand, one after the other", async () => {
    const byHand = local.slice(2).flat();
    expect(byHand.length).toBeGreaterThan(10);
    const answers: string[] = [];
    for (const command of byHand) {
      const output = await shell(command);
      if (command.includes("getent")) answers.push(output);
    }
    expect(answers).toHaveLength(2);
    expect(answers[0]).toBe(answers[1]);
  });

  it("on real hosts: a cluster made by hand", async () => {
    // Hosts of a lab, without what the lab has put on them.
    await using cluster = await startCluster({ hosts: 3 });
    const [first, second, third] = cluster.hosts;
    if (first === undefined || second === undefined || third === undefined) throw new Error("no hosts");
    const on = async (host: string, line: string) => {
      const result = await cluster.exec(host, ["sh", "-c", `cd ${root} && ${line}`]);
      expect(result.code, `${line}\n${result.stdout}${result.stderr}`).toBe(0);
      return result.stdout.trim();
    };
    for (const { name } of cluster.hosts) {
      const processes = name === first.name ? ["noded", "netd", "clusterd", "etcd"] : ["noded", "netd"];
      for (const process of processes) await cluster.kill(name, process);
      await on(name, "umount /run/embassy/netns/*; rm -rf /var/lib/embassy/*/* /run/embassy/*");
    }
    const context = `EMBASSY_CONFIG_DIR=${environment["EMBASSY_CONFIG_DIR"]}/real`;
    let token = "";
    let managerToken = "";
    const hostsOf = (where: string) => {
      if (where === "host=each") return [first, second];
      return where === "host=others" ? [second, third] : [first];
    };
    for (const { where, commands } of blocks.filter((block) => block.where !== "")) {
      for (const { name } of hostsOf(where)) {
        for (const command of commands) {
          const line = command
            .replaceAll("192.0.2.11", first.address)
            .replaceAll('"$TOKEN"', token)
            .replaceAll('"$MANAGER_TOKEN"', managerToken);
          // A program that serves stays in the foreground of its own terminal.
          if (line.endsWith(" run")) await on(name, `(setsid ${line} >/run/lab/${line.split(/[ /]/)[1]}.log 2>&1 &)`);
          else if (line.includes(" init ")) token = await on(name, line);
          else if (line.includes(" token create")) managerToken = await on(name, line);
          else if (line.includes(" join "))
            await cluster.untilTrue(
              `${name} joins`,
              async () => (await cluster.exec(name, ["sh", "-c", `cd ${root} && ${line}`])).code === 0,
            );
          else await on(name, `${context} ${line}`);
        }
      }
    }
    await cluster.untilTrue("all three managers serve", async () => {
      const managers = await on(first.name, `${context} bin/clusterctl managers`);
      return managers.split("\n").filter((line) => / ready .* (leader|voter) /.test(line)).length === 3;
    });
    await cluster.untilTrue("both nodes are ready", async () => {
      const nodes = await on(first.name, `${context} bin/clusterctl nodes`);
      return nodes.split("\n").filter((line) => line.includes(" ready ")).length === 2;
    });
  });
});
