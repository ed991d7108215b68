import { execFileSync, spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { pushBusybox } from "../cluster/busybox.ts";
import { cgroupsOf } from "../cluster/cgroups.ts";
import { labCommand, startCluster } from "../cluster/cluster.ts";

/** What a lab of that name has on the machine, in whatever part of it. Other labs, and whatever else runs, do not count. */
function traces(name: string): string[] {
  const directory = join(process.env["EMBASSY_LAB_DIR"] ?? "/var/lib/embassy-lab", name);
  const found: string[] = existsSync(directory) ? [directory] : [];
  const lines = (command: string, ...args: string[]) =>
    execFileSync(command, args, { encoding: "utf8" }).split("\n").filter(Boolean);
  for (const pid of readdirSync("/proc").filter((entry) => /^\d+$/.test(entry))) {
    try {
      // Every process of a host, containers included, has something of the lab's directory mounted.
      if (readFileSync(`/proc/${pid}/mountinfo`, "utf8").includes(`${directory}/`)) {
        found.push(`process ${readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ")}`);
      }
    } catch {
      // It has ended meanwhile.
    }
  }
  found.push(
    ...readFileSync("/proc/self/mounts", "utf8")
      .split("\n")
      .filter((line) => line.includes(`${directory}/`)),
  );
  found.push(...lines("nft", "list", "tables").filter((line) => line.includes("embassy")));
  return found;
}

describe("lab down", () => {
  it("leaves no process, namespace, mount, table, cgroup or file behind, whatever ran", async () => {
    let name: string;
    let nodeIds: readonly string[];
    let link: string;
    {
      await using cluster = await startCluster({ hosts: 2 });
      name = cluster.name;
      link = linkTo(cluster.registry);
      nodeIds = (await cluster.nodes()).map(({ spec }) => spec.id);
      await pushBusybox(cluster);
      await cluster.deployText(
        "left",
        `services: {web: {image: "${cluster.registry}/busybox:1", command: [sleep, "1000"], deploy: {replicas: 4}, ports: ["8080:80"]}}`,
      );
      const fewer = await cluster.clusterctl(["lab", "up", "--name", name, "--hosts", "1"]);
      expect([fewer.code, fewer.stderr]).toEqual([
        5,
        expect.stringMatching(/lab \S+ has 2 hosts, and none is taken away/),
      ]);
      await cluster.kill("host-2", "noded");
      expect(traces(name).length).toBeGreaterThan(10);
      expect(cgroupsOf(nodeIds).length).toBeGreaterThan(0);
    }
    expect(traces(name)).toEqual([]);
    expect(cgroupsOf(nodeIds)).toEqual([]);
    expect(existsSync(`/sys/class/net/${link}`)).toBe(false);
  });

  it("cleans up after a lab up that was killed in the middle, at any step", async () => {
    // Each round kills a little later; the steps of `lab up` are lines on its output.
    for (const lines of [1, 3, 5, 7]) {
      const lab = labCommand(["up", "--hosts", "2"]);
      const child = spawn(lab.command, lab.args, { env: lab.environment, stdio: ["ignore", "pipe", "pipe"] });
      const closed = new Promise((resolve) => child.on("close", resolve));
      let seen = 0;
      child.stdout.on("data", (data: Buffer) => {
        seen += data.toString().split("\n").length - 1;
        if (seen >= lines) child.kill("SIGKILL");
      });
      child.stderr.resume();
      await closed;
      expect(seen).toBeGreaterThanOrEqual(lines);
      expect(traces(lab.name).length).toBeGreaterThan(0);
      const down = labCommand(["down"], lab);
      execFileSync(down.command, down.args, { env: down.environment });
      rmSync(lab.configDirectory, { recursive: true });
      expect(traces(lab.name), `killed after ${lines} lines`).toEqual([]);
    }
  });
});

/** The machine's end of the link to a lab: the device that leads to its registry. */
function linkTo(registry: string): string {
  const route = execFileSync("ip", ["route", "get", registry.split(":")[0] ?? ""], { encoding: "utf8" });
  return / dev (\S+)/.exec(route)?.[1] ?? "";
}
