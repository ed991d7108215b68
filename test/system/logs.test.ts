import { spawn } from "node:child_process";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { pushBusybox } from "../cluster/busybox.ts";
import { type Cluster, startCluster } from "../cluster/cluster.ts";
import { clusterctlCommand } from "../cluster/command.ts";
import { running } from "./counter.ts";

/** A service that counts from 1, ten times a second, and ends at once when it is asked to. */
const counting = `
services:
  tick:
    image: $REGISTRY/busybox:1
    command:
      - sh
      - -c
      - trap 'exit 0' TERM; i=0; while true; do i=$$((i+1)); echo $$i; sleep 0.1; done
`;

/** `clusterctl logs --follow`, until it ends by itself or is disposed of. */
class Follower implements AsyncDisposable {
  /** The numbers that each task wrote, by its id, as they came. */
  readonly lines = new Map<string, number[]>();
  /** undefined while it runs; null: it was killed. */
  exitCode: number | null | undefined;
  readonly #ended: Promise<void>;
  readonly #child;
  #rest = "";

  constructor(cluster: Cluster, target: string) {
    const [program, ...args] = clusterctlCommand;
    const words = [...args, "--context", cluster.contextFile, "logs", "--follow", "--output", "json", target];
    this.#child = spawn(program, words, { stdio: ["ignore", "pipe", "ignore"] });
    this.#ended = new Promise((resolve) => {
      this.#child.on("close", (code) => {
        this.exitCode = code;
        resolve();
      });
    });
    this.#child.stdout.setEncoding("utf8").on("data", (text: string) => {
      const lines = (this.#rest + text).split("\n");
      this.#rest = lines.pop() ?? "";
      for (const line of lines) this.#take(JSON.parse(line) as { taskId: string; line: string; warning?: string });
    });
  }

  /** How many lines of the task came. */
  count(taskId: string): number {
    return this.lines.get(taskId)?.length ?? 0;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill("SIGINT");
    await this.#ended;
  }

  #take({ taskId, line, warning }: { taskId: string; line: string; warning?: string }): void {
    if (warning) return;
    const numbers = this.lines.get(taskId) ?? [];
    this.lines.set(taskId, numbers);
    numbers.push(Number(line));
  }
}

const upTo = (n: number) => Array.from({ length: n }, (_, i) => i + 1);

describe("a followed log", () => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster({ hosts: 3 });
    await pushBusybox(cluster);
    await cluster.deployText("s", counting);
  });
  afterAll(async () => await cluster?.[Symbol.asyncDispose]());

  it("of a task that was replaced while its node was away goes on to its last line and ends; its successor's goes on", async () => {
    const [old] = running(await cluster.tasks(), "tick");
    if (old === undefined) throw new Error("no task runs");
    await using ofTask = new Follower(cluster, old.task.id);
    await using ofService = new Follower(cluster, "s_tick");
    await cluster.untilTrue("both followers have lines", async () => {
      await Promise.resolve();
      return ofTask.count(old.task.id) > 0 && ofService.count(old.task.id) > 0;
    });

    await cluster.kill(old.nodeName, "noded");
    const tasks = await cluster.until("the task is replaced elsewhere", (now) =>
      running(now, "tick").some(({ task }) => task.id !== old.task.id),
    );
    const next = running(tasks, "tick").find(({ task }) => task.id !== old.task.id)?.task.id ?? "";
    await cluster.start(old.nodeName, "noded");

    await cluster.untilTrue("the follower of the old task ends", async () => {
      await Promise.resolve();
      return ofTask.exitCode !== undefined;
    });
    expect(ofTask.exitCode).toBe(0);
    const { stdout } = await cluster.run(["logs", "--output", "json", old.task.id]);
    const written = stdout.trim().split("\n").length;
    expect(ofTask.lines).toEqual(new Map([[old.task.id, upTo(written)]]));
    await cluster.untilTrue("the service's follower has the old task's last line, and its successor's", async () => {
      await Promise.resolve();
      return ofService.count(old.task.id) >= written && ofService.count(next) > 10;
    });
    expect(ofService.lines.get(old.task.id)).toEqual(upTo(written));
    expect(ofService.lines.get(next)).toEqual(upTo(ofService.count(next)));
    expect([...ofService.lines.keys()]).toEqual([old.task.id, next]);
  });

  it("goes on with the next line when the control plane was away", async () => {
    const [task] = running(await cluster.tasks(), "tick");
    if (task === undefined) throw new Error("no task runs");
    const { id } = task.task;
    await using ofService = new Follower(cluster, "s_tick");
    const until = async (condition: string, holds: () => boolean) =>
      await cluster.untilTrue(condition, async () => await Promise.resolve(holds()));
    await until("the follower has lines", () => ofService.count(id) > 0);
    for (let turn = 0; turn < 2; turn++) {
      await cluster.kill("host-1", "clusterd");
      await cluster.start("host-1", "clusterd");
      const before = ofService.count(id);
      await until("the follower has more lines", () => ofService.count(id) > before + 20);
    }
    expect(ofService.lines.get(id)).toEqual(upTo(ofService.count(id)));
    expect(ofService.exitCode).toBeUndefined();
  });
});
